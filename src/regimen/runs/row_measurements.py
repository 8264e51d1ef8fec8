"""Long measurements of rows: made a part at a time, streamed to memory-mapped arrays, gone on with after a kill.

What was measured before training or under finished models goes to the store, where any run finds it; what was measured
on the way goes to the run's own folder until a checkpoint has passed it. The cost of what is found is charged as if it
had been measured now, so that no method is cheaper for having come second. After a kill, what all parts share
(gradients of the target set) is measured again, and charged again. Signals that measure all rows at once may keep how
far they are beside the values (`halfway`), until the values are there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from regimen import __version__
from regimen.core.files import disk_errors, write_json
from regimen.core.plan import digest_of
from regimen.core.signal import Meter, Signal
from regimen.data.pool import Pool
from regimen.runs.identity import config_hash, signal_identity
from regimen.runs.locks import Busy, held
from regimen.runs.store import VALUES, Store, digest
from regimen.signals.board import checked
from regimen.training.callbacks.checkpoint import checkpoints, step_of
from regimen.training.cost import CostClock
from regimen.training.halfway import Halfway
from regimen.training.parameters import whole

ARRAY = "values.npy"
PROGRESS = "progress.json"
SCRATCH = "measuring"  # in the run's folder
HALFWAY = "halfway"  # in a measurement's folder, while it is not finished
_LOADED = 1024  # rows of a part at least under models that may have to be loaded for each part
_EVERY_SECONDS = 20.0  # between two lines of progress
_MOST = 4096  # forward passes over rows between two savings
_FLOPS = {"cpu": 2.5e13, "other": 2.5e16}  # about as many at most: a minute or two of one device


def passes_between(row_flops: float, device: str) -> int:
    """Forward passes over rows between two savings, for a model whose pass over a row costs so much.

    By what it costs and not by the clock: a run that goes on measures the same rows together, bit for bit.
    """
    flops = _FLOPS.get(device, _FLOPS["other"])
    return max(min(_MOST, int(flops / row_flops)), 1)


class ModelIdentity:
    """What the model in training is, as text: before training by its weights, on the way by the run and the step.

    A run goes on bit for bit, so that its settings and the step say which model it is.
    """

    def __init__(self, settings: Mapping[str, Any], model: nn.Module) -> None:
        self._model = model
        self._run = config_hash(settings)
        shape = {k: v for k, v in settings["model"].items() if k not in ("compile", "gradient_checkpointing")}
        mode = [settings["trainer"]["precision"], settings["dataset"]["document_mask"], settings["objective"]]
        self._how = json.dumps([shape, mode], sort_keys=True, default=str)
        self._weights: str | None = None

    def __call__(self, step: int) -> str:
        """Collective before training, where ranks hold parts of the model."""
        if step > 0:
            return f"{self._run} at {step}"
        if self._weights is None:
            held = self._model.state_dict(keep_vars=True)  # parameters, which know of their other parts
            self._weights = digest(*(digest_of(whole(value)) for value in held.values()))
        return f"{self._weights} {self._how}"


class RowMeasurements:
    """Measures signals of rows for one run.

    identity: what the model in training is after a step, as text. part: forward passes over rows between two savings.
    worth: forward passes from which on a measurement is kept. say: whether progress is printed.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        *,
        folder: Path,
        trainer: pl.Trainer,
        clock: CostClock,
        identity: Callable[[int], str],
        part: int = _MOST,
        worth: int = 512,
        say: bool = True,
    ) -> None:
        self.store, self.pool, self.folder, self.trainer, self.clock = store, pool, folder, trainer, clock
        self.identity, self.part, self.worth, self.say = identity, part, worth, say
        self.halfway = Halfway(trainer)

    def measure(self, signal: Signal, meter: Meter, ids: Tensor, *, step: int) -> Tensor:
        """Values (n, ...) of rows `ids` (n,), ascending, under the models as they are after `step` steps."""
        parts = self._parts(signal, ids)
        passing = step > 0 and None in signal.models()  # of a model that no other run will meet
        whole = len(parts) == 1 and not signal.halfway  # a kill leaves all of it or nothing
        if signal.work(len(ids)) < self.worth or (passing and whole):
            return self._plainly(signal, meter, parts)
        name, key = type(signal).__name__.lower(), self._key(signal, ids, step)
        if passing:
            self._tidy()
            place = self.folder / SCRATCH / f"{step:08d}-{name}-{key}"
        else:
            place = self.store.place("measurement", name, key)
        with contextlib.ExitStack() as stack:
            if self._alone(place, stack):
                with self.halfway.at(place / HALFWAY):
                    values = self._kept(place, signal, meter, parts)
                if not passing and self.trainer.is_global_zero:
                    self.store.note("measurement", name, key, place, asked_by=self.folder.name)
                return values
        return self._plainly(signal, meter, parts)  # another process is measuring the same at this moment

    def end(self) -> None:
        """Remove what only a resume of this run would have needed."""
        if self.trainer.is_global_zero:
            shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)

    def _parts(self, signal: Signal, ids: Tensor) -> list[Tensor]:
        if not signal.by_row:
            return [ids]
        rows = max(int(self.part / max(signal.passes(), 1)), 1)
        if any(path is not None for path in signal.models()):
            rows = max(rows, min(_LOADED, self.part))
        return list(ids.split(rows))

    def _plainly(self, signal: Signal, meter: Meter, parts: list[Tensor]) -> Tensor:
        told = _Progress(signal, sum(map(len, parts)), self._speaks())
        return torch.cat([told.after(checked(signal, signal.measure(meter, part))) for part in parts])

    def _alone(self, place: Path, stack: contextlib.ExitStack) -> bool:
        """Whether this run may work in `place`: decided by rank 0 for all."""
        mine = True
        if self.trainer.is_global_zero:
            try:
                stack.enter_context(held(place))
            except Busy:
                mine = False
        return bool(self._from_zero(mine))

    def _kept(self, place: Path, signal: Signal, meter: Meter, parts: list[Tensor]) -> Tensor:
        """The values of all parts; what lies in `place` is read, the rest is measured and added to it."""
        total = sum(map(len, parts))
        found = self._from_zero(_found(place) if self.trainer.is_global_zero else None)
        self.clock.add("measuring", **found["cost"])
        told, done, mine = _Progress(signal, total, self._speaks(), found["rows"]), found["rows"], []
        if done:
            mine.append(_read(place)[:done])
        before, saved = self.clock.snapshot("measuring"), found["cost"]
        for part in _rest(parts, done):
            values = told.after(checked(signal, signal.measure(meter, part)))
            mine.append(values)
            cost = _sum(saved, self.clock.since("measuring", before))
            if self.trainer.is_global_zero:
                _append(place, values, done, total, cost)
            done += len(part)
        if self.trainer.is_global_zero and not found["finished"]:
            cost = _sum(saved, self.clock.since("measuring", before))
            of = {"signal": repr(signal), "pool": self.pool.fingerprint, "rows": total, "cost": cost}
            write_json(place / VALUES, of | self.halfway.told)
            (place / PROGRESS).unlink(missing_ok=True)
        if self.trainer.is_global_zero:
            shutil.rmtree(place / HALFWAY, ignore_errors=True)  # the values are there
        return mine[0] if len(mine) == 1 else torch.cat(mine)

    def _key(self, signal: Signal, ids: Tensor, step: int) -> str:
        model = self.identity(step) if None in signal.models() else ""
        rows = digest(str(len(ids)), str(ids.numpy().tobytes()))
        identity = json.dumps(signal_identity(signal), sort_keys=True, default=str)
        return digest(identity, model, rows, self.pool.fingerprint, self.pool.tokenizer_fingerprint, __version__)

    def _tidy(self) -> None:
        """Remove what was measured for decisions that a checkpoint already holds."""
        saved = checkpoints(self.folder)
        if not saved or not self.trainer.is_global_zero:
            return
        for path in (self.folder / SCRATCH).glob("*-*"):
            if int(path.name.partition("-")[0]) <= step_of(saved[-1]):
                shutil.rmtree(path)

    def _from_zero(self, value: Any) -> Any:
        return self.trainer.strategy.broadcast(value, src=0) if self.trainer.world_size > 1 else value

    def _speaks(self) -> bool:
        return self.say and self.trainer.is_global_zero


