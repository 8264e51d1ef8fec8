"""One run from its settings: prepare the data, decide what this attempt does, and do it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regimen.core.errors import RegimenError
from regimen.data.pool import Pool
from regimen.runs import parting, summary
from regimen.runs.agreement import convene, join_in, marked, other_ranks
from regimen.runs.attempt import Attempt, await_decision, await_end, decide
from regimen.runs.experiment import make_pool
from regimen.runs.identity import run_name
from regimen.runs.locks import held
from regimen.runs.preempted import Preempted
from regimen.runs.ranks import global_rank, next_token
from regimen.runs.resuming import refuse_unreadable
from regimen.runs.run import Run
from regimen.runs.staging import PLAN, Done, Staging, follow
from regimen.runs.store import Store, run_key
from regimen.runs.strategies import make_strategies
from regimen.training.checkpoint_formats import say_which_accelerator

_ADVICE = (  # of libraries to each other, or to those who use them without a harness
    *(".*does not have many workers.*", ".*treespec, LeafSpec.*", ".*smaller than the logging.*"),
    *(".*`torch.distributed.[a-z_]+` is deprecated.*", ".*returned a view tensor.*"),
    *(".*saving the DeepSpeed Stage 3.*", ".*`srun` command is available on your system.*"),
)


def train(settings: Mapping[str, Any], folder: Path, *, sweep: str | None = None) -> Path:
    """Train one run in `folder` and the stages it needs, go on with it, or skip it if finished. Returns the folder.

    Raises RegimenError for what the user can mend; the folder then holds whole files only.
    """
    quiet_libraries()
    if global_rank() > 0:
        join(settings, folder, sweep)
    else:
        with held(folder):
            lead(settings, folder, sweep)
    return folder


def lead(settings: Mapping[str, Any], folder: Path, sweep: str | None = None) -> None:
    """Rank 0: prepare the data, decide what this attempt does, and do it."""
    token, others = next_token(), other_ranks(settings["trainer"])
    store = Store(Path(settings["paths"]["store"]))
    try:
        pool = make_pool(settings, progress=settings["trainer"]["progress"] != "none")
        store.ready()
        with marked(store.root, token, others=others):
            attempt = decide(
                folder,
                token,
                fingerprints=summary.fingerprints(settings, pool),
                accept_other_version=settings["accept_other_version"],
                pool=pool.path.name,
                agreed=not others,
            )
            if attempt.action == "skip":
                print(f"skipped, it is finished: {folder}", file=sys.stderr)
                return
            if attempt.checkpoint is not None:
                refuse_unreadable(Path(attempt.checkpoint), settings["trainer"]["strategy"])
            convene(folder, attempt, others=others)
        done: list[Done] = []
        if settings["stages"]:
            done = Staging(settings, folder, token, pool, lead).run()
            if settings["only_stages"]:
                _say_staged(done)
                parting.say_over()
                remove_if_empty(folder)
                return
    except BaseException:
        remove_if_empty(folder)
        raise
    _attempt(settings, folder, attempt, pool, sweep, done)
    store.note("run", run_name(settings), run_key(settings, pool), folder, asked_by=None)


def join(settings: Mapping[str, Any], folder: Path, sweep: str | None = None) -> None:
    """Another rank: do what rank 0 decided."""
    token, done = next_token(), []
    try:
        attempt = await_decision(folder, token)
        if attempt.action == "skip":
            return
        pool = join_in(folder, attempt, settings["paths"], stores=_reads_store(settings))
        if settings["stages"]:
            done = follow(folder, token, join)
            if settings["only_stages"]:
                return
    except parting.Over:
        return
    try:
        _attempt(settings, folder, attempt, pool, sweep, done)
    except Preempted:
        await_end(folder)
        raise
    await_end(folder)


def _reads_store(settings: Mapping[str, Any]) -> bool:
    """Whether all ranks read in the store what rank 0 writes there."""
    if settings["stages"]:
        return True
    with contextlib.suppress(RegimenError):  # a mistake that rank 0 will tell
        placed = make_strategies(settings["strategies"])
        return any(p.strategy.needs() or p.strategy.needs_of_target() for p in placed)
    return False


def _say_staged(done: list[Done]) -> None:
    trained = sum(d.trained for d in done)
    print(f"stages: {trained} done now, {len(done) - trained} found; the store holds all {len(done)}", file=sys.stderr)


def remove_if_empty(folder: Path) -> None:
    """Take back the folder of a run that was refused before it began."""
    if {p.name for p in folder.iterdir()} <= {".lock", "attempt.json", PLAN}:
        for p in folder.iterdir():
            p.unlink()
        folder.rmdir()


def _attempt(
    settings: Mapping[str, Any], folder: Path, attempt: Attempt, pool: Pool, sweep: str | None, done: list[Done]
) -> None:
    rank = global_rank()
    try:
        run = Run(settings, folder, attempt, pool, sweep, rank, done)
    except RegimenError:
        if rank == 0 and attempt.action == "begin":
            remove_if_empty(folder)
        raise
    run.fit()
    del run
    gc.collect()  # trainer and callbacks refer to each other; a multirun would hold every model it ever trained


def quiet_libraries() -> None:
    """Keep the advice of libraries off the user's screen; errors still get through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    say_which_accelerator()
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in _ADVICE:
        warnings.filterwarnings("ignore", text)
