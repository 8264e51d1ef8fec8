"""Co-state scores: how much training on a row would lower the loss of the target set over a short descent.

Papers: PDS, arXiv 2410.07064, section 3; DELT, arXiv 2506.21545, section 3.2 (learnability-quality score, LQS), whose
equations 13 and 14 sum over time the products that its equation 12 seems to take of sums; the sum of products is meant.
Differs from the papers:
- All rows are scored, unless `scorer` has a second model learn the scores of a large pool from those of a part of it.
- Rows of the descent's steps are drawn from the whole pool, where DELT's code takes the first ones of its corpus.
- The denominator of a row's last term is measured, where DELT's code takes 1 (`first_term=one`); that code also gives
  scores to other rows than they belong to, and is not followed there.
- DELT's equation 9 begins at time 1, its code at 0, as PDS does (`descent.start`).
Letters: n rows, A times of the descent at which rows are measured, T its steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regimen.core.descent import AlongDescent, Descent
from regimen.core.errors import ConfigError
from regimen.core.scoring import Scorer
from regimen.core.signal import Meter, Signal

Kind = Literal["lqs", "pds", "quality", "learnability"]
KINDS: tuple[Kind, ...] = ("lqs", "pds", "quality", "learnability")

_DESCENT = Descent()
_SCORER = Scorer()
_CHECKPOINTS = 1  # of a finished run, before it is known


@dataclass(frozen=True, kw_only=True)
class CoState(Signal):
    """Scores (n,) float64, high for rows that help.

    kind: of terms summed over time, with g a row's gradient and l the co-state of the next step: `pds` l.g, `quality`
        the cosine of l and g, `learnability` |g| over |g| at the next time measured, and `lqs` all of them: l.g over
        |g| at the next time. A row's loss times a number changes `pds` alone.
    run: the folder of a finished run; scores of its checkpoints at `trainer.save_at`, or of its last one, are
        standardised and averaged. null takes the model in training.
    descent: from there.
    first_term: of the last time measured, which a walk back meets first: `evaluate` its denominator at the end, `one`
        takes 1 for it, as DELT's code does, and `skip` leaves the term out.
    floor: of denominators.
    scorer: for a large pool, a model that learns the scores of a part of the rows, standardised, and gives those of
        all; it starts from the model that measured them, the last one of `run`, or is new.
    """

    halfway: ClassVar[bool] = True
    kind: Kind = "lqs"
    run: str | None = None
    descent: Descent = _DESCENT
    first_term: Literal["evaluate", "one", "skip"] = "evaluate"
    floor: float = 1e-12
    scorer: Scorer = _SCORER

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("first_term", ("evaluate", "one", "skip"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"unknown {name} of a co-state score",
                    got=f"{name}={getattr(self, name)}",
                    allowed=", ".join(allowed),
                )
        if not self.floor > 0:
            raise ConfigError("floor keeps denominators above 0", got=f"floor={self.floor}", allowed="above 0")
        if self.first_term == "skip" and len(self.descent.times) == 1:
            raise ConfigError(
                "the only term is left out",
                got="first_term=skip with one time at which rows are measured",
                do="lower descent.annotate_every, or set first_term=evaluate",
            )

    @property
    def needs_norms(self) -> bool:
        """Whether rows' gradients are divided by a length."""
        return self.kind != "pds"

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n,). Raises ConfigError where the pool has no target set or the descent diverges."""
        if not self.scorer.learns(len(ids)):
            return self._measured(meter, ids)
        places = self.scorer.sample(ids)
        scores = self._measured(meter, ids[places])
        *_, last = self._visited(meter)
        return last.learnt(ids, places, scores, self.scorer)

    def _measured(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n,) without a scorer."""
        found = [
            combined(at.along(ids, self.descent, norms=self.needs_norms), self.kind, self.first_term, floor=self.floor)
            for at in self._visited(meter)
        ]
        return found[0] if len(found) == 1 else torch.stack([standardised(scores) for scores in found]).mean(0)

    def passes(self) -> float:
        """All times of one descent, without its own steps, which do not depend on the rows."""
        return _CHECKPOINTS * self.descent.passes(norms=self.needs_norms)

    def backwards(self) -> float:
        return _CHECKPOINTS * self.descent.backwards(norms=self.needs_norms)

    def work(self, rows: int) -> float:
        """Forward passes for so many rows; a scorer of another model is taken to be as large as this one."""
        return self.scorer.passes(rows, self.passes())

    def advice(self, rows: int) -> str | None:
        return self.scorer.advice(rows, of=f"{self.kind} along a descent")

    def new_models(self) -> tuple[str, ...]:
        return () if self.scorer.named is None else (self.scorer.named,)

    def models(self) -> tuple[str | None, ...]:
        return (self.run,)

    def aims(self) -> bool:
        return True

    def _visited(self, meter: Meter) -> Iterator[Meter]:
        if self.run is None:
            yield meter
            return
        for checkpoint in meter.checkpoints(self.run):
            yield meter.under(checkpoint.path)


def combined(found: AlongDescent, kind: Kind, first_term: str = "evaluate", *, floor: float = 1e-12) -> Tensor:
    """Scores (n,) float64 of what was measured; options as in `CoState`."""
    now = found.norms[:, :-1]  # (n, A)
    later = found.norms[:, 1:].clamp(min=floor)  # (n, A)
    if first_term == "one":
        later = torch.cat([later[:, :-1], torch.ones_like(later[:, -1:])], 1)
    if kind == "pds":
        terms = found.dots
    elif kind == "quality":
        terms = found.dots / (now.clamp(min=floor) * found.co_states.clamp(min=floor))
    elif kind == "learnability":
        terms = now / later
    else:
        terms = found.dots / later
    return (terms[:, :-1] if first_term == "skip" else terms).sum(1)  # (n,)


def standardised(scores: Tensor) -> Tensor:
    """Scores (n,) with mean 0 and variance 1; 0 where all are equal."""
    return (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-12)
