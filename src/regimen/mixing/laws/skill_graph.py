"""Skill-it's graph of which domain teaches which, as Aioli learns it from one run per domain.

Letters: K training domains, T targets. A_ij = (L_j(0) - L_j(end_i)) / L_j(0): the relative fall of target j's loss in a
run on domain i alone.
Papers: Chen et al., Skill-it, arXiv 2307.14430 (the graph's use); Chen et al., Aioli, arXiv 2411.05735 (this estimate).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError
from regimen.mixing.laws.table import Array


@dataclass(frozen=True, kw_only=True)
class LearnSkillGraph:
    """The fit of a stage: the graph of runs that were each trained on one domain, evaluated at start and end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SkillGraph:
    """Matrix (K, T): row domain i, column target j."""

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    matrix: Array

    @property
    def parameters(self) -> dict[str, dict[str, float]]:
        """The matrix by names: domain, then target."""
        return {
            domain: dict(zip(self.targets, row.tolist(), strict=True))
            for domain, row in zip(self.domains, self.matrix, strict=True)
        }


def skill_graph(start: Mapping[str, Mapping[str, float]], end: Mapping[str, Mapping[str, float]]) -> SkillGraph:
    """The graph of one run per domain: losses by target before the first step and after the last, by training domain.

    Raises ConfigError where a run lacks a target or a loss is no number above 0.
    """
    domains = tuple(sorted(end))
    if not domains or sorted(start) != list(domains):
        raise ConfigError(
            "the skill graph needs the first and last losses of the same runs, one per domain",
            got=f"first: {', '.join(sorted(start)) or 'none'}; last: {', '.join(domains) or 'none'}",
        )
    targets = tuple(sorted(end[domains[0]]))
    before, after = _losses(start, domains, targets), _losses(end, domains, targets)  # (K, T) both
    return SkillGraph(domains=domains, targets=targets, matrix=(before - after) / before)


def _losses(runs: Mapping[str, Mapping[str, float]], domains: tuple[str, ...], targets: tuple[str, ...]) -> Array:
    table = np.empty((len(domains), len(targets)))
    for i, domain in enumerate(domains):
        for j, target in enumerate(targets):
            loss: Any = runs[domain].get(target)
            if sorted(runs[domain]) != list(targets) or loss is None or not 0 < loss < np.inf:
                raise ConfigError(
                    f"the run on {domain!r} has no usable loss of {target!r}",
                    got=f"{loss}; it has {', '.join(sorted(runs[domain]))}",
                    allowed=f"losses above 0 of {', '.join(targets)} in every run",
                )
            table[i, j] = loss
    return table
