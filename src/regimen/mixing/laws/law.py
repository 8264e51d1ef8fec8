"""What every mixing law is: hyper-parameters with `fit`, and a fitted law that predicts losses of any mixture.

Letters: n rows, K domains, T targets with a weight above 0, m mixtures to predict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import SLACK, Constraints
from regimen.mixing.laws.table import Array, LawTable, Target, matrix, target_weights


class Limits(NamedTuple):
    """What a proposal is optimised under: bounds (K,), the weight of KL(mixture || natural), natural shares (K,)."""

    lower: Array
    upper: Array
    kl: float
    natural: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted(ABC):
    """A fitted law. The objective is the weighted sum of the targets' predicted losses.

    domains: K names, sorted, the order of every mixture. targets, weights: T names and their weights (T,), sum 1.
    natural: natural shares (K,) of the table. notes: what the reader of the fit should know.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    weights: Array
    natural: Array | None = None
    notes: tuple[str, ...] = ()

    def predict(self, mixtures: Any) -> Array:
        """Objective (m,) of mixtures (m, K)."""
        return self.predict_targets(mixtures) @ self.weights

    def predict_targets(self, mixtures: Any) -> Array:
        """Losses (m, T) of mixtures (m, K)."""
        return self._predict(matrix(np.atleast_2d(np.asarray(mixtures)), "mixtures", len(self.domains)))

    @abstractmethod
    def _predict(self, mixtures: Array) -> Array:
        """Losses (m, T) of checked mixtures (m, K)."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The law's numbers by name, as JSON can hold them."""

    def optimum(self, constraints: Constraints) -> Array | None:
        """The best mixture (K,), exactly; None where only search can find it."""
        return None

    def limits(self, constraints: Constraints) -> Limits:
        """Bounds of every share, and the divergence that is added to the loss, as this law is to be optimised with.

        With a divergence, domains without a natural share get their lower bound.
        """
        lower, upper = constraints.bounds(self.domains)
        weight = self.default_kl() if constraints.kl is None else constraints.kl
        k = len(self.domains)
        if not weight:
            return Limits(lower, upper, 0.0, np.full(k, 1 / k))
        if self.natural is None:
            raise ConfigError(
                "the divergence from the natural shares needs the natural shares",
                got=f"kl={weight:g}",
                do="give natural={domain: tokens, ...} or a CSV of them, or set kl=0",
            )
        upper = np.where(self.natural > 0, upper, lower)
        if upper.sum() < 1 - SLACK:
            raise ConfigError(
                "no mixture obeys the constraints: domains with a natural share cannot fill it",
                got=f"kl={weight:g}, largest shares of theirs sum to {upper.sum():.4g}",
                do="raise max_share, caps or rho, or set kl=0",
            )
        return Limits(lower, upper, weight, self.natural)

    def default_kl(self) -> float:
        """The weight of the divergence where the constraints leave it to the law."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Law(ABC):
    """Hyper-parameters of one mixing law."""

    uses_steps: ClassVar[bool] = False
    """Whether the law is one of training time too, so that each evaluation of a run is a row."""

    def fit(self, table: LawTable, target: Target = None) -> Fitted:
        """Fit the targets that have a weight. Raises ConfigError where the table cannot identify the law."""
        weights = target_weights(table.targets, target)
        chosen = table.only(tuple(weights))
        rows = chosen if self.uses_steps else chosen.last()
        need = self.minimum_rows(rows)
        if len(rows) < need:
            raise ConfigError(
                f"{type(self).__name__} cannot be fitted to {len(rows)} row{'s' * (len(rows) != 1)}",
                got=f"{len(rows)} rows for {len(rows.domains)} domains",
                allowed=f"{need} rows or more",
                do=self.with_few_rows(),
            )
        return self._fit(rows, np.array(list(weights.values())))

    @abstractmethod
    def minimum_rows(self, table: LawTable) -> int:
        """The fewest rows that identify the law's parameters."""

    def with_few_rows(self) -> str:
        """What to do where there are fewer."""
        return "train more mixtures, or take a law with fewer parameters: law=bimix"

    @abstractmethod
    def _fit(self, table: LawTable, weights: Array) -> Fitted:
        """Fit all targets of a checked table; weights (T,)."""


def positive(law: object, **values: float) -> None:
    """Raises ConfigError unless each hyper-parameter is a finite number above 0."""
    for name, value in values.items():
        _check(law, name, value, lambda v: 0 < v < np.inf, "a number above 0")


def at_least_zero(law: object, **values: float) -> None:
    """Raises ConfigError unless each hyper-parameter is a finite number of 0 or more."""
    for name, value in values.items():
        _check(law, name, value, lambda v: 0 <= v < np.inf, "a number of 0 or more")


def whole(law: object, least: int = 1, **values: int) -> None:
    """Raises ConfigError unless each hyper-parameter is a whole number of `least` or more."""
    for name, value in values.items():
        _check(law, name, value, lambda v: isinstance(v, int) and v >= least, f"a whole number of {least} or more")


def one_of(law: object, allowed: Sequence[str], **values: str) -> None:
    """Raises ConfigError unless each hyper-parameter is one of the words."""
    for name, value in values.items():
        if value not in allowed:
            raise ConfigError(f"{type(law).__name__} has no such {name}", got=value, allowed=", ".join(allowed))


def _check(law: object, name: str, value: Any, fits: Callable[[Any], bool], allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ConfigError(f"{type(law).__name__}: {name} cannot be used", got=f"law.{name}={value}", allowed=allowed)
