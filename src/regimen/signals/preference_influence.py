"""Influence on preferences: how much an update on a row makes chosen answers more likely than rejected ones.

Paper: ROSE, arXiv 2412.00631, section 3: LESS (see `influence`) with the gradient of the preference loss as what is
wanted. With r = beta * (log p(y|x) - log p_ref(y|x)), summed over the tokens of an answer y, the loss of a pair is
-log sigmoid(r_chosen - r_rejected), and its gradient
    beta * sigmoid(r_rejected - r_chosen) * (grad NLL(chosen) - grad NLL(rejected)).
It is made of two plain gradients, of the summed losses of two rows, which sketches keep because they are linear.
The factor in front is positive, so a cosine with one pair depends neither on beta nor on the reference model. They
count where the gradients of several pairs are averaged before the cosine (`val_agg=cos_of_mean`); only there is the
reference run.
Differs from the paper: a prompt gets no token that ends a text (its code adds one), for rows are made by the template
of the dataset. The reference model is any finished run instead of the untrained model; without one, a checkpoint is its
own reference, every margin is 0, and every pair counts alike.
Letters: n rows, P pairs, S subtasks, d numbers of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Example
from regimen.core.signal import Meter
from regimen.signals.influence import CheckpointInfluence, ValAgg, check_val_agg, group_means, unit
from regimen.signals.pairs import Pair, read_pairs


@dataclass(frozen=True, kw_only=True)
class PreferenceInfluence(CheckpointInfluence):
    """Influence (n, S) float32 of rows on the preferences of each subtask, subtasks in the order of their names.

    path: JSON lines with the texts prompt, chosen and rejected, and subtask where there are several.
    beta: how much the margin between chosen and rejected counts.
    reference: the folder of a finished run whose model is the reference; null lets each checkpoint be its own.
    val_agg: `mean_of_cos` is the mean of the cosines with a subtask's pairs; `cos_of_mean` the cosine with their mean.
    """

    path: str
    beta: float = 0.1
    reference: str | None = None
    val_agg: ValAgg = "mean_of_cos"

    def __post_init__(self) -> None:
        check_val_agg(self.val_agg)
        if not self.path or not Path(self.path).is_file():
            raise ConfigError(
                "path names no file of preference pairs",
                got=f"path={self.path}",
                do="set path to JSON lines with the texts prompt, chosen and rejected",
            )
        if not self.beta > 0:
            raise ConfigError("beta scales the margin of a preference", got=self.beta, allowed="above 0")
        read_pairs(Path(self.path))  # refuses what is no pair before anything is trained

    def models(self) -> tuple[str | None, ...]:
        margins = self.reference is not None and self.val_agg == "cos_of_mean"
        return (self.run, self.reference) if margins else (self.run,)

    def directions(self, at: Meter) -> Tensor:
        """(S, d): mean unit gradients by subtask, or unit mean gradients.

        Raises ConfigError for a prompt that leaves no room for an answer.
        """
        pairs = read_pairs(Path(self.path))
        names = sorted({pair.subtask for pair in pairs})
        subtask = torch.tensor([names.index(pair.subtask) for pair in pairs])  # (P,)
        rows = _rows(pairs, at)
        gradients = self.differences(at, rows)  # (P, d)
        if self.val_agg == "mean_of_cos":
            return group_means(unit(gradients), subtask, len(names))
        weighted = self.steepness(at, rows).to(gradients)[:, None] * gradients  # (P, d)
        return unit(group_means(weighted, subtask, len(names)))

    def differences(self, at: Meter, rows: list[Example]) -> Tensor:
        """(P, d) gradients of NLL(chosen) - NLL(rejected) of `rows`: all chosen, then all rejected; exactly 0 for equal
        ones.
        """
        plain = replace(self.sketch, adam="none", reduction="sum")
        chosen, rejected = at.of(rows).sketches(torch.arange(len(rows)), plain).chunk(2)  # (P, d) each
        half = len(rows) // 2
        differ = [not _equal(a, b) for a, b in zip(rows[:half], rows[half:], strict=True)]
        return (chosen - rejected) * torch.tensor(differ)[:, None]

    def steepness(self, at: Meter, rows: list[Example]) -> Tensor:
        """(P,) float64: beta * sigmoid(r_rejected - r_chosen), what multiplies the differences."""
        meter, ids = at.of(rows), torch.arange(len(rows))
        surprise = meter.losses(ids)[0].double()  # (2P,)
        if self.reference is None:
            relative = torch.zeros_like(surprise)
        else:
            relative = surprise - meter.under(self.reference).losses(ids)[0].double()  # (2P,) -r / beta
        chosen, rejected = relative.chunk(2)
        return self.beta * torch.sigmoid(self.beta * (chosen - rejected))


def _rows(pairs: list[Pair], at: Meter) -> list[Example]:
    """Rows of all chosen answers, then of all rejected ones."""
    language = at.language
    rows = [language.answer(pair.prompt, pair.chosen) for pair in pairs]
    rows += [language.answer(pair.prompt, pair.rejected) for pair in pairs]
    cut = [k % len(pairs) for k, row in enumerate(rows) if not bool(row.learnt.any())]
    if cut:
        raise ConfigError(
            "the prompt of a preference pair leaves no room for an answer",
            got=f"pair {min(cut) + 1}, whose prompt begins {pairs[min(cut)].prompt[:60]!r}",
            allowed=f"prompts shorter than the model's context of {language.context} tokens",
            do="leave the pair out, or raise model.config.max_position_embeddings",
        )
    return rows


def _equal(a: Example, b: Example) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.learnt, b.learnt)
