"""Olmix: a log-linear law per task and the mixture that is best under a divergence from the natural shares.

Letters: n rows, K domains, T tasks. L_j(x) = exp(c_j) + exp(sum_i A_ji x_i);
proposal: min over x of mean_j L_j(x) + lambda KL(x || natural), with x_i <= rho N_i / D.
Paper: Olmix, arXiv 2602.12237, the law and the proposer (lambda 0.05, rho 4).

Differs from the paper:
- Trust Region Reflective from regression starts, not L-BFGS from a 10 x 30 grid; the same Huber loss, width 0.02.
- An interior-point method of our own finds the exact optimum; theirs is CVXPY's.
- The cap needs the tokens of the run and of each domain, so it holds only where the constraints give them.
"""

from __future__ import annotations

from dataclasses import dataclass

from regimen.mixing.laws.exponential import ExponentialLaw
from regimen.mixing.laws.law import at_least_zero


@dataclass(frozen=True, kw_only=True)
class Olmix(ExponentialLaw):
    """The log-linear law; `kl` is the lambda of its proposals where the constraints do not say."""

    delta: float = 0.02
    kl: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero(self, kl=self.kl)

    def own_kl(self) -> float:
        return self.kl
