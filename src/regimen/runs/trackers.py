"""W&B and TensorBoard, where the user turned them on. CSV and JSON lines are always written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger

from regimen.core.errors import ConfigError
from regimen.runs.identity import config_hash, methods, run_name


def make_trackers(settings: Mapping[str, Any], folder: Path, *, sweep: str | None) -> list[Logger]:
    """One Lightning logger per entry of `logger.*`."""
    loggers: list[Logger] = []
    if "tensorboard" in settings["logger"]:
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(save_dir=folder, name="", version="tensorboard"))
    if "wandb" in settings["logger"] and os.environ.get("WANDB_MODE") != "disabled":
        loggers.append(_wandb(settings["logger"]["wandb"], settings, folder, sweep))
    return loggers


def _wandb(wanted: Mapping[str, Any], settings: Mapping[str, Any], folder: Path, sweep: str | None) -> Logger:
    """A W&B run whose id is the configuration's, so that a resumed run goes on in the same one."""
    choices = settings["choices"]
    tags = [f"method:{name}" for name in methods(settings)]
    tags += [f"model:{choices['model']}", f"dataset:{choices['dataset']}", f"seed:{settings['seed']}", *wanted["tags"]]
    return _logger_class()(
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


def _logger_class() -> Any:
    from pytorch_lightning import loggers

    class WandbLogger(loggers.WandbLogger):
        """Lightning's, but ends the W&B run with the training: the next job of a multirun must not log into it."""

        def finalize(self, status: str) -> None:
            super().finalize(status)
            if self._experiment is not None:
                self._experiment.finish(exit_code=0 if status == "success" else 1)
                self._experiment = None

    return WandbLogger


def _offline(mode: str | None) -> bool:
    """Online where the user says so, or where a key is set and WANDB_MODE does not forbid it.

    Raises ConfigError where online is asked for without a key.
    """
    wanted = mode or os.environ.get("WANDB_MODE")
    if wanted == "online" and not _has_key():
        raise ConfigError(
            "W&B has no key on this machine",
            got=f"logger.wandb.mode={mode}" if mode else "WANDB_MODE=online",
            do="wandb login, set WANDB_API_KEY, or log offline and upload later: logger.wandb.mode=offline",
        )
    return wanted != "online" if wanted else not _has_key()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc(os.environ.get("NETRC")).authenticators(str(host)) is not None
    except (OSError, NetrcParseError):
        return False
