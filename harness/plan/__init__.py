"""The plan: what `run` would do, with its price, without doing it. Nothing is submitted or downloaded, and nothing
written but, in the user's cache, what the methods' code said (harness/answers.py): the next plan need not import it.

survey    where its jobs would run, and what the cluster has to say
planned   what a cell's method says of it, now or in an earlier command; `remember` keeps it for what `run` has imported
outline   the cells that can run, and what would be refused
measured  records of earlier runs and evals, which estimates rest on
price     each task's seconds: charged, and not
disk      what runs leave on the disk
width     how long the tasks take so many at a time
show      all of it, printed
"""
