"""Curriculum: rows are drawn from the easiest ones, and ever more rows count as easy, until all do.

Papers: competence-based curriculum learning, arXiv 1903.09848, algorithm 1; for language models, arXiv 2506.11300, with
difficulties as scores of text and curricula as a warm-up. Sceptical: arXiv 2308.12202.
Differs from the papers: the share is brought up to date when the trigger fires, not at every step; rows that have been
served as often as `dataset.max_epochs_per_domain` allows leave, and the next harder ones take their place.
Letters: n rows to choose from, N of the pool, M that may be drawn, K domains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.ranks import stable_rank
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection, Selector
from regimen.selection.pacing import Pacing

_PACING = Pacing()


class Ranked(NamedTuple):
    """Rows (n,) int64 from easy to hard as they were first measured; empty before."""

    ids: Tensor


@dataclass(frozen=True, kw_only=True)
class Curriculum(Selector):
    """After the part x of the run, ceil(c(x) n) rows may be drawn, the easiest.

    by: the difficulty of a row, higher is harder.
    descending: the hardest first, an anti-curriculum.
    pacing: c.
    by_domain: difficulty is the part of a row's domain that is easier than it, so that every domain gives c of its
        rows; without it a score that goes with the domain changes the mixture.
    replacement: rows are drawn uniformly, each draw apart from all others, as in the papers. False: without
        replacement, those served least often first, so that new rows come before repetitions.
    remeasure: difficulty is measured at every decision, by the model of that moment, and not at the first alone.
    candidates: needs `remeasure`, since others are drawn for every decision.
    """

    followed: ClassVar[bool] = True
    by: Signal
    descending: bool = False
    pacing: Pacing = _PACING
    by_domain: bool = False
    replacement: bool = True
    remeasure: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None and not self.remeasure:
            raise ConfigError(
                "a curriculum over candidates measures others at every decision",
                got=f"candidates={self.candidates}, remeasure=false",
                do="set remeasure=true, or candidates=null",
            )

    @property
    def measures_once(self) -> bool:
        """Whether difficulties stay what they were first."""
        return not self.remeasure

    def init(self, index: PoolIndex) -> Ranked:
        return Ranked(torch.empty(0, dtype=torch.int64))

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Ranked, seen: Observation) -> Selection:
        """Rows (M,), easiest first. Raises ConfigError for a NaN difficulty."""
        ranked = state.ids if self._knows(state) else self.ranked(seen)
        share = self.pacing.share(seen.progress)
        rows = max(math.ceil(share * len(ranked) - 1e-9), 1)
        chosen = ranked[torch.isin(ranked, seen.ids)][:rows]  # (M,): without those at the repetition cap
        even = torch.ones(len(chosen), dtype=torch.float64)
        return Selection(chosen, sampling_weight=even if self.replacement else None)

    def advance(self, state: Ranked, decision: Selection, seen: Observation) -> Ranked:
        """Remembers the difficulties, unless they are measured again."""
        return state if self.remeasure or self._knows(state) else Ranked(self.ranked(seen))

    def notes(self, state: Ranked, decision: Selection, seen: Observation) -> list[str]:
        """A warning where easy rows have reached the repetition cap."""
        if not self._knows(state) or bool(torch.isin(decision.ids, state.ids[: len(decision.ids)]).all()):
            return []
        return [
            "rows of the curriculum have reached dataset.max_epochs_per_domain, and harder ones take their place: set "
            "it to null, or raise pacing.start"
        ]

    def ranked(self, seen: Observation) -> Tensor:
        """Rows (n,) from easy to hard, ties by id."""
        scores = seen.scores(self.by)
        rank = stable_rank(-scores if self.descending else scores, ties=seen.ids)  # (n,)
        if not self.by_domain:
            return seen.ids[rank.argsort()]
        part = torch.empty(len(rank), dtype=torch.float64)  # of a row's domain that is easier than it
        for k in torch.unique(seen.domain).tolist():
            mine = seen.domain == k
            part[mine] = (rank[mine].argsort().argsort().double() + 0.5) / int(mine.sum())
        return seen.ids[stable_rank(part, ties=rank).argsort()]

    def _knows(self, state: Ranked) -> bool:
        return len(state.ids) > 0 and not self.remeasure
