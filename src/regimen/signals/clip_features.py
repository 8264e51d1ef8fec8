"""Features of image-text pairs from a file: what a frozen CLIP makes of the image and the caption of each row.

A row of a pool is text; its image is known by its features alone. `regimen.data.pairs.encode_pairs` writes such a file,
and any other program can: a NumPy archive (.npz) with the arrays image (m, d) and text (m, d), and where there are
classes label (m,), whole numbers from 0. With classes, text is that of the row's class. row (m,) holds row numbers,
without it pairs stand for rows 0, 1, ...; pool is the fingerprint of the pool or target set that they number.
Letters: N rows of the pool, n rows asked for, m pairs of the file, d dimensions of CLIP's space.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal

_LARGEST_LABEL = 2**24  # labels travel as float32


class Pairs(NamedTuple):
    """image, text: (n, d) features; label: (n,) int64 classes, None where there are none."""

    image: Tensor
    text: Tensor
    label: Tensor | None


def joined(pairs: Pairs) -> Tensor:
    """Pairs as vectors (n, 2d), or (n, 2d + 1) with their labels."""
    label = [] if pairs.label is None else [pairs.label[:, None].to(pairs.image.dtype)]
    return torch.cat([pairs.image, pairs.text, *label], dim=1)


def split(values: Tensor) -> Pairs:
    """The pairs that `joined` made vectors of: an odd length says that there are labels."""
    d, labelled = divmod(values.shape[1], 2)
    return Pairs(values[:, :d], values[:, d : 2 * d], values[:, -1].long() if labelled else None)


@dataclass(frozen=True, kw_only=True)
class ClipFeatures(Signal):
    """Features (n, 2d) float32 of image and text, (n, 2d + 1) with the class last: `split` takes them apart.

    path: the file, .npz. It is read whole whenever rows are measured, hence all of them at once.
    """

    forwards: ClassVar[float] = 0.0
    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "no file of features of image-text pairs is given",
                got=f"path={self.path}",
                do="type strategies.clip.by.path=FILE, and either strategies.clip.target.path=FILE or "
                "strategies.clip.target=null",
            )
        if Path(self.path).suffix != ".npz":
            raise ConfigError("unknown kind of file of features", got=self.path, allowed=".npz")
        if not Path(self.path).is_file():
            raise ConfigError("path names no file of features", got=self.path)

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Features (n, 2d) or (n, 2d + 1) float32.

        Raises ConfigError for a file that cannot be used or is of another pool, and for a row asked for that has no
        finite features.
        """
        arrays = read_archive(Path(self.path))
        rows, pairs = _rows(arrays, self.path), _pairs(arrays, self.path)
        self._refuse_foreign(arrays, rows, meter)
        place = torch.full((meter.index.rows,), -1, dtype=torch.int64)  # (N,)
        place[rows] = torch.arange(len(rows))
        missing = ids[place[ids] < 0]
        if len(missing):
            raise ConfigError(
                f"{self.path} has no features of {len(missing)} of {len(ids)} rows",
                got=f"ids {missing[:5].tolist()} ...",
                do="encode the pairs of all rows",
            )
        values = joined(pairs)[place[ids]]  # (n, 2d) or (n, 2d + 1)
        bad = ids[~torch.isfinite(values).all(dim=1)]
        if len(bad):
            what = f"features of {len(bad)} of {len(ids)} rows are not finite"
            raise ConfigError(what, got=f"{self.path}: ids {bad[:5].tolist()} ...", do="encode their images again")
        return values

    def _refuse_foreign(self, arrays: dict[str, np.ndarray], rows: Tensor, meter: Meter) -> None:
        known, total = meter.index.fingerprint, meter.index.rows
        if "pool" in arrays and str(arrays["pool"]) != known:
            got = f"{self.path} of {arrays['pool']}"
            raise ConfigError("the features belong to another pool or target set", got=got, allowed=known)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total:
            got = f"rows {int(rows.min())} to {int(rows.max())} in {self.path}"
            raise ConfigError("the file names rows that the pool does not have", got=got, allowed=f"0 to {total - 1}")
        if int(torch.bincount(rows, minlength=1).max()) > 1:
            raise ConfigError("the file gives a row two pairs", got=self.path)


def read_archive(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive. Raises ConfigError where it is none."""
    try:
        with np.load(file) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, AttributeError) as error:
        raise ConfigError("the file of features is no NumPy archive of numbers", got=f"{file}: {error}") from error


def _pairs(arrays: dict[str, np.ndarray], path: str) -> Pairs:
    """Image and text features (m, d) float32, and classes."""
    shapes = {name: f"{arrays[name].dtype} {arrays[name].shape}" for name in ("image", "text") if name in arrays}
    found = [arrays[name] for name in shapes]
    if (
        len(found) < 2
        or found[0].ndim != 2
        or found[0].shape != found[1].shape
        or any(a.dtype.kind != "f" for a in found)
    ):
        allowed = "image and text, both (rows, dimensions), of one shape, of floats"
        raise ConfigError("the file holds no features of pairs", got=f"{path}: {shapes}", allowed=allowed)
    image, text = (torch.from_numpy(a.astype(np.float32)) for a in found)
    if "label" not in arrays:
        return Pairs(image, text, None)
    label = arrays["label"]
    whole = label.shape == (len(image),) and label.dtype.kind in "iu"
    if not whole or (len(label) and not 0 <= int(label.min()) <= int(label.max()) < _LARGEST_LABEL):
        allowed = f"one whole number of a class per pair, 0 to {_LARGEST_LABEL - 1}"
        raise ConfigError("the labels are no classes", got=f"{path}: {label.dtype} {label.shape}", allowed=allowed)
    return Pairs(image, text, torch.from_numpy(label.astype(np.int64)))


def _rows(arrays: dict[str, np.ndarray], path: str) -> Tensor:
    """The row number (m,) int64 of each pair."""
    count = len(arrays["image"]) if "image" in arrays and arrays["image"].ndim else 0
    if "row" not in arrays:
        return torch.arange(count)
    row = arrays["row"]
    if row.shape != (count,) or row.dtype.kind not in "iu":
        got = f"{path}: {row.dtype} {row.shape} for {count} pairs"
        raise ConfigError("the row numbers are not one whole number per pair", got=got)
    return torch.from_numpy(row.astype(np.int64))
