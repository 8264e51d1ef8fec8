"""W&B and TensorBoard, where the user turned them on. CSV and JSON lines are always written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from regimen.runs.identity import config_hash, methods, run_name


def make_trackers(settings: Mapping[str, Any], folder: Path, *, sweep: str | None) -> list[Logger]:
    """One Lightning logger per entry of `logger.*`."""
    loggers: list[Logger] = []
    if "tensorboard" in settings["logger"]:
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(save_dir=folder, name="", version="tensorboard"))
    if "wandb" in settings["logger"]:
        loggers.append(_wandb(settings["logger"]["wandb"], settings, folder, sweep))
    return loggers


def _wandb(wanted: Mapping[str, Any], settings: Mapping[str, Any], folder: Path, sweep: str | None) -> Logger:
    """A W&B run whose id is the configuration's, so that a resumed run goes on in the same one."""
    from pytorch_lightning.loggers import WandbLogger

    choices = settings["choices"]
    tags = [f"method:{name}" for name in methods(settings)]
    tags += [f"model:{choices['model']}", f"dataset:{choices['dataset']}", f"seed:{settings['seed']}", *wanted["tags"]]
    return WandbLogger(
        project=wanted["project"],
        entity=wanted["entity"],
        name=run_name(settings),
        id=config_hash(settings),
        save_dir=str(folder),
        offline=_offline(wanted["mode"]),
        group=sweep or f"{choices['model']}-{choices['dataset']}",
        job_type="train",
        tags=tags,
        config=dict(settings),
        resume="allow",
    )


def _offline(mode: str | None) -> bool:
    """Online where the user says so, or where a key is set and WANDB_MODE does not forbid it."""
    mode = mode or os.environ.get("WANDB_MODE")
    if mode is not None:
        return mode != "online"
    return not (os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").is_file())
