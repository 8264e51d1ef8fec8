"""Weighters that learn: before a step they may look at rows that training does not consume, and change.

Letters: n rows of a lesson, B rows of the global batch, M rows of the target set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from regimen.core.checks import check_one_of
from regimen.core.errors import ConfigError
from regimen.core.lookahead import BACKWARDS, PASSES, Lookahead, Looked
from regimen.core.measuring import GRADIENT
from regimen.core.observation import WeighedBatch
from regimen.core.signal import Meter
from regimen.core.strategy import Weighter

_BY = Lookahead()


@dataclass(frozen=True, kw_only=True)
class Learner(Weighter):
    """A weighter that is taught for the loss of a target set, in lessons before steps of training.

    reduction: of the objective, which says how much of a step is a row's.
    target_rows: rows of the target set in a lesson, drawn anew for each; null takes all.
    held_out: part of the target set that no lesson sees; how much higher its loss is goes to the record.
    """

    reduction: Literal["token_mean", "sample_mean"] = "token_mean"
    target_rows: int | None = None
    held_out: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("reduction", self.reduction, ("token_mean", "sample_mean"))
        if self.target_rows is not None and self.target_rows < 1:
            raise ConfigError("target_rows counts rows", got=self.target_rows, allowed="1 or more, or null for all")
        if not 0 <= self.held_out < 1:
            raise ConfigError("held_out is a part of the target set", got=self.held_out, allowed="0 to below 1")

    @property
    def scope(self) -> Literal["example", "batch"]:
        """Weights are relative to the batch."""
        return "batch"

    @property
    def lesson_rows(self) -> int | None:
        """Rows of a lesson, drawn from those that may be served; None takes those of the step that is due."""
        return None

    @property
    def keeps(self) -> bool:
        """Whether lessons move the model in training."""
        return False

    def lessons(self, step: int, total_steps: int) -> int:
        """How many lessons come before the step that follows `step` steps."""
        raise NotImplementedError(type(self).__name__)

    def lesson(self, state: Any, batch: WeighedBatch, meter: Meter, targets: Tensor) -> Any:
        """The state after a lesson on the rows of `batch` and rows `targets` (M,) of the target set.

        Collective: every rank calls it with the same rows and gets the same state.
        """
        raise NotImplementedError(type(self).__name__)

    def reports(self, step: int, total_steps: int) -> bool:
        """Whether the lessons there get a line in the record, for which the whole target set is measured."""
        return True

    def aims(self) -> bool:
        """Whether lessons need a target set: without one, a run is refused before anything is trained."""
        return True

    def weighs(self, step: int, total_steps: int) -> bool:
        """Whether the batch after `step` steps is weighed by what `needs` names; if not, nothing is measured for it."""
        return True

    def lessons_in(self, total_steps: int) -> int:
        """How many lessons a run has."""
        return sum(self.lessons(step, total_steps) for step in range(self.first_step(total_steps), total_steps))

    def row_passes(self) -> float:
        """Forward passes over each of its rows that a lesson costs; a backward pass counts as two."""
        return GRADIENT

    def row_backwards(self) -> float:
        """Backward passes among them."""
        return 1.0

    def passes(self, batch_rows: int) -> float:
        """About how many forward passes over a row a lesson costs, in a run with so many rows per batch."""
        rows = batch_rows if self.lesson_rows is None else self.lesson_rows
        signals = sum(signal.passes() for signal in self.needs())
        return rows * (self.row_passes() + signals) + GRADIENT * (self.target_rows or rows)

    def backwards(self, batch_rows: int) -> float:
        """Backward passes among them, each counted as two."""
        rows = batch_rows if self.lesson_rows is None else self.lesson_rows
        signals = sum(signal.backwards() for signal in self.needs())
        return rows * (self.row_backwards() + signals) + (self.target_rows or rows)


@dataclass(frozen=True, kw_only=True)
class LearnedWeighter(Learner):
    """A weighter with parameters of its own, learnt for the loss of a target set after virtual steps.

    A lesson is one virtual step on rows with the weights that the state gives them, and what it told.

    by: the virtual steps.
    """

    by: Lookahead = _BY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by.lr == 0:
            raise ConfigError("weights are learnt from a virtual step", got="by.lr=0", allowed="above 0, e.g. 0.1")

    def shares(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Coefficients (n,) float64 of the gradients of mean losses (n,) in the virtual step."""
        raise NotImplementedError(type(self).__name__)

    def learn(self, state: Any, batch: WeighedBatch, looked: Looked) -> Any:
        """The state after a lesson on `batch`."""
        raise NotImplementedError(type(self).__name__)

    def lesson(self, state: Any, batch: WeighedBatch, meter: Meter, targets: Tensor) -> Any:
        looked = meter.lookahead(
            batch.ids, targets, self.by, shares=lambda losses: self.shares(state, losses, batch), keep=self.keeps
        )
        return self.learn(state, batch, looked)

    def row_passes(self) -> float:
        return GRADIENT + PASSES[self.by.estimator]

    def row_backwards(self) -> float:
        return 1 + BACKWARDS[self.by.estimator]
