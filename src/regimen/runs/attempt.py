"""What this attempt at a run does: begin, go on from a checkpoint, or skip what is finished. Decided once, by rank 0.

Lightning starts the other ranks by running the same command again, and a multirun passes every job in each of them;
they read the decision from the run's folder instead of looking for themselves, so that no rank parts ways.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from regimen import __version__
from regimen.core.errors import ConfigError, RunError
from regimen.core.files import write_json
from regimen.runs import parting
from regimen.training.callbacks.checkpoint import checkpoints

Action = Literal["begin", "resume", "skip"]
_WAIT_SECONDS = 3600.0  # rank 0 may have to prepare the data first
_PARTING_SECONDS = 60.0  # rank 0 has but a summary to write


@dataclass(frozen=True)
class Attempt:
    """The decision. checkpoint: the file to resume from. token: ties it to this launch of this job.

    pool, fingerprint: the data of rank 0, its folder under `paths.pools`. agreed: whether the ranks may begin.
    """

    action: Action
    checkpoint: str | None
    token: str
    pool: str = ""
    fingerprint: str = ""
    agreed: bool = True


def decide(
    folder: Path,
    token: str,
    *,
    fingerprints: Mapping[str, str],
    accept_other_version: bool,
    pool: str = "",
    agreed: bool = True,
) -> Attempt:
    """Rank 0's decision, written to the folder for the others. pool: the name of its folder.

    agreed: false where the other ranks must answer before any begins.
    Raises ConfigError where the folder holds a run on other data, of another configuration or another version.
    """
    summary = _summary(folder)
    if summary is not None:
        _refuse_other(folder, summary, fingerprints, accept_other_version)
    saved = checkpoints(folder)
    if summary is not None and summary["status"] == "finished":
        attempt = Attempt("skip", None, token)
    elif summary is not None and saved:
        attempt = Attempt("resume", str(saved[-1]), token, pool, fingerprints["pool"], agreed)
    else:
        attempt = Attempt("begin", None, token, pool, fingerprints["pool"], agreed)
    tell(folder, attempt)
    return attempt


def tell(folder: Path, attempt: Attempt) -> None:
    """Write rank 0's decision for the other ranks."""
    write_json(folder / "attempt.json", asdict(attempt))


def await_decision(folder: Path, token: str, *, agreed: bool = False) -> Attempt:
    """The decision of rank 0, on the other ranks. agreed: wait for the word to begin, too.

    Raises Followed where rank 0 stops before it can decide.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    path = folder / "attempt.json"
    while time.monotonic() < deadline:
        if path.is_file():
            attempt = Attempt(**json.loads(path.read_text()))
            if attempt.token == token and (attempt.agreed or not agreed):
                return attempt
        parting.look_around()
        time.sleep(0.1)
    raise RunError(f"rank 0 did not begin within {_WAIT_SECONDS:.0f} s", got=path, do="look at the log of rank 0")


def await_end(folder: Path) -> None:
    """On the other ranks: stay until rank 0 has finished.

    A process that leaves right after the last collective call closes its connections, which gloo on a busy machine may
    notice before rank 0 has noticed the result.
    """
    _await(lambda: (_summary(folder) or {}).get("status", "running") != "running")


def await_file(path: Path) -> None:
    """On the other ranks: stay until rank 0 has written a file, for the same reason."""
    _await(path.is_file)


def _await(over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PARTING_SECONDS
    while not over() and not parting.ends() and time.monotonic() < deadline:
        time.sleep(0.1)


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _refuse_other(
    folder: Path, summary: Mapping[str, Any], fingerprints: Mapping[str, str], accept_other_version: bool
) -> None:
    what = {"pool": "data", "tokenizer": "tokenizer", "config": "configuration"}
    for key, name in what.items():
        old, new = summary["fingerprints"][key], fingerprints[key]
        if old != new:
            raise ConfigError(
                f"{folder} holds a run with another {name}",
                got=f"{name} fingerprint {new}",
                allowed=f"{name} fingerprint {old}",
                do="bring the data or setting back, or give the new run its own folder: run_dir=DIR, sweep=NAME",
            )
    if summary["versions"]["regimen"] != __version__ and not accept_other_version:
        raise ConfigError(
            f"{folder} holds a run of another version of regimen",
            got=f"regimen {__version__}",
            allowed=f"regimen {summary['versions']['regimen']}",
            do="add accept_other_version=true to go on with it, or give the new run its own folder: run_dir=DIR",
        )
