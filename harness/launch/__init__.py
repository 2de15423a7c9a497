"""Where the work of a study runs: in this process, in one worker per device, or as jobs of a SLURM cluster.

options   what a user says of the cluster
tasks     the study as tasks, with what each needs
folders   claims, outcomes and leases of tasks; the folder of a batch of jobs
freeze    the copy of the code that jobs run
worker    what a job does
queue     what SLURM says
submit    what SLURM is told, through submitit
standing  where each task stands, from the folder and the queue
drive     the loop that brings a study to its end
local     workers on this machine
"""
