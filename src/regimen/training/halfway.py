"""Where a long measurement keeps how far it is, so that a kill in the middle of it does not lose what was done."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from regimen.core.files import write_atomically
from regimen.training.cost import CostClock


class Halfway:
    """States of unfinished measurements by name, in files of the folder at hand; without one nothing is kept.

    A name must tell everything that the state depends on and the folder does not. Rank 0 reads and writes for all.
    told: what there is to say of the measurement beside its values, e.g. how well a scorer did; JSON values.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer
        self.told: dict[str, Any] = {}
        self._folder: Path | None = None

    @contextmanager
    def at(self, folder: Path) -> Iterator[None]:
        """Keep states in `folder` for a while. What a kill tore in it is removed first. Called on all ranks."""
        if self.trainer.is_global_zero:
            for torn in folder.glob(".*.tmp"):
                torn.unlink()
        self._folder, self.told = folder, {}
        try:
            yield
        finally:
            self._folder = None

    def read(self, name: str) -> dict[str, Any] | None:
        """What was last written under this name, tensors on the CPU; None where nothing was. Collective."""
        if self._folder is None:
            return None
        found, path = None, self._folder / f"{name}.pt"
        if self.trainer.is_global_zero and path.is_file():
            found = torch.load(path, weights_only=True, map_location="cpu")
        if self.trainer.world_size > 1:
            found = self.trainer.strategy.broadcast(found, src=0)
        return found

    def write(self, name: str, state: dict[str, Any]) -> None:
        """Keep tensors, numbers and lists of them, in place of what was kept under this name before."""
        if self._folder is None or not self.trainer.is_global_zero:
            return
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(self._folder / f"{name}.pt", content.getvalue())


class Charged:
    """A state of `halfway` together with what it has cost, so that what a kill cut in two is charged once."""

    def __init__(self, halfway: Halfway, name: str, *, clock: CostClock, purpose: str) -> None:
        self.halfway, self.name, self.clock, self.purpose = halfway, name, clock, purpose
        self._before = clock.snapshot(purpose)

    def read(self) -> dict[str, Any] | None:
        """The state, or None; its cost is charged. Collective; to be asked once, before any work."""
        found = self.halfway.read(self.name)
        if found is None:
            return None
        self.clock.add(self.purpose, **found["cost"])
        state: dict[str, Any] = found["state"]
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Keep the state."""
        self.halfway.write(self.name, {"state": state, "cost": self.clock.since(self.purpose, self._before)})
