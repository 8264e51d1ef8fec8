"""Sketches of per-example gradients: the gradient of each row's loss, made short, without touching training.

The idea of per-row gradients as features is that of LESS (arXiv 2402.04333, section 3) and TRAK (arXiv 2303.14186);
Adam's direction is equation 3 of LESS's appendix as its code computes it, without bias correction.

Letters: b rows of a batch, L target positions, d dimensions, P numbers of the chosen parameters, R and C rows and
columns of a parameter, m numbers of a part of it, k rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.measuring import Sketch
from regimen.training.cross_entropy import IGNORE
from regimen.training.drawn_labels import drawn_labels, factor_scale
from regimen.training.factors import Factors
from regimen.training.folding import Fold, Projections, Sink, Whole
from regimen.training.gradients import matrix_shape, named_parameters
from regimen.training.parameters import in_parts, shape_of, whole
from regimen.training.predictions import predicted_losses
from regimen.training.taps import Taps, linear_weights

_PART = 2**20  # numbers of b gradients that are held at a time: about what fits a core's cache


class Moments(NamedTuple):
    """Adam's moments by name of the parameter, as in `model.named_parameters()`, and its settings."""

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    betas: tuple[float, float]
    eps: float


class Sketcher:
    """Makes sketches of the gradients of rows' losses for parameters of `model`, as `sketch` says.

    The backend `hooks` differentiates a batch at once and holds a part of one layer's gradients at a time, so that
    memory beyond that of a forward pass and its backward pass is 1 byte per number of the chosen parameters (random
    signs), 2 b d floats and a few MB. `loop` takes row after row and works with any module; it holds a gradient of P.

    `factored` leaves out all but the weights of linear layers. `whole` gives the parameters in the model's order.
    Ranks may hold parts of the parameters, as under FSDP2 and ZeRO-3, but for `loop`: then making a sketcher and
    calling it is collective, and each rank passes as many batches, of its own rows.
    chunk: tokens whose logits are upcast at a time. Raises ConfigError where no parameter is chosen, its layer is not
    known, adapters are untrained, or moments are missing.
    """

    def __init__(self, model: nn.Module, sketch: Sketch, *, moments: Moments | None = None, chunk: int) -> None:
        self.model, self.sketch, self.chunk = model, sketch, chunk
        self.chosen = named_parameters(model, sketch.parameters)
        _refuse_loop_over_parts(sketch, self.chosen)
        refuse_untrained_adapters(model, self.chosen)
        self._moments = _moments_of(self.chosen, moments, sketch.adam)
        device = next(iter(self.chosen.values())).device
        self._projections: Projections | None = None
        if sketch.kind == "factored":
            self.chosen = _linear(model, self.chosen)
            self._projections = Projections(self._shapes, rank=sketch.rank, seed=sketch.seed, device=device)
            self.dimensions = self._projections.dimensions
        else:
            self._sink: Sink = (
                Fold(self._shapes, dimensions=sketch.dimensions, seed=sketch.seed, device=device)
                if sketch.kind == "fold"
                else Whole(self._shapes, device=device)
            )
            self.dimensions = self._sink.dimensions
        self._taps = Taps(model, self.chosen) if sketch.backend == "hooks" else None

    @property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: shape_of(p) for name, p in self.chosen.items()}

    def __call__(
        self, inputs: Tensor, targets: Tensor, positions: Tensor | None, *, ids: Tensor | None = None
    ) -> Tensor:
        """(b, d) float32 sketches of rows: inputs and targets (b, L) int64, padded on the right.

        ids: (b,) of the rows, for labels that are drawn. Zeros for a row without targets. The caller enables gradients,
        puts the model into evaluation mode, and wraps the call in autocast if there is any.
        """
        run = self._by_hooks if self._taps is not None else self._by_loop
        if self.sketch.labels == "drawn":
            assert ids is not None, "labels are drawn by the ids of rows"
            drawn = drawn_labels(
                self.model, inputs, targets, positions, ids=ids, seed=self.sketch.seed, chunk=self.chunk
            )
            made = run(inputs, drawn, positions) * factor_scale(targets, self.sketch.reduction)
        else:
            made = run(inputs, targets, positions)
        return made.masked_fill_((targets == IGNORE).all(1, keepdim=True), 0.0)

    def _losses(self, inputs: Tensor, targets: Tensor, positions: Tensor | None) -> Tensor:
        reduction = self.sketch.reduction
        return row_losses(self.model, inputs, targets, positions, reduction=reduction, chunk=self.chunk)

    def _by_hooks(self, inputs: Tensor, targets: Tensor, positions: Tensor | None) -> Tensor:
        assert self._taps is not None
        gathered = _Gathered(self, len(inputs))
        self._taps.differentiate(lambda: self._losses(inputs, targets, positions), len(inputs), gathered.receive)
        return gathered.finish()

    def _by_loop(self, inputs: Tensor, targets: Tensor, positions: Tensor | None) -> Tensor:
        out = (self._projections or self._sink).empty(len(inputs))
        chosen = list(self.chosen.values())
        for row in range(len(inputs)):
            one = slice(row, row + 1)
            loss = self._losses(inputs[one], targets[one], None if positions is None else positions[one]).sum()
            found = torch.autograd.grad(loss, chosen, allow_unused=True) if loss.requires_grad else [None] * len(chosen)
            for (name, p), gradient in zip(self.chosen.items(), found, strict=True):
                self._add_whole(out[one], name, torch.zeros_like(p) if gradient is None else gradient)
        return (self._projections or self._sink).finish(out)

    def _add_whole(self, out: Tensor, name: str, gradient: Tensor) -> None:
        """Add a whole gradient of one row."""
        if self._projections is not None:
            left, right = self._projections.sides(name)
            self._projections.add(out, name, (left.T @ gradient.float() @ right)[None])
            return
        for start, part in zip(range(0, gradient.numel(), _PART), gradient.reshape(1, -1).split(_PART, 1), strict=True):
            self._add(out, name, start, part.float())

    def _add(self, out: Tensor, name: str, start: int, values: Tensor) -> None:
        """Add gradients `values` (b, m), or Adam's direction for them."""
        if self._moments is not None:
            values = direction(values, self._moments, name, start, adam=self.sketch.adam)
        self._sink.add(out, name, start, values)


