"""Files of a run folder: written whole or not at all, appended a line at a time, cut back before a resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regimen.core.errors import RunError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failing write into an error that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}",
            got=error.strerror or str(error),
            do="free some space, or choose a writable folder with paths.outputs=DIR or run_dir=DIR; the run goes on "
            "from its last checkpoint when it is started again",
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_atomically(path, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The same value with NaN and infinities, which JSON lacks, replaced by None."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that a kill tore is left out, and so is a missing file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def cut_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the rows for which `keep` is false."""
    rows = read_json_lines(path)
    if path.is_file():
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows if keep(row)))


class JsonLines:
    """Appends rows to a JSON-lines file, each flushed to the system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one row."""
        line = json.dumps(finite(row), ensure_ascii=False) + "\n"
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
