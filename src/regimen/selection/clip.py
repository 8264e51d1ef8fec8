"""CLIP-powered selection: rows whose image agrees with their text, and which are unlike the others of their kind.

Paper: arXiv 2410.11215: adapters on a frozen CLIP, two scores, and a selection that trades one against the other.
Differs from the paper: the closed form of its optimisation is the default, see `clip_solver`; the adapters are
described in `clip_adapters`. None of the constants could be confirmed, so all are settings. The rows of a pool are
text: the model is trained on the captions, and the images only decide which. The adapters are fitted to the pairs of
the target set, or to the rows to choose from. Without classes, each row has its own caption and all are of one kind.
Letters: n rows to choose from, M kept, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection
from regimen.selection.clip_adapters import fit_adapters
from regimen.selection.clip_solver import alignment, closed_form, diversity, straight_through
from regimen.selection.common import AmountSelector
from regimen.selection.rules import top_k
from regimen.signals.clip_features import ClipFeatures, Pairs, split


@dataclass(frozen=True, kw_only=True)
class Clip(AmountSelector):
    """The highest alignment plus `diversity_weight` times diversity.

    by: the features of the rows to choose from. target: of the rows of the target set, which the adapters are fitted
        to; null fits them to the rows to choose from.
    adapter_steps, adapter_lr, temperature, batch: of InfoNCE; 0 steps are plain CLIP, and a batch of null takes all
        pairs in each.
    diversity_weight: a. neighbours: the part of its class that a row's diversity looks at.
    solver: `closed_form`, or `ste` for the paper's descent, which keeps about as many rows.
    penalty: b of `ste`; above the highest score, or the number of rows is not minded.
    solver_steps, solver_lr: of `ste`; see there for how they go with the penalty.
    ratio, count, token_ratio: how many rows are kept, one of the three: ceil(ratio * n), a number of rows, or the best
        until they hold this part of the target tokens of all n.
    """

    by: ClipFeatures
    target: ClipFeatures | None
    adapter_steps: int = 200
    adapter_lr: float = 1e-3
    temperature: float = 0.07
    batch: int | None = 512
    diversity_weight: float = 1.0
    neighbours: float = 0.1
    solver: Literal["closed_form", "ste"] = "closed_form"
    penalty: float = 10.0
    solver_steps: int = 2000
    solver_lr: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in ("closed_form", "ste"):
            raise ConfigError("unknown solver", got=f"solver={self.solver}", allowed="closed_form, ste")
        for name in ("adapter_lr", "temperature", "solver_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is a positive number", got=getattr(self, name), allowed="above 0")
        if not 0 <= self.penalty < float("inf"):
            raise ConfigError("penalty weighs a wrong number of rows", got=self.penalty, allowed="0 or more")
        if not isfinite(self.diversity_weight):
            raise ConfigError("diversity_weight weighs a score", got=self.diversity_weight, allowed="a number")
        if not 0 < self.neighbours <= 1:
            raise ConfigError("neighbours is a part of a class", got=self.neighbours, allowed="0 < neighbours <= 1")
        if self.adapter_steps < 0 or self.solver_steps < 1:
            got = f"adapter_steps={self.adapter_steps}, solver_steps={self.solver_steps}"
            raise ConfigError("steps cannot be counted", got=got, allowed="0 or more, and 1 or more")
        if self.batch is not None and self.batch < 2:
            raise ConfigError(
                "a pair needs others to be told from", got=f"batch={self.batch}", allowed="2, 3, ..., null"
            )

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def needs_of_target(self) -> tuple[Signal, ...]:
        return () if self.target is None else (self.target,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64, best first. Raises ConfigError for features that are missing or do not fit together."""
        ids, by_id = seen.ids.sort()  # (n,)
        scores = self.scores(seen)[by_id]  # (n,)
        kept = self.kept(seen.tokens[by_id][top_k(scores, len(scores))])
        if self.solver == "closed_form":
            return ids[closed_form(scores, kept)]  # (M,)
        found = straight_through(
            scores, kept, penalty=self.penalty, steps=self.solver_steps, learning_rate=self.solver_lr
        )
        if not len(found):
            raise ConfigError(
                "clip's descent kept no row", do="use solver=closed_form, or raise penalty or solver_steps"
            )
        return ids[found]  # (M,)

    def notes(self, state: Any, decision: Selection, seen: Observation) -> list[str]:
        """That the descent of `ste` missed the number of rows by more than one."""
        if self.solver == "closed_form" or self.token_ratio is not None:
            return []
        wanted, got = self.kept(seen.tokens), len(decision.ids)
        if abs(got - wanted) <= 1:
            return []
        return [f"clip's descent kept {got} rows, not {wanted}: raise its penalty or solver_steps, or use closed_form"]

    def scores(self, seen: Observation) -> Tensor:
        """SAS + a SDS (n,) float64 of the rows in the order of `seen.ids`."""
        order = seen.ids.argsort()
        pairs = _pairs(seen.values[self.by][order], "the rows to choose from")
        own = pairs if self.target is None else self._target(seen, pairs.image.shape[1])
        adapters = fit_adapters(
            own,
            steps=self.adapter_steps,
            learning_rate=self.adapter_lr,
            temperature=self.temperature,
            batch=self.batch,
            generator=seen.generator,
        )
        image, text = adapters.image(pairs.image), adapters.text(pairs.text)  # (n, d)
        found = alignment(image, text)  # (n,)
        if self.diversity_weight:
            found = found + self.diversity_weight * diversity(image, pairs.label, neighbours=self.neighbours)  # (n,)
        out = torch.empty_like(found)
        out[order] = found
        return out

    def _target(self, seen: Observation, dimensions: int) -> Pairs:
        assert self.target is not None
        if seen.target is None:
            raise ConfigError(
                "clip fits its adapters to a target set, and there is none",
                do="set dataset.target.path=FILE or dataset.target.from=[domain,...], or strategies.clip.target=null "
                "to fit them to the rows to choose from",
            )
        pairs = _pairs(seen.target_values[self.target], "the target set")
        if pairs.image.shape[1] != dimensions:
            raise ConfigError(
                "the features of pool and target set come from different models",
                got=f"{dimensions} and {pairs.image.shape[1]} dimensions",
                do="encode both with the same CLIP",
            )
        return pairs

    def kept(self, tokens: Tensor) -> int:
        """As of any selector, but that a ratio is rounded up."""
        if self.ratio is not None:
            return ceil(Fraction(str(self.ratio)) * len(tokens))
        return super().kept(tokens)


def _pairs(values: Tensor, whose: str) -> Pairs:
    """The pairs. Raises ConfigError for fewer than two or a feature that is no number."""
    bad = ~torch.isfinite(values).all(dim=1)  # (n,)
    if bool(bad.any()):
        raise ConfigError(
            f"features of {int(bad.sum())} of the {len(bad)} pairs of {whose} are missing or not finite",
            do="encode the pairs of all rows",
        )
    if len(bad) < 2:
        raise ConfigError(f"too few pairs to compare are in {whose}", got=len(bad), allowed="2 or more")
    return split(values)
