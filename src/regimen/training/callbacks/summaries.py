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


def of_weights(weights: Tensor) -> dict[str, Any]:
    """Effective sample size as a part of the batch, the range, and a histogram of weights (B,)."""
    counts, edges = torch.histogram(weights.float(), bins=10)
    return {
        "effective_sample_size": effective_share(weights),
        "mean": float(weights.mean()),
        "min": float(weights.min()),
        "max": float(weights.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def effective_share(weights: Tensor) -> float:
    """(sum w)^2 / (B sum w^2) of weights (B,): 1 where all are equal, 1/B where one is all."""
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()).clamp(min=1e-30))


def log(trainer: pl.Trainer, step: int, values: Mapping[str, Any]) -> None:
    """Send numbers to the trackers that the user turned on."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=step)
