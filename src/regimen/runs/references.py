"""Models of finished runs that another run compares with or starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regimen.core.errors import ConfigError
from regimen.core.signal import TokenSignal
from regimen.core.strategy import Strategy
from regimen.data.pool import Pool
from regimen.runs.models import make_model
from regimen.training.callbacks.checkpoint import checkpoints

_MODEL = "model."  # the name of the model inside the Lightning module


def reference_folders(strategies: list[Strategy]) -> list[str]:
    """Folders of the runs that the token signals of strategies compare with."""
    signals = [signal for strategy in strategies for signal in strategy.needs()]
    return sorted({str(s.reference) for s in signals if isinstance(s, TokenSignal)})


def load_model(folder: Path, pool: Pool) -> nn.Module:
    """The model of a finished run, on the CPU. Raises ConfigError where it cannot read rows of `pool`."""
    settings, summary = read_run(folder)
    if summary["fingerprints"]["tokenizer"] != pool.tokenizer_fingerprint:
        raise ConfigError(
            "the reference model reads another tokenizer's tokens",
            got=f"{folder}: tokenizer fingerprint {summary['fingerprints']['tokenizer']}",
            allowed=f"that of the pool {pool.name}: {pool.tokenizer_fingerprint}",
            do="train the reference on the same dataset.tokenizer",
        )
    saved: dict[str, Any] = torch.load(checkpoints(folder)[-1], map_location="cpu", weights_only=True)
    model = make_model({**settings["model"], "compile": False}, pool)
    model.load_state_dict(model_weights(saved["state_dict"]))
    return model


def model_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the model alone, out of a checkpoint's."""
    return {key.removeprefix(_MODEL).replace("_orig_mod.", ""): value for key, value in state.items()}


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and summary of a finished run. Raises ConfigError where there is none, or no checkpoint is left."""
    from omegaconf import OmegaConf

    path = folder / "summary.json"
    if not path.is_file():
        raise ConfigError("not a run folder", got=folder, do="name a folder with summary.json: ls outputs")
    told = json.loads(path.read_text())
    if told["status"] != "finished":
        raise ConfigError(
            "the run is not finished", got=f"{folder}: {told['status']}", do=f"regimen train resume={folder} first"
        )
    if not checkpoints(folder):
        raise ConfigError("the run has no checkpoint any more", got=folder / "checkpoints", do="train it again")
    settings = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}, told
