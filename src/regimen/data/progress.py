"""A progress bar per stage, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self


class Progress:
    """Context in which stages show how many bytes they have done. Without `shown` it does nothing."""

    def __init__(self, *, shown: bool) -> None:
        self._bars: Any = None
        if shown:
            from rich import progress

            columns = ("{task.description}", progress.BarColumn(), progress.DownloadColumn())
            self._bars = progress.Progress(*columns, progress.TransferSpeedColumn(), progress.TimeRemainingColumn())

    def stage(self, name: str, *, total: int | None) -> Callable[[int], None]:
        """A function to call with the bytes that were done."""
        if self._bars is None:
            return lambda done: None
        task = self._bars.add_task(name, total=total)
        return lambda done: self._bars.advance(task, done)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
