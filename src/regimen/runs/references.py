"""Models of finished runs that another run compares with or measures under."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from regimen.core.errors import ConfigError, closest
from regimen.core.files import read_json_lines
from regimen.core.measuring import Checkpoint
from regimen.core.settings import conf_dir
from regimen.core.signal import Signal, TokenSignal
from regimen.core.strategy import Strategy
from regimen.data.pool import Pool
from regimen.runs.compose import compose_plain
from regimen.runs.models import make_model
from regimen.runs.optimizers import make_optimizer
from regimen.training.callbacks.averaging import averaged_weights
from regimen.training.callbacks.checkpoint import checkpoints, step_of
from regimen.training.callbacks.saving import milestones
from regimen.training.checkpoint_formats import names_in, of_model, read, read_rest, read_weights
from regimen.training.meter import Loaded
from regimen.training.module import LanguageModule
from regimen.training.moments import moments_in_training, moments_of
from regimen.training.sketching import Moments


def reference_folders(strategies: list[Strategy]) -> list[str]:
    """Folders of the runs that the token signals of strategies compare with."""
    signals = [signal for strategy in strategies for signal in strategy.needs()]
    return sorted({str(s.reference) for s in signals if isinstance(s, TokenSignal)})


def load_model(path: Path, pool: Pool) -> nn.Module:
    """The model of a finished run, given by its folder or one of its checkpoints, on the CPU.

    Raises ConfigError where it cannot read rows of `pool`.
    """
    return _load(path, pool)[0]


def refuse_unreadable(strategies: list[Strategy], pool: Pool) -> None:
    """Raises ConfigError where a signal needs the model of a run that is not there, or cannot read rows of `pool`."""
    signals = {s for strategy in strategies for s in (*strategy.needs(), *strategy.needs_of_target())}
    for path in {path for signal in signals for path in signal.models()}:
        if path is not None:
            _readable(Path(path).expanduser(), pool)


def _readable(path: Path, pool: Pool) -> tuple[Path, dict[str, Any]]:
    """The folder and the settings of a finished run that `path`, or a checkpoint at `path`, belongs to."""
    folder = path.parents[1] if path.suffix == ".ckpt" else path
    settings, summary = read_run(folder)
    if summary["fingerprints"]["tokenizer"] != pool.tokenizer_fingerprint:
        raise ConfigError(
            "the reference model reads another tokenizer's tokens",
            got=f"{folder}: tokenizer fingerprint {summary['fingerprints']['tokenizer']}",
            allowed=f"that of the pool {pool.name}: {pool.tokenizer_fingerprint}",
            do="train the reference on the same dataset.tokenizer",
        )
    return folder, settings


def _load(path: Path, pool: Pool) -> tuple[nn.Module, Path, dict[str, Any]]:
    """The model, its checkpoint and the settings of its run."""
    folder, settings = _readable(path, pool)
    file = checkpoints(folder)[-1] if path == folder else path
    model = make_model({**settings["model"], "compile": False}, pool)
    model.load_state_dict(evaluated_weights(file))
    return model, file, settings


def evaluated_weights(checkpoint: Path) -> dict[str, Any]:
    """The weights of the model that were evaluated: averages where a run has them."""
    return {**read_weights(checkpoint), **of_model(averaged_weights(read_rest(checkpoint)))}


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


def refuse_unknown_models(signal: Signal) -> None:
    """Raises ConfigError where a signal wants a new model that conf/model does not have."""
    for name in signal.new_models():
        _settings_of(name)


def _settings_of(name: str) -> dict[str, Any]:
    """The settings of a model of conf/model. Raises ConfigError where there is none."""
    try:
        settings: dict[str, Any] = compose_plain([f"model={name}"], where="scorer.model")["model"]
    except ConfigError as error:
        known = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if path.stem != "base")
        raise ConfigError(
            f"no such model for a scorer{closest(name, known)}",
            got=f"scorer.model={name}",
            allowed=f"none, own, {', '.join(known)}",
        ) from error
    return settings


class RunModels:
    """The models that rows can be measured under. Implements `training.meter.Models`.

    trainer, module: of the run in training. Loaded models are kept up to `room` bytes.
    """

    def __init__(self, pool: Pool, trainer: pl.Trainer, module: LanguageModule, *, room: float = 4e9) -> None:
        self.pool, self.trainer, self.module, self.room = pool, trainer, module, room
        self._loaded: dict[str, Loaded] = {}

    def load(self, path: str | None) -> Loaded:
        """The model of a run's folder or of a checkpoint, on the device of the training; null: the one in training."""
        if path is None:
            return Loaded(self.module, lambda: moments_in_training(self.module.model, self.trainer.optimizers[0]))
        if path not in self._loaded:
            with torch.random.fork_rng(devices=[]):  # making a model draws its first weights
                model, file, settings = _load(Path(path).expanduser(), self.pool)
                make = make_optimizer(settings["optimizer"], max(step_of(file), 1))
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            while self._loaded and size * (len(self._loaded) + 1) > self.room:
                del self._loaded[next(iter(self._loaded))]
            module = LanguageModule(model, self.module.objective, make)

            def of_saved() -> Moments | None:
                optimizer, _ = make(model)
                states = read(file, names_in(optimizer, model)).states
                return moments_of(states, optimizer.param_groups[0])

            self._loaded[path] = Loaded(module, of_saved)
        loaded = self._loaded[path]
        loaded.module.to(self.module.device)
        return loaded

    def new(self, name: str, *, seed: int) -> nn.Module:
        """A model of conf/model for rows of the pool, on the CPU. Raises ConfigError where there is none."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_model({**_settings_of(name), "compile": False, "gradient_checkpointing": False}, self.pool)

    def checkpoints(self, run: str) -> list[Checkpoint]:
        """The checkpoints at the run's `trainer.save_at`, or its last one; weights are mean learning rates."""
        folder = Path(run).expanduser()
        settings, told = read_run(folder)
        at = settings["trainer"].get("save_at")
        wanted = milestones(at, told["steps"]) if at else {told["steps"]}
        found = [path for path in checkpoints(folder) if step_of(path) in wanted]
        if len(found) < len(wanted):
            raise ConfigError(
                "a run has lost checkpoints that its trainer.save_at asked for",
                got=f"{folder}: steps {[step_of(path) for path in found]}",
                allowed=f"steps {sorted(wanted)}",
                do="remove its folder and train it again",
            )
        rates = {row["step"]: row["lr"] for row in read_json_lines(folder / "metrics.jsonl") if row["split"] == "train"}
        weights, before = [], 0
        for path in found:
            period = [rate for step, rate in rates.items() if before < step <= step_of(path)]
            weights.append(sum(period) / len(period))
            before = step_of(path)
        total = sum(weights)
        return [Checkpoint(str(path), weight / total) for path, weight in zip(found, weights, strict=True)]
