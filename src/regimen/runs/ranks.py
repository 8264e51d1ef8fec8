"""Which rank of which launch this process is, before any trainer exists. Imports nothing heavy: first errors need it.

A launch is one start of all ranks. Every decision and note that ranks leave for each other on disk bears its name, so
that none is taken for one of a launch before.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

_ATTEMPT = "REGIMEN_ATTEMPT"
_token = uuid.uuid4().hex  # of this process, and of the ranks that it starts
_job, _begun = 0, 0  # the job of a multirun, and how many runs this process has begun in it


def global_rank() -> int:
    """The rank of this process before any trainer exists, from what launchers set."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name == "SLURM_PROCID" and int(os.environ.get("SLURM_NTASKS", "1")) == 1:
            continue  # an interactive shell on a cluster
        if name in os.environ:
            return int(os.environ[name])
    return 0


def world_size() -> int:
    """How many processes this launch has now; 1 on rank 0 before Lightning has started the others."""
    named = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS")
    if named is None and (torch := sys.modules.get("torch")) and torch.distributed.is_initialized():
        return int(torch.distributed.get_world_size())  # Lightning removes WORLD_SIZE after a run
    return int(named or 1)


def processes(trainer: Mapping[str, Any]) -> int:
    """How many processes `trainer.devices` and `trainer.num_nodes` ask for, whether they are there yet or not."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        devices = len(devices)
    elif not isinstance(devices, int) or devices < 1:  # auto
        devices = 1 if trainer["accelerator"] == "cpu" else _gpus()
    return int(devices * trainer["num_nodes"])


def _gpus() -> int:
    """Of this machine, 1 where there are none."""
    import torch

    return max(torch.cuda.device_count(), 1)


def begin_launch() -> None:
    """Another command in this process is another launch."""
    global _token
    _token = uuid.uuid4().hex


def begin_job(number: int) -> None:
    """From here on tokens are of job `number` of a multirun, on every rank alike, whatever happened before."""
    global _job, _begun
    _job, _begun = number, 0


def next_token() -> str:
    """Of the next run that this process begins in its job; the same on every rank."""
    global _begun
    _begun += 1
    return f"{launch_token()}.{_job}.{_begun - 1}"


def launch_token() -> str:
    """The same on every rank of one launch, and on no other launch."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _torchrun_token(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return ".".join(os.environ.get(name, "0") for name in names)
    if global_rank() == 0:
        os.environ[_ATTEMPT] = _token  # for the ranks that it starts; what it has inherited is of another launch
    return os.environ.setdefault(_ATTEMPT, _token)


@cache
def _torchrun_token(restart: str) -> str:
    """Torchrun calls each launch `none` where it is given no name, so rank 0 makes one; its store hands it on."""
    named = f"{os.environ['TORCHELASTIC_RUN_ID']}.{restart}"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return named
    from torch.distributed import TCPStore

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*place, is_master=False, timeout=timedelta(minutes=10))
    key = f"regimen.{named}"
    if global_rank() == 0:
        store.set(key, _token)
    made: str = store.get(key).decode()
    return f"{named}.{made}"
