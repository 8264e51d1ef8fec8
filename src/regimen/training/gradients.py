"""Gradients of the loss of each domain, without touching training: no `.grad`, no hook of a data-parallel wrapper.

`torch.autograd.grad` for given inputs runs none of the nodes that write `.grad`, and those alone carry the hooks of
DistributedDataParallel and ZeRO-2. Where ranks hold parts of the parameters, a gradient is put together from what each
layer read and the gradient of what it gave (`taps`), which asks for no parameter's gradient. The model is in evaluation
mode: dropout is off, and so is activation checkpointing, which the Hugging Face models do in training mode alone;
`trainer.sweep_batch_size` bounds the memory instead.
Letters: K domains, n rows asked for, P parameters differentiated, W ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.measuring import GRADIENT
from regimen.training.factors import Factors
from regimen.training.parameters import in_parts, put_back, shape_of
from regimen.training.sweep import Sweeper, undisturbed
from regimen.training.taps import Taps

Chosen = Mapping[str, nn.Parameter]

_COLUMNS = 2**20  # of the gradients that are turned to float64 at a time
_SHOWN = 12  # names of parameters in an error


class DomainGradients:
    """Differentiates the loss of rows that `sweeper` reads; each rank takes its share of every domain's rows.

    Every rank makes the same number of forward passes, where need be over a row that counts nothing. Memory: (K, P)
    float32 on the device for `gram`, (P,) for `moments`.
    """

    def __init__(self, sweeper: Sweeper) -> None:
        self.sweeper = sweeper

    def gram(self, ids: Tensor, *, parameters: str | None, clip: float | None) -> Tensor:
        """See `Surveyor.gradient_gram`. Domains whose rows in `ids` have no target token count as absent.

        Raises ConfigError where no parameter that is trained has such a name, or where ranks hold parts of them and
        their layers are not known to `Taps`.
        """
        chosen = named_parameters(self.sweeper.module.model, parameters)
        by_domain = self._by_domain(ids)
        present = [k for k, rows in enumerate(by_domain) if len(rows)]
        domains = len(by_domain)
        out = torch.zeros(domains, domains, dtype=torch.float64)
        if not present:
            return out
        flat = self._zeros(len(present), chosen)  # (K', P) for the K' domains that are present
        with self._measuring(ids):
            for sums, k in zip(flat, present, strict=True):
                tokens = float(self.sweeper.index.tokens_of(by_domain[k]).sum())
                for part, counted in self._share(by_domain[k], self.sweeper.batch_size):
                    self._add_gradient(sums, chosen, part, counted / tokens)
            inner = _inner_products(self._over_ranks(flat)).cpu()  # (K', K')
        if clip is not None:
            norms = inner.diagonal().sqrt()
            factors = (clip / norms).clamp(max=1)  # (K',), 1 where the norm is 0
            inner = inner * factors[:, None] * factors
        where = torch.tensor(present, dtype=torch.int64)
        out[where[:, None], where] = inner
        return out

    def moments(self, ids: Tensor, *, parameters: str | None) -> Tensor:
        """See `Surveyor.gradient_moments`. Rows without target tokens are left out."""
        chosen = named_parameters(self.sweeper.module.model, parameters)
        out = torch.zeros(len(self.sweeper.index.domains), 3, dtype=torch.float64)
        with self._measuring(ids):
            for k, rows in enumerate(self._by_domain(ids)):
                if len(rows):
                    out[k] = self._moments_of(rows, chosen)
        return out

    def _moments_of(self, rows: Tensor, chosen: Chosen) -> Tensor:
        """(3,) float64: the row of `moments` for rows (n,) of one domain."""
        mean = self._zeros(1, chosen)[0]  # (P,)
        squares = torch.zeros(1, dtype=torch.float64, device=mean.device)
        for part, counted in self._share(rows, 1):
            own = torch.zeros_like(mean)
            self._add_gradient(own, chosen, part, counted / self.sweeper.index.tokens_of(part))
            squares += _inner_products(own[None])[0]
            mean.add_(own, alpha=1 / len(rows))
        mean = self._over_ranks(mean)
        measured = (
            _inner_products(mean[None])[0],
            self._over_ranks(squares) / len(rows),
            squares.new_tensor([len(rows)]),
        )
        return torch.cat(measured).cpu()

    def _add_gradient(self, sums: Tensor, chosen: Chosen, ids: Tensor, weights: Tensor) -> None:
        """Add to (P,) `sums` the gradient of the weighted sum of the summed losses of rows `ids` (n,)."""

        def losses() -> Tensor:
            found = self.sweeper.token_losses(ids)[0].sum(1)  # (n,)
            return found * weights.to(found)

        parts = dict(zip(chosen, sums.split([_numel(p) for p in chosen.values()]), strict=True))
        if any(in_parts(p) for p in chosen.values()):
            _add_tapped(self.sweeper.module.model, chosen, losses, len(ids), parts)
            return
        gradients = torch.autograd.grad(losses().sum(), list(chosen.values()), allow_unused=True)
        for part, gradient in zip(parts.values(), gradients, strict=True):
            if gradient is not None:
                part.add_(gradient.flatten())

    def _by_domain(self, ids: Tensor) -> list[Tensor]:
        """By domain, its rows among `ids` that have target tokens, the short ones first."""
        index = self.sweeper.index
        tokens = index.tokens_of(ids)
        ids = ids[tokens.argsort(stable=True)]
        ids = ids[index.tokens_of(ids) > 0]
        owner = index.domain_of(ids)
        return [ids[owner == k] for k in range(len(index.domains))]

    def _share(self, rows: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's part of `rows` (n,), at most `size` at a time: ids and whether each counts, 1 or 0, float64."""
        trainer = self.sweeper.trainer
        world, rank = trainer.world_size, trainer.global_rank
        places = torch.arange(rank, -(-len(rows) // world) * world, world)
        mine = rows[places.clamp(max=len(rows) - 1)]
        yield from zip(mine.split(size), (places < len(rows)).double().split(size), strict=True)

    def _zeros(self, count: int, chosen: Chosen) -> Tensor:
        """(count, P) float32 zeros on the device of the parameters."""
        total = sum(_numel(p) for p in chosen.values())
        return torch.zeros(count, total, dtype=torch.float32, device=next(iter(chosen.values())).device)

    def _over_ranks(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        summed: Tensor = self.sweeper.trainer.strategy.reduce(values, reduce_op="sum")
        return summed

    @contextmanager
    def _measuring(self, ids: Tensor) -> Iterator[None]:
        """Differentiate without disturbing training, and charge for rows `ids` (n,)."""
        sweeper = self.sweeper
        with sweeper.clock.timed(sweeper.purpose), undisturbed(sweeper.module, gradients=True):
            yield
        sweeper.charge(ids, passes=GRADIENT, backwards=1)


def chosen_parameters(model: nn.Module, pattern: str | None) -> list[nn.Parameter]:
    """Parameters that are trained and have a name in which `pattern` is found; each once, tied ones under any name.

    Raises ConfigError where there is none.
    """
    put_back(model)
    named = [(n, p) for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    chosen = list({id(p): p for name, p in named if re.search(pattern or "", name)}.values())
    if not chosen:
        raise ConfigError(
            "no parameter of the model has such a name",
            got=f"parameters={pattern}",
            allowed=", ".join([name for name, _ in named[:_SHOWN]]) + f" ... ({len(named)} in all)",
            do="give a regular expression that is found in some of them, or null for all",
        )
    return chosen


def named_parameters(model: nn.Module, pattern: str | None) -> dict[str, nn.Parameter]:
    """`chosen_parameters` by name, in the model's order; a tied one has the name under which it comes first."""
    chosen = {id(p) for p in chosen_parameters(model, pattern)}
    return {name: p for name, p in model.named_parameters() if id(p) in chosen}


def _add_tapped(
    model: nn.Module, chosen: Chosen, losses: Callable[[], Tensor], rows: int, parts: Mapping[str, Tensor]
) -> None:
    """Add the gradient of the sum of `losses` (n,) of n = `rows` rows to flat `parts`, from what the layers read.

    For parameters of which a rank holds a part: their own gradients would be those of all ranks' rows.
    """

    def receive(name: str, found: Factors, _: int) -> None:
        rows_of, columns = matrix_shape(chosen[name])
        found.over_rows().add_part(parts[name].view(1, rows_of, columns), 0, first=False)

    Taps(model, chosen).differentiate(losses, rows, receive)


def matrix_shape(parameter: nn.Parameter) -> tuple[int, int]:
    """R and C of a matrix; a vector is a column."""
    shape = shape_of(parameter)
    return (shape[0], 1) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))


def _numel(parameter: nn.Parameter) -> int:
    return shape_of(parameter).numel()


def _inner_products(flat: Tensor) -> Tensor:
    """(K, K) float64 of rows (K, P) float32."""
    out = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for part in flat.split(_COLUMNS, dim=1):
        wide = part.double()
        out += wide @ wide.T
    return out