class _Gathered:
    """The sketches of one batch while its backward pass runs."""

    def __init__(self, sketcher: Sketcher, rows: int) -> None:
        self.sketcher, self.rows = sketcher, rows
        self.out = (sketcher._projections or sketcher._sink).empty(rows)
        # Adam's direction is not linear, so a tied parameter's gradients are added up before it is taken.
        self.waiting: dict[str, list[Factors]] | None = None
        if sketcher._moments is not None:
            self.waiting = {name: [] for name in sketcher.chosen}
        columns = max(matrix_shape(p)[1] for p in sketcher.chosen.values())
        self.part = self.out.new_empty(max(_PART, rows * columns) if sketcher._projections is None else 0)

    def receive(self, name: str, found: Factors, expected: int) -> None:
        """See `taps.Receive`."""
        projections = self.sketcher._projections
        if projections is not None:
            projections.add(self.out, name, found.projected(*projections.sides(name)))
        elif self.waiting is None and found.one_hot:
            self.sketcher._sink.scatter(self.out, name, *found.entries())
        elif self.waiting is None:
            self._add(name, [found])
        else:
            self.waiting[name].append(found)
            if expected == 0:
                self._add(name, self.waiting.pop(name))

    def finish(self) -> Tensor:
        """(b, d) float32."""
        for name, found in (self.waiting or {}).items():  # layers that the losses do not depend on
            self._add(name, found)
        return (self.sketcher._projections or self.sketcher._sink).finish(self.out)

    def _add(self, name: str, found: list[Factors]) -> None:
        """Add the sum of gradients of one parameter, some of its rows at a time."""
        rows, columns = matrix_shape(self.sketcher.chosen[name])
        step = max(1, _PART // (self.rows * columns))
        for start in range(0, rows, step):
            size = min(step, rows - start)
            part = self.part[: self.rows * size * columns].view(self.rows, size, columns)
            if not found:
                part.zero_()
            for place, factors in enumerate(found):
                factors.add_part(part, start, first=place == 0)
            self.sketcher._add(self.out, name, start * columns, part.flatten(1))


def row_losses(
    model: nn.Module, inputs: Tensor, targets: Tensor, positions: Tensor | None, *, reduction: str, chunk: int
) -> Tensor:
    """(b,) float32: the mean or sum of each row's target token losses, 0 where it has none."""
    sums = predicted_losses(model, inputs, targets, positions, chunk=chunk).sum(1)  # (b, L) -> (b,)
    return sums if reduction == "sum" else sums / (targets != IGNORE).sum(1).clamp(min=1)


def _refuse_loop_over_parts(sketch: Sketch, chosen: Mapping[str, nn.Parameter]) -> None:
    if sketch.backend == "loop" and any(in_parts(p) for p in chosen.values()):
        raise ConfigError(
            "the loop differentiates whole parameters, and each rank holds a part of them alone",
            got="backend=loop of a gradient sketch",
            do="set the sketch's backend=hooks, or use trainer=ddp",
        )


def refuse_untrained_adapters(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
    """Raises ConfigError if `chosen` has LoRA's matrices A while all B are zero: their gradients are exactly zero."""
    if not any("lora_A" in name for name in chosen):
        return
    if all(not bool(whole(p).any()) for name, p in model.named_parameters() if "lora_B" in name):
        raise ConfigError(
            "the adapters are untrained: while every lora_B is zero, so is every gradient of lora_A",
            got="gradients of a model right after model.lora put its adapters in",
            do="train it before: keep the warm-up stage of the method, or set when.start above 0; "
            "or set the sketch's parameters=lora_B",
        )


def direction(gradients: Tensor, moments: Moments, name: str, start: int, *, adam: str) -> Tensor:
    """(b, m): Adam's next direction for gradients (b, m) of numbers `start` and on of a parameter.

    (b1 m + (1 - b1) g) / (sqrt(b2 v + (1 - b2) g^2) + eps), or with eps inside the root. The paper has it outside, the
    code of LESS inside, where a denominator is never below sqrt(eps). Neither corrects for the bias of young moments.
    With `scaled`, g / (sqrt(v) + eps).
    """
    (b1, b2), eps, part = moments.betas, moments.eps, slice(start, start + gradients.shape[1])
    if adam == "scaled":
        return gradients / (moments.second[name][part].sqrt() + eps)
    up = (gradients * (1 - b1)).add_(moments.first[name][part], alpha=b1)
    down = gradients.square().mul_(1 - b2).add_(moments.second[name][part], alpha=b2)
    return up.div_(down.add_(eps).sqrt_() if adam == "inside" else down.sqrt_().add_(eps))


def _linear(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    found = linear_weights(model, chosen)
    if not found:
        raise ConfigError(
            "a factored sketch needs weights of linear layers",
            got=", ".join(list(chosen)[:6]),
            do="set the sketch's kind=fold, or parameters=null",
        )
    return found


def _moments_of(chosen: Mapping[str, nn.Parameter], moments: Moments | None, adam: str) -> Moments | None:
    """The moments as flat float32 vectors beside the parameters, or None where they are not asked for."""
    if adam == "none":
        return None
    missing = list(chosen) if moments is None else [n for n in chosen if n not in moments.first.keys() & moments.second]
    if moments is None or missing:
        raise ConfigError(
            "Adam's direction needs the moments of the optimizer",
            got=f"none for {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            do="measure under a checkpoint of a run that trains them with AdamW, or set the sketch's adam=none",
        )
    for name, p in chosen.items():
        assert moments.first[name].numel() == moments.second[name].numel() == shape_of(p).numel(), name
    first, second = (
        {name: of[name].detach().to(p.device, torch.float32).reshape(-1) for name, p in chosen.items()}
        for of in (moments.first, moments.second)
    )
    return Moments(first, second, moments.betas, moments.eps)