class _Progress:
    """Says now and then how far a long measurement is, and how long it will still take."""

    def __init__(self, signal: Signal, total: int, speaks: bool, done: int = 0) -> None:
        self.name, self.total, self.speaks, self.first, self.done = type(signal).__name__, total, speaks, done, done
        self.began = self.said = time.perf_counter()

    def after(self, values: Tensor) -> Tensor:
        self.done += len(values)
        now = time.perf_counter()
        if self.speaks and self.done < self.total and now - self.said > _EVERY_SECONDS:
            self.said = now
            left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
            minutes = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            print(f"measuring {self.name}: {self.done} of {self.total} rows, about {minutes} left", file=sys.stderr)
        return values


def _found(place: Path) -> dict[str, Any]:
    """What an earlier attempt left: rows that are measured, their cost, and whether that is all."""
    for name, finished in ((VALUES, True), (PROGRESS, False)):
        if (place / name).is_file() and (place / ARRAY).is_file():
            told = json.loads((place / name).read_text())
            return {"rows": told["rows"], "cost": told["cost"], "finished": finished}
    return {"rows": 0, "cost": {"seconds": 0.0, "tokens": 0.0, "flops": 0.0}, "finished": False}


def _read(place: Path) -> Tensor:
    return torch.from_numpy(np.load(place / ARRAY, mmap_mode="c"))


def _rest(parts: list[Tensor], done: int) -> list[Tensor]:
    """The parts without their first `done` rows."""
    out = []
    for part in parts:
        if done < len(part):
            out.append(part[done:])
        done = max(done - len(part), 0)
    return out


def _append(place: Path, values: Tensor, done: int, total: int, cost: dict[str, float]) -> None:
    """Write values (n, ...) behind the first `done` rows of an array of `total`; the count is written last."""
    rows = values.numpy()
    with disk_errors(place):
        mode = "r+" if done else "w+"
        shape = (total, *rows.shape[1:])
        array = np.lib.format.open_memmap(place / ARRAY, mode=mode, dtype=rows.dtype, shape=shape)  # type: ignore[arg-type]
        array[done : done + len(rows)] = rows
        array.flush()
        write_json(place / PROGRESS, {"rows": done + len(rows), "cost": cost})


def _sum(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {unit: a[unit] + b[unit] for unit in a}
