"""Ranks of the rows of one group, which every ordering by a score starts from."""

from __future__ import annotations

from torch import Tensor

from regimen.core.ranks import stable_rank
from regimen.core.signal import Signal
from regimen.core.strategy import Observation


def ranks(seen: Observation, by: Signal, *, descending: bool = False) -> Tensor:
    """Ranks (n,) int64 of the rows of `seen` by a signal, 0 for the lowest score (the highest, if `descending`).

    Rows with equal scores are ranked by id, the lower first, in both directions.

    Raises:
        ConfigError: a score is NaN. Infinite scores have a rank.
    """
    values = seen.scores(by)
    return stable_rank(-values if descending else values, ties=seen.ids)
