"""A short descent, and what rows' gradients are along it. Settings and numbers, no code that trains.

Letters: n rows, T steps, A of them at which rows are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from regimen.core.checks import check_counts, check_one_of, check_positive
from regimen.core.errors import ConfigError
from regimen.core.lookahead import PASSES
from regimen.core.measuring import GRADIENT

_ESTIMATOR = {"jvp": "jvp", "finite_difference": "fd"}  # by backend: the same inner products, as they are called there
_CHOICES = {
    "hessian": ("exact", "finite_difference", "none"),
    "backend": ("ghost", "jvp", "finite_difference", "vmap", "loop"),
    "memory": ("sqrt", "all"),
}


class AlongDescent(NamedTuple):
    """What rows' gradients are at times t_1 < ... < t_A of a descent, float64; row i belongs to the i-th id asked for.

    dots: (n, A) inner products of the gradient at t with the co-state at t + 1, high where a step on the row lowers the
        loss of the target set. norms: (n, A + 1) lengths of the gradient at t_1, ..., t_A and at min(t_A + c, T); zeros
        where lengths were not asked for. co_states: (A,) lengths of the co-states at t + 1.
    """

    dots: Tensor
    norms: Tensor
    co_states: Tensor


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Plain gradient descent from the model at hand, and how rows are measured along it.

    steps: T. lr: its constant step size. batch_rows: rows of a step, drawn without replacement, over and over.
    seed: of the draw.
    annotate_every: c: rows are measured at the times start, start + c, ... below T; start is 0 or above.
    hessian: how the co-state passes a step: `exact` by double backward; `finite_difference` of two gradients; `none`
        leaves the curvature out, so that a co-state is a plain sum of gradients.
    backend: of the rows' inner products and lengths: `ghost` from what layers read and gave, both in one forward and
        backward pass; `loop` row by row; `vmap` by all gradients of a batch at once; `jvp` inner products by one
        forward-mode pass and `finite_difference` by two forward passes, where lengths that are needed come by `loop`.
    epsilon: length of the step of finite differences, in the space of the parameters.
    memory: `sqrt` keeps the parameters of every sqrt(T)-th step and runs the others again; `all` keeps every step's.
    parameters: a regular expression found in the names of those that descend, null for all that are trained.
    """

    whole_parameters: ClassVar[bool] = True  # on every rank
    steps: int = 100
    lr: float = 0.008
    batch_rows: int = 16
    seed: int = 0
    annotate_every: int = 10
    start: int = 0
    hessian: Literal["exact", "finite_difference", "none"] = "exact"
    backend: Literal["ghost", "jvp", "finite_difference", "vmap", "loop"] = "ghost"
    epsilon: float = 0.01
    memory: Literal["sqrt", "all"] = "sqrt"
    parameters: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            check_one_of(f"{name} of a descent", getattr(self, name), allowed)
        check_counts(self, "steps", "batch_rows", "annotate_every")
        check_positive(self, "lr", "epsilon")
        if not 0 <= self.start < self.steps:
            raise ConfigError(
                "no row is measured before the descent ends",
                got=f"start={self.start}, steps={self.steps}",
                allowed=f"start 0 to {self.steps - 1}",
            )

    @property
    def times(self) -> list[int]:
        """The times at which rows are measured, ascending."""
        return list(range(self.start, self.steps, self.annotate_every))

    @property
    def after(self) -> int:
        """The time after the last of `times` at which lengths are measured, too: its denominator."""
        return min(self.times[-1] + self.annotate_every, self.steps)

    def passes(self, *, norms: bool) -> float:
        """Forward passes over a row that measuring it costs in all."""
        return self._at_all_times(self.row_passes, norms)

    def backwards(self, *, norms: bool) -> float:
        """Backward passes among them, each counted as two."""
        return self._at_all_times(self.row_backwards, norms)

    def _at_all_times(self, of: Callable[..., float], norms: bool) -> float:
        return len(self.times) * of(dots=True, norms=norms) + of(dots=False, norms=norms)

    def row_passes(self, *, dots: bool, norms: bool) -> float:
        """Forward passes over a row that measuring it costs at one time; a backward pass counts as two."""
        along = PASSES[_ESTIMATOR[self.backend]] * dots if self.backend in _ESTIMATOR else 0.0
        return along + GRADIENT * self.row_backwards(dots=dots, norms=norms)

    def row_backwards(self, *, dots: bool, norms: bool) -> float:
        """Backward passes among them: lengths need one, and inner products too unless they come without."""
        return float(norms or (dots and self.backend not in _ESTIMATOR))
