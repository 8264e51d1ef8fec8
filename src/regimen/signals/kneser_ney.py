"""Perplexity of a row's text under a trigram model of words, counted on rows of the pool.

Paper: interpolated modified Kneser-Ney, Chen and Goodman 1998, as in KenLM; as a quality filter: CCNet, arXiv
1911.00359, and Marion et al., arXiv 2309.04564.
Differs from the papers: trigrams instead of 5-grams, words and marks of the n-grams of DSIR instead of SentencePiece,
no end of sentence, since a row may be cut out of a document; rows that are both counted and measured are measured by a
model that was counted without them (`folds`), for otherwise every row looks familiar.
Letters: n rows, t words of a row, T trigrams in all, U distinct ones, V words of the vocabulary with the two marks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regimen.core.checks import check_polarity
from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal
from regimen.signals.ngrams import WORD, check_ngrams, domain_names, rows_of, texts_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BEGIN, UNKNOWN, FIRST = 0, 1, 2  # the mark before a row, words outside the vocabulary, the first word
_LARGEST = 2**21  # of a vocabulary: three words fit into 63 bits
_FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])  # KenLM's discounts for text too short to estimate them


class _Level(NamedTuple):
    """N-grams of one length: keys (U,) ascending, discounted shares in their contexts (U,); contexts and backoffs."""

    keys: Ints
    shares: Floats
    contexts: Ints
    backoff: Floats


class Trigrams(NamedTuple):
    """A trigram model. words: 2 to V-1 by word; unigrams: (V,) float64, 0 for BEGIN, sum 1."""

    words: dict[str, int]
    unigrams: Floats
    bigrams: _Level
    trigrams: _Level

    @classmethod
    def fit(cls, texts: Sequence[str], *, min_count: int) -> Trigrams:
        """A model of `texts`; words that occur less than `min_count` times are one, the unknown word."""
        counted = Counter(word for text in texts for word in WORD.findall(text.lower()))
        kept = [word for word, count in counted.most_common() if count >= min_count]  # ties as they came
        words = {word: i for i, word in enumerate(kept[: _LARGEST - FIRST], start=FIRST)}
        size = len(words) + FIRST
        keys = np.concatenate([np.zeros(0, np.int64), *(_keys(words, text) for text in texts)])  # (T,)
        thirds, counts = np.unique(keys, return_counts=True)  # (U,)
        seconds, before = np.unique(thirds % size**2, return_counts=True)  # distinct words before each pair
        ones = np.bincount(seconds % size, minlength=size)  # (V,) distinct words before each word
        share = np.maximum(ones - _discounts(ones)[np.minimum(ones, 3)], 0) / max(int(ones.sum()), 1)  # (V,)
        rest = (1 - share.sum()) / (size - 1)  # to the uniform distribution over all but BEGIN
        unigrams = np.where(np.arange(size) == BEGIN, 0.0, share + rest)  # (V,)
        return cls(words, unigrams, _level(seconds, before, size), _level(thirds, counts, size))

    def probabilities(self, keys: Ints) -> Floats:
        """p(w | u, v) (t,) of trigrams with keys (u V + v) V + w (t,)."""
        size = len(self.unigrams)
        pairs = _interpolated(self.bigrams, keys % size**2, size, self.unigrams[keys % size])
        return _interpolated(self.trigrams, keys, size, pairs)

    def perplexity(self, text: str) -> float:
        """Exp of the mean -ln p of the words of a text; for a text without words, that of a uniform draw of words."""
        keys = _keys(self.words, text)
        if not len(keys):
            return float(len(self.unigrams) - 1)
        return float(np.exp(-np.log(self.probabilities(keys)).mean()))


def _keys(words: dict[str, int], text: str) -> Ints:
    """Keys (t,) of the trigrams that end in each word of a text; two marks stand before it."""
    size = len(words) + FIRST
    found = [BEGIN, BEGIN, *(words.get(word, UNKNOWN) for word in WORD.findall(text.lower()))]
    ids = np.array(found, np.int64)  # (t+2,)
    keys: Ints = (ids[:-2] * size + ids[1:-1]) * size + ids[2:]
    return keys


def _discounts(counts: Ints) -> Floats:
    """(4,) taken from counts of 0, 1, 2, and 3 or more; fixed ones where the text is too short to estimate them.

    Too short: a count of 1 to 4 does not occur, or a discount would not be above 0, so that unseen words had no mass.
    """
    n = np.bincount(np.clip(counts, 0, 5), minlength=6)[1:5]  # (4,) n-grams that occur 1, 2, 3, 4 times
    if not n.all():
        return _FALLBACK
    y = n[0] / (n[0] + 2 * n[1])
    k = np.arange(1, 4)
    taken = k - (k + 1) * y * n[1:] / n[:3]  # (3,) below k
    return np.concatenate([[0.0], taken]) if (taken > 0).all() else _FALLBACK


def _level(keys: Ints, counts: Ints, size: int) -> _Level:
    contexts, owner = np.unique(keys // size, return_inverse=True)
    taken = _discounts(counts)[np.minimum(counts, 3)]  # (U,)
    totals = np.bincount(owner, counts, len(contexts))
    backoff = np.bincount(owner, taken, len(contexts)) / totals
    return _Level(keys, (counts - taken) / totals[owner], contexts, backoff)


def _interpolated(level: _Level, keys: Ints, size: int, shorter: Floats) -> Floats:
    """Probabilities (t,) of n-grams from those of their shorter n-grams (t,)."""
    return _looked_up(level.keys, level.shares, keys, 0.0) + shorter * _looked_up(
        level.contexts, level.backoff, keys // size, 1.0
    )


def _looked_up(keys: Ints, values: Floats, wanted: Ints, missing: float) -> Floats:
    """The values (t,) at `wanted` (t,) among ascending keys."""
    if not len(keys):
        return np.full(len(wanted), missing)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], missing)


@dataclass(frozen=True, kw_only=True)
class NgramPerplexity(Signal):
    """Perplexity (n,) float64 of rows under a trigram model of words.

    train: domains of the pool whose rows are counted, e.g. one of good text; null for all.
    max_rows: rows that are counted, spread evenly; null for all. They are held in memory.
    folds: counted rows are split into this many parts by turns; a row of one part is measured by a model of the
        others. 1 measures every row by the model of all.
    min_count: rarer words are one unknown word, which saves memory. Above 1, text in which most words are unknown looks
        familiar, for unknown words then predict each other. With 1, as in KenLM, only a word never counted is unknown.
    polarity: 1 gives perplexities; -1 turns their sign, where familiar text is good.
    """

    forwards: ClassVar[float] = 0.0
    train: Sequence[str] | None = None
    max_rows: int | None = None
    folds: int = 2
    min_count: int = 1
    polarity: int = 1

    def __post_init__(self) -> None:
        check_polarity(self.polarity)
        if self.train is not None:
            object.__setattr__(self, "train", domain_names("train", self.train))
        check_ngrams(3, self.max_rows)
        if self.folds < 1 or self.min_count < 1:
            got = f"folds={self.folds}, min_count={self.min_count}"
            raise ConfigError("folds and min_count are counts", got=got, allowed="1 or more")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Values (n,). Raises ConfigError where the rows to count are fewer than the folds."""
        counted = rows_of(meter.index, self.train, self.max_rows)  # (m,) ascending
        if len(counted) < self.folds:
            raise ConfigError("each fold needs a row", got=f"{len(counted)} rows", do=f"set folds below {self.folds}")
        found = torch.zeros(len(ids), dtype=torch.float64)  # (n,)
        fold = self._folds(counted, ids)  # (n,)
        texts = list(texts_of(meter, counted))
        for part in range(self.folds):
            mine = (fold == part).nonzero()[:, 0]
            model = Trigrams.fit(list(_without(texts, part, self.folds)), min_count=self.min_count)
            values = [model.perplexity(text) for text in texts_of(meter, ids[mine])] if len(mine) else []
            found[mine] = torch.tensor(values, dtype=torch.float64)
        return self.polarity * found

    def _folds(self, counted: Tensor, ids: Tensor) -> Tensor:
        """(n,) the part that each row belongs to, by its place among the counted rows; 0 for a row not counted."""
        place = torch.searchsorted(counted, ids).clamp(max=len(counted) - 1)  # (n,)
        return torch.where(counted[place] == ids, place % self.folds, 0)  # (n,)


def _without(texts: Sequence[str], part: int, folds: int) -> Iterable[str]:
    return (text for i, text in enumerate(texts) if folds == 1 or i % folds != part)
