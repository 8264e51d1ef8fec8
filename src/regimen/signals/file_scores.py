"""Scores from a file: what another program measured on the rows of a pool, for any strategy that takes a signal.

The file is read when the scores are measured, never by a strategy. It is CSV with a header, JSON lines, or a NumPy
array (.npy). Parquet is not read, for signals need nothing but NumPy and PyTorch.
Letters: N rows of the pool, n rows asked for.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal

FORMATS = (".csv", ".jsonl", ".npy")


@dataclass(frozen=True, kw_only=True)
class FileScores(Signal):
    """Scores (n,) float64 by row number; NaN for a row that the file does not name.

    path: the file; its name ends in .csv, .jsonl or .npy.
    column: the score. id: the row's number, from 0; where the first line has none, lines stand for rows 0, 1, ...
        A NumPy array has neither: it is (N,).
    pool: fingerprint of the pool that the numbers belong to, to be sure; null does not check.
    """

    forwards: ClassVar[float] = 0.0
    path: str
    column: str = "score"
    id: str = "id"
    pool: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("no file of scores is given", got=f"path={self.path}", do="set path to a file")
        if Path(self.path).suffix not in FORMATS:
            raise ConfigError("unknown kind of file of scores", got=self.path, allowed=", ".join(FORMATS))
        if not Path(self.path).is_file():
            raise ConfigError("path names no file of scores", got=self.path)

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Scores (n,). Raises ConfigError for another pool, a row twice or not of the pool, or no number."""
        if self.pool is not None and self.pool != meter.index.fingerprint:
            raise ConfigError(
                "the scores belong to another pool", got=f"{self.path} of {self.pool}", allowed=meter.index.fingerprint
            )
        found = torch.full((meter.index.rows,), torch.nan, dtype=torch.float64)  # (N,)
        rows, scores = read_scores(Path(self.path), column=self.column, id=self.id)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(found):
            got = f"rows {int(rows.min())} to {int(rows.max())} in {self.path}"
            raise ConfigError(
                "the file names rows that the pool does not have", got=got, allowed=f"0 to {len(found) - 1}"
            )
        if int(torch.bincount(rows, minlength=1).max()) > 1:
            raise ConfigError("the file gives a row two scores", got=self.path)
        found[rows] = scores
        return found[ids]


def read_scores(file: Path, *, column: str, id: str) -> tuple[Tensor, Tensor]:
    """Row numbers (m,) int64 and scores (m,) float64 of a file. Raises ConfigError for a line that has no number."""
    if file.suffix == ".npy":
        array = np.load(file)
        if array.ndim != 1 or array.dtype.kind not in "fiu":
            raise ConfigError("the array of scores is not a list of numbers", got=f"{array.dtype} {array.shape}")
        return torch.arange(len(array)), torch.from_numpy(array.astype(np.float64))
    with file.open(encoding="utf-8", newline="") as lines:
        records = csv.DictReader(lines) if file.suffix == ".csv" else _objects(file, lines)
        pairs = list(_pairs(file, records, column, id))
    return (
        torch.tensor([row for row, _ in pairs], dtype=torch.int64),
        torch.tensor([score for _, score in pairs], dtype=torch.float64),
    )


def _pairs(file: Path, records: Iterable[Mapping[str, Any]], column: str, id: str) -> Iterator[tuple[int, float]]:
    named = False
    for place, record in enumerate(records):
        named = id in record if place == 0 else named
        try:
            yield (int(record[id]) if named else place), float(record[column])
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                f"record {place + 1} of the scores cannot be read",
                got=f"{file}: {dict(record)}",
                allowed=f"a number in {column}" + (f" and a row number in {id}" if named else ""),
            ) from error


def _objects(file: Path, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"line {number} of the scores is not JSON", got=f"{file}: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"line {number} of the scores is no object", got=f"{file}: {line.strip()[:80]}")
        yield record
