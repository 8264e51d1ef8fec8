"""What a run holds in the memory of one process, by kind, as the strategy spreads it over ranks.

Sources: ZeRO, arXiv 1910.02054, section 3 and figure 1; its offload, arXiv 2101.06840, section 4; FSDP2 and DeepSpeed
0.19 for the padding of shards and for what else they keep. Differs from the paper: in float32 too DeepSpeed keeps the
optimizer's weights beside the model's, and autocast's bfloat16 copies are counted.
Letters: P numbers of all parameters, T of trained ones, W ranks, s moments per number.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from regimen.training.attention import depth, layers
from regimen.training.capabilities import FSDP, ZERO

_FLOAT, _HALF = 4, 2
_BUCKET = 200_000_000  # numbers that DeepSpeed reduces at a time, as Lightning sets it
_PERSISTENT = 100_000  # numbers of the largest parameter that ZeRO-3 leaves whole, as DeepSpeed sets it


class Memory(NamedTuple):
    """Bytes of the process that holds the largest shards: each kind at its most, so that the sum is an upper bound.
    What passes while DeepSpeed starts and inside the optimizer's step is left out.

    parameters, gradients: shards where they are spread. optimizer: its moments, and ZeRO's float32 weights.
    gathered: whole parameters and gradients of layers in passing. copies: bfloat16 weights that autocast makes and
    keeps until a forward pass ends, recomputed activations or not, of the whole model under FSDP2 too. buffers: of
    communication. strategies: models in their states, whole on every rank. host: in the CPU's memory while a GPU
    computes, part of none of the others.
    """

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    gathered: int = 0
    copies: int = 0
    buffers: int = 0
    strategies: int = 0
    host: int = 0

    @property
    def device(self) -> int:
        """All but what the CPU keeps for a GPU."""
        return sum(self) - self.host


def moments(make_optimizer: Callable[[nn.Module], tuple[torch.optim.Optimizer, Any]]) -> int:
    """s: how many numbers the optimizer keeps for each one that it trains, found by one step of it."""
    probe = nn.Linear(2, 2, bias=False)
    probe.weight.grad = torch.ones(2, 2)
    optimizer, _ = make_optimizer(probe)
    optimizer.step()
    kept = [v for v in optimizer.state[probe.weight].values() if isinstance(v, torch.Tensor) and v.dim()]
    return sum(v.numel() for v in kept) // probe.weight.numel()


def state_memory(
    model: nn.Module,
    *,
    strategy: str,
    world: int,
    precision: str,
    moments: int,
    on_cpu: bool = False,
    copies: int = 0,
) -> Memory:
    """Of `model`, which may be on the meta device. strategy, precision: as in `trainer.*`; world: W. on_cpu: no GPU.

    copies: how many numbers the states of the run's strategies keep for each one that is trained.
    """
    held = _of_training(model, strategy, world=world, half="16" in precision, moments=moments, on_cpu=on_cpu)
    return held._replace(strategies=_FLOAT * copies * sum(p.numel() for p in _trained(model)))


def _of_training(model: nn.Module, strategy: str, *, world: int, half: bool, moments: int, on_cpu: bool) -> Memory:
    if strategy in ZERO:
        return _zero(model, *ZERO[strategy], world=world, half=half, moments=moments, on_cpu=on_cpu)
    if strategy == FSDP:
        return _fsdp(model, world=world, half=half, moments=moments)
    whole, trained = (sum(p.numel() for p in of) for of in (_all(model), _trained(model)))
    return Memory(
        parameters=_FLOAT * whole,
        gradients=_FLOAT * trained,
        optimizer=_FLOAT * moments * trained,
        copies=_HALF * _multiplied(model) * half,
        buffers=_FLOAT * trained * (world > 1),  # DDP copies gradients into buckets
    )


def _fsdp(model: nn.Module, *, world: int, half: bool, moments: int) -> Memory:
    """Every parameter is cut along its first dimension, and padded so that all ranks hold as much."""

    def shard(of: list[nn.Parameter]) -> int:
        return sum(-(-p.shape[0] // world) * prod(p.shape[1:]) for p in of)

    whole, trained = _all(model), shard(_trained(model))
    grouped = [list(layer.parameters()) for layer in layers(model, depth(model))]
    inside = {id(p) for group in grouped for p in group}
    outer = sum(p.numel() for p in whole if id(p) not in inside)  # stays gathered from one end of a step to the other
    layer = max(sum(p.numel() for p in group) for group in grouped)
    ahead = min(2, len(grouped))  # the next layer is gathered while one computes
    return Memory(
        parameters=_FLOAT * shard(whole),
        gradients=_FLOAT * trained,
        optimizer=_FLOAT * moments * trained,
        gathered=_FLOAT * (outer + ahead * layer + max(outer, layer)) * (world > 1),  # the last: a whole gradient
        copies=_HALF * _multiplied(model) * half,
    )


def _zero(model: nn.Module, stage: int, offload: bool, *, world: int, half: bool, moments: int, on_cpu: bool) -> Memory:
    """Stages 1 and 2 cut the parameters of a group end to end, 3 every parameter by itself."""
    size = _HALF if half else _FLOAT
    whole, trained = _all(model), _trained(model)
    total, learnt = (sum(p.numel() for p in of) for of in (whole, trained))
    if stage == 3:
        held, part = (sum(-(-p.numel() // world) for p in of) for of in (whole, trained))
        gathered = size * (_largest(model) + sum(p.numel() for p in whole if p.numel() <= _PERSISTENT))
        buckets = 1
    else:
        held, part = total, sum(-(-n // (2 * world)) * 2 for n in _group_sizes(trained))
        gathered, buckets = 0, 1 if on_cpu else 2  # one fills while the other is on its way
    gradients = size * (learnt if stage == 1 else part)  # stage 1 has them whole until they are reduced
    optimizer = _FLOAT * part * (moments + 1)
    filled = min(_BUCKET, learnt) if on_cpu else _BUCKET  # memory of a CPU is taken where it is written
    memory = Memory(size * held, gradients, optimizer, gathered, buffers=size * filled * buckets)
    if not offload:
        return memory
    # Float32 gradients lie beside the moments; stage 2 hands the new weights back through a buffer of its own.
    host = optimizer + _FLOAT * part + size * part
    if stage == 3:
        return memory._replace(parameters=0, gradients=0, optimizer=0, host=host + size * held)
    return memory._replace(gradients=0, optimizer=0, host=host)


def _all(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _group_sizes(trained: list[nn.Parameter]) -> list[int]:
    """Numbers of the optimizer's groups: with and without weight decay."""
    matrices = sum(p.numel() for p in trained if p.ndim >= 2)
    return [n for n in (matrices, sum(p.numel() for p in trained) - matrices) if n]


def _largest(model: nn.Module) -> int:
    """Numbers of the largest module that computes with parameters of its own."""
    return max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())


def _multiplied(model: nn.Module) -> int:
    """Numbers of the layers that autocast runs in bfloat16: those with a matrix, but for look-ups of embeddings."""
    found = {
        id(p): p.numel()
        for m in model.modules()
        if not isinstance(m, nn.Embedding) and any(p.ndim >= 2 for p in m.parameters(recurse=False))
        for p in m.parameters(recurse=False)
    }
    return sum(found.values())
