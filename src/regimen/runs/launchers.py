"""Hydra launchers that are plugins of their own: is one there, does it wait for its jobs, which GPU is whose."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regimen.core.errors import ConfigError, RunError

_GPUS, _LAUNCH = "REGIMEN_GPUS", "REGIMEN_SHARED"
_held: FileLock | None = None  # on the GPU of this process

# How a launcher's name begins, its package, and what installs it.
_PLUGINS = (
    ("slurm_", "hydra_submitit_launcher", 'pip install "regimen[slurm]"'),
    ("submitit_", "hydra_submitit_launcher", 'pip install "regimen[slurm]"'),
    ("joblib", "hydra_joblib_launcher", 'pip install "regimen[sweep]"'),
    (
        "ray",
        "hydra_ray_launcher",
        "pip install hydra-ray-launcher, in another environment: it needs cloudpickle 2",
    ),
)


def refuse_missing_plugin(arguments: Iterable[str]) -> None:
    """Raises ConfigError for hydra/launcher=NAME whose plugin is not installed, with what to type."""
    for argument in arguments:
        group, _, name = argument.lstrip("+").partition("=")
        if group != "hydra/launcher":
            continue
        for start, package, install in _PLUGINS:
            if name.startswith(start) and not _installed(package):
                raise ConfigError(f"the plugin of the launcher {name} is not installed", got=argument, do=install)


def take_wait(arguments: list[str]) -> list[str]:
    """The arguments without `wait=false`, which has the command return once SLURM has the jobs.

    They go on without the process that sent them in any case. Raises ConfigError for a launcher without a queue.
    """
    given = [a for a in arguments if a.startswith("wait=")]
    if not given:
        return arguments
    chosen = [a.partition("=")[2] for a in arguments if a.startswith("hydra/launcher=")]
    if given[-1] not in ("wait=true", "wait=false"):
        raise ConfigError("wait is a switch", got=given[-1], allowed="wait=true, wait=false")
    if not chosen or not chosen[-1].startswith(("slurm_", "submitit_slurm")):
        raise ConfigError(
            "only SLURM keeps jobs that nobody waits for",
            got=f"{given[-1]} with hydra/launcher={chosen[-1] if chosen else 'basic'}",
            do="add -m hydra/launcher=slurm_1gpu, or drop it; on one machine: nohup regimen train ... &",
        )
    if given[-1] == "wait=false":
        _leave_jobs_alone()
    return [a for a in arguments if a not in given]


def _leave_jobs_alone() -> None:
    """Have Hydra's launcher take every job for done once it is in the queue: it asks each for its results, and no more.

    Neither the launcher nor submitit has a setting for it, and of an array submitit makes no jobs of another class.
    """
    from hydra.core.utils import JobReturn, JobStatus
    from submitit import SlurmJob

    def results(job: SlurmJob[JobReturn]) -> list[JobReturn]:
        print(f"job {job.job_id} is in the queue; its logs: {job.paths.folder}", file=sys.stderr)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=None)]

    SlurmJob.results = results


def share_gpus(arguments: list[str]) -> list[str]:
    """The arguments, for hydra/launcher=joblib with a process for each GPU; notes the GPUs that they share.

    Raises ConfigError where more processes than GPUs are asked for.
    """
    given = dict(a.lstrip("+").split("=", 1) for a in arguments if "=" in a)
    if given.get("hydra/launcher") != "joblib":
        return arguments
    gpus = _visible_gpus()
    os.environ[_GPUS], os.environ[_LAUNCH] = ",".join(gpus), uuid.uuid4().hex
    jobs = given.get("hydra.launcher.n_jobs")
    if gpus and jobs is not None and jobs not in map(str, range(1, len(gpus) + 1)):
        raise ConfigError(
            "every process of this launcher has a GPU of its own",
            got=f"hydra.launcher.n_jobs={jobs} with {len(gpus)} GPUs ({', '.join(gpus)})",
            allowed=f"1 to {len(gpus)}",
            do="drop it; or hide the GPUs, for runs on the CPU: CUDA_VISIBLE_DEVICES= regimen ...",
        )
    return [*arguments, f"hydra.launcher.n_jobs={len(gpus)}"] if gpus and jobs is None else arguments


def take_gpu() -> None:
    """In a process of joblib: see one of the shared GPUs alone from now on. It stays this process's until it ends."""
    global _held
    gpus = [name for name in os.environ.get(_GPUS, "").split(",") if name]
    if _held is not None or not gpus:
        return
    folder = Path(tempfile.gettempdir()) / f"regimen-gpus-{os.getuid()}-{os.environ[_LAUNCH]}"
    folder.mkdir(exist_ok=True)
    deadline = time.monotonic() + 60.0  # the process of before may still be ending
    while _held is None and time.monotonic() < deadline:
        _held = next((lock for name in gpus if (lock := _free(folder / f"{name}.lock"))), None)
        time.sleep(0.0 if _held else 0.1)
    if _held is None:
        raise RunError("no GPU is free for this process", got=f"all are taken: {', '.join(gpus)}")
    os.environ["CUDA_VISIBLE_DEVICES"] = Path(_held.lock_file).stem


def refuse_several_processes(trainer: Mapping[str, Any]) -> None:
    """In a process of joblib or Ray. Raises ConfigError for a run on several: Lightning cannot start more from it."""
    if str(trainer["devices"]) not in ("1", "auto") or trainer["num_nodes"] != 1:
        raise ConfigError(
            "this launcher gives a run one process",
            got=f"trainer.devices={trainer['devices']} trainer.num_nodes={trainer['num_nodes']}",
            allowed="trainer.devices=1 trainer.num_nodes=1, e.g. trainer=gpu",
            do="drop hydra/launcher=..., so that the runs come one after the other; or send them to SLURM",
        )


def _free(path: Path) -> FileLock | None:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _visible_gpus() -> list[str]:
    """As CUDA names them: those in CUDA_VISIBLE_DEVICES, or all that the driver lists."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except OSError:
        return []
    return [str(k) for k, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def _installed(package: str) -> bool:
    try:
        return find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False
