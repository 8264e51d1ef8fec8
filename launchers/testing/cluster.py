"""A throw-away SLURM cluster of two nodes on one machine, for tests: no systemd, no database, nothing left behind.

    python launchers/testing/cluster.py start FOLDER    prints the lines to export
    python launchers/testing/cluster.py stop FOLDER     ends the daemons of FOLDER and removes it

Needs root and `apt-get install --no-install-recommends slurm-wlm munge`. Keys, sockets, logs and state lie in FOLDER.
Partition `high` preempts partition `main`, whose jobs have 20 seconds to save before they are killed and requeued.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

NODES, CPUS = 2, 4

# `cred_expire` is how long a requeued job waits; `config_overrides` lets nodes have more CPUs than the machine.
CONFIGURATION = """\
ClusterName=testing
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
"""
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""

# submitit asks sacct, which needs a database; the controller knows the same of recent jobs.
SACCT = """\
#!/usr/bin/env python3
import re, subprocess, sys
jobs = [value for flag, value in zip(sys.argv, sys.argv[1:]) if flag == "-j"]
print("JobID|State|NodeList")
for job in jobs:
    told = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True).stdout
    for line in told.splitlines():
        known = dict(re.findall(r"(\\w+)=(\\S*)", line))
        name = known["JobId"]
        if "ArrayJobId" in known:
            task = known["ArrayTaskId"]
            name = known["ArrayJobId"] + "_" + (task if task.isdigit() else f"[{task}]")
        print(name, known["JobState"], known.get("NodeList", ""), sep="|")
"""


def start(folder: Path) -> dict[str, str]:
    """Start the daemons; returns what to add to the environment of whoever submits."""
    folder.mkdir(parents=True)
    (folder / "state").mkdir()
    (folder / "bin").mkdir()
    stand_in = folder / "bin" / "sacct"
    stand_in.write_text(SACCT)
    stand_in.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(host=host, port=_free_port(), folder=folder)
    for n in range(1, NODES + 1):
        (folder / f"spool-n{n}").mkdir()
        text += f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} CPUs={CPUS} State=UNKNOWN\n"
    (folder / "slurm.conf").write_text(text + PARTITIONS)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    # MASTER_ADDR: the names of the nodes are in no table of names, so processes could not find the first one.
    extra = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    extra["MASTER_ADDR"] = "127.0.0.1"
    try:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        places = [f"--{name}={folder}/{file}" for name, file in {**files, "log-file": "munged.log"}.items()]
        subprocess.run(["munged", "--force", *places], check=True)
        subprocess.run(["slurmctld", "-c", "-f", folder / "slurm.conf"], check=True, env=os.environ | extra)
        for n in range(1, NODES + 1):
            subprocess.run(["slurmd", "-N", f"n{n}", "-f", folder / "slurm.conf"], check=True, env=os.environ | extra)
        _await_nodes(os.environ | extra)
    except BaseException:
        stop(folder)
        raise
    return extra


def stop(folder: Path) -> None:
    """End the daemons that `start` began, by the ids that they wrote, and remove the folder."""
    names = [*(f"n{n}.pid" for n in range(1, NODES + 1)), "slurmctld.pid", "munged.pid"]
    for pid in [int((folder / name).read_text()) for name in names if (folder / name).is_file()]:
        _end(pid)
    shutil.rmtree(folder, ignore_errors=True)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        for _ in range(50):
            time.sleep(0.1)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _await_nodes(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 30
    asked = ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"]
    while time.monotonic() < deadline:
        if subprocess.run(asked, capture_output=True, text=True, env=environment).stdout.strip() == str(NODES):
            return
        time.sleep(0.2)
    raise RuntimeError("the nodes did not come up within 30 s")


if __name__ == "__main__":
    command, place = sys.argv[1], Path(sys.argv[2]).resolve()
    if command == "start":
        for variable, value in start(place).items():
            print(f"export {variable}='{value}'")
    elif command == "stop":
        stop(place)
    else:
        sys.exit(__doc__)
