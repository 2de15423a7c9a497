"""The plan: what `run` would do, with its price, without doing it. Nothing is written, submitted or downloaded.

survey    where its jobs would run, and what the cluster has to say
outline   the cells that can run, and what would be refused
measured  records of earlier runs and evals, which estimates rest on
price     each task's seconds: charged, and not
disk      what runs leave on the disk
width     how long the tasks take so many at a time
show      all of it, printed
"""
