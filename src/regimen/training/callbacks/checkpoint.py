"""Saves at step boundaries, whole or not at all, and keeps what Lightning forgets: random states and the cost clock."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from regimen.core.errors import ConfigError, RunError
from regimen.training.callbacks.saving import milestones
from regimen.training.context import RunContext, gathered

_NAME = re.compile(r"step-(\d+)\.ckpt$")


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run folder, oldest first; a file that a crash of the machine cut is left out."""
    found = [p for p in (folder / "checkpoints").glob("step-*.ckpt") if _NAME.search(p.name)]
    return sorted((p for p in found if p.is_dir() or zipfile.is_zipfile(p)), key=step_of)


def step_of(path: Path) -> int:
    """Optimizer steps done in a checkpoint, from its name."""
    match = _NAME.search(path.name)
    assert match is not None, path
    return int(match[1])


class SaveCheckpoints(Checkpoint):
    """Saves every `every_steps` steps, every `every_minutes` minutes, and where training ends; keeps the last `keep`.

    at: fractions of the run where it saves too, and what is saved there is kept.
    Lightning puts it last, so it sees the state that all other callbacks left for this step.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        every_steps: int | None,
        every_minutes: float | None,
        keep: int | None,
        at: Sequence[float] = (),
    ) -> None:
        for name, value in (("save_every_steps", every_steps), ("save_every_minutes", every_minutes)):
            if value is not None and value <= 0:
                raise ConfigError(f"trainer.{name} must be positive", got=value, allowed="> 0, or null for never")
        if keep is not None and keep < 1:
            raise ConfigError("trainer.keep_checkpoints must be positive", got=keep, allowed=">= 1, or null for all")
        self.context, self.every_steps, self.every_minutes, self.keep = context, every_steps, every_minutes, keep
        self.kept = milestones(at, context.total_steps)
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if step is None or not self._due(trainer, step.number):
            return
        with self.context.clock.timed("evaluation"):
            self._save(trainer, step.number)
        self._saved_at = time.monotonic()

    def _due(self, trainer: pl.Trainer, step: int) -> bool:
        if step == self.context.total_steps or step in self.kept:
            return True
        if self.every_steps and step % self.every_steps == 0:
            return True
        if self.context.stopped_by is not None:
            return True
        if not self.every_minutes:
            return False
        late = time.monotonic() - self._saved_at >= self.every_minutes * 60
        return bool(trainer.strategy.broadcast(late, src=0)) if trainer.world_size > 1 else late

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        folder = self.context.folder / "checkpoints"
        final = folder / f"step-{step:08d}.ckpt"
        temporary = folder / f".step-{step:08d}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            if trainer.local_rank == 0:
                _flush(temporary)
            trainer.strategy.barrier()  # renamed when the last node has flushed what it wrote, and not before
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
            _remove(temporary)
            free = shutil.disk_usage(self.context.folder).free / 2**20
            raise RunError(
                f"cannot save the checkpoint of step {step} in {folder}",
                got=f"{str(error).splitlines()[0][:200]}; {free:.0f} MB free there",
                do="free some space and start the same command again: it goes on from the last whole checkpoint",
            ) from error
        except KeyboardInterrupt:
            _remove(temporary)
            raise
        if trainer.is_global_zero:
            _remove(final)
            temporary.replace(final)
            for old in checkpoints(self.context.folder)[: -self.keep] if self.keep else []:
                if step_of(old) not in self.kept:
                    _remove(old)
        trainer.strategy.barrier()


def _flush(path: Path) -> None:
    """Make sure a checkpoint, a file or a folder, is on the disk before it gets its name."""
    for part in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with part.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in (folder / "checkpoints").glob(".*.tmp"):
        _remove(path)


class RunState(pl.Callback):
    """Random states of every rank, the cost clock and the warnings. Lightning saves none of them."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._trainer: pl.Trainer | None = None
        self._random: dict[str, Tensor] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:  # called on every rank, so that gathering is safe
        assert self._trainer is not None
        mine = random_state()
        everyone = {key: gathered(self._trainer, value[None]) for key, value in mine.items()}  # (W, ...)
        return {"random": everyone, "clock": self.context.clock.state_dict(), "warnings": list(self.context.warnings)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random = state_dict["random"]
        self.context.clock.load_state_dict(state_dict["clock"])
        self.context.warnings[:] = state_dict["warnings"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restate Lightning's counters, which are micro-batches, in those of the present layout."""
        loop = checkpoint["loops"]["fit_loop"]
        steps = loop["state_dict"]["combined_loader"][0]["stream"]["step"]
        progress = loop["epoch_loop.batch_progress"]
        behind = progress["current"]["processed"] - progress["current"]["completed"]  # 1: saved before "completed"
        for scope in ("total", "current"):
            for name in ("ready", "started", "processed", "completed"):
                behind_here = behind if name == "completed" else 0
                progress[scope][name] = steps * trainer.accumulate_grad_batches - behind_here

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._random is None:
            # Lightning leaves the same state on all ranks, which would give all the same dropout masks.
            seed_rank(self.context.seed, trainer.global_rank)
        elif len(self._random["torch"]) == trainer.world_size:
            # Cloned: torch reads the state as a struct, which a row of a tensor is not aligned for.
            restore_random_state({key: value[trainer.global_rank].clone() for key, value in self._random.items()})
        else:
            # On another number of ranks there is no state to restore; the data order does not depend on it.
            seed_rank(self.context.seed + self.context.loader.stream.step, trainer.global_rank)
        self._random = None


def seed_rank(seed: int, rank: int) -> None:
    """Seed the global generators of this rank."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def random_state() -> dict[str, Tensor]:
    """The global random states as uint8 and int64 tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    assert kind == "MT19937"
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), int(position), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([float(cached)], dtype=torch.float64),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Put back what `random_state` took."""
    torch.set_rng_state(state["torch"])
    *keys, position, has_gauss = state["numpy"].tolist()
    legacy = ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, float(state["numpy_gauss"][0]))
    np.random.set_state(legacy)
    version, *internal = state["python"].tolist()
    gauss = float(state["python_gauss"][0])
    random.setstate((version, tuple(internal), None if gauss != gauss else gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
