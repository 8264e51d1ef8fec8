"""Hashed n-grams of a row's text: importance under a target (DSIR), and feature vectors. No model is needed.

Papers: DSIR, arXiv 2302.03169, section 3 and its code; signed feature hashing, arXiv 0902.2206.
Differs from the paper: the hash is 64 bits of BLAKE2 per word, mixed over the words of an n-gram, instead of SHA-256 of
the joined n-gram: the same on every machine, and no slower in NumPy. A row is what the pool calls a row: with packing
it may hold several documents, and n-grams then cross their borders.
Letters: n rows, t n-grams of a row, B buckets, d dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Meter, Signal

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]
WORD = re.compile(r"\w+|[^\w\s]+")  # runs of letters and digits, runs of other marks
ROWS_AT_ONCE = 8192  # texts in memory, about
_FLOOR = 1e-8  # DSIR's smallest probability of a bucket


class WordHashes(dict[str, int]):
    """64-bit hash of each word, kept once it was computed."""

    def __missing__(self, word: str) -> int:
        digest = blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        return self.setdefault(word, int.from_bytes(digest, "little"))

    def of(self, text: str) -> Hashes:
        """Hashes (t,) of the lower-cased words and marks of a text."""
        return np.fromiter(map(self.__getitem__, WORD.findall(text.lower())), np.uint64)


def ngram_hashes(words: Hashes, n: int) -> Hashes:
    """Hashes (t,) of all runs of exactly n words, in order; none where the text is shorter."""
    count = max(len(words) - n + 1, 0)
    found = words[:count]
    for i in range(1, n):
        found = _mixed(found * np.uint64(0x9E3779B97F4A7C15) + words[i : i + count])
    return found


def _mixed(h: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of h reaches every bit of the result."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def bag(words: Hashes, n: int) -> Hashes:
    """Hashes (t,) of all n-grams of 1 to n words."""
    return np.concatenate([ngram_hashes(words, length) for length in range(1, n + 1)])


def texts_of(meter: Meter, ids: Tensor) -> Iterator[str]:
    """The texts of rows `ids` (n,), a part of them in memory at a time."""
    for part in ids.tensor_split(max(len(ids) // ROWS_AT_ONCE, 1)):
        yield from meter.texts(part)


def rows_of(index: PoolIndex, domains: Sequence[str] | None, limit: int | None) -> Tensor:
    """Ids, ascending, of the rows of named domains (null: all), spread evenly if there are more than `limit`.

    Raises ConfigError for a name that is no domain, and for domains without rows.
    """
    unknown = sorted(set(domains or ()) - set(index.domains))
    if unknown:
        raise ConfigError("the pool has no such domain", got=", ".join(unknown), allowed=", ".join(index.domains))
    names = index.domains if domains is None else domains
    ids = torch.cat([index.ids(k) for k, name in enumerate(index.domains) if name in names])  # (n,)
    if not len(ids):
        raise ConfigError("the domains to count n-grams in have no rows", got=", ".join(names))
    if limit is None or len(ids) <= limit:
        return ids
    return ids[torch.arange(limit) * len(ids) // limit]  # (limit,)


def check_ngrams(n: int, max_rows: int | None) -> None:
    """Refuse n-grams of no word, and a limit of no row (ConfigError)."""
    if n < 1:
        raise ConfigError("n counts the words of the longest n-gram", got=n, allowed="1 or more")
    if max_rows is not None and max_rows < 1:
        raise ConfigError("max_rows counts rows of text", got=max_rows, allowed="1 or more, or null for all")


def domain_names(field: str, value: Sequence[str] | str) -> tuple[str, ...]:
    """Names of domains as a tuple. Raises ConfigError where none is given."""
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names:
        raise ConfigError(f"{field} names domains of the pool", got="none", do=f"set {field}, e.g. {field}=[wikipedia]")
    return names


@dataclass(frozen=True, kw_only=True)
class NgramLogRatio(Signal):
    """Log importance (n,) float64 of rows: sum over n-grams of log p_target - log p_raw, over hash buckets.

    The raw distribution is that of all rows measured at once, so that a row's value depends on the rows it is measured
    with. The buckets of these rows are held in memory, 4 bytes per n-gram.
    target: domains of the pool whose text is wanted; null takes the dataset's target set. A row's own domain does not
        matter, only its text.
    buckets, n: hash buckets, words of the longest n-gram.
    laplace: add 1 to each bucket instead of a floor of 1e-8 on each probability, which a target of fewer than about ten
        n-grams per bucket should not have: what it never says would outweigh what it does.
    per_token: mean instead of sum over n-grams: without it, long rows have extreme values.
    max_rows: rows of the target that are counted, spread evenly; null for all.
    """

    forwards: ClassVar[float] = 0.0
    target: Sequence[str] | None = None
    buckets: int = 10_000
    n: int = 2
    laplace: bool = False
    per_token: bool = False
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            object.__setattr__(self, "target", domain_names("target", self.target))
        check_ngrams(self.n, self.max_rows)
        if not 1 <= self.buckets < 2**31:
            raise ConfigError("buckets counts hash buckets", got=self.buckets, allowed="1 to 2^31 - 1")

    def aims(self) -> bool:
        return self.target is None

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        table = WordHashes()
        wanted = np.zeros(self.buckets, np.int64)  # (B,)
        source = meter if self.target is not None else meter.target
        for text in texts_of(source, rows_of(source.index, self.target, self.max_rows)):
            wanted += np.bincount(self._buckets(table, text), minlength=self.buckets)
        rows = [self._buckets(table, text) for text in texts_of(meter, ids)]
        raw = sum((np.bincount(row, minlength=self.buckets) for row in rows), np.zeros(self.buckets, np.int64))  # (B,)
        weight = self._log(wanted) - self._log(raw)  # (B,)
        sums = torch.tensor([float(weight[row].sum()) for row in rows], dtype=torch.float64)  # (n,)
        if not self.per_token:
            return sums
        return sums / torch.tensor([max(len(row), 1) for row in rows])

    def _buckets(self, table: WordHashes, text: str) -> NDArray[np.int32]:
        return (bag(table.of(text), self.n) % np.uint64(self.buckets)).astype(np.int32)

    def _log(self, counts: NDArray[np.int64]) -> Floats:
        """Log probabilities (B,) of counts (B,)."""
        if self.laplace:
            counts = counts + 1
        logs: Floats = np.log(counts / max(int(counts.sum()), 1) + (0.0 if self.laplace else _FLOOR))
        return logs


@dataclass(frozen=True, kw_only=True)
class NgramFeatures(Signal):
    """Unit vectors (n, d) float64 of the n-grams of rows; 0 for a row without words.

    Each distinct n-gram adds 1 + ln(count) with a random sign to one random dimension: inner products of rows are, in
    expectation, those of their n-gram vectors. A row's vector depends on its text alone.
    dimensions: d. n: words of the longest n-gram.
    """

    forwards: ClassVar[float] = 0.0
    dimensions: int = 256
    n: int = 2

    def __post_init__(self) -> None:
        check_ngrams(self.n, None)
        if self.dimensions < 2:
            raise ConfigError("dimensions is the length of a vector", got=self.dimensions, allowed="2 or more")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        table = WordHashes()
        found = np.zeros((len(ids), self.dimensions))  # (n, d)
        for i, text in enumerate(texts_of(meter, ids)):
            grams, counts = np.unique(bag(table.of(text), self.n), return_counts=True)  # (t,)
            sign = np.where(grams >> np.uint64(63), 1.0, -1.0)  # (t,)
            place = (grams % np.uint64(self.dimensions)).astype(np.int64)  # (t,)
            found[i] = np.bincount(place, sign * (1 + np.log(counts)), self.dimensions)
        norms = np.linalg.norm(found, axis=1, keepdims=True)  # (n, 1)
        return torch.from_numpy(found / np.where(norms > 0, norms, 1))
