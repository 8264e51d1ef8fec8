"""What happens to a job whose run was stopped by a signal and saved: requeued on SLURM, ended elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

_HELD_SECONDS = 600.0  # longer than clusters let a job live after SIGTERM


class Preempted(SystemExit):
    """Ends this process, the rest of its multirun included. The status is that of the signal; 0 on children of rank 0.

    A child that ended with another status would be taken for a failure, and have rank 0 killed.
    """


def leave(by: signal.Signals, *, step: int, rank: int) -> NoReturn:
    """Hand the job back to who runs it. Raises Preempted.

    SLURM requeues a job that it preempts by itself, but takes one that ends early for finished: after SIGTERM the
    processes wait to be killed. After SIGUSR1 and SIGUSR2, which announce the time limit, the job is put back into
    the queue, by submitit's own handler where submitit runs it, since that counts the times.
    """
    if rank == 0:
        print(f"stopped by {by.name} and saved after step {step}; the same command goes on from there", file=sys.stderr)
    submitit = _submitit_handler()
    for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # what had to be saved is
    tells = rank == 0 or "TORCHELASTIC_RUN_ID" in os.environ  # torchrun on another node knows its own ranks only
    status = Preempted(128 + by if tells else 0)
    if not on_slurm():
        raise status
    if by != signal.SIGTERM and rank == 0:
        try:
            requeued = _requeue_by(submitit, by) if submitit else _requeue()
        except SystemExit:  # how submitit's handler ends
            requeued = True
        if not requeued:
            raise status
    if rank == 0 or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        time.sleep(_HELD_SECONDS)
    raise status


def outcome(by: signal.Signals | None) -> tuple[str, str] | None:
    """Status and reason for the summary; None where nothing stopped the training."""
    return None if by is None else ("preempted", f"stopped by {by.name}; the same command goes on from there")


def on_slurm() -> bool:
    """Whether SLURM runs this process as part of a job, and not a person in a shell on one of its nodes."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def plugins() -> list[Any]:
    """For Lightning's trainer: on SLURM its environment without its own requeueing, which would save a second time."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    ours = on_slurm() and "SLURM_NTASKS" in os.environ and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if ours else []


def _submitit_handler() -> signal._HANDLER:
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    handler = signal.getsignal(signal.Signals["SIG" + name.removeprefix("SIG")])
    return handler if callable(handler) and not isinstance(handler, signal.Handlers) else None


def _requeue_by(handler: signal._HANDLER, by: signal.Signals) -> bool:
    assert callable(handler)
    handler(by, None)
    return True


def _requeue() -> bool:
    """Put the job of plain sbatch back into the queue; SLURM kills what still runs of it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        why = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        why = str(error)
    if why:
        print(f"job {job} was not requeued, submit it again: {why}", file=sys.stderr)
    return not why
