"""How the ranks of a launch leave a job that failed: alike, and the next job of the multirun begins, or not at all.

A rank that fails alone cannot tell the others over the network, where they wait for its part of a collective call, and
one that went on to the next job would hang with them. So each leaves a note of why it failed in `.launches` under
`paths.outputs`, and goes on only when the notes of all say the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from regimen.core.errors import RegimenError, RunError
from regimen.core.files import write_atomically
from regimen.runs.ranks import global_rank, launch_token, world_size

FOLDER = ".launches"
_PATIENCE_SECONDS = 30.0  # ranks that fail for the same reason do so within seconds
_KEPT_SECONDS = 86400.0
_FOLLOWED = "followed rank 0"


class Followed(RunError):
    """Raised on the other ranks where rank 0 stopped before there was anything to do together."""


class LostProcess(RunError):
    """Another process of the run is gone."""


class Over(Exception):
    """Raised on the other ranks where rank 0 is done with the job and has removed what it decided in."""


class Parted(SystemExit):
    """Ends this process, the rest of its multirun included."""


@dataclass(frozen=True)
class _Job:
    """folder: of the notes. replayed: ranks that Lightning starts later go through this job again."""

    folder: Path
    launch: str
    number: int
    replayed: bool

    def note(self, rank: int) -> Path:
        return self.folder / f"{self.launch}.{self.number}.rank{rank}"

    @property
    def over(self) -> Path:
        return self.folder / f"{self.launch}.{self.number}.over"

    @property
    def parted(self) -> Path:
        return self.folder / f"{self.launch}.parted"

    @property
    def alone(self) -> bool:
        """Whether no other rank is or will be in this job."""
        return world_size() == 1 and not self.replayed


_here: _Job | None = None


def enter(outputs: Path, number: int, *, replayed: bool) -> None:
    """Say which job of the launch begins, and where its ranks leave their notes."""
    global _here
    launch = re.sub(r"[^\w.-]", "-", launch_token())
    _here = _Job(outputs.expanduser() / FOLDER, launch, number, replayed)


def leave(error: Exception, told: str) -> None:
    """Return where every rank leaves the job for the same reason. Raises Parted where not, on one rank with `told`."""
    if _here is None or _here.alone:
        return
    with contextlib.suppress(RunError):  # a disk that is full: then this rank is alone, and the launch ends
        _forget_old(_here.folder)
        write_atomically(_here.note(global_rank()), _kind(error))
    if world_size() == 1 or isinstance(error, Followed) or _alike(_here, error):
        return
    _part(_here, told)


def alone() -> bool:
    """Whether no other rank is or will be in this job."""
    return _here is None or _here.alone


def say_over() -> None:
    """On rank 0: the job is done, and the others will find nothing where they look for its decisions."""
    if _here is not None and not _here.alone:
        write_atomically(_here.over, "")


def look_around() -> None:
    """For whoever waits for rank 0 in a job. Raises Followed or Over where it has left the job, Parted where all do."""
    if _here is None or global_rank() == 0:
        return
    if _here.parted.exists():
        raise Parted(1)
    if _here.over.exists():
        raise Over
    if _here.note(0).exists():
        raise Followed("rank 0 stopped before training; its message says why")


def ends() -> bool:
    """Whether a rank has ended the launch."""
    return _here is not None and _here.parted.exists()


def reason() -> str | None:
    """What the rank said that ended the launch, in a line."""
    if _here is None or not ends():
        return None
    lines = _here.parted.read_text().splitlines() or [""]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def clear() -> None:
    """At the end of a command: remove the notes of a launch of one process. Of several, others may still read them."""
    global _here
    if _here is not None and world_size() == 1:
        for note in _here.folder.glob(f"{_here.launch}.*"):
            note.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            _here.folder.rmdir()
    _here = None


def _kind(error: Exception) -> str:
    """What has to be the same on all ranks."""
    if isinstance(error, Followed):
        return _FOLLOWED
    return f"{type(error).__name__}: {error.what}" if isinstance(error, RegimenError) else type(error).__name__


def _alike(job: _Job, error: Exception) -> bool:
    deadline = time.monotonic() + (0.0 if isinstance(error, LostProcess) else _PATIENCE_SECONDS)
    while not job.parted.exists():
        notes = [job.note(rank) for rank in range(world_size())]
        if all(note.exists() for note in notes):
            return len({note.read_text() for note in notes} - {_FOLLOWED}) == 1
        if time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    return False


def _part(job: _Job, told: str) -> None:
    """End this process. The first to do so speaks, whatever its rank: the others have nothing to add."""
    try:
        with job.parted.open("x", encoding="utf-8") as file:
            file.write(told)
        speaks = True
    except FileExistsError:
        speaks = False
    except OSError:
        speaks = True
    if speaks:
        print(f"{told}\nrank {global_rank()} stopped there, and with it all ranks", file=sys.stderr)
        print("the same command goes on with what is not finished", file=sys.stderr, flush=True)
    if "SUBMITIT_EXECUTOR" in os.environ:
        return  # no other job is in this process, and submitit must be told the error
    _end_started()
    raise Parted(1)


def _end_started() -> None:
    """End the ranks that Lightning started from this one: it does so where they fail, not where this one does."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            seen = child.environ()
            if "LOCAL_RANK" in seen and seen.get("REGIMEN_ATTEMPT") == os.environ.get("REGIMEN_ATTEMPT", ""):
                child.kill()


def _forget_old(folder: Path) -> None:
    """Remove the notes of launches that are long over."""
    for note in folder.glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - note.stat().st_mtime > _KEPT_SECONDS:
                note.unlink()
