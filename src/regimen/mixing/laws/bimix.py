"""BiMix: a domain's loss falls as a power of its share times a power law with a floor in the number of steps.

Letters: n rows, K domains, T targets, S steps. Loss of domain i with share r after s steps:
    L_i(r, s) = r^-alpha_i * (B_i / s^beta_i + C_i)                         (eq. 3 with A_i = 1)
Paper: Ge et al., BiMix, arXiv 2405.14908v4, section 3 (law), section 4 (fit), eq. 3.

Differs from the paper:
- Its A_i is fixed at 1: (A, B, C) -> (cA, B/c, C/c) is the same function, so only four parameters can be told apart.
- It does not state the residuals, bounds and starts of its Trust Region Reflective fit: ours are plain differences of
  losses, all parameters at least 0, and nine starts.
- Where all rows are of one step the law is L = A r^-alpha; where all rows have one mixture, alpha cannot be told and
  is 0.
- The optimum is found by bisection of the multiplier, exactly, with weights and bounds.
- The law is infinite at a share of 0, which the paper's mixtures do not have: `zeros` says what happens then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.constraints import SLACK, Constraints
from regimen.mixing.laws.law import Fitted, Law, one_of, positive
from regimen.mixing.laws.simplex import kl_parts, minimise
from regimen.mixing.laws.table import Array, LawTable

_ONE = 1e-9  # shares whose logarithms differ by less are one share
_PRECISE: dict[str, Any] = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "max_nfev": 2000}


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedBiMix(Fitted):
    """Alpha, B, beta and C (T,) of each target, and the step that is predicted; B is 0 without a law of steps."""

    alpha: Array
    B: Array
    beta: Array
    C: Array
    step: float
    floor: float

    def _predict(self, mixtures: Array) -> Array:
        r = np.maximum(mixtures[:, self._own()], self.floor)  # (m, T)
        losses: Array = r**-self.alpha * self.scale()
        return losses

    def scale(self) -> Array:
        """Loss (T,) at a share of 1: B / s^beta + C."""
        scale: Array = self.B * self.step**-self.beta + self.C
        return scale

    def at(self, step: float) -> FittedBiMix:
        """The same law at another step; the optimum depends on it where the betas differ."""
        return replace(self, step=float(step))

    @property
    def parameters(self) -> dict[str, Any]:
        columns = {"alpha": self.alpha, "B": self.B, "beta": self.beta, "C": self.C}
        by_target = {
            name: {key: float(column[i]) for key, column in columns.items()} for i, name in enumerate(self.targets)
        }
        return {"step": self.step, "floor": self.floor, "domains": by_target}

    def optimum(self, constraints: Constraints) -> Array | None:
        """Raises ConfigError where alpha is 0 everywhere, so that the law prefers no mixture."""
        own, k = self._own(), len(self.domains)
        a, alpha = np.zeros(k), np.zeros(k)  # (K,) both, 0 for domains without a target
        a[own], alpha[own] = self.weights * self.scale(), self.alpha
        if not (a * alpha > 0).any():
            raise ConfigError(
                "the fitted law prefers no mixture: alpha is 0 for every domain",
                do="fit it to runs with different mixtures",
            )
        lower, upper, weight, natural = self.limits(constraints)
        if not weight:
            return best_shares(a, alpha, lower=lower, upper=upper)[0]

        def convex(x: Array) -> tuple[Array, Array]:
            slope, curvature = kl_parts(x, natural, weight)
            x = np.maximum(x, 1e-300)
            first = a * alpha * x ** -(alpha + 1)
            return slope - first, np.diag(curvature + first * (alpha + 1) / x)

        return minimise(convex, lower, upper)

    def _own(self) -> list[int]:
        return [self.domains.index(name) for name in self.targets]


@dataclass(frozen=True, kw_only=True)
class BiMix(Law):
    """The bivariate law; each target must be the validation loss of a training domain of the same name.

    zeros: `clip` shares below `floor` to it, `drop` a domain's rows where its share is 0, or `refuse` such tables.
    """

    uses_steps: ClassVar[bool] = True
    zeros: Literal["clip", "drop", "refuse"] = "clip"
    floor: float = 5e-3

    def __post_init__(self) -> None:
        one_of(self, ("clip", "drop", "refuse"), zeros=self.zeros)
        positive(self, floor=self.floor)

    def minimum_rows(self, table: LawTable) -> int:
        """As many as parameters: alpha and A at one step, else B, beta, C and, unless there is one mixture, alpha."""
        if table.steps is None or len(set(table.steps.tolist())) < 3:
            return 2
        return 3 if len(np.unique(table.mixtures, axis=0)) == 1 else 4

    def with_few_rows(self) -> str:
        return "train more mixtures: two or more, four in the paper; or evaluate each run more often: evaluation.at=..."

    def _fit(self, table: LawTable, weights: Array) -> Fitted:
        foreign = [name for name in table.targets if name not in table.domains]
        if foreign:
            raise ConfigError(
                "BiMix predicts the losses of the training domains alone",
                got=", ".join(foreign),
                allowed=", ".join(name for name in table.domains if name in table.targets) or "none in this table",
                do="name such targets: target=..., or take law=regmix_lightgbm, regmix_linear or mixing_laws",
            )
        notes: list[str] = []
        found = np.stack([self._series(table, i, notes) for i in range(len(table.targets))])  # (T, 4)
        return FittedBiMix(
            domains=tuple(table.domains),
            targets=tuple(table.targets),
            weights=weights,
            natural=table.natural,
            notes=tuple(notes),
            alpha=found[:, 0],
            B=found[:, 1],
            beta=found[:, 2],
            C=found[:, 3],
            step=1.0 if table.steps is None else float(table.steps.max()),
            floor=self.floor,
        )

    def _series(self, table: LawTable, target: int, notes: list[str]) -> Array:
        """Alpha, B, beta and C of one target."""
        name = table.targets[target]
        r, losses = table.mixtures[:, table.domains.index(name)], table.losses[:, target]  # (n,) both
        steps = np.ones(len(r)) if table.steps is None else table.steps  # (n,)
        zeros, low = int((r == 0).sum()), int((r < self.floor).sum())
        if zeros and self.zeros == "refuse":
            raise ConfigError(
                f"BiMix is infinite at a share of 0: {zeros} rows have none of {name!r}",
                do="law.zeros=clip (shares below law.floor count as it) or law.zeros=drop (such rows are left out)",
            )
        if self.zeros == "drop":
            kept = r > 0
            if zeros:
                notes.append(f"{name}: {zeros} of {len(r)} rows with a share of 0 were left out")
            r, losses, steps = r[kept], losses[kept], steps[kept]
        elif low:
            notes.append(f"{name}: {low} of {len(r)} shares below {self.floor:g} count as {self.floor:g}")
            r = np.maximum(r, self.floor)
        if len(r) < 2 or (losses <= 0).any():
            raise ConfigError(
                f"BiMix cannot be fitted to the losses of {name!r}",
                got=f"{len(r)} rows, smallest loss {losses.min() if len(r) else np.nan:g}",
                allowed="two rows or more with a share, losses above 0",
            )
        if np.ptp(np.log(r)) < _ONE:
            notes.append(f"{name}: one share in all rows, so alpha cannot be told and is 0")
        if len(set(steps.tolist())) == 2:
            notes.append(f"{name}: two steps cannot tell the law of steps, so the last one alone is fitted")
        return fit_series(r, steps, losses)


def fit_series(r: Array, steps: Array, losses: Array) -> Array:
    """Alpha, B, beta and C (4,) by least squares on losses (n,) at shares r (n,) after steps (n,)."""
    if len(set(steps.tolist())) < 3:  # two steps cannot tell B, beta and C apart: the last one counts
        last = steps == steps.max()
        r, losses = r[last], losses[last]
        if np.ptp(np.log(r)) < _ONE:
            return np.array([0.0, 0.0, 0.0, losses.mean()])
        return _two_parameters(np.log(r), losses)
    return _four_parameters(np.log(r), np.log(steps), losses, fixed_alpha=bool(np.ptp(np.log(r)) < _ONE))


def _two_parameters(log_r: Array, losses: Array) -> Array:
    from scipy.optimize import least_squares  # type: ignore[import-untyped]

    slope, level = np.polyfit(log_r, np.log(losses), 1)
    start = np.array([max(-slope, 0.0), np.exp(level)])

    def residuals(p: Array) -> Array:
        found: Array = np.exp(-p[0] * log_r) * p[1] - losses
        return found

    fit = least_squares(residuals, start, bounds=(0, np.inf), x_scale=[0.1, start[1]], method="trf", **_PRECISE)
    return np.array([fit.x[0], 0.0, 0.0, fit.x[1]])


def _four_parameters(log_r: Array, log_s: Array, losses: Array, *, fixed_alpha: bool) -> Array:
    """Steps are counted in units of the first evaluated step, so that B has the scale of a loss."""
    from scipy.optimize import least_squares

    s = log_s - log_s.min()  # (n,)
    top = 1e-300 if fixed_alpha else np.inf

    def residuals(p: Array) -> Array:
        found: Array = np.exp(-p[0] * log_r) * (p[1] * np.exp(-p[2] * s) + p[3]) - losses
        return found

    def slopes(p: Array) -> Array:
        share, fall = np.exp(-p[0] * log_r), np.exp(-p[2] * s)  # (n,) both
        inner = p[1] * fall + p[3]
        return np.stack([-log_r * share * inner, share * fall, -share * p[1] * s * fall, share], 1)  # (n, 4)

    spread, least = max(float(np.ptp(losses)), 1e-6), 0.8 * float(losses.min())
    best: Any = None
    for alpha in (0.0,) if fixed_alpha else (0.02, 0.1, 0.2):
        for beta in (0.3, 0.5, 0.8):
            fit = least_squares(
                residuals,
                [min(alpha, top / 2), spread, beta, least],
                slopes,
                bounds=(np.zeros(4), [top, np.inf, np.inf, np.inf]),
                x_scale=[0.1, spread, 0.5, least],
                method="trf",
                **_PRECISE,
            )
            best = fit if best is None or fit.cost < best.cost else best
    alpha, b, beta, c = best.x
    return np.array([0.0 if fixed_alpha else alpha, b * np.exp(beta * log_s.min()), beta, c])


def best_shares(
    a: Array, alpha: Array, *, lower: Array | None = None, upper: Array | None = None
) -> tuple[Array, float]:
    """Shares (K,) that minimise sum_i a_i r_i^-alpha_i between bounds (K,), and the multiplier lambda of their sum.

    r_i = (a_i alpha_i / lambda)^(1 / (alpha_i + 1)) clipped into the bounds, lambda by bisection. A domain with alpha 0
    gets its lower bound, and a part of what is left where all others are at their upper one.
    """
    a, alpha = np.asarray(a, dtype=np.float64), np.asarray(alpha, dtype=np.float64)
    lower = np.zeros(len(a)) if lower is None else lower
    upper = np.ones(len(a)) if upper is None else upper
    active = a * alpha > 0
    log_gain = np.log(np.where(active, a * alpha, 1))  # (K,)

    def shares_at(log_lambda: float) -> Array:
        inner = np.exp(np.minimum((log_gain - log_lambda) / (alpha + 1), 0))
        found: Array = np.where(active, np.clip(inner, lower, upper), lower)
        return found

    full: Array = np.where(active, upper, lower)  # for lambda towards 0
    if full.sum() < 1 - SLACK:  # the capped ones cannot fill the mixture
        room = np.where(active, 0, upper - lower)
        return full + (1 - full.sum()) * room / room.sum(), 0.0
    if not active.any():
        return full, 0.0
    low = float(log_gain[active].min())  # there every share would be 1 or more
    high = float(log_gain[active].max()) + 700 * (1 + float(alpha.max()))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if shares_at(middle).sum() > 1 else (low, middle)
    return shares_at(low), float(np.exp(low))
