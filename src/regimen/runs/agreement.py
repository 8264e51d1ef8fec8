"""Every rank sees the data that rank 0 sees, or none begins: a rank that left alone would have the others wait for it.

Ranks that torchrun or SLURM has started are all there when rank 0 decides, on nodes of their own: each opens the pool
that rank 0 names, in its own `paths.pools`, and leaves its answer in the run's folder; rank 0 reads the answers and
says whether they begin. Where a run measures or has stages, a rank also looks in its own `paths.store` for the mark
that rank 0 has made in its. Ranks that Lightning starts come later, on rank 0's own machine, and are not asked.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from regimen.core.errors import ConfigError, DataError, RegimenError, RunError
from regimen.core.files import write_atomically, write_json
from regimen.data.pool import Pool
from regimen.runs import parting
from regimen.runs.attempt import Attempt, await_decision, tell
from regimen.runs.preempted import on_slurm
from regimen.runs.ranks import global_rank, processes
from regimen.runs.store import Store, digest

_WAIT_SECONDS = 1800.0  # as long as a process group waits for its ranks


def other_ranks(trainer: Mapping[str, Any]) -> int:
    """How many other ranks of this run a launcher has started beside rank 0; 0 where Lightning starts them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")) - 1
    tasks = int(os.environ.get("SLURM_NTASKS", "1")) if on_slurm() and "SLURM_PROCID" in os.environ else 1
    return tasks - 1 if tasks == processes(trainer) else 0  # else no run of all tasks of the job


def convene(folder: Path, attempt: Attempt, *, others: int) -> None:
    """Rank 0: have all ranks begin, once every other one has seen the data; at once where there is none.

    Raises ConfigError where one has not, with what each says; Parted where one has ended the launch.
    """
    if not others:
        return
    answers, deadline = _Answers(folder, attempt.token), time.monotonic() + _WAIT_SECONDS
    try:
        while len(found := answers.read()) < others:
            if parting.ends():
                raise parting.Parted(1)
            if time.monotonic() > deadline:
                missing = sorted(set(range(1, others + 1)) - set(found))
                raise RunError(
                    f"not every rank has come within {_WAIT_SECONDS:.0f} s",
                    got=f"no answer of rank {', '.join(map(str, missing))} in {folder}",
                    do="look at their logs, and whether their nodes share this folder",
                )
            time.sleep(0.1)
    finally:
        answers.clear()
    refused = {rank: answer for rank, answer in sorted(found.items()) if answer["error"]}
    if refused:
        who = [f"rank {rank} on {answer['host']}: {answer['error']}" for rank, answer in refused.items()]
        more = f" (and {len(who) - 4} more)" if len(who) > 4 else ""
        raise ConfigError(
            f"{len(who)} of {others + 1} ranks do not see the data that rank 0 sees",
            got="; ".join(who[:4]) + more,
            allowed=f"the pool {attempt.pool} with fingerprint {attempt.fingerprint[:12]} on every node, and one store",
            do="set REGIMEN_HOME (or paths.pools and paths.store) to a folder that all nodes share; a pool may be each "
            "node's own: regimen prepare ... there, with the same settings",
        )
    tell(folder, replace(attempt, agreed=True))


@contextmanager
def marked(store: Path, token: str, *, others: int) -> Iterator[None]:
    """Rank 0: leave in the store what other ranks look for, as long as they may."""
    if not others:
        yield
        return
    mark = _mark(store, token)
    write_atomically(mark, "")
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def join_in(folder: Path, attempt: Attempt, paths: Mapping[str, str], *, stores: bool) -> Pool:
    """Another rank: open the pool that rank 0 has, tell whether it is there, and wait for the word to begin.

    paths: the settings of this name. stores: whether ranks read in the store what rank 0 writes there.
    """
    pool, error = None, ""
    try:
        pool = _seen(Path(paths["pools"]).expanduser(), attempt)
        if stores and not attempt.agreed and not _mark(Path(paths["store"]), attempt.token).exists():
            raise ConfigError(f"paths.store={paths['store']} is not rank 0's")
    except (RegimenError, OSError, ValueError) as reason:
        error = " ".join(str(reason).split())
    if not attempt.agreed:
        _Answers(folder, attempt.token).leave({"host": socket.gethostname(), "error": error})
        await_decision(folder, attempt.token, agreed=True)
    if pool is None:
        raise RunError(f"this rank does not see the data: {error}")
    return pool


def _mark(store: Path, token: str) -> Path:
    return Store(store).root / f".seen-{digest(token)}"


def _seen(pools: Path, attempt: Attempt) -> Pool:
    path = pools / attempt.pool
    if not pools.is_dir():
        raise ConfigError(f"paths.pools={pools} is not there")
    if not path.is_dir():
        raise ConfigError(f"paths.pools={pools} has no folder {attempt.pool}")
    pool = Pool.open(path)
    if pool.fingerprint != attempt.fingerprint:
        raise DataError(f"{path} has fingerprint {pool.fingerprint[:12]}")
    return pool


class _Answers:
    """The files in which other ranks answer to one attempt."""

    def __init__(self, folder: Path, token: str) -> None:
        self._folder, self._token = folder / ".ranks", token

    def leave(self, answer: Mapping[str, Any]) -> None:
        write_json(self._folder / f"{global_rank()}.json", {"token": self._token, **answer})

    def read(self) -> dict[int, dict[str, Any]]:
        """By rank, the answers that are there; those to earlier attempts do not count."""
        found = {}
        for path in self._folder.glob("[0-9]*.json"):
            answer = json.loads(path.read_text())
            if answer["token"] == self._token:
                found[int(path.stem)] = answer
        return found

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
