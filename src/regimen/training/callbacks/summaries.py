"""A decision in a few numbers, for the record, the report and the trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.plan import digest_of
from regimen.core.strategy import Observation, Selection
from regimen.training.context import Step

PARTS = 20  # equal parts of a sequence that an order is summed up in


def signal_name(signal: object) -> str:
    """The name of a signal in records."""
    return type(signal).__name__.lower()


def domain_counts(index: PoolIndex, ids: Tensor) -> dict[str, int]:
    """Rows of each domain among `ids`."""
    counts = torch.bincount(index.domain_of(ids), minlength=len(index.domains))
    return dict(zip(index.domains, counts.tolist(), strict=True))


def of_selection(chosen: Selection, seen: Observation) -> dict[str, Any]:
    """Kept rows, by domain, and the mean of each signal over what was kept and what was seen."""
    kept, of = domain_counts(seen.index, chosen.ids), domain_counts(seen.index, seen.ids)
    mask = torch.isin(seen.ids, chosen.ids)
    signals = {
        signal_name(signal): {"kept_mean": _finite_mean(values[mask]), "all_mean": _finite_mean(values)}
        for signal, values in seen.values.items()
        if values.dim() == 1  # the mean of a vector per row says nothing
    }
    return {
        "digest": digest_of(*chosen),
        "kept": len(chosen.ids),
        "of": len(seen.ids),
        "tokens": {"kept": int(seen.tokens[mask].sum()), "of": int(seen.tokens.sum())},
        "domains": {name: {"kept": kept[name], "of": of[name]} for name in seen.index.domains},
        "signal": signals,
    }


def _finite_mean(values: Tensor) -> float:
    """The mean of those that are finite: a row without a score does not make the others unknown."""
    return float(values[torch.isfinite(values)].mean())


def of_order(ordered: Tensor, seen: Observation) -> dict[str, Any]:
    """Mean score and domain shares over equal parts of the sequence."""
    parts = [part for part in ordered.tensor_split(PARTS) if len(part)]
    scores = None
    numbers = [values for values in seen.values.values() if values.dim() == 1]  # the mean of a vector says nothing
    if numbers:
        values = numbers[0]
        scores = [float(values[torch.searchsorted(seen.ids, part)].mean()) for part in parts]
    shares = [{k: n / len(part) for k, n in domain_counts(seen.index, part).items()} for part in parts]
    return {"rows": len(ordered), "scores": scores, "domains": shares}


def of_weights(step: Step, reduction: str) -> dict[str, Any]:
    """What the weights of a step did, and the mean, the range and a histogram of the weights of its rows.

    loss, weighted_loss: mean over the target tokens of the batch, plain and in proportion to their weights.
    """
    weights = step.weights
    counts, edges = torch.histogram(weights.float(), bins=10)
    return {
        **effects(step, reduction),
        "loss": float(step.sums.sum() / step.tokens.sum().clamp(min=1)),
        "weighted_loss": float(step.weighed.sum() / (weights * step.tokens).sum().clamp(min=1e-30)),
        "mean": float(weights.mean()),
        "min": float(weights.min()),
        "max": float(weights.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def effects(step: Step, reduction: str) -> dict[str, float]:
    """What weights of rows, or of tokens, do to a step, in three numbers.

    effective_sample_size: (sum w)^2 / (n sum w^2), 1 where all n are equal, 1/n where one is all.
    weight_variation: standard deviation of the weights over their mean.
    effective_lr_multiplier: sum of the weights in the loss, where those of plain training sum to 1. Without clipping
        SGD steps as with its learning rate times this; Adam is blind to it.
    """
    of_rows = torch.ones_like(step.weights)  # (B,)
    count = step.tokens.double() if step.by_token else of_rows  # (B,) weights that each row stands for
    total, squares = (count * step.weights).sum(), (count * step.squares).sum()
    share = float(total**2 / (count.sum() * squares).clamp(min=1e-30))
    part = step.tokens.double() if reduction == "token_mean" else of_rows  # (B,) of each row in the plain loss
    return {
        "effective_sample_size": share,
        "weight_variation": max(1 / share - 1, 0.0) ** 0.5 if share > 0 else 0.0,
        "effective_lr_multiplier": float((part * step.weights).sum() / part.sum().clamp(min=1)),
    }


def log(trainer: pl.Trainer, step: int, values: Mapping[str, Any]) -> None:
    """Send numbers to the trackers that the user turned on."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=step)
