# shellcheck shell=bash disable=SC2154
# Read by slurm-up, whose settings it uses: write_configuration puts slurm.conf,
# gres.conf, slurmdbd.conf (with accounting) and the cluster's shape into $dir/etc.
# Why each unobvious line is there: README.md.

first_job=$((1 + EPOCHSECONDS % 60000 * 1000))

write_slurm_conf() {
  local i h kv gres=''
  [ "$gpus" -gt 0 ] && gres=" Gres=gpu:$gpus"
  {
    cat <<EOF
# Written by slurm-up. A cluster of $nodes virtual nodes on one host, for tests.
ClusterName=virt
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again.
AuthInfo=socket=$short/sock/munge,cred_expire=$cred_expire
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny

SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
StateSaveLocation=$dir/state
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmdSpoolDir=$short/spool/%n
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true

# Nodes claim more CPUs, memory and GPUs than there are; nothing is confined.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((mem / cpus > 0 ? mem / cpus : 1))
PropagateResourceLimits=NONE

# Memory is watched by polling: a job above its --mem is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill

# Scheduling at the speed of a test suite. Backfill stays the slower of the two
# loops: a job that it starts is not written to the state folder at once, and a
# controller that dies would take such a job for pending.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=10,bf_continue,default_queue_depth=1000,nohold_on_prolog_fail
PriorityType=priority/basic
JobRequeue=1
ReturnToService=2
KillWait=$kill_wait
SlurmdTimeout=$slurmd_timeout
MessageTimeout=10
InactiveLimit=0
MinJobAge=300
MaxJobCount=20000
# Job ids start where no earlier cluster's did, lest a folder named by job id
# hand one cluster's result to another's job.
FirstJobId=$first_job
MaxArraySize=10001

# Preemption by partition: urgent > main > scavenge; only scavenge's jobs are
# preempted, by requeueing, and first get the signal they asked for.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

EOF
    if [ "$accounting" = dbd ]; then
      cat <<EOF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((base + 1))
# "Password" means here: the munge socket to use when talking to slurmdbd.
AccountingStoragePass=$short/sock/munge
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
EOF
    else
      echo "AccountingStorageType=accounting_storage/none"
    fi
    echo
    for ((i = 1; i <= nodes; i++)); do
      h=n$i
      [ "$isolated" = 1 ] || h=$(hostname -s)
      echo "NodeName=n$i NodeHostname=$h NodeAddr=127.0.0.1 Port=$((base + 1 + i)) CPUs=$cpus RealMemory=$mem$gres State=UNKNOWN"
    done
    cat <<EOF

PartitionName=main     Nodes=$list Default=YES DefaultTime=10 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=short    Nodes=$list DefaultTime=1 MaxTime=1 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=urgent   Nodes=$list DefaultTime=10 MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF State=UP
PartitionName=scavenge Nodes=$list DefaultTime=10 MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace State=UP
EOF
  } >"$dir/etc/slurm.conf"
  for kv in ${extra[@]+"${extra[@]}"}; do
    sed -i "/^${kv%%=*}=/Id" "$dir/etc/slurm.conf"
    printf '%s\n' "$kv" >>"$dir/etc/slurm.conf"
  done
}

write_gres_conf() {
  local comm
  {
    echo "AutoDetect=off"
    if [ "$gpus" -gt 0 ]; then
      comm="$dir/gpu/nvidia0"
      [ "$gpus" -gt 1 ] && comm="$dir/gpu/nvidia[0-$((gpus - 1))]"
      [ "$fake_gpu" = tty ] && { comm=/dev/tty0; [ "$gpus" -gt 1 ] && comm="/dev/tty[0-$((gpus - 1))]"; }
      echo "NodeName=$list Name=gpu File=$comm Flags=nvidia_gpu_env"
    fi
  } >"$dir/etc/gres.conf"
}

write_slurmdbd_conf() { # readable for its owner only, or slurmdbd refuses
  (
    umask 077
    cat >"$dir/etc/slurmdbd.conf" <<EOF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((base + 1))
CommunicationParameters=NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$short/sock/munge
SlurmUser=$me
LogFile=$dir/log/slurmdbd.log
PidFile=$dir/run/slurmdbd.pid
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$me
StorageLoc=slurm_acct
EOF
  )
}

write_configuration() {
  local list=n1
  [ "$nodes" -gt 1 ] && list="n[1-$nodes]"
  write_slurm_conf
  write_gres_conf
  [ "$accounting" = none ] || write_slurmdbd_conf
  printf '%s\n' "$shape" >"$dir/etc/shape"
}
