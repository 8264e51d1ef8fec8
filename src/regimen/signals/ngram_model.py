"""A model of n-grams by interpolated modified Kneser-Ney smoothing, over whatever rows are made of.

Paper: Chen and Goodman 1998, as in KenLM. p_k(w | c) = (count - D(count)) / total(c) + backoff(c) p_(k-1)(w | c') with
c' the context without its first word; counts of shorter n-grams are numbers of distinct words before them.
An n-gram is known by a number: the place of (number of its first n - 1 words) V + (last word) among all such keys.
Letters: T words of all rows with the marks before each, t of one row, V of the vocabulary, U distinct n-grams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Row = TypeVar("Row")
BEGIN, UNKNOWN, FIRST = 0, 1, 2  # the mark before a row, words outside the vocabulary, the first word
_LARGEST = 2**21  # of a vocabulary: a key fits into 63 bits
_FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])  # KenLM's discounts for text too short to estimate them


class _Level(NamedTuple):
    """N-grams of one length: keys (U,) ascending, shares (U,) in their contexts; backoffs by number of the context."""

    keys: Ints
    shares: Floats
    backoff: Floats


class Ngrams(NamedTuple):
    """A model. words: 2 to V-1 by word; unigrams: (V,) float64, 0 for BEGIN, sum 1; levels: of 2, ..., n words."""

    words: dict[Hashable, int]
    unigrams: Floats
    levels: tuple[_Level, ...]

    @classmethod
    def fit(
        cls, rows: Sequence[Row], split: Callable[[Row], Iterable[Hashable]], *, n: int = 3, min_count: int = 1
    ) -> Ngrams:
        """A model of n-grams, n of 2 or more, of the words that `split` makes of each row.

        Words that occur less than `min_count` times are one, the unknown word.
        """
        counted = Counter(word for row in rows for word in split(row))
        kept = [word for word, count in counted.most_common() if count >= min_count]  # ties as they came
        words = {word: i for i, word in enumerate(kept[: _LARGEST - FIRST], start=FIRST)}
        size = len(words) + FIRST
        tokens = np.concatenate([np.zeros(0, np.int64), *(_marked(words, split(row), n) for row in rows)])  # (T,)
        real = tokens.nonzero()[0]  # (T',) places that are no mark
        keys, numbers = [], [tokens]  # by length of the n-gram that ends at each place
        for _ in range(2, n + 1):
            found, number = np.unique(np.roll(numbers[-1], 1) * size + tokens, return_inverse=True)
            keys.append(found)
            numbers.append(number)
        sizes = [size, *map(len, keys)]
        counts = [np.bincount(numbers[-1][real], minlength=sizes[-1])]
        for k in range(n - 2, -1, -1):  # distinct n-grams of one word more, by what they end in
            first = np.unique(numbers[k + 1][real], return_index=True)[1]
            counts.append(np.bincount(numbers[k][real[first]], minlength=sizes[k]))
        ones, *more = counts[::-1]
        levels = (_level(key, count, size, m) for key, count, m in zip(keys, more, sizes[:-1], strict=True))
        return cls(words, _unigrams(ones), tuple(levels))

    def perplexity(self, row: Iterable[Hashable]) -> float:
        """Exp of the mean -ln p of the words of a row; for a row without words, that of a uniform draw of words."""
        n = len(self.levels) + 1
        tokens = _marked(self.words, row, n)  # (n - 1 + t,)
        if len(tokens) < n:
            return float(len(self.unigrams) - 1)
        return float(np.exp(-np.log(self._probabilities(tokens)[n - 1 :]).mean()))

    def probabilities(self, grams: Ints) -> Floats:
        """P (m,) of the last of n words (m, n), given as numbers of the vocabulary."""
        return self._probabilities(grams.flatten())[grams.shape[1] - 1 :: grams.shape[1]]

    def _probabilities(self, tokens: Ints) -> Floats:
        """P (T,) of words that follow on each other; the first n - 1 lack a context and do not count."""
        size = len(self.unigrams)
        found, number = self.unigrams[tokens], tokens
        for level in self.levels:
            context = np.roll(number, 1)  # -1: never seen
            number = _places(level.keys, np.where(context < 0, -1, context * size + tokens))
            found = _taken(level.shares, number, 0.0) + found * _taken(level.backoff, context, 1.0)
        return found


def _marked(words: dict[Hashable, int], row: Iterable[Hashable], n: int) -> Ints:
    """Numbers (n - 1 + t,) of the words of a row, with n - 1 marks before them."""
    return np.array([BEGIN] * (n - 1) + [words.get(word, UNKNOWN) for word in row], np.int64)


def _unigrams(counts: Ints) -> Floats:
    """(V,) of counts (V,): what is discounted goes to the uniform distribution over all but BEGIN."""
    share = np.maximum(counts - _discounts(counts)[np.minimum(counts, 3)], 0) / max(int(counts.sum()), 1)
    rest = (1 - share.sum()) / (len(counts) - 1)
    return np.where(np.arange(len(counts)) == BEGIN, 0.0, share + rest)


def _discounts(counts: Ints) -> Floats:
    """(4,) taken from counts of 0, 1, 2, and 3 or more; a fixed one where the text cannot tell.

    It cannot where a count that the estimate rests on does not occur, or where unseen words would have no mass: copies
    of one text make many n-grams of one count. Each is judged alone: that of 1 matters most, and is told soonest.
    """
    n = np.bincount(np.clip(counts, 0, 5), minlength=6)[1:5].astype(float)  # (4,) n-grams that occur 1, 2, 3, 4 times
    k = np.arange(1, 4)
    y = n[0] / max(n[0] + 2 * n[1], 1)
    taken = k - (k + 1) * y * n[1:] / np.maximum(n[:3], 1)  # (3,) below k
    told = (n[0] > 0) & (n[1] > 0) & (n[1:] > 0) & (n[:3] > 0) & (taken > 0)
    return np.concatenate([[0.0], np.where(told, taken, _FALLBACK[1:])])


def _level(keys: Ints, counts: Ints, size: int, contexts: int) -> _Level:
    """Of n-grams with keys and counts (U,), that have `contexts` contexts. What ends in a mark has a count of 0."""
    owner = keys // size  # (U,)
    taken = _discounts(counts)[np.minimum(counts, 3)]  # (U,)
    totals = np.bincount(owner, counts, contexts)
    some = np.maximum(totals, 1)  # one that nothing follows backs off whole
    backoff = np.where(totals > 0, np.bincount(owner, taken, contexts) / some, 1.0)
    return _Level(keys, (counts - taken) / some[owner], backoff)


def _taken(values: Floats, places: Ints, missing: float) -> Floats:
    """Values (t,) at places (t,); those of places below 0 are missing."""
    return np.where(places < 0, missing, values[places] if len(values) else missing)


def _places(keys: Ints, wanted: Ints) -> Ints:
    """Places (t,) of `wanted` (t,) among ascending keys, -1 where one is not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)
