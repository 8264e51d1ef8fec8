"""Perplexity of a row under a model of n-grams, of words or of the pool's tokens, counted on rows of the pool.

Paper: interpolated modified Kneser-Ney, Chen and Goodman 1998, as in KenLM; as a quality filter: CCNet, arXiv
1911.00359, and Marion et al., arXiv 2309.04564; of 4-grams of the model's tokens: SoftDedup, arXiv 2407.06654.
Differs from the papers: trigrams by default instead of 5-grams, words and marks of the n-grams of DSIR instead of
SentencePiece, no end of sentence, since a row may be cut out of a document; rows that are both counted and measured are
measured by a model that was counted without them (`folds`), for otherwise every row looks familiar.
Letters: n rows, m rows that are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regimen.core.checks import check_one_of, check_polarity
from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal
from regimen.signals.ngram_model import Ngrams
from regimen.signals.ngrams import ROWS_AT_ONCE, WORD, check_ngrams, domain_names, rows_of, texts_of


@dataclass(frozen=True, kw_only=True)
class NgramPerplexity(Signal):
    """Perplexity (n,) float64 of rows under a model of n-grams.

    n: words of an n-gram, 2 or more. of: `words` of the text, or the `tokens` of the row.
    train: domains of the pool whose rows are counted, e.g. one of good text; null for all.
    max_rows: rows that are counted, spread evenly; null for all. They are held in memory.
    folds: counted rows are split into this many parts by turns; a row of one part is measured by a model of the
        others. 1 measures every row by the model of all.
    min_count: rarer words are one unknown word, which saves memory. Above 1, text in which most words are unknown looks
        familiar, for unknown words then predict each other. With 1, as in KenLM, only a word never counted is unknown.
    polarity: 1 gives perplexities; -1 turns their sign, where familiar text is good.
    """

    forwards: ClassVar[float] = 0.0
    n: int = 3
    of: Literal["words", "tokens"] = "words"
    train: Sequence[str] | None = None
    max_rows: int | None = None
    folds: int = 2
    min_count: int = 1
    polarity: int = 1

    def __post_init__(self) -> None:
        check_polarity(self.polarity)
        if self.train is not None:
            object.__setattr__(self, "train", domain_names("train", self.train))
        check_one_of("of, which n-grams are made of", self.of, ("words", "tokens"))
        check_ngrams(self.n, self.max_rows)
        if self.n < 2:
            raise ConfigError("a word is predicted from those before it", got=f"n={self.n}", allowed="2 or more")
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
        split = words_of if self.of == "words" else tokens_of
        rows = list(self._rows(meter, counted))
        for part in range(self.folds):
            mine = (fold == part).nonzero()[:, 0]
            model = Ngrams.fit(_without(rows, part, self.folds), split, n=self.n, min_count=self.min_count)
            values = [model.perplexity(split(row)) for row in self._rows(meter, ids[mine])] if len(mine) else []
            found[mine] = torch.tensor(values, dtype=torch.float64)
        return self.polarity * found

    def _rows(self, meter: Meter, ids: Tensor) -> Iterator[Any]:
        """Texts, or tokens (t,), a part of them in memory at a time."""
        if self.of == "words":
            yield from texts_of(meter, ids)
            return
        for part in ids.tensor_split(max(len(ids) // ROWS_AT_ONCE, 1)):
            yield from meter.tokens(part)

    def _folds(self, counted: Tensor, ids: Tensor) -> Tensor:
        """(n,) the part that each row belongs to, by its place among the counted rows; 0 for a row not counted."""
        place = torch.searchsorted(counted, ids).clamp(max=len(counted) - 1)  # (n,)
        return torch.where(counted[place] == ids, place % self.folds, 0)  # (n,)


def words_of(text: str) -> list[str]:
    """The lower-cased words and marks of a text."""
    return WORD.findall(text.lower())


def tokens_of(row: Tensor) -> list[int]:
    """The tokens of a row as numbers."""
    found: list[int] = row.tolist()
    return found


def _without(rows: Sequence[Any], part: int, folds: int) -> list[Any]:
    return [row for i, row in enumerate(rows) if folds == 1 or i % folds != part]
