"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from regimen.core.errors import ConfigError
from regimen.core.files import disk_errors
from regimen.data.locking import locked


class Busy(ConfigError):
    """Another process is at work in a folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder alone. Raises Busy where another process does, ConfigError where there are no locks."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", patient=False, setting="run_dir=DIR or paths.outputs=DIR"))
        except filelock.Timeout:
            raise Busy(
                "another process is busy with this run", got=folder, do="wait for it, or choose another run_dir"
            ) from None
        except ConfigError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless there is something in it
            raise
        yield
