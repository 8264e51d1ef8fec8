"""Scores from a file: what another program measured on the rows of a pool, for any strategy that takes a signal.

The file is read when the scores are measured, never by a strategy. It is CSV with a header, JSON lines, a NumPy array
(.npy), or Parquet as `regimen score` writes it. Scores may be those of documents: a row then gets the mean of its
documents' scores, weighted by their tokens in it.
Letters: N rows of the pool, n rows asked for, S parts of documents in them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from regimen.core.checks import check_polarity
from regimen.core.errors import ConfigError
from regimen.core.settings import PENDING
from regimen.core.signal import Meter, Signal

Name = TypeVar("Name", int, str)
FORMATS = (".csv", ".jsonl", ".npy", ".parquet")


@dataclass(frozen=True, kw_only=True)
class FileScores(Signal):
    """Scores (n,) float64 by row number; NaN for a row that the file does not name.

    path: the file; its name ends in .csv, .jsonl, .npy or .parquet.
    column: the score. id: the row's number, from 0; where the first line has none, lines stand for rows 0, 1, ...
        A NumPy array has neither: it is (N,).
    unit: of what the scores are, `row`, or `document` with document ids under `id`.
    pool: fingerprint of the pool that the numbers belong to, to be sure; null does not check.
    polarity: 1 takes the numbers as they are, -1 turns them round, for numbers of which the low ones are good.
    """

    forwards: ClassVar[float] = 0.0
    path: str
    column: str = "score"
    id: str = "id"
    unit: Literal["row", "document"] = "row"
    pool: str | None = None
    polarity: int = 1

    def __post_init__(self) -> None:
        check_polarity(self.polarity)
        if self.path == PENDING:
            return
        if not self.path:
            raise ConfigError("no file of scores is given", got=f"path={self.path}", do="set path to a file")
        if Path(self.path).suffix not in FORMATS:
            raise ConfigError("unknown kind of file of scores", got=self.path, allowed=", ".join(FORMATS))
        if not Path(self.path).is_file():
            raise ConfigError("path names no file of scores", got=self.path)
        if self.unit not in ("row", "document"):
            raise ConfigError("unknown unit of scores", got=f"unit={self.unit}", allowed="row, document")
        if self.unit == "document" and Path(self.path).suffix == ".npy":
            raise ConfigError("an array has no document ids", got=self.path, allowed=".csv, .jsonl, .parquet")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Scores (n,). Raises ConfigError for another pool, a row twice or not of the pool, or no number."""
        if self.pool is not None and self.pool != meter.index.fingerprint:
            raise ConfigError(
                "the scores belong to another pool", got=f"{self.path} of {self.pool}", allowed=meter.index.fingerprint
            )
        if self.unit == "document":
            return self.polarity * self._of_documents(meter, ids)
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
        return self.polarity * found[ids]

    def _of_documents(self, meter: Meter, ids: Tensor) -> Tensor:
        """Scores (n,): the mean over a row's documents that have a score, weighted by tokens; NaN without any."""
        known = dict(_pairs(Path(self.path), _records(Path(self.path)), self.column, self.id, as_row=str))
        parts = meter.documents(ids)
        scores = torch.tensor([known.get(name, torch.nan) for name in parts.document], dtype=torch.float64)  # (S,)
        weight = parts.tokens.double() * ~scores.isnan()  # (S,)
        sums = torch.zeros(2, len(ids), dtype=torch.float64)
        sums.index_add_(1, parts.row, torch.stack([scores.nan_to_num() * weight, weight]))
        return sums[0] / sums[1]  # 0 / 0 is NaN


def read_scores(file: Path, *, column: str, id: str) -> tuple[Tensor, Tensor]:
    """Row numbers (m,) int64 and scores (m,) float64 of a file. Raises ConfigError for a line that has no number."""
    if file.suffix == ".npy":
        array = np.load(file)
        if array.ndim != 1 or array.dtype.kind not in "fiu":
            raise ConfigError("the array of scores is not a list of numbers", got=f"{array.dtype} {array.shape}")
        return torch.arange(len(array)), torch.from_numpy(array.astype(np.float64))
    pairs = list(_pairs(file, _records(file), column, id, as_row=int))
    return (
        torch.tensor([row for row, _ in pairs], dtype=torch.int64),
        torch.tensor([score for _, score in pairs], dtype=torch.float64),
    )


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a CSV, JSON lines or Parquet file."""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq  # the format that `regimen score` writes; the pool's own library reads it

        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
        return
    with file.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines) if file.suffix == ".csv" else _objects(file, lines)


def _pairs(
    file: Path, records: Iterable[Mapping[str, Any]], column: str, id: str, *, as_row: Callable[[Any], Name]
) -> Iterator[tuple[Name, float]]:
    named = False
    for place, record in enumerate(records):
        named = id in record if place == 0 else named
        try:
            yield as_row(record[id] if named else place), float(record[column])
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
