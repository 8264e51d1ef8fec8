"""Runs a short descent on a copy of a model and measures rows along it; the model itself is only read.

Letters: n rows asked for, b rows of a part, L positions, M target rows, P numbers of the parameters that descend, T
steps, W ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from regimen.core.descent import AlongDescent, Descent
from regimen.core.measuring import GRADIENT
from regimen.core.plan import digest_of
from regimen.core.seeding import generator
from regimen.training.attention import refuse_fused
from regimen.training.co_state import Part, Problem, Visit, Walked, backwards, collected
from regimen.training.cross_entropy import IGNORE
from regimen.training.ghost import RowGradients, dots_with, squared_norms
from regimen.training.halfway import Charged, Halfway
from regimen.training.loader import Batch
from regimen.training.row_products import Given, row_products
from regimen.training.sketching import named_parameters
from regimen.training.sweep import Sweeper, undisturbed

_HESSIAN = {"exact": 2, "finite_difference": 2, "none": 0}  # gradients that it costs a step


class FlatModel:
    """A copy of a causal language model as a function of the chosen parameters, one after another in a vector (P,).

    parameters: a regular expression for their names, null for all that are trained. Raises ConfigError where none has
    such a name or a rank holds a part of it alone.
    """

    def __init__(self, model: nn.Module, parameters: str | None = None) -> None:
        named_parameters(model, parameters)  # refuses what is sharded before it is copied
        self.model = copy.deepcopy(model).eval()
        if next(self.model.parameters()).dtype in (torch.bfloat16, torch.float16):
            self.model.float()  # a step of so small an lr would be rounded away
        self.chosen = named_parameters(self.model, parameters)
        self.start = torch.cat([p.detach().flatten() for p in self.chosen.values()])  # (P,)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters in theta (P,), by name."""
        parts = torch.split(theta, [p.numel() for p in self.chosen.values()])
        return {name: part.view(p.shape) for (name, p), part in zip(self.chosen.items(), parts, strict=True)}

    def losses(self, theta: Tensor, given: Given) -> Tensor:
        """Mean token losses (b,) of rows at theta (P,), 0 for a row without targets.

        given: inputs, targets (b, L) and positions (b, L) or None.
        """
        inputs, targets, positions = given
        told = {"input_ids": inputs, "position_ids": positions, "use_cache": False}
        logits = functional_call(self.model, self.named(theta), (), told, tie_weights=True).logits  # (b, L, V)
        losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")  # (b, L)
        return losses.sum(1) / (targets != IGNORE).sum(1).clamp(min=1)  # type: ignore[no-any-return]

    def ghosts(self, theta: Tensor, vector: Tensor | None, given: Given, *, norms: bool) -> Tensor:
        """(b, 2): inner products of gradients with vector (P,), 0 for None, and lengths, at theta (P,)."""
        with torch.no_grad():
            for name, value in self.named(theta).items():
                self.chosen[name].copy_(value)
        with torch.enable_grad():
            found = RowGradients(self.model, *given, chunk=1024)
        none = torch.zeros(found.rows, dtype=torch.float64)
        lengths = squared_norms(found).clamp(min=0).sqrt() if norms else none  # (b,)
        dots = none if vector is None else dots_with(self.named(vector), found)  # (b,)
        return torch.stack([dots, lengths], 1)

    def products(self, theta: Tensor, vector: Tensor | None, given: Given, descent: Descent, *, norms: bool) -> Tensor:
        """(b, 2) as `ghosts`, by the backend of `descent`; 0 for a row without targets, and lengths that none needs."""
        if descent.backend == "ghost":
            found = self.ghosts(theta, vector, given, norms=norms)
        else:
            options: dict[str, Any] = {"backend": descent.backend, "norms": norms, "epsilon": descent.epsilon}
            found = row_products(self.losses, theta, vector, given, **options).double()
        return found.cpu().masked_fill((given[1] == IGNORE).all(1, keepdim=True).cpu(), 0.0)


