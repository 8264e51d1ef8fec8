"""Lightning's trainer, with what it does of its own accord turned off: checkpoints, samplers, requeueing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from regimen.core.errors import ConfigError
from regimen.runs import preempted
from regimen.training.sharding import strategy_of


def make_trainer(wanted: Mapping[str, Any], folder: Path, steps: int, loggers: list[Any]) -> pl.Trainer:
    """The trainer of `steps` steps for the settings `trainer.*`. Raises ConfigError where it refuses them."""
    try:
        return pl.Trainer(
            accelerator=wanted["accelerator"],
            devices=wanted["devices"],
            num_nodes=wanted["num_nodes"],
            strategy=strategy_of(wanted["strategy"], accelerator=wanted["accelerator"]),
            precision=wanted["precision"],
            gradient_clip_val=wanted["gradient_clip_val"],
            deterministic=wanted["deterministic"],
            max_steps=steps,
            max_epochs=-1,
            logger=loggers or False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=preempted.plugins(),
            inference_mode=False,  # `regimen score` differentiates
            num_sanity_val_steps=0,
            log_every_n_steps=10**9,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(
            "the trainer refuses its settings",
            got=f"{ {k: wanted[k] for k in ('accelerator', 'devices', 'strategy', 'precision')} }: "
            f"{str(error).splitlines()[0]}",
            do="choose another preset, e.g. trainer=cpu, or other trainer.* values",
        ) from error
