"""Metrics of every step as JSON lines and CSV, and to the trackers that the user turned on."""

from __future__ import annotations

import csv
import io
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
import torch

from regimen.core.files import JsonLines, cut_json_lines, disk_errors, read_json_lines, write_atomically
from regimen.training.callbacks import summaries
from regimen.training.context import RunContext, Step
from regimen.training.module import LanguageModule

_TRAIN = [
    *("step", "split", "tokens", "seconds", "flops", "loss", "lr", "gradient_norm"),
    *("tokens_per_second", "memory_mb", "effective_sample_size", "weight_variation"),
    *("effective_lr_multiplier", "batch"),
]


class MetricFiles:
    """`metrics.jsonl`, the source, and `metrics.csv`, the same rows as a table."""

    def __init__(self, folder: Path, domains: Sequence[str], context: RunContext) -> None:
        self.folder, self.context = folder, context
        self.lines = JsonLines(folder / "metrics.jsonl")
        scopes = ("micro", "macro", *domains)
        self.columns = [*_TRAIN, *(f"loss/{name}" for name in domains)]
        self.columns += [f"{name}/{unit}" for name in scopes for unit in ("loss", "bits_per_byte")]

    def cut(self, step: int) -> None:
        """Keep only what happened up to `step`, so that a resumed run does not tell anything twice."""
        cut_json_lines(self.lines.path, lambda row: row["step"] <= step)
        rows = read_json_lines(self.lines.path)
        write_atomically(self.folder / "metrics.csv", self._csv([{name: name for name in self.columns}, *rows]))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row to both files."""
        self.lines.append(row)
        path = self.folder / "metrics.csv"
        with disk_errors(path), path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._csv([row]))

    def write_eval(self, trainer: pl.Trainer, step: int, scores: dict[str, float]) -> None:
        """Append the scores of one evaluation, on rank 0."""
        if trainer.is_global_zero:
            self.write({"step": step, "split": "eval", **self.progress(), **scores})

    def progress(self) -> dict[str, float]:
        """Tokens trained on, seconds and FLOPs so far."""
        clock = self.context.clock
        seconds = sum(clock.by("seconds").values())
        tokens = int(clock.charges["training"].tokens)
        return {"tokens": tokens, "seconds": round(seconds, 3), "flops": clock.total_flops()}

    def _csv(self, rows: Sequence[dict[str, Any]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()


class Metrics(pl.Callback):
    """One row per optimizer step."""

    def __init__(self, context: RunContext, files: MetricFiles) -> None:
        self.context, self.files = context, files
        self._process = psutil.Process()
        self._started, self._trained = 0.0, 0.0
        self._lr = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()  # before the first evaluation, which is taken out of training again

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.perf_counter()  # a resumed clock stands at what it cost before; what came since is set-up
        self.context.clock.add("training", seconds=now - self._started)
        self._started, self._trained = now, self.context.clock.charges["training"].seconds

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if step is None:
            return
        now = time.perf_counter()
        self.context.clock.add("training", seconds=now - self._started)
        trained = self.context.clock.charges["training"].seconds  # without measuring, evaluating and saving
        seconds, self._started, self._trained = trained - self._trained, now, trained
        assert isinstance(pl_module, LanguageModule)
        row = self._row(pl_module, step, seconds)
        if trainer.is_global_zero:
            self.files.write(row)
        summaries.log(trainer, step.number, {f"train/{k}": v for k, v in row.items() if isinstance(v, float)})

    def _row(self, module: LanguageModule, step: Step, seconds: float) -> dict[str, Any]:
        index = self.context.index
        zeros = torch.zeros(len(index.domains), dtype=torch.float64)
        sums = zeros.index_add(0, step.domain, step.sums)
        tokens = zeros.index_add(0, step.domain, step.tokens.double())
        by_domain = zip(index.domains, sums.tolist(), tokens.tolist(), strict=True)
        norm = module.gradient_norm
        return {
            "step": step.number,
            "split": "train",
            **self.files.progress(),
            "loss": float(step.sums.sum() / step.tokens.sum().clamp(min=1)),
            "lr": self._lr,
            "gradient_norm": None if norm is None else float(norm),
            "tokens_per_second": round(float(step.tokens.sum()) / max(seconds, 1e-9), 1),
            "memory_mb": round(self._memory(), 1),
            **summaries.effects(step, module.objective.reduction),
            "batch": f"{zlib.crc32(step.ids.numpy().tobytes()):08x}",
            **{f"loss/{name}": total / count for name, total, count in by_domain if count},
        }

    def _memory(self) -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return self._process.memory_info().rss / 2**20


def peak_memory_mb() -> float:
    """Peak memory of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
