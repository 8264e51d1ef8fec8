"""What a process does once its run has stopped for a signal and is saved: have the job requeued, and leave or wait.

Under SLURM a job that ends by itself counts as finished. So it asks to be requeued, or has been by the controller that
preempted it, and waits to be killed. Anywhere else the process ends with the code of its signal.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from signal import Signals
from typing import Any, NoReturn

from regimen.core.errors import Stopped
from regimen.runs.attempt import await_end

_WAIT_SECONDS = 600.0  # longer than schedulers let a process live after the signal


def leave(folder: Path, stopped_by: Signals, outer: Mapping[Signals, Any], *, rank: int, reason: str) -> NoReturn:
    """End this process, or wait for its end, after the run in `folder` was stopped by a signal and saved.

    outer: handlers of whoever started the run. Raises Stopped.
    """
    if rank == 0:
        print(f"{folder} was {reason}; the same command goes on from there", file=sys.stderr, flush=True)
    else:
        await_end(folder)
    if in_job():
        if stopped_by in outer and stopped_by is not Signals.SIGTERM:
            outer[stopped_by](stopped_by, None)  # submitit's requeues on rank 0 and exits; on others it returns
        elif stopped_by is not Signals.SIGTERM and rank == 0:
            requeue()
        time.sleep(_WAIT_SECONDS)
    raise Stopped(128 + stopped_by)


def in_job() -> bool:
    """Whether this is a batch job of SLURM's."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def requeue() -> None:
    """Have SLURM start this job, or this task of its array, again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        print(f"SLURM does not requeue job {job}: {done.stderr.strip()}; submit it again", file=sys.stderr)
