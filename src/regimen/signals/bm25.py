"""BM25: how well a row's words match those of the target set, the mean over its rows as queries.

Papers: Okapi BM25, Robertson and Zaragoza 2009; as weights, ADAPT, arXiv 2605.05227. With f the count of a word in row
x, |x| the words of x, and idf = ln(1 + (N - df + 1/2) / (df + 1/2)) over N counted rows, of which df hold the word,
    BM25(x, v) = sum over words of v of idf f (k1 + 1) / (f + k1 (1 - b + b |x| / mean length)).
The sum is linear in the counts of v, so the mean over target rows is one sum with their mean counts.
Letters: n rows, N counted rows, M target rows.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Meter, Signal
from regimen.signals.ngrams import WORD, check_ngrams, rows_of, texts_of


class _Query(NamedTuple):
    """What rows of a pool are compared with.

    worth: idf times mean count of each word of the target. length: mean words of a row of the pool.
    """

    pool: PoolIndex
    worth: dict[str, float]
    length: float


@dataclass(frozen=True, kw_only=True)
class Bm25(Signal):
    """Mean BM25 (n,) float64 of rows for the rows of the target set, 0 where they share no word.

    k1, b: how fast a repeated word saturates, 0 or more, and how much long rows are held back, 0 to 1.
    max_rows: rows of the pool in which words are counted, spread evenly; null for all.
    """

    by_row: ClassVar[bool] = True
    forwards: ClassVar[float] = 0.0
    k1: float = 1.5
    b: float = 0.75
    max_rows: int | None = 10_000

    def __post_init__(self) -> None:
        check_ngrams(1, self.max_rows)
        if not 0 <= self.k1 < math.inf:
            raise ConfigError("k1 of BM25 cannot be negative", got=self.k1, allowed="0 or more")
        if not 0 <= self.b <= 1:
            raise ConfigError("b of BM25 is a part", got=self.b, allowed="0 <= b <= 1")
        object.__setattr__(self, "_query", None)

    def aims(self) -> bool:
        return True

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n,). Raises ConfigError where the pool has no target set."""
        query = self._asked(meter)
        return torch.tensor([self._score(query, text) for text in texts_of(meter, ids)], dtype=torch.float64)

    def _score(self, query: _Query, text: str) -> float:
        counts = Counter(WORD.findall(text.lower()))
        length = self.k1 * (1 - self.b + self.b * counts.total() / query.length)
        known = ((word, f) for word, f in counts.items() if word in query.worth)
        return math.fsum(query.worth[word] * f * (self.k1 + 1) / (f + length) for word, f in known)

    def _asked(self, meter: Meter) -> _Query:
        """The query of this pool: it depends on text alone, so it is made once, however often rows are measured."""
        made: _Query | None = getattr(self, "_query")  # noqa: B009
        if made is None or made.pool is not meter.index:
            made = self._made(meter)
            object.__setattr__(self, "_query", made)
        return made

    def _made(self, meter: Meter) -> _Query:
        target = meter.target
        rows = target.index.rows
        asked = Counter(word for text in texts_of(target, torch.arange(rows)) for word in WORD.findall(text.lower()))
        holding: Counter[str] = Counter()
        counted, words = rows_of(meter.index, None, self.max_rows), 0
        for text in texts_of(meter, counted):
            found = WORD.findall(text.lower())
            words += len(found)
            holding.update(set(found) & asked.keys())
        n = len(counted)
        idf = {word: math.log(1 + (n - holding[word] + 0.5) / (holding[word] + 0.5)) for word in asked}
        worth = {word: idf[word] * count / rows for word, count in asked.items()}
        return _Query(meter.index, worth, max(words / n, 1.0))
