"""RHO-LOSS: of candidates drawn at random, the next batch is those with the highest reducible loss.

Paper: Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt, arXiv 2206.07137,
equation 3. Of ten candidates one is usually kept.
Differs from the paper: candidates of a step are drawn anew among all rows that have not reached the repetition cap, so
an epoch has no meaning; the irreducible loss is measured when a row is a candidate, not once for all rows, which costs
a second forward pass and no table; a row is the mean of its tokens' losses. The held-out rows are a part of the pool
itself and are never trained on here. Under a mixer the few rows kept cannot hold its shares: leave it out.
Letters: n candidates, B rows kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection, Selector
from regimen.selection.holdout import check_fraction, held_out
from regimen.selection.rules import top_k
from regimen.signals.reducible_loss import ReducibleLoss


@dataclass(frozen=True, kw_only=True)
class RhoLoss(Selector):
    """As many rows as are served until the next decision; equal values are ranked by id, the lower first.

    reference: the folder of the finished run that gives the irreducible loss, trained on the held-out rows.
    fraction, seed: which rows are held out, as in `holdout`; rows without target tokens are not kept either.
    candidates: rows that are measured per decision, about ten times the rows to keep; null measures the whole pool.
    """

    reference: str | None = None
    fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction)
        if self.reference is None:
            raise ConfigError(
                "RHO-LOSS has no reference model",
                got="strategies.rho_loss.reference=null",
                do="leave it as method=rho_loss has it, which trains one first, or name the folder of a finished run",
            )

    @property
    def by(self) -> ReducibleLoss:
        """The signal that rows are ranked by."""
        return ReducibleLoss(reference=self.reference)

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (B,) int64, best first. Raises ConfigError for a value that is NaN, or where all rows are held out."""
        ids, by_id = seen.ids.sort()  # (n,)
        values, may = seen.scores(self.by)[by_id], self._may(seen)[by_id]  # (n,)
        ids, values = ids[may], values[may]
        return ids[top_k(values, seen.horizon)]  # (B,)

    def notes(self, state: Any, decision: Selection, seen: Observation) -> list[str]:
        """A warning where all that could be kept was, so that nothing was chosen or rows repeat in the batch."""
        return all_kept("rho_loss", int(self._may(seen).sum()), seen)

    def _may(self, seen: Observation) -> Tensor:
        """(n,) bool: rows that may be kept."""
        inside: Tensor = held_out(seen.ids, fraction=self.fraction, seed=self.seed)
        return ~inside & (seen.tokens > 0)


def all_kept(name: str, rows: int, seen: Observation) -> list[str]:
    """The warning of a selector of batches that chose from no more `rows` than the batch takes."""
    if rows > seen.horizon:
        return []
    what = "so it chose nothing" if rows == seen.horizon else f"fewer than the {seen.horizon} to serve, so rows repeat"
    return [f"{name} kept all {rows} rows it could choose from, {what}: raise strategies.{name}.candidates"]
