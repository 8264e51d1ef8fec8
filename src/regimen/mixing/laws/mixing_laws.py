"""Data Mixing Laws: each validation loss is a floor plus an exponential of a linear function of the shares (M4).

Letters: n rows, K domains, T targets. L_i(r) = c_i + k_i exp(sum_j t_ij r_j), reported as g_ij = log k_i + t_ij.
Paper: Ye et al., Data Mixing Laws, arXiv 2403.16952v2, section 3.2 (M4), section 4 (nested laws: `nested`), section 5.

Differs from the paper:
- k is not fitted beside t: shares sum to 1, so it cannot be told (see `exponential`).
- Trust Region Reflective from regression starts, not L-BFGS from a grid of 6000 random ones; the same Huber loss.
- The unknown composition of the overall loss (implicit domains) is not learned: targets and their weights are given.
- The best mixture is found exactly, not on a grid of caps in steps of 1/16.
"""

from __future__ import annotations

from dataclasses import dataclass

from regimen.mixing.laws.exponential import ExponentialLaw


@dataclass(frozen=True, kw_only=True)
class MixingLaws(ExponentialLaw):
    """M4 with Huber's loss of width 0.05, as in the authors' five-domain notebook."""
