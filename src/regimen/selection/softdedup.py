"""SoftDedup: no row is removed; rows that say what others say are drawn less often.

Paper: SoftDedup, arXiv 2407.06654, section 3. The commonness p of a row is the geometric mean of the probabilities of
its n-grams under a Kneser-Ney model of the corpus itself; rows are cut into K segments by p, and each segment is drawn
in proportion to 1 / p.
Differs from the paper: 1 / p is the perplexity of the model, of 4-grams of the pool's tokens as in the paper, so any
signal that is higher for rarer rows may take its place; a row is what the pool calls a row, which packing may make of
several documents; a segment's p is the mean over its rows; the paper's K and bounds are not known: 20 segments of as
many rows each, weights at most `clip` times the lowest. What is drawn is with replacement, so passes over the pool have
no meaning.
Beware: text that repeats for a reason, such as licences and headers of code, is drawn less often too.
Letters: n rows to choose from, K segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection, Selector


@dataclass(frozen=True, kw_only=True)
class SoftDedup(Selector):
    """All rows, with the weights by which they are drawn, of mean 1.

    by: perplexity, 1 / p, above 0. The n-gram perplexity wants `folds: 1`, since a row is counted with the rest.
    segments: K, 1 or more; equal values share a segment.
    clip: the highest weight is at most this many times the lowest, 1 or more; null for no bound.
    """

    by: Signal
    segments: int = 20
    clip: float | None = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments < 1:
            raise ConfigError("segments counts parts of the rows", got=self.segments, allowed="1 or more")
        if self.clip is not None and not self.clip >= 1:
            raise ConfigError("clip bounds the ratio of weights", got=self.clip, allowed="1 or more, or null")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Selection:
        """All ids (n,) with their weights. Raises ConfigError for a value that is NaN, or not above 0."""
        values = seen.scores(self.by)
        if not bool((values > 0).all()):
            raise ConfigError(
                f"{self.by} is no perplexity: it is 0 or less for {int((values <= 0).sum())} of {len(values)} rows",
                do="give SoftDedup a signal like that of method=softdedup",
            )
        weights = segment_weights(1 / values, self.segments, self.clip)
        return Selection(seen.ids, sampling_weight=weights)


def segment_weights(commonness: Tensor, segments: int, clip: float | None) -> Tensor:
    """Weights (n,) float64 of mean 1 for commonness p (n,) float64 above 0: 1 / mean p of each segment, bounded.

    A row's segment is by the part of the rows that are more common, so that equal rows share one.
    """
    _, first, counts = torch.unique(-commonness, return_inverse=True, return_counts=True)
    place = counts.cumsum(0) - counts  # (m,) rows that are more common than each distinct value
    segment = (place * segments // len(commonness))[first]  # (n,)
    zeros = torch.zeros(segments, dtype=torch.float64)
    rows = zeros.index_add(0, segment, torch.ones_like(commonness))
    mean = zeros.index_add(0, segment, commonness) / rows.clamp(min=1)
    weights = 1 / mean[segment]  # (n,)
    if clip is not None:
        weights = weights.clamp(max=clip * float(weights.min()))
    return weights / weights.mean()
