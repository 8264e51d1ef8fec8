"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from regimen.core.errors import ConfigError
from regimen.core.files import disk_errors


class Busy(ConfigError):
    """Another process is at work in a folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder alone. Raises Busy where another process does."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise Busy(
            "another process is busy with this run", got=folder, do="wait for it, or choose another run_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()
