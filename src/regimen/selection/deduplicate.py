"""Near-duplicate removal: of rows whose text is nearly the same, the one with the lowest id is kept.

Papers: Broder 1997 (MinHash); bands of locality-sensitive hashing and clusters as in Deduplicating Training Data Makes
Language Models Better, arXiv 2107.06499, and SlimPajama.
Differs from the papers: similarity is the estimate from the signatures, and is not checked against the text again.
Letters: n rows to choose from, M kept, P entries of a signature, b bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selector
from regimen.signals.minhash import MinHash

Signatures = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Deduplicate(Selector):
    """One row of each cluster: rows are linked where they share a band and their similarity reaches the threshold.

    by: the signatures.
    threshold: smallest Jaccard similarity of shingles of near-duplicates.
    bands: b; rows with similarity J share one with probability 1 - (1 - J^(P/b))^b. More bands find more.
    """

    by: MinHash
    threshold: float = 0.8
    bands: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise ConfigError("threshold is a similarity", got=self.threshold, allowed="0 < threshold <= 1")
        if self.bands < 1 or self.by.permutations % self.bands:
            raise ConfigError(
                "bands split the signature into equal parts",
                got=f"bands={self.bands}, permutations={self.by.permutations}",
                allowed="a divisor of permutations",
            )

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64, ascending: the lowest of each cluster."""
        ids, by_id = seen.ids.sort()  # (n,)
        signatures = seen.values[self.by][by_id].long().numpy()  # (n, P)
        lowest = clusters(signatures, threshold=self.threshold, bands=self.bands)  # (n,)
        return ids[torch.from_numpy(lowest == np.arange(len(lowest)))]  # (M,)


def clusters(signatures: Signatures, *, threshold: float, bands: int) -> NDArray[np.int64]:
    """The lowest position (n,) of each row's cluster, from signatures (n, P)."""
    unique, first, owner = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
    root = np.arange(len(unique))  # a forest: each cluster's tree points to its lowest row
    agree = np.ceil(threshold * signatures.shape[1] - 1e-9)  # entries in which near-duplicates agree
    for band in np.split(unique, bands, axis=1):
        _, key = np.unique(band, axis=0, return_inverse=True)
        by_key = key.argsort(kind="stable")
        heads = np.flatnonzero(np.diff(key[by_key])) + 1
        for group in np.split(by_key, heads):
            if len(group) > 1:
                _link(unique, group, agree, root)
    found = np.array([_top(root, i) for i in range(len(unique))])
    lowest = np.full(len(unique), len(signatures))
    np.minimum.at(lowest, found, first)
    return np.asarray(lowest[found][owner])


def _link(unique: Signatures, group: NDArray[np.int64], agree: float, root: NDArray[np.int64]) -> None:
    """Join the rows of a group that reach each other over similar rows; a tight group needs one comparison a row."""
    while len(group):
        reached, group = [int(group[0])], group[1:]
        while reached:
            row = reached.pop()
            near = (unique[group] == unique[row]).sum(axis=1) >= agree
            for other in group[near].tolist():
                a, b = _top(root, row), _top(root, other)
                root[max(a, b)] = min(a, b)
                reached.append(other)
            group = group[~near]


def _top(root: NDArray[np.int64], i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = int(root[i])
    return i
