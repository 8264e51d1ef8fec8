"""Virtual steps of the model in training, and what they tell of rows. Training does not notice.

Parameters are not written to, unless a step is to be kept. Fused attention has no second derivative, so `exact` and
`jvp` run the plain kernel.
Letters: n rows, M target rows, b rows of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.lookahead import BACKWARDS, PASSES, Lookahead, Looked
from regimen.core.measuring import GRADIENT
from regimen.training.attention import refuse_fused
from regimen.training.elsewhere import Elsewhere
from regimen.training.ghost import RowGradients, dots_with
from regimen.training.inner_products import (
    Values,
    by_difference,
    by_double_backward,
    by_forward_mode,
    moved,
)
from regimen.training.sketching import Moments
from regimen.training.sweep import Sweeper

Shares = Callable[[Tensor], Tensor]
"""From the mean token losses (n,) float64 of all rows to their coefficients (n,) in the virtual step."""


class VirtualStep(Elsewhere):
    """Makes virtual steps on rows that `rows` reads, for the loss of the target rows that `targets` reads.

    moments: of Adam, needed for `ask.adam`. Collective: every rank calls with the same ids and takes its part of them.
    Memory: about three copies of the chosen parameters, and for `exact` three times the activations of a part.
    Raises ConfigError where ranks hold parts of parameters, they are not in float32, moments are missing, or an
    attention kernel has no second derivative.
    """

    def __init__(self, rows: Sweeper, targets: Sweeper, ask: Lookahead, *, moments: Moments | None = None) -> None:
        super().__init__(rows, targets, parameters=ask.parameters)
        self.ask = ask
        self._plain_kernel = ask.estimator in ("exact", "jvp")
        if self._plain_kernel:
            got = f"estimator={ask.estimator}"
            refuse_fused(self.model, got, do="set the estimator to fd, which needs forward passes alone")
        self.scale = _scale(self.chosen, moments) if ask.adam else None

    def look(self, ids: Tensor, targets: Tensor, shares: Shares | None, *, keep: bool = False) -> Looked:
        """What a step on rows `ids` (n,) tells of them. shares: null makes no step. targets (M,): target rows.

        keep: whether the model is moved to where the step ends; its optimizer and its modes stay as they are.
        """
        with self._measuring():
            at = {name: p.detach() for name, p in self.chosen.items()}
            losses, ahead = torch.full((len(ids),), torch.nan, dtype=torch.float64), at
            if shares is not None and self.ask.lr > 0:
                losses, direction = self._direction(ids, shares)
                ahead = moved(at, direction, -self.ask.lr)
            along, target_loss = self._target(targets, ahead)
            products = self._spread(ids, partial(self._products, at=at, along=along))
            if keep:
                with torch.no_grad():
                    for name, p in self.chosen.items():
                        p.copy_(ahead[name])
        self.rows.charge(ids, passes=PASSES[self.ask.estimator], backwards=BACKWARDS[self.ask.estimator])
        return Looked(losses, products, target_loss)

    def target_loss(self, targets: Tensor) -> float:
        """The mean of the target rows' mean token losses under the model as it is."""
        sums, tokens = self.targets.losses(targets)
        return float((sums / tokens.clamp(min=1)).mean())

    # ---- the step ---------------------------------------------------------------------------------------------

    def _direction(self, ids: Tensor, shares: Shares) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean losses (n,) at theta, and P sum_i c_i grad l_i(theta)."""
        parts = self._parts(ids)
        leaves = self._leaves({name: p.detach() for name, p in self.chosen.items()})
        with torch.set_grad_enabled(len(parts) == 1):  # one part: its graph waits until the coefficients are known
            found = [self._losses(self.rows.batch(ids[part]), leaves) for part, _ in parts]
        losses = self._everyone(ids, torch.cat([values.detach() for values in found]))
        given = shares(losses).double()  # (n,)
        gradients = {name: torch.zeros_like(value) for name, value in leaves.items()}
        for (part, counted), values in zip(parts, found, strict=True):
            if len(parts) > 1:
                values = self._losses(self.rows.batch(ids[part]), leaves)
            weights = (given[part] * counted).to(values)
            self._add(gradients, (weights * values).sum(), leaves)
        self.rows.charge(ids, passes=GRADIENT + (1 if len(parts) > 1 else 0), backwards=1)
        return losses, self._preconditioned(self._summed(gradients))

    def _target(self, targets: Tensor, at: Values) -> tuple[dict[str, Tensor], float]:
        """P grad L at `at`, and L."""
        leaves = self._leaves(at)
        gradients = {name: torch.zeros_like(value) for name, value in leaves.items()}
        total = torch.zeros((), dtype=torch.float64, device=self.rows.module.device)
        for part, counted in self._parts(targets, self.targets):
            values = self._losses(self.targets.batch(targets[part]), leaves)
            mean = (values * counted.to(values)).sum() / len(targets)
            self._add(gradients, mean, leaves)
            total += mean.detach()
        self.targets.charge(targets, passes=GRADIENT, backwards=1)
        loss = self.rows.trainer.strategy.reduce(total, reduce_op="sum")
        return self._preconditioned(self._summed(gradients)), float(loss)

    def _products(self, ids: Tensor, *, at: Values, along: Values) -> Tensor:
        """(b,) float64 products of a part."""
        batch, ask = self.rows.batch(ids), self.ask
        losses = partial(self._losses, batch)
        if ask.estimator == "fd":
            return by_difference(losses, at, along, c=ask.c)
        if ask.estimator == "exact":
            return by_double_backward(losses, at, along)
        if ask.estimator == "jvp":
            return by_forward_mode(losses, at, along)
        given = batch.inputs, batch.targets, batch.positions
        chunk = self.rows.module.objective.chunk
        return dots_with(along, RowGradients(self.model, *given, parameters=ask.parameters, chunk=chunk))

    def _preconditioned(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.scale is None:
            return gradients
        return {name: value * self.scale[name] for name, value in gradients.items()}


def _scale(chosen: Mapping[str, nn.Parameter], moments: Moments | None) -> dict[str, Tensor]:
    """1 / (sqrt(v) + eps) by name of the parameter."""
    missing = list(chosen) if moments is None else [name for name in chosen if name not in moments.second]
    if moments is None or missing:
        raise ConfigError(
            "a step with Adam's second moments needs them",
            got=f"none for {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            do="begin after the first optimizer step, train with an Adam optimizer, or set the lookahead's adam=false",
        )
    return {
        name: 1 / (moments.second[name].detach().reshape(p.shape).to(p).sqrt() + moments.eps)
        for name, p in chosen.items()
    }
