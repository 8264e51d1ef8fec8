"""Taps on the layers of a model: in one backward pass, what each layer read and the gradient of what it gave.

The gradient of a row's loss for the weight of a layer is a sum of outer products over tokens, so both together give the
gradients of all rows of a batch at once (arXiv 1510.01799). One small tensor enters the graph at every tap, and its
gradient alone is asked for. So no weight's gradient is computed, no `.grad` is written and no hook of DDP runs; layers
below the first tap are not differentiated; and it makes no difference which weights are frozen. Under checkpointing
that is not reentrant, autograd keeps what a tap reads as it keeps everything else: it is recomputed.

Letters: b rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.training.factors import Factors
from regimen.training.parameters import in_parts, shape_of

Receive = Callable[[str, Factors, int], None]
"""Takes a parameter's name, a gradient of b rows, and how many more of this parameter are expected."""
Reader = Callable[[nn.Module, Tensor, Tensor], Factors]
"""From a layer, what it read, (b, T, in) or (b, T) ids, and the gradient (b, T, out) of its output to a parameter's."""

WAY_OUT = "set the sketch's backend=loop, or parameters=REGEX to choose others"


class Taps:
    """Knows the layers that hold the parameters `chosen`, by name. A tied parameter has several.

    Layers: `nn.Linear` (LoRA's matrices too), transformers' `Conv1D`, `nn.Embedding`, and normalisations that scale
    their output elementwise, with their biases. Raises ConfigError that names a parameter's module if it is no such.
    """

    def __init__(self, model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
        self.chosen = chosen
        self._compiled = any(m._compiled_call_impl is not None for m in model.modules())
        self._layers = list(_layers(model, chosen))

    def differentiate(self, losses: Callable[[], Tensor], rows: int, receive: Receive) -> None:
        """Run `losses` (b,), each of one row of b = `rows`, and hand on each parameter's gradient as it is found.

        Raises ConfigError where a layer mixes rows, or a parameter acts on the losses outside its layer.
        """
        device = next(iter(self.chosen.values())).device
        spark = torch.zeros((), device=device, requires_grad=True)
        reading = _Reading(spark, rows, receive)
        hooks = [layer.module.register_forward_hook(partial(reading.tap, layer)) for layer in self._layers]
        try:
            with self._eager():
                total = losses().sum()
                reading.counting = False  # recomputation runs the hooks again
                silent = [name for name in self.chosen if name not in reading.expected]
                if total.requires_grad:
                    self._run(total, spark, silent)
        finally:
            for hook in hooks:
                hook.remove()

    def _run(self, total: Tensor, spark: Tensor, silent: list[str]) -> None:
        """The backward pass. silent: parameters whose layers were not called."""
        if silent and any(in_parts(self.chosen[name]) for name in silent):
            raise ConfigError(
                "layers are not called, and parameters in parts do not tell whether they are used without",
                got=", ".join(silent[:6]),
                do=WAY_OUT,
            )
        with torch.autocast(total.device.type, enabled=False):
            wanted = [spark, *(self.chosen[name] for name in silent)]
            _, *found = torch.autograd.grad(total, wanted, allow_unused=True)
        if any(gradient is not None for gradient in found):
            raise ConfigError(
                "the model uses parameters without calling their layers, so no gradient per row can be read there",
                got=", ".join(silent[:6]),
                do=WAY_OUT,
            )

    def _eager(self) -> AbstractContextManager[Any]:
        """Compiled code would pass over the hooks."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()


class _Reading:
    """One pass over a batch of b = `rows`. expected: how many gradients are still to come, by name of a parameter."""

    def __init__(self, spark: Tensor, rows: int, receive: Receive) -> None:
        self.spark, self.rows, self.receive = spark, rows, receive
        self.expected: Counter[str] = Counter()
        self.counting = True

    def tap(self, layer: _Layer, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        """The forward hook of a layer."""
        read = given[0].detach()
        if read.shape[0] == 1 < self.rows and read.dim() >= layer.least:  # positions that all rows share
            read, output = (x.expand(self.rows, *x.shape[1:]) for x in (read, output))
        layer.by_row(read, self.rows)
        if self.counting:
            self.expected.update(layer.names.values())
        tapped: Tensor = _Tap.apply(output, self.spark, read, partial(self.hand_on, layer))
        return tapped

    def hand_on(self, layer: _Layer, read: Tensor, gradient: Tensor) -> None:
        """What the backward pass calls at a layer."""
        read, gradient = layer.by_row(read, self.rows), gradient.reshape(self.rows, -1, gradient.shape[-1])
        for local, name in layer.names.items():
            self.expected[name] -= 1
            self.receive(name, layer.readers[local](layer.module, read, gradient), self.expected[name])


class _Tap(torch.autograd.Function):
    """The identity on a layer's output; hands what the layer read and the gradient of its output to `receive`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, spark: Tensor, read: Tensor, receive: Callable[..., None]) -> Tensor:
        ctx.save_for_backward(read)
        ctx.receive = receive
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.receive(ctx.saved_tensors[0], gradient)
        return gradient, None, None, None


class _Layer(NamedTuple):
    """A module that holds chosen parameters. names: from its own name of a parameter to the model's."""

    path: str
    module: nn.Module
    names: dict[str, str]
    readers: dict[str, Reader]

    @property
    def least(self) -> int:
        """Dimensions of what it reads: rows and tokens, and numbers unless it reads ids."""
        return 2 if isinstance(self.module, nn.Embedding) else 3

    def by_row(self, read: Tensor, rows: int) -> Tensor:
        """What the layer read as (b, T, in), or (b, T) for ids."""
        if rows > 1 and (read.dim() < self.least or read.shape[0] != rows):
            raise ConfigError(
                "a layer does not read rows one beside the other, so their gradients cannot be told apart",
                got=f"{self.path} reads {tuple(read.shape)} for {rows} rows",
                do=WAY_OUT,
            )
        return read.reshape(rows, -1) if self.least == 2 else read.reshape(rows, -1, read.shape[-1])


def linear_weights(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of `chosen` that are the weight matrix of a linear layer, in order."""
    matrices = {id(m.weight) for m in model.modules() if _is_linear(m) or _is_conv1d(m)}
    return {name: p for name, p in chosen.items() if id(p) in matrices}


def _layers(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> Iterator[_Layer]:
    named = {id(p): name for name, p in chosen.items()}
    for path, module in model.named_modules():
        names = {local: named[id(p)] for local, p in module._parameters.items() if p is not None and id(p) in named}
        if not names:
            continue
        readers = _readers(module)
        if not readers.keys() >= names.keys():
            raise ConfigError(
                "gradients per row are not known for a module of this type",
                got=f"{path or 'the model itself'}, a {type(module).__name__} that holds {', '.join(names.values())}",
                allowed="Linear, Conv1D, Embedding, RMSNorm, LayerNorm and the like, LoRA's matrices",
                do=WAY_OUT,
            )
        yield _Layer(path, module, names, readers)


def _readers(module: nn.Module) -> dict[str, Reader]:
    """By the module's own names of its parameters; empty if its type is not known."""
    if _is_linear(module):
        return {"weight": lambda _, read, gradient: Factors(gradient, read), "bias": _bias}
    if _is_conv1d(module):
        return {"weight": lambda _, read, gradient: Factors(read, gradient), "bias": _bias}
    if _is_embedding(module):
        return {"weight": _embedded}
    added = _added_to_scale(module)
    return {} if added is None else {"weight": partial(_scale, added=added), "bias": _bias}


def _is_linear(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward  # a subclass with a forward of its own may do anything


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # the linear layer of GPT-2


def _is_embedding(module: nn.Module) -> bool:
    plain = type(module).forward is nn.Embedding.forward
    return plain and module.max_norm is None and not module.scale_grad_by_freq


def _added_to_scale(module: nn.Module) -> float | None:
    """For a normalisation of single tokens that multiplies them by its weight (n,) plus a number: that number, 0 or 1.

    None for all else. What the module does is tried out, for there are many classes of it.
    """
    weight = module._parameters.get("weight")
    if "Norm" not in type(module).__name__ or weight is None or len(shape_of(weight)) != 1:
        return None
    width = shape_of(weight)[0]
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return None
    needed = [p for p in inspect.signature(type(module).forward).parameters.values() if p.default is p.empty]
    if len(needed) != 2:  # itself and its input
        return None
    tokens = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0)).to(weight.device)  # (b, T, n)
    nought, scale = torch.zeros(width).to(weight.device), torch.linspace(-1, 2, width).to(weight.device)
    lowest, scaled = _normalised(module, tokens, nought), _normalised(module, tokens, scale)
    slope = _normalised(module, tokens, nought + 1) - lowest
    alone = _normalised(module, tokens[1:, 2:], scale)
    near = partial(torch.allclose, atol=1e-4)
    if not (near(scaled[1:, 2:], alone) and near(scaled, lowest + scale * slope)):
        return None
    return next((added for added in (0.0, 1.0) if near(lowest, added * slope)), None)


def _normalised(module: nn.Module, read: Tensor, weight: Tensor) -> Tensor:
    """What a normalisation gives in float32 with another weight (n,) and no bias."""
    twin = copy.copy(module)
    twin._parameters = {"weight": weight}  # type: ignore[dict-item]
    if "bias" in module._parameters:
        twin._parameters["bias"] = None if module._parameters["bias"] is None else torch.zeros_like(weight)  # type: ignore[assignment]
    with torch.no_grad(), torch.autocast(read.device.type, enabled=False):
        given: Tensor = type(module).forward(twin, read.float())
    return given


def _bias(_: nn.Module, read: Tensor, gradient: Tensor) -> Factors:
    return Factors.of_vectors(gradient.float().sum(1))  # (b, n)


def _scale(module: nn.Module, read: Tensor, gradient: Tensor, *, added: float) -> Factors:
    ones = torch.full((read.shape[-1],), 1 - added, device=read.device)
    return Factors.of_vectors((gradient.float() * _normalised(module, read, ones)).sum(1))  # (b, n)


def _embedded(module: nn.Module, read: Tensor, gradient: Tensor) -> Factors:
    if module.padding_idx is not None:  # it is not trained
        gradient = gradient.masked_fill((read == module.padding_idx)[..., None], 0)
    return Factors(read, gradient)
