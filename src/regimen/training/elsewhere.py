"""Passes over rows with other parameters in the model's place, spread over ranks. Training does not notice.

The model is called with parameters that are given (`torch.func.functional_call`), inside of any data-parallel wrapper,
in evaluation mode, in float32 whatever the precision of training, since bfloat16 rounds small moves away.
Letters: n rows, M target rows, b rows of a part, L positions, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimen.core.errors import ConfigError
from regimen.core.lookahead import Slope
from regimen.core.measuring import GRADIENT
from regimen.training.context import gathered
from regimen.training.cross_entropy import IGNORE
from regimen.training.inner_products import Values
from regimen.training.loader import Batch
from regimen.training.sketching import named_parameters
from regimen.training.sweep import Sweeper, undisturbed


class Elsewhere:
    """Losses and gradients of rows that `rows` and `targets` read, at parameters that are passed.

    parameters: a regular expression found in the names of those that are differentiated, null for all that are trained.
    Collective: every rank calls with the same ids and takes its part of them.
    Raises ConfigError where ranks hold parts of parameters, or these are not in float32.
    """

    _plain_kernel = False  # of attention, which has a second derivative

    def __init__(self, rows: Sweeper, targets: Sweeper, *, parameters: str | None = None) -> None:
        self.rows, self.targets = rows, targets
        self.model = rows.module.model
        self.chosen = named_parameters(self.model, parameters)
        refuse_coarse(self.chosen)

    def slope(self, ids: Tensor, coefficients: Tensor, targets: Tensor, at: Values | None) -> Slope:
        """Of sum_i c_i l_i over rows `ids` (n,) plus the mean loss of rows `targets` (M,), at `at`; null: the model's.

        coefficients: c (n,). Memory: three copies of the chosen parameters.
        """
        with self._measuring():
            here = {name: p.detach().clone() for name, p in self.chosen.items()}
            if at is not None:
                here = {name: at[name].to(value) for name, value in here.items()}
            leaves = self._leaves(here)
            gradients = {name: torch.zeros_like(value) for name, value in leaves.items()}
            losses = self._added(gradients, self.rows, ids, coefficients.double(), leaves)
            even = torch.full((len(targets),), 1 / len(targets), dtype=torch.float64)
            target_losses = self._added(gradients, self.targets, targets, even, leaves)
            gradient = self._summed(gradients)
        return Slope(losses, float(target_losses.mean()), gradient, here)

    def _added(
        self, sums: dict[str, Tensor], sweeper: Sweeper, ids: Tensor, coefficients: Tensor, leaves: dict[str, Tensor]
    ) -> Tensor:
        """Mean losses (n,) of rows; this rank's part of the gradient of sum_i c_i l_i goes to `sums`."""
        found = []
        for part, counted in self._parts(ids, sweeper):
            values = self._losses(sweeper.batch(ids[part]), leaves)
            self._add(sums, ((coefficients[part] * counted).to(values) * values).sum(), leaves)
            found.append(values.detach())
        sweeper.charge(ids, passes=GRADIENT, backwards=1)
        return self._everyone(ids, torch.cat(found))

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

    @staticmethod
    def _leaves(at: Values) -> dict[str, Tensor]:
        return {name: value.detach().requires_grad_() for name, value in at.items()}

    @staticmethod
    def _add(sums: dict[str, Tensor], loss: Tensor, leaves: Mapping[str, Tensor]) -> None:
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                total += gradient

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.rows.clock.timed(self.rows.purpose))
            stack.enter_context(undisturbed(self.rows.module, gradients=True))
            stack.enter_context(torch.autocast(self.rows.module.device.type, enabled=False))
            if any(m._compiled_call_impl is not None for m in self.model.modules()):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self._plain_kernel:
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
