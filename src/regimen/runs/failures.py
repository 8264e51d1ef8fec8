"""What went wrong in training, in words: out of memory, a process of the run that died."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from regimen.core.errors import RunError
from regimen.runs import parting
from regimen.runs.parting import LostProcess

_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket timeout", "timed out waiting")


def out_of_memory(settings: Mapping[str, Any], error: torch.OutOfMemoryError) -> RunError:
    """The error for a batch that does not fit the GPU."""
    wanted = settings["trainer"]
    return RunError(
        "out of GPU memory",
        got=f"trainer.micro_batch_size={wanted['micro_batch_size']}, trainer.sweep_batch_size="
        f"{wanted['sweep_batch_size']}: {str(error).splitlines()[0]}",
        do="lower trainer.micro_batch_size (the global batch stays, in more parts) and trainer.sweep_batch_size, "
        "or set model.gradient_checkpointing=true; started again, the run goes on from its last checkpoint",
    )


def lost_process(error: RuntimeError, *, world: int) -> LostProcess | None:
    """The error for another process of the run that is gone, if a collective call of this one says so."""
    text = str(error).lower()
    remote = isinstance(error, torch.distributed.DistError) or any(words in text for words in _LOST)
    if world == 1 or not remote:
        return None
    said = parting.reason()
    return LostProcess(
        f"another process of the run has stopped: {said}" if said else "another process of the run has died",
        got=str(error).splitlines()[0][:200],
        do="look at its log for the reason (often memory); the same command goes on from the last checkpoint",
    )
