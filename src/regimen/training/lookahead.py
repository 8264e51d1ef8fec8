"""Virtual steps of the model in training, and what they tell of rows. Training does not notice.

Parameters are never written to: the model is called with others in their place (`torch.func.functional_call`), inside
of any data-parallel wrapper, in evaluation mode, in float32 whatever the precision of training, since bfloat16 rounds
the small moves of `fd` away. Fused attention has no second derivative, so `exact` and `jvp` run the plain kernel.
Letters: n rows, M target rows, b rows of a part, L positions, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimen.core.errors import ConfigError
from regimen.core.lookahead import PASSES, Lookahead, Looked
from regimen.training.attention import refuse_fused
from regimen.training.context import gathered
from regimen.training.cost import BACKWARD, rows_flops
from regimen.training.cross_entropy import IGNORE
from regimen.training.ghost import RowGradients, dots_with
from regimen.training.inner_products import (
    Values,
    by_difference,
    by_double_backward,
    by_forward_mode,
    moved,
)
from regimen.training.loader import Batch
from regimen.training.sketching import Moments, named_parameters
from regimen.training.sweep import Sweeper, undisturbed

Shares = Callable[[Tensor], Tensor]
"""From the mean token losses (n,) float64 of all rows to their coefficients (n,) in the virtual step."""


class VirtualStep:
    """Makes virtual steps on rows that `rows` reads, for the loss of the target rows that `targets` reads.

    moments: of Adam, needed for `ask.adam`. Collective: every rank calls with the same ids and takes its part of them.
    Memory: about three copies of the chosen parameters, and for `exact` three times the activations of a part.
    Raises ConfigError where ranks hold parts of parameters, they are not in float32, moments are missing, or an
    attention kernel has no second derivative.
    """

    def __init__(self, rows: Sweeper, targets: Sweeper, ask: Lookahead, *, moments: Moments | None = None) -> None:
        self.rows, self.targets, self.ask = rows, targets, ask
        self.model = rows.module.model
        self.chosen = named_parameters(self.model, ask.parameters)
        if ask.estimator in ("exact", "jvp"):
            got = f"estimator={ask.estimator}"
            refuse_fused(self.model, got, do="set the estimator to fd, which needs forward passes alone")
        refuse_coarse(self.chosen)
        self.scale = _scale(self.chosen, moments) if ask.adam else None

    def look(self, ids: Tensor, targets: Tensor, shares: Shares | None) -> Looked:
        """What a step on rows `ids` (n,) tells of them. shares: null makes no step. targets (M,): target rows."""
        with self._measuring():
            at = {name: p.detach() for name, p in self.chosen.items()}
            losses, ahead = torch.full((len(ids),), torch.nan, dtype=torch.float64), at
            if shares is not None and self.ask.lr > 0:
                losses, direction = self._direction(ids, shares)
                ahead = moved(at, direction, -self.ask.lr)
            along, target_loss = self._target(targets, ahead)
            products = self._spread(ids, partial(self._products, at=at, along=along))
        self._charge(self.rows, ids, PASSES[self.ask.estimator])
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
        self._charge(self.rows, ids, 1 + BACKWARD + (1 if len(parts) > 1 else 0))
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
        self._charge(self.targets, targets, 1 + BACKWARD)
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

    def _losses(self, batch: Batch, at: Values) -> Tensor:
        """Mean token losses (b,) float64 of a part, with other parameters; 0 for a row without target tokens."""
        given = {"input_ids": batch.inputs, "position_ids": batch.positions, "use_cache": False}
        logits = functional_call(self.model, dict(at), (), given).logits  # (b, L, V)
        flat = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none", ignore_index=IGNORE)
        sums: Tensor = flat.view(batch.targets.shape).double().sum(1)
        return sums / batch.tokens.clamp(min=1)

    # ---- over parts and ranks ---------------------------------------------------------------------------------

    def _places(self, count: int) -> Tensor:
        """(W, m) places in n = `count` rows of each rank's part, padded with the last row."""
        world = self.rows.trainer.world_size
        return torch.arange(-(-count // world) * world).clamp(max=count - 1).view(world, -1)

    def _parts(self, ids: Tensor, sweeper: Sweeper | None = None) -> list[tuple[Tensor, Tensor]]:
        """This rank's places (b,) in `ids`, a part at a time, and whether each counts, 1 or 0."""
        places = self._places(len(ids))
        rank, width = self.rows.trainer.global_rank, places.shape[1]
        counted = (torch.arange(rank * width, (rank + 1) * width) < len(ids)).double()
        size = min(self.rows.gradient_rows, self.rows.batch_size)
        return list(zip(places[rank].split(size), counted.split(size), strict=True))

    def _spread(self, ids: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        return self._everyone(ids, torch.cat([of(ids[part]).detach() for part, _ in self._parts(ids)]))

    def _everyone(self, ids: Tensor, mine: Tensor) -> Tensor:
        """(n,) float64 on the CPU, of the values (m,) of each rank."""
        out = torch.empty(len(ids), dtype=torch.float64)
        out[self._places(len(ids)).flatten()] = gathered(self.rows.trainer, mine.double())
        return out

    def _summed(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        reduce = self.rows.trainer.strategy.reduce
        return {name: reduce(value, reduce_op="sum") for name, value in gradients.items()}

    def _preconditioned(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.scale is None:
            return gradients
        return {name: value * self.scale[name] for name, value in gradients.items()}

    @staticmethod
    def _leaves(at: Values) -> dict[str, Tensor]:
        return {name: value.detach().requires_grad_() for name, value in at.items()}

    @staticmethod
    def _add(sums: dict[str, Tensor], loss: Tensor, leaves: Mapping[str, Tensor]) -> None:
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                total += gradient

    def _charge(self, sweeper: Sweeper, ids: Tensor, passes: float) -> None:
        flops = rows_flops(sweeper.module.forward_flops, sweeper.index.inputs_of(ids)) * passes
        sweeper.clock.add(sweeper.purpose, tokens=float(sweeper.index.tokens_of(ids).sum()), flops=flops)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.rows.clock.timed(self.rows.purpose))
            stack.enter_context(undisturbed(self.rows.module, gradients=True))
            stack.enter_context(torch.autocast(self.rows.module.device.type, enabled=False))
            if any(m._compiled_call_impl is not None for m in self.model.modules()):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self.ask.estimator in ("exact", "jvp"):
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield


def refuse_coarse(chosen: Mapping[str, nn.Parameter]) -> None:
    """Raises ConfigError where parameters are stored in 16 bits, which a small move does not change."""
    coarse = sorted({str(p.dtype) for p in chosen.values() if p.dtype not in (torch.float32, torch.float64)})
    if coarse:
        raise ConfigError(
            "a virtual step needs parameters in float32",
            got=", ".join(coarse),
            do="set trainer.precision=bf16-mixed, which keeps them in float32, or 32-true",
        )


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
