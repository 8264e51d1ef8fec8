"""What the ways to spread a run over processes can do. Imports nothing heavy: errors need it before anything is built.

What is not told here all of them can do: `docs/sharding.md`, which tests verify.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from regimen.core.errors import ConfigError

FSDP = "fsdp"
ZERO: Mapping[str, tuple[int, bool]] = {
    "deepspeed_zero1": (1, False),
    "deepspeed_zero2": (2, False),
    "deepspeed_zero3": (3, False),
    "deepspeed_zero2_offload": (2, True),
    "deepspeed_zero3_offload": (3, True),
}
"""By `trainer.strategy`: DeepSpeed's stage, and whether the CPU's memory takes what the GPU need not hold."""

SHARDED = (FSDP, *ZERO)
IN_PARTS = tuple(name for name in SHARDED if name == FSDP or ZERO[name][0] == 3)
"""Those under which a rank holds a part of the parameters alone."""

PRECISIONS = ("32-true", "bf16-mixed")
"""Of the sharded ones: no loss scaling, which skips steps, and float32 weights in the optimizer."""


def supports(strategy: str, signal: Any) -> bool:
    """Whether what is measured under the model in training can be where `strategy` spreads it."""
    models = getattr(signal, "models", None)
    if strategy not in IN_PARTS or (models is not None and None not in models()):  # finished models are whole
        return True
    return not any(_needs_whole(part) for part in _parts(signal))


def refuse_unsupported(strategy: str, owner: str, signal: Any) -> None:
    """Raises ConfigError where `supports` says no. owner: the setting that asks for the signal."""
    if not supports(strategy, signal):
        raise ConfigError(
            f"{owner} differentiates whole parameters, and each rank holds a part of them alone",
            got=f"a sketch with backend=loop, a virtual step, a descent or a second model, trainer.strategy={strategy}",
            allowed=f"backend=hooks, or one of auto, ddp, {', '.join(s for s in SHARDED if s not in IN_PARTS)}",
            do="set a sketch's backend=hooks, or type trainer=ddp",
        )


def refuse_moving(strategy: str, owner: str) -> None:
    """Raises ConfigError where the optimizer holds a copy of the parameters that would undo a step made beside it."""
    if strategy in SHARDED:
        raise ConfigError(
            f"{owner} moves the model in steps of its own, and the optimizer's copy of it would undo them",
            got=f"trainer.strategy={strategy}",
            allowed="auto, ddp",
            do="type trainer=ddp, or have lessons leave the model alone: strategies.dwm.update_lm=false",
        )


def _needs_whole(part: Any) -> bool:
    return getattr(part, "backend", None) == "loop" or getattr(part, "whole_parameters", False)


def _parts(value: Any) -> Iterator[Any]:
    """A signal and all settings objects in it."""
    yield value
    if is_dataclass(value):
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
