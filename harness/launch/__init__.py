"""Where the work of a study runs: in this process, in one worker per device, or as jobs of a SLURM cluster.

options    what a user says of the cluster
tasks      the study as tasks, with what each needs
folders    claims, outcomes and leases of tasks; the folder of a batch of jobs
truth      what the store says of tasks: whether they are done, and how far they are
freeze     the copy of the code that jobs run
worker     what a job does
queue      what SLURM says
preflight  whether the cluster can run what is asked for
submit     what SLURM is told, through submitit
slurm      SLURM as an executor, of the two
here       what workers on this machine and this process share
local      workers on this machine
inline     this process as an executor
living     work that is alive in another way than this command's
standing   where each task stands, from the folder and the queue
drive      the loop that brings a study to its end
show       what a user sees of it
command    run, resume, cancel, logs, and the job that makes the tables
cli        their command lines
"""