def rows_along(
    sweeper: Sweeper, target: Sweeper, ids: Tensor, descent: Descent, *, norms: bool, halfway: Halfway
) -> AlongDescent:
    """What the gradients of rows `ids` (n,) are along a descent from the model of `sweeper`, over all ranks.

    target: sweeps the target set, whose mean loss J is. norms: whether lengths are needed. Every rank descends alike on
    its own, and measures its share of the rows. Charged: the descent as often as it is run, and the rows.
    halfway: keeps the walk back whenever rows were measured; after a kill it goes on from there, and the descent to
    there, which is run again, is charged once.
    Raises ConfigError for an attention that cannot be differentiated as `descent` asks, and where it diverges.
    """
    refuse_attention(sweeper.module.model, descent)
    flat = FlatModel(sweeper.module.model, descent.parameters)
    batches = drawn(sweeper.index.rows, descent)  # (T, batch_rows)
    problem = Problem(
        lambda t: _mean_losses(flat, sweeper, batches[t]),
        _mean_losses(flat, target, torch.arange(target.index.rows)),
    )

    def rows(theta: Tensor, ahead: Tensor | None) -> Tensor:
        def measured(part: Tensor) -> Tensor:
            return flat.products(theta, ahead, _given(sweeper.batch(part)), descent, norms=norms)

        dots = ahead is not None
        return sweeper.spread(
            ids,
            measured,
            passes=descent.row_passes(dots=dots, norms=norms),
            backwards=descent.row_backwards(dots=dots, norms=norms),
            gradients=True,
            rows=sweeper.gradient_rows,
        )

    name = f"descent-{digest_of(flat.start, descent, ids, norms)}"
    kept = Charged(halfway, name, clock=sweeper.clock, purpose=sweeper.purpose)
    since = _since(kept, flat.start.device)
    with undisturbed(sweeper.module, gradients=True), sdpa_kernel(SDPBackend.MATH):
        visits = backwards(problem, flat.start, descent, since=None if since is None else since.visit)
        timed = _timed(sweeper, visits)
        found = collected(timed, descent, rows, norms=norms, since=since, keep=lambda done: _keep(kept, done))
    _charge(sweeper, target, batches, descent)
    return found


def _since(kept: Charged, device: torch.device) -> Walked | None:
    found = kept.read()
    return None if found is None else Walked(**{**found, "co_state": found["co_state"].to(device)})


def _keep(kept: Charged, walked: Walked) -> None:
    kept.write({**walked._asdict(), "co_state": walked.co_state.cpu()})


def drawn(rows: int, descent: Descent) -> Tensor:
    """Ids (T, batch_rows) of each step: shuffles of all `rows` ids, one after another."""
    need, draw = descent.steps * descent.batch_rows, generator("descent", descent.seed)
    shuffles = [torch.randperm(rows, generator=draw) for _ in range(-(-need // rows))]
    return torch.cat(shuffles)[:need].view(descent.steps, descent.batch_rows)


def refuse_attention(model: nn.Module, descent: Descent) -> None:
    """Raises ConfigError for a fused attention, where a second derivative or a forward mode is needed."""
    if descent.hessian == "exact" or descent.backend in ("jvp", "vmap"):
        got = f"hessian={descent.hessian}, backend={descent.backend}"
        refuse_fused(model, got, do="set the descent's hessian=finite_difference and backend=ghost")


def _given(batch: Batch) -> Given:
    return batch.inputs, batch.targets, batch.positions


def _mean_losses(flat: FlatModel, sweeper: Sweeper, ids: Tensor) -> list[Part]:
    """Parts of the mean of the losses of rows `ids` (n,), no more rows at a time than training takes."""

    def part(some: Tensor) -> Part:
        return lambda theta: flat.losses(theta, _given(sweeper.batch(some))).sum() / len(ids)

    by_length = ids[sweeper.index.inputs_of(ids).argsort(stable=True)]
    return [part(some) for some in torch.split(by_length, sweeper.gradient_rows)]


def _timed(sweeper: Sweeper, visits: Iterator[Visit]) -> Iterator[Visit]:
    """The same visits; the seconds that each takes are charged."""
    while True:
        with sweeper.clock.timed(sweeper.purpose):
            visit = next(visits, None)
        if visit is None:
            return
        yield visit


def _charge(sweeper: Sweeper, target: Sweeper, batches: Tensor, descent: Descent) -> None:
    """Charge the descent, which every rank runs; with memory `sqrt` every step is taken twice."""
    gradients = (2 if descent.memory == "sqrt" else 1) + _HESSIAN[descent.hessian]
    world = sweeper.trainer.world_size
    sweeper.charge(batches.flatten(), passes=GRADIENT * gradients, backwards=gradients, times=world)
    whole = torch.arange(target.index.rows)
    target.charge(whole, passes=GRADIENT, backwards=1, times=(descent.steps + 1) * world)
