"""One run from its settings: prepare the data, decide what this attempt does, and do it."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from regimen.core.errors import ConfigError, RegimenError
from regimen.core.files import disk_errors
from regimen.data.pool import Pool
from regimen.runs import summary
from regimen.runs.attempt import Attempt, await_decision, decide, launch_token, refuse
from regimen.runs.experiment import make_pool
from regimen.runs.ranks import global_rank
from regimen.runs.run import Run

_jobs = 0  # jobs that this process has begun; a multirun counts alike on every rank


def train(settings: Mapping[str, Any], folder: Path, *, sweep: str | None = None) -> Path:
    """Train one run in `folder`, go on with it, or skip it where it is finished. Returns the folder.

    Raises RegimenError for what the user can mend; the folder then holds whole files only.
    """
    global _jobs
    token = launch_token(_jobs)
    _jobs += 1
    rank = global_rank()
    quiet_libraries()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if rank > 0:
        attempt = await_decision(folder, token)
        return _attempt(settings, folder, attempt, make_pool(settings, progress=False), sweep, rank)
    lock = filelock.FileLock(folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            return _lead(settings, folder, token, sweep)
    except filelock.Timeout:
        raise ConfigError(
            "another process is busy with this run", got=folder, do="wait for it, or choose another run_dir"
        ) from None


def _lead(settings: Mapping[str, Any], folder: Path, token: str, sweep: str | None) -> Path:
    """Rank 0: prepare the data, decide what this attempt does, and do it."""
    try:
        pool = make_pool(settings, progress=settings["trainer"]["progress"] != "none")
        attempt = decide(
            folder,
            token,
            fingerprints=summary.fingerprints(settings, pool),
            accept_other_version=settings["accept_other_version"],
        )
    except RegimenError:
        refuse(folder, token)
        _remove_if_empty(folder)
        raise
    return _attempt(settings, folder, attempt, pool, sweep, rank=0)


def _remove_if_empty(folder: Path) -> None:
    """Take back the folder of a run that was refused before it began."""
    if {p.name for p in folder.iterdir()} <= {".lock", "attempt.json"}:
        for p in folder.iterdir():
            p.unlink()
        folder.rmdir()


def _attempt(
    settings: Mapping[str, Any], folder: Path, attempt: Attempt, pool: Pool, sweep: str | None, rank: int
) -> Path:
    if attempt.action == "skip":
        if rank == 0:
            print(f"skipped, it is finished: {folder}", file=sys.stderr)
        return folder
    try:
        run = Run(settings, folder, attempt, pool, sweep, rank)
    except RegimenError:
        if rank == 0 and attempt.action == "begin":
            _remove_if_empty(folder)
        raise
    run.fit()
    del run
    gc.collect()  # trainer and callbacks refer to each other; a multirun would hold every model it ever trained
    return folder


def quiet_libraries() -> None:
    """Keep the advice of libraries off the user's screen; errors still get through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*treespec, LeafSpec.*", ".*smaller than the logging.*"):
        warnings.filterwarnings("ignore", text)
