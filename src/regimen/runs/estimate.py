"""Rough time and memory of a run before it starts. A probe of this machine, not a promise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from regimen.runs.experiment import Experiment

# Dense bfloat16 peak in FLOP/s, from the makers' data sheets.
_PEAK: Mapping[str, float] = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
_UTILISATION = 0.35  # of the peak, a usual figure for training
_PROBE = 384  # side of the square product that is timed


def flops_per_second() -> float:
    """What this machine does in training: from the GPU's data sheet, or from a timed product on the CPU."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in _PEAK.items() if key in name), 100e12)
        return peak * _UTILISATION
    a = torch.randn(_PROBE, _PROBE)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * _PROBE**3 / best * _UTILISATION


def hours(experiment: Experiment, flops: float) -> str:
    """Time for `flops` model FLOPs on this machine's devices, in words."""
    trainer: Mapping[str, Any] = experiment.settings["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    gpus = devices * trainer["num_nodes"] if torch.cuda.is_available() else 1
    return duration(flops / (flops_per_second() * gpus))


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"


def memory_bytes(experiment: Experiment) -> float:
    """Weights, gradients and two optimizer moments of what is trained, in float32, and one micro-batch's activations.

    Activations: 34 bytes per token, layer and unit of width at 16 bits (arXiv 2205.05198, section 4.1, without the
    attention matrix), twice that at 32; and the logits with their gradient.
    """
    config: Any = experiment.model.config
    trainer = experiment.settings["trainer"]
    parameters = sum(p.numel() for p in experiment.model.parameters())
    trained = sum(p.numel() for p in experiment.model.parameters() if p.requires_grad)
    rows = trainer["micro_batch_size"] or experiment.batch_rows
    wide = 1 if "16" in str(trainer["precision"]) else 2
    tokens = rows * experiment.pool.seq_len
    layers = 1 if experiment.settings["model"]["gradient_checkpointing"] else config.num_hidden_layers
    activations = 34 * wide * tokens * layers * config.hidden_size
    logits = 2 * 2 * wide * tokens * config.vocab_size
    return 4.0 * parameters + 12.0 * trained + activations + logits


def gigabytes(size: float) -> str:
    """A size in words."""
    if size >= 1e12:
        return f"{size / 1e12:,.1f} TB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
