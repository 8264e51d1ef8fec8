"""What a run costs: seconds, tokens and FLOPs, by purpose, carried over a resume.

FLOPs are model FLOPs (a multiply-add is two): a forward pass over one token costs two per parameter that multiplies
it, the head included and the embedding look-up not, plus 4 * layers * width * context for attention scores and
values; a backward pass costs twice its forward pass, once for the gradients of activations and once for those of
weights. Of frozen weights, as adapters leave them, the latter are not computed, nor is anything below the first block
that is trained; that block counts whole, though its first layers need no gradient of what they read. Activation
recomputation is not counted. Source: arXiv 2001.08361, table 1, with the attention term at full context.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from regimen.core.measuring import BACKWARD, GRADIENT

PURPOSES = ("training", "measuring", "evaluation", "stages")  # evaluation: the harness's own, saving included


def forward_flops(model: nn.Module, context: int) -> float:
    """Model FLOPs of a forward pass over one token of a row of `context` tokens."""
    config: Any = model.config
    embedding, head = _ends(model)
    total = sum(_numel(p) for p in model.parameters())
    tied = head is not None and head.weight is embedding.weight
    multiplied = total if tied else total - _numel(embedding.weight)
    return 2.0 * multiplied + config.num_hidden_layers * _attention_flops(config, context)


def training_flops(model: nn.Module, context: int) -> float:
    """Model FLOPs of a forward and a backward pass over one token of a row of `context` tokens.

    The backward pass is for the weights that are trained alone.
    """
    forward, config = forward_flops(model, context), cast(Any, model.config)
    if all(p.requires_grad for p in model.parameters()):
        return GRADIENT * forward
    embedding, head = _ends(model)
    levels = _levels(model, config.num_hidden_layers)
    first = min((level for p, level in levels if p.requires_grad), default=config.num_hidden_layers)
    multiplied = [(p, level) for p, level in levels if p is not embedding.weight]
    if head is not None and head.weight is embedding.weight:
        multiplied.append((head.weight, config.num_hidden_layers))
    passed = sum(_numel(p) for p, level in multiplied if level >= first)
    trained = sum(_numel(p) for p, _ in multiplied if p.requires_grad)
    blocks = config.num_hidden_layers - max(first, 0)
    return forward + 2.0 * (passed + trained) + BACKWARD * blocks * _attention_flops(config, context)


def _attention_flops(config: Any, context: int) -> float:
    """FLOPs of scores and values of one token in one block."""
    heads = getattr(config, "num_attention_heads", 1)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 4.0 * heads * head_dim * context


def _levels(model: nn.Module, blocks: int) -> list[tuple[nn.Parameter, int]]:
    """Parameters with the block that they are in, from 0; -1 for those before the first, `blocks` after the last."""
    found, level = [], -1
    for name, parameter in model.named_parameters():
        inside = re.search(r"\.(\d+)\.", name)
        level = int(inside[1]) if inside else blocks if level >= 0 else -1
        found.append((parameter, level))
    return found


def body_flops(model: nn.Module, context: int) -> float:
    """`forward_flops` without the head: up to the last hidden states."""
    _, head = _ends(model)
    return forward_flops(model, context) - (0.0 if head is None else 2.0 * _numel(head.weight))


def non_embedding_parameters(model: nn.Module) -> int:
    """Parameters without those of the input embedding and the output head, the N of scaling laws."""
    ends = {id(end.weight): end.weight for end in _ends(model) if end is not None}
    return sum(_numel(p) for p in model.parameters()) - sum(_numel(weight) for weight in ends.values())


def _ends(model: nn.Module) -> tuple[Any, Any]:
    """The input embedding and the output head, which may be None."""
    return model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]


def rows_flops(of_context: Callable[[int], float], lengths: Tensor) -> float:
    """FLOPs of a forward pass over rows of `lengths` (n,) tokens each, padding not counted.

    of_context: FLOPs of a token in a row of so many, an affine function.
    """
    n = lengths.double()
    fixed = of_context(0)
    return float(n.sum()) * fixed + float((n * n).sum()) * (of_context(1) - fixed)


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty shell


@dataclass
class Charge:
    """Cost of one purpose."""

    seconds: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0


@dataclass
class CostClock:
    """Adds up costs by purpose. Seconds of measuring and evaluation are taken out of those of training."""

    charges: dict[str, Charge] = field(default_factory=lambda: {purpose: Charge() for purpose in PURPOSES})

    def add(self, purpose: str, *, seconds: float = 0.0, tokens: float = 0.0, flops: float = 0.0) -> None:
        """Charge a cost."""
        charge = self.charges[purpose]
        charge.seconds += seconds
        charge.tokens += tokens
        charge.flops += flops

    @contextmanager
    def timed(self, purpose: str) -> Iterator[None]:
        """Charge the seconds of a block to `purpose`, not to training."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.add(purpose, seconds=seconds)
        self.add("training", seconds=-seconds)

    def total_flops(self) -> float:
        """FLOPs that count against a budget: training, measuring and stages. Evaluation is the harness's own."""
        return sum(self.charges[purpose].flops for purpose in PURPOSES if purpose != "evaluation")

    def by(self, unit: str) -> dict[str, float]:
        """One unit by purpose."""
        return {purpose: getattr(charge, unit) for purpose, charge in self.charges.items()}

    def snapshot(self, purpose: str) -> Charge:
        """A copy, to subtract later."""
        return Charge(**vars(self.charges[purpose]))

    def since(self, purpose: str, before: Charge) -> dict[str, float]:
        """The cost of `purpose` since a snapshot."""
        now = self.charges[purpose]
        return {unit: getattr(now, unit) - getattr(before, unit) for unit in ("seconds", "tokens", "flops")}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """All charges."""
        return {purpose: dict(vars(charge)) for purpose, charge in self.charges.items()}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Go on from saved charges."""
        self.charges = {purpose: Charge(**charge) for purpose, charge in state.items()}
