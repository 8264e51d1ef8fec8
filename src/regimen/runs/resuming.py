"""A checkpoint for the strategy and the number of processes that go on with it, which need not be those that saved it.

One process, DDP and FSDP2 go on from any checkpoint: where another strategy saved it, from a file that is made of it.
ZeRO goes on from a checkpoint of its stage, 1 and 2 being alike; on another number of processes, from DeepSpeed's
universal format that is made of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
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
from regimen.training.module import LanguageModule
from regimen.training.sharding import Zero


def refuse_unreadable(path: Path, strategy: str) -> None:
    """Raises ConfigError where `strategy` cannot go on from a checkpoint. Known before a model is built."""
    if strategy not in ZERO:
        return
    kind = format_of(path)
    if kind != "zero" or stage_of(path) != max(ZERO[strategy][0], 2):
        stage = f"ZeRO-{stage_of(path)}" if kind == "zero" else ""
        saved = {"file": "one process or DDP", "fsdp": FSDP, "zero": stage}[kind]
        raise ConfigError(
            "DeepSpeed cannot go on from the checkpoint of another strategy",
            got=f"trainer.strategy={strategy}, and {path} was saved by {saved}",
            allowed="a checkpoint of the same ZeRO stage, 1 and 2 being alike, on any number of processes",
            do="go on with trainer.strategy=auto, ddp or fsdp, which all checkpoints can be turned into, "
            "or with the strategy that saved it",
        )


@contextmanager
def in_format(
    checkpoint: str | None, settings: Mapping[str, Any], trainer: pl.Trainer, module: LanguageModule
) -> Iterator[str | None]:
    """The checkpoint to go on from, in the format of the strategy. What rank 0 makes for it the others find when they
    have met it, and it is removed afterwards.
    """
    if checkpoint is None:
        yield None
        return
    saved = Path(checkpoint)
    path = readable(saved, settings["trainer"]["strategy"], trainer.world_size)
    if isinstance(trainer.strategy, Zero):
        trainer.strategy.load_universal = is_universal(path)
    makes = path != saved and trainer.is_global_zero
    if makes:
        optimizer, _ = module.make_optimizer(module.model)
        convert(saved, path, optimizer, module.model)
    try:
        yield str(path)
    finally:
        if makes:
            remove(path)


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
