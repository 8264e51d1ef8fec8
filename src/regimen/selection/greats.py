"""GREATS: of candidates drawn at random, the next batch is picked one by one, for what each still takes off a loss.

Paper: GREATS: Online Selection of High-Quality Data for LLM Training in Every Iteration, NeurIPS 2024, as its code does
it. With gradients g_i of the candidates, v of a target's mean loss and a step eta, row i scores eta g_i . v, and each
pick j takes eta^2 g_i . g_j from all others: the second order of the target's loss, the identity for its Hessian.
Differs from the paper: inner products are of sketches, of all trained parameters unless `by.sketch.parameters` says
otherwise, where the code takes adapters alone; v is the mean of the whole target set, where the code takes a few of its
rows per step, so keep the target set small; scores are divided by eta, which picks the same rows and still ranks them
where eta is 0. The row's own second-order term is left out as in the code; `self_term` puts it in. Derived for SGD:
under Adam the learning rate is no step along the gradient. Candidates are rows below the repetition cap. Under a mixer
the few rows kept cannot hold its shares: leave it out.
Letters: n candidates, B rows kept, d numbers of a sketch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection, Selector
from regimen.selection.rho_loss import all_kept
from regimen.signals.gradients import GradientSketch, target_gradient

_BY = GradientSketch()


@dataclass(frozen=True, kw_only=True)
class Greats(Selector):
    """As many rows as are served until the next decision; equal values are ranked by id, the lower first.

    by: the gradients. lr: eta; null for the learning rate of the next step.
    interaction: whether picks count against rows that resemble them; without, the highest scores are kept.
    self_term: take eta^2 |g_i|^2 / 2 from row i too, which makes each pick the best one for an identity Hessian.
    update: what one step of size eta goes along, the `sum` of the kept rows' gradients as in the paper or their `mean`,
        which divides eta by the rows of the batch and weakens interactions as much.
    candidates: rows that are measured per decision; null measures the whole pool.
    """

    by: GradientSketch = _BY
    lr: float | None = None
    interaction: bool = True
    self_term: bool = False
    update: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is not None and not 0 <= self.lr < math.inf:
            raise ConfigError("lr is a step size", got=self.lr, allowed="0 or more, or null for the run's own")
        if self.update not in ("sum", "mean"):
            raise ConfigError("unknown update", got=f"update={self.update}", allowed="sum, mean")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def needs_of_target(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (B,) int64, best first. Raises ConfigError where the pool has no target set."""
        wanted = target_gradient(seen, self.by)  # (d,)
        ids, by_id = seen.ids.sort()  # (n,)
        eta = seen.lr if self.lr is None else self.lr
        if self.update == "mean":
            eta /= seen.horizon
        gradients = seen.values[self.by][by_id].double()  # (n, d)
        interaction = eta if self.interaction else 0.0
        picked = greedy(gradients, wanted, seen.horizon, eta=interaction, self_term=self.self_term)
        return ids[picked]  # (B,)

    def notes(self, state: Any, decision: Selection, seen: Observation) -> list[str]:
        """A warning where all candidates were kept, so that nothing was chosen or rows repeat in the batch."""
        return all_kept("greats", len(seen.ids), seen)


def greedy(gradients: Tensor, wanted: Tensor, k: int, *, eta: float, self_term: bool = False) -> Tensor:
    """Positions (k,) int64, or of all n rows if fewer, in the order picked.

    gradients (n, d), wanted (d,): v. eta: 0 ranks by g_i . v alone. Ties go to the lower position.
    """
    gain = gradients @ wanted  # (n,)
    if self_term:
        gain = gain - eta / 2 * gradients.square().sum(1)
    picked = []
    for _ in range(min(k, len(gradients))):
        best = int(gain.argmax())  # the first of equals
        picked.append(best)
        gain = gain - eta * (gradients @ gradients[best])  # (n,); one row of the Gram matrix, which is never held
        gain[picked] = -torch.inf
    return torch.tensor(picked, dtype=torch.int64)
