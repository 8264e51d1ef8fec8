"""A meter whose rows have known hidden states and gradients, and selectors' observations with a target set.

Letters: N rows, w width of a state, P numbers of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.measuring import Checkpoint, Pooling, Sketch
from regimen.core.signal import Signal
from regimen.core.strategy import Observation, Selection, Selector
from tests.reference.observations import index_of, seeing


@dataclass(frozen=True)
class VectorMeter:
    """states (N, w), gradients (N, P) by row; Adam doubles the first number of a gradient. others: by path."""

    states_of: Tensor
    gradients: Tensor
    index: PoolIndex
    targets: VectorMeter | None = None
    others: Mapping[str, VectorMeter] = field(default_factory=dict)
    runs: Mapping[str, list[Checkpoint]] = field(default_factory=dict)
    asked: list[tuple[str, list[int]]] = field(default_factory=list)  # what was measured, of which rows
    kept: dict[Hashable, Tensor] = field(default_factory=dict, init=False)  # of this meter alone

    @property
    def target(self) -> VectorMeter:
        if self.targets is None:
            raise ConfigError("the pool has no target set", do="set dataset.target.path=FILE")
        return self.targets

    def states(self, ids: Tensor, *, layer: int, pooling: Pooling) -> Tensor:
        self.asked.append((f"{layer} {pooling}", ids.tolist()))
        return self.states_of[ids].float()

    def sketches(self, ids: Tensor, sketch: Sketch) -> Tensor:
        self.asked.append((f"gradients {sketch.adam}", ids.tolist()))
        found = self.gradients[ids].float()
        if sketch.adam != "none":
            found = found * torch.tensor([2.0] + [1.0] * (found.shape[1] - 1))
        return found

    def values(self, signal: Signal, ids: Tensor) -> Tensor:
        return signal.measure(self, ids)

    def once(self, what: Hashable, measure: Callable[[], Tensor]) -> Tensor:
        if what not in self.kept:
            self.kept[what] = measure()
        return self.kept[what]

    def under(self, model: str) -> VectorMeter:
        return self.others[model]

    def checkpoints(self, run: str) -> list[Checkpoint]:
        return self.runs[run]


def meter_of(
    states: Tensor,
    gradients: Tensor,
    *,
    target_states: Tensor | None = None,
    target_gradients: Tensor | None = None,
    subtasks: Sequence[int] | None = None,
) -> VectorMeter:
    """Rows of one domain, and a target set with so many rows per subtask (one subtask if not given)."""
    if target_states is None:
        target_states = torch.zeros(1 if target_gradients is None else len(target_gradients), states.shape[1])
    if target_gradients is None:
        target_gradients = torch.zeros(len(target_states), gradients.shape[1])
    targets = VectorMeter(target_states, target_gradients, index_of(subtasks or [len(target_states)]))
    return VectorMeter(states, gradients, index_of([len(states)]), targets)


def aiming(
    values: Tensor,
    *,
    by: Signal,
    subtasks: Sequence[int] | None,
    ids: Tensor | None = None,
    target_values: Tensor | None = None,
    tokens: int | Sequence[int] = 1,
    seed: int = 0,
) -> Observation:
    """Rows `ids` (0, 1, ... if not given) of values (n, ...), and a target set; tokens by row, or of every row."""
    rows = torch.arange(len(values)) if ids is None else ids
    index = index_of([int(rows.max()) + 1])
    per_row = tokens if isinstance(tokens, int) else torch.tensor(tokens, dtype=torch.int32)
    seen = seeing(torch.zeros(len(rows)), ids=rows, index=replace(index, target_tokens=per_row), by=by, seed=seed)
    target = None if subtasks is None else index_of(subtasks)
    wanted = {} if target_values is None else {by: target_values}
    return replace(seen, values={by: values}, target=target, target_values=wanted)


def decided(selector: Selector, seen: Observation) -> list[int]:
    """Ids as decided, in order."""
    found = selector.decide(selector.init(seen.index), seen)
    selector.checked(found, seen)
    return (found.ids if isinstance(found, Selection) else found).tolist()
