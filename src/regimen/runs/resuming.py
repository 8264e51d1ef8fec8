"""A checkpoint for the strategy and the number of processes that go on with it, which need not be those that saved it.

| saved by | goes on under |
|---|---|
| one process, DDP | these as it is; FSDP2 from a file that is made of it |
| FSDP2 | FSDP2 as it is; one process and DDP from a file that is made of it |
| ZeRO | the same stage (1 and 2 are alike) as it is, on another number of processes by DeepSpeed's universal format; one process, DDP and FSDP2 from a file that is made of it |
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from regimen.core.errors import ConfigError
from regimen.training.capabilities import FSDP, ZERO
from regimen.training.checkpoint_formats import (
    format_of,
    names_in,
    ranks_of,
    read,
    stage_of,
    to_universal,
    write_file,
)


def refuse_unreadable(path: Path, strategy: str) -> None:
    """Raises ConfigError where `strategy` cannot go on from a checkpoint. Known before a model is built."""
    if strategy not in ZERO:
        return
    kind = format_of(path)
    if kind != "zero" or stage_of(path) != max(ZERO[strategy][0], 2):
        saved = {"file": "one process or DDP", "fsdp": FSDP}.get(
            kind, f"ZeRO-{stage_of(path) if kind == 'zero' else ''}"
        )
        raise ConfigError(
            "DeepSpeed cannot go on from the checkpoint of another strategy",
            got=f"trainer.strategy={strategy}, and {path} was saved by {saved}",
            allowed="a checkpoint of the same ZeRO stage, 1 and 2 being alike, on any number of processes",
            do="go on with trainer.strategy=auto, ddp or fsdp, which all checkpoints can be turned into, "
            "or with the strategy that saved it",
        )


def readable(path: Path, strategy: str, world: int) -> Path:
    """Where the checkpoint at `path` will be for `strategy` on `world` processes: itself, or what `convert` makes."""
    kind = format_of(path)
    if kind == "zero" and strategy in ZERO:
        return path if ranks_of(path) == world else _beside(path, "universal")
    if (kind == "fsdp") == (strategy == FSDP) and kind != "zero":
        return path
    return _beside(path, "named" if strategy == FSDP else "file")


def is_universal(path: Path) -> bool:
    """Whether it is in DeepSpeed's universal format."""
    return path.name.endswith(".universal.tmp")


def convert(path: Path, to: Path, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Make what `readable` promised. On rank 0, before the ranks meet; `model` is whole, and `optimizer` is new."""
    remove(to)
    if is_universal(to):
        to_universal(path, to)
    else:
        saved = read(path, names_in(optimizer, model))
        write_file(saved, optimizer, model, to, by_name=to.name.endswith(".named.tmp"))


def remove(path: Path) -> None:
    """Remove a converted checkpoint."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}.tmp")  # a name that the next attempt clears away
