"""Skill-it: domains that help others with a high validation loss are trained on more, along a graph learned before.

Paper: Skill-it, arXiv 2307.14430, algorithm 1.  Source of the defaults: HazyResearch/skill-it and HazyResearch/aioli.
Differs from the paper: nothing in the formulas. The losses at an update are the newest, where the released code's are
those of the evaluation before. For its LEGO graph that code halves off-diagonal edges of 1: give such edges as 0.5.
Letters: K domains; A graph (from training domain i to evaluation domain j), L validation losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Mixer, Observation
from regimen.mixing.common import by_domain, domain_named, exponential_shares, finite
from regimen.signals.domains import ValidationLoss


class SkillitState(NamedTuple):
    """losses: (W, K) float64 of the last evaluations, at most the window. exponents: (K,) of the shares."""

    losses: Tensor
    exponents: Tensor
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class Skillit(Mixer):
    """Shares in proportion to exp(eta A L), L summed over the last evaluations; the first shares take L = 1.

    graph: {training domain: {evaluation domain: effect}} with a row for every domain; effects that are not named are 0.
    eta: step size, 0 or more.
    window: evaluations whose losses are summed.
    update_every: evaluations, which are made whenever the trigger fires, from one change of the shares to the next.
    targets: evaluation domains that count, whose losses are then averaged over the window instead of summed; null: all.
    max_rows: validation rows per domain that an evaluation measures; null for all.
    """

    graph: Mapping[str, Mapping[str, float]] | None = None
    eta: float = 0.2
    window: int = 3
    update_every: int = 1
    targets: Sequence[str] | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.graph is None:
            raise ConfigError(
                "Skill-it has no graph",
                got="strategies.skillit.graph=null",
                do="method=skillit learns it in its stages, one run per domain; or give one you have: "
                "'++strategies.skillit.graph={web: {web: 0.6, code: 0.1}, code: {web: 0.2, code: 0.7}}'",
            )
        object.__setattr__(self, "graph", _checked_graph(self.graph))
        if not 0 <= self.eta < float("inf"):
            raise ConfigError("eta is a step size", got=self.eta, allowed="0 or more")
        if self.window < 1 or self.update_every < 1:
            got = f"window={self.window}, update_every={self.update_every}"
            raise ConfigError("window and update_every count evaluations", got=got, allowed="1 or more")
        if self.targets is not None and (isinstance(self.targets, str) or not self.targets):
            raise ConfigError(
                "targets lists evaluation domains", got=self.targets, allowed="[code, web], or null for all"
            )
        self.needs()

    def needs(self) -> tuple[Signal, ...]:
        return (ValidationLoss(max_rows=self.max_rows),)

    def init(self, index: PoolIndex) -> SkillitState:
        """Nothing seen; a graph or targets that do not fit the domains are refused here."""
        k = len(index.domains)
        self._effects(index.domains)
        return SkillitState(torch.empty(0, k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64), 0)

    def decide(self, state: SkillitState, seen: Observation) -> Tensor:
        """Shares (K,) float64; 0 for a domain without tokens."""
        return exponential_shares(self._evaluated(state, seen).exponents, seen.index)

    def advance(self, state: SkillitState, decision: Tensor, seen: Observation) -> SkillitState:
        return self._evaluated(state, seen)

    def _evaluated(self, state: SkillitState, seen: Observation) -> SkillitState:
        """With the losses of this evaluation, and the exponents that they lead to where an update is due."""
        new = seen.values[ValidationLoss(max_rows=self.max_rows)]  # (K,)
        losses = torch.cat([state.losses, new[None]])[-self.window :]  # (W, K)
        exponents = state.exponents
        if state.evaluations % self.update_every == 0:
            recent = losses.sum(0) if self.targets is None else losses.mean(0)
            counted = torch.ones_like(new) if state.evaluations == 0 else recent
            exponents = self.eta * self._effects(seen.index.domains) @ counted  # (K,)
        return SkillitState(losses, exponents, state.evaluations + 1)

    def _effects(self, domains: tuple[str, ...]) -> Tensor:
        """A (K, K) float64, with columns of 0 for evaluation domains that do not count."""
        assert self.graph is not None
        rows = {name: by_domain(effects, domains) for name, effects in by_domain(self.graph, domains).items()}
        missing = [domain for domain in domains if domain not in rows]
        if missing:
            raise ConfigError(
                f"the graph has no row for {len(missing)} of {len(domains)} domains of the pool",
                got=", ".join(missing),
                do=f"add what training on each does, e.g. strategies.skillit.graph.{missing[0]}={{{missing[0]}: 0.5}}",
            )
        effects = torch.tensor([[rows[i].get(j, 0.0) for j in domains] for i in domains], dtype=torch.float64)  # (K, K)
        if self.targets is None:
            return effects
        targets = {domain_named(str(name), domains) for name in self.targets}
        return effects * torch.tensor([d in targets for d in domains])


def _checked_graph(graph: object) -> dict[str, dict[str, float]]:
    allowed = "{training domain: {evaluation domain: number}}"
    if not isinstance(graph, Mapping) or not all(isinstance(effects, Mapping) for effects in graph.values()):
        raise ConfigError("the graph is not a mapping of mappings", got=graph, allowed=allowed)
    checked = {str(i): {str(j): finite(effect) for j, effect in effects.items()} for i, effects in graph.items()}
    wrong = [f"{i} on {j}" for i, effects in checked.items() for j, effect in effects.items() if effect != effect]
    if wrong:
        raise ConfigError("an effect of the graph is not a number", got=", ".join(wrong), allowed=allowed)
    return checked
