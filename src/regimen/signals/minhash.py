"""MinHash signatures: the part of entries in which two rows agree estimates the Jaccard similarity of their shingles.

Paper: Broder, On the resemblance and containment of documents, 1997; for language-model data: arXiv 2107.06499.
Differs from the papers: permutations are multiply-shift hashes of 64-bit shingle hashes, with 32-bit results.
Letters: n rows, t shingles of a row, P permutations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal
from regimen.signals.ngrams import Hashes, WordHashes, ngram_hashes, texts_of

_SEED = 0
_NONE = 2.0**32  # the entries of a row without words


@dataclass(frozen=True, kw_only=True)
class MinHash(Signal):
    """Signatures (n, P) float64 of rows, whole numbers up to 2^32.

    A row of fewer words than a shingle is one shingle. Lower case and white space do not count.
    permutations: P; the estimate of a similarity J has standard deviation sqrt(J (1 - J) / P).
    shingle: words of a shingle.
    """

    forwards: ClassVar[float] = 0.0
    permutations: int = 128
    shingle: int = 5

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise ConfigError("permutations is the length of a signature", got=self.permutations, allowed="1 or more")
        if self.shingle < 1:
            raise ConfigError("shingle counts words", got=self.shingle, allowed="1 or more")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        table, random = WordHashes(), np.random.default_rng(_SEED)
        factors = random.integers(0, 2**63, self.permutations, np.uint64) * np.uint64(2) + np.uint64(1)  # (P,) odd
        shifts = random.integers(0, 2**63, self.permutations, np.uint64)  # (P,)
        found = np.full((len(ids), self.permutations), _NONE)  # (n, P)
        for i, text in enumerate(texts_of(meter, ids)):
            shingles = self._shingles(table.of(text))
            if len(shingles):
                hashed = (shingles[:, None] * factors + shifts) >> np.uint64(32)  # (t, P)
                found[i] = hashed.min(axis=0)
        return torch.from_numpy(found)

    def _shingles(self, words: Hashes) -> Hashes:
        """Hashes (t,) of the distinct shingles of a text."""
        return np.unique(ngram_hashes(words, max(min(self.shingle, len(words)), 1)))
