"""Folders that are complete or absent: a stage writes beside its place and is renamed into it when it is done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COUNTS = "counts.json"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A fresh folder to write in, which becomes `target` if the block ends without an error.

    The caller holds the lock of `target`; what a killed process left behind is removed.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    os.replace(unfinished, target)


def write_counts(folder: Path, counts: Any) -> None:
    """Stores what a stage counted."""
    (folder / COUNTS).write_text(json.dumps(counts, indent=1, sort_keys=True))


def read_counts(folder: Path) -> Any:
    """What `write_counts` stored."""
    return json.loads((folder / COUNTS).read_text())
