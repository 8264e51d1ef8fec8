"""Rough time and memory of a run before it starts. A probe of this machine, not a promise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from regimen.runs.experiment import Experiment
from regimen.runs.memory import Memory, moments, state_memory
from regimen.runs.optimizers import make_optimizer
from regimen.runs.ranks import processes

# Dense bfloat16 peak in FLOP/s, from the makers' data sheets.
_PEAK: Mapping[str, float] = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
_UTILISATION = 0.35  # of the peak, a usual figure for training
_PROBE = 384  # side of the square product that is timed


def peak_flops() -> float:
    """Dense FLOP/s at 16 bits by the GPU's data sheet; without a GPU, of a product in float32 that is timed here."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return next((value for key, value in _PEAK.items() if key in name), 100e12)
    a = torch.randn(_PROBE, _PROBE)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * _PROBE**3 / best


def flops_per_second() -> float:
    """What this machine does in training."""
    return peak_flops() * _UTILISATION


def hours(experiment: Experiment, flops: float) -> str:
    """Time for `flops` model FLOPs on this machine's devices, in words."""
    trainer: Mapping[str, Any] = experiment.settings["trainer"]
    gpus = processes(trainer) if torch.cuda.is_available() else 1
    return duration(flops / (flops_per_second() * gpus))


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"


def state(experiment: Experiment) -> Memory:
    """What a process holds whatever the batch: weights, gradients, moments, as `trainer.strategy` spreads them."""
    trainer = experiment.settings["trainer"]
    return state_memory(
        experiment.model,
        strategy=trainer["strategy"],
        world=processes(trainer),
        precision=str(trainer["precision"]),
        moments=moments(make_optimizer(experiment.settings["optimizer"], experiment.steps)),
        on_cpu=trainer["accelerator"] == "cpu",
        copies=sum(p.strategy.model_copies for p in experiment.strategies),
    )


def activation_bytes(experiment: Experiment) -> float:
    """Of one micro-batch of a process.

    34 bytes per token, layer and unit of width at 16 bits (arXiv 2205.05198, section 4.1, without the attention
    matrix), twice that at 32; and the logits with their gradient.
    """
    config: Any = experiment.model.config
    trainer = experiment.settings["trainer"]
    rows = trainer["micro_batch_size"] or max(experiment.batch_rows // processes(trainer), 1)
    wide = 1 if "16" in str(trainer["precision"]) else 2
    tokens = rows * experiment.pool.seq_len
    layers = 1 if experiment.settings["model"]["gradient_checkpointing"] else config.num_hidden_layers
    return 34.0 * wide * tokens * layers * config.hidden_size + 2 * 2 * wide * tokens * config.vocab_size


def gigabytes(size: float) -> str:
    """A size in words."""
    if size >= 1e12:
        return f"{size / 1e12:,.1f} TB"
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.2f} MB"
