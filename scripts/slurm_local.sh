#!/usr/bin/env bash
# A throw-away Slurm of two nodes on this machine, for tests: scripts/slurm_local.sh up|down FOLDER
# Needs root and Debian's slurm-wlm. Afterwards: export SLURM_CONF=FOLDER/slurm.conf PATH=FOLDER/bin:$PATH
set -euo pipefail
what=${1:?up or down} folder=$(mkdir -p "${2:?a folder}" && cd "$2" && pwd) host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf
port=$((17000 + $(cksum <<<"$folder" | cut -d ' ' -f 1) % 4000 * 3)) # one of its own, so that several do not mix

down() {
  for file in "$folder"/*.pid; do kill "$(cat "$file")" 2>/dev/null || true; done # some may have ended by themselves
}

up() {
  mkdir -p "$folder/state" "$folder/bin"
  # Both names resolve here, so that the processes of a job find one another.
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
FirstJobId=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=86400
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 RealMemory=1000 State=UNKNOWN
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  echo CgroupAutomount=no >"$folder/cgroup.conf"
  # Without a database there is no sacct, by which submitit learns how jobs ended: scontrol knows as well.
  cat >"$folder/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    shift
    scontrol show job -o "$1" 2>/dev/null | while read -r line; do
      of() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" <<<"$line"; }
      array=$(of ArrayJobId) task=$(of ArrayTaskId)
      name=${array:+${array}_$task}
      echo "${name:-$(of JobId)}|$(of JobState)|$(of NodeList)"
    done
  fi
  shift
done
SACCT
  chmod +x "$folder/bin/sacct"
  slurmctld
  slurmd -N "$host"
  slurmd -N localhost
  for _ in $(seq 100); do
    [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" = 2 ] && return
    sleep 0.1
  done
  echo "Slurm did not start: see $folder/*.log" >&2
  return 1
}

"$what"
