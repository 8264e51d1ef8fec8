"""The ways to spread a run over processes, by name. Imports nothing heavy: errors need it before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

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
PARTS = tuple(name for name in SHARDED if name == FSDP or ZERO[name][0] == 3)
"""Those under which a rank holds a part of the parameters alone."""
