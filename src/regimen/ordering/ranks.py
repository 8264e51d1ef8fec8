"""Ranks of the rows of one group, which every ordering by a score starts from."""

from __future__ import annotations

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, stable_rank


def ranks(seen: Observation, by: Signal, *, descending: bool = False) -> Tensor:
    """Ranks (n,) int64 of the rows of `seen` by a signal, 0 for the lowest score (the highest, if `descending`).

    Rows with equal scores are ranked by id, the lower first, in both directions.

    Raises:
        ConfigError: a score is NaN. Infinite scores have a rank.
    """
    values = seen.values[by]
    missing = values.isnan()
    if bool(missing.any()):
        raise ConfigError(
            f"{by} is NaN for {int(missing.sum())} of {len(values)} rows, which cannot be ordered",
            got=f"ids {seen.ids[missing][:5].tolist()} ...",
            do="order by another signal, or select rows with a score first",
        )
    return stable_rank(-values if descending else values, ties=seen.ids)
