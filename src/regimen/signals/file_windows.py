"""Scores by time from a file: what a row is worth in each window of a training, as another program measured it.

Letters: N rows of the pool, n rows asked for, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.settings import PENDING
from regimen.core.signal import Meter, Signal
from regimen.signals.file_scores import FORMATS, FileScores


@dataclass(frozen=True, kw_only=True)
class FileWindows(Signal):
    """Scores (n, W) float64 of rows, a column per window, the first window first. Every row must have all of them.

    path: a NumPy array (N, W) in .npy; or .csv, .jsonl or .parquet with a column per window.
    columns: the windows' columns in order of time; null for an array.
    id: the row's number, from 0; where the first line has none, lines stand for rows 0, 1, ...
    pool: fingerprint of the pool that the numbers belong to, to be sure; null does not check.
    """

    forwards: ClassVar[float] = 0.0
    path: str
    columns: Sequence[str] | None = None
    id: str = "id"
    pool: str | None = None

    def __post_init__(self) -> None:
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(str(name) for name in self.columns))
        if self.path == PENDING:
            return
        if not self.path or not Path(self.path).is_file() or Path(self.path).suffix not in FORMATS:
            raise ConfigError(
                "path names no file of scores by window",
                got=f"path={self.path}",
                allowed=f"a file that ends in {', '.join(FORMATS)}",
                do="set strategies.window_assignment.by.path=FILE",
            )
        if (Path(self.path).suffix == ".npy") != (self.columns is None) or self.columns == ():
            raise ConfigError(
                "columns names the windows of a table, and an array has none",
                got=f"path={self.path}, columns={self.columns}",
                do="set columns=[first,second,...] in order of time, or columns=null for .npy",
            )

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Scores (n, W). Raises ConfigError for another pool or shape, and where a row lacks a finite score."""
        found = self._array(meter) if self.columns is None else self._table(meter)  # (N, W)
        missing = ~torch.isfinite(found[ids]).all(1)  # (n,)
        if bool(missing.any()):
            raise ConfigError(
                f"{int(missing.sum())} of {len(ids)} rows have no finite score for every window",
                got=f"{self.path}: rows {ids[missing][:5].tolist()} ...",
                do="score these rows too, or keep only rows that have scores, e.g. with method=[scores,...]",
            )
        return found[ids]

    def _array(self, meter: Meter) -> Tensor:
        array = np.load(self.path)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or len(array) != meter.index.rows:
            allowed = f"numbers ({meter.index.rows}, windows)"
            raise ConfigError(
                "the array does not hold scores by row and window", got=f"{array.dtype} {array.shape}", allowed=allowed
            )
        if self.pool is not None and self.pool != meter.index.fingerprint:
            raise ConfigError(
                "the scores belong to another pool", got=f"{self.path} of {self.pool}", allowed=meter.index.fingerprint
            )
        return torch.from_numpy(array.astype(np.float64))

    def _table(self, meter: Meter) -> Tensor:
        everyone = torch.arange(meter.index.rows)
        read = [FileScores(path=self.path, column=name, id=self.id, pool=self.pool) for name in self.columns or ()]
        return torch.stack([scores.measure(meter, everyone) for scores in read], 1)
