"""Strategies that decide nothing and leave on disk what every signal measured, whatever spreads the run over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from regimen.core.measuring import Sketch
from regimen.core.signal import Meter, Signal
from regimen.core.strategy import Observation, Selector
from regimen.mixing.natural import Natural
from regimen.signals.ask_llm import AskLlm
from regimen.signals.data_whisperer import DataWhisperer
from regimen.signals.domains import GradientGram, GradientMoments, ValidationLoss
from regimen.signals.embedding import Embedding
from regimen.signals.gradients import GradientSketch
from regimen.signals.influence import Influence
from regimen.signals.loss import Length, Loss
from regimen.signals.policy_influence import PolicyInfluence
from regimen.signals.similarity import Similarity


@dataclass(frozen=True, kw_only=True)
class Written(Signal):
    """The tokens (n, 3) that the model writes after the first tokens of each row; -1 after an end."""

    by_row: ClassVar[bool] = True

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        prompts = [tokens[: 2 + i % 5] for i, tokens in enumerate(meter.tokens(ids))]
        written = meter.language.generate(prompts, max_new_tokens=3)
        return torch.stack([functional.pad(w, (0, 3 - len(w)), value=-1) for w in written]).float()


@dataclass(frozen=True, kw_only=True)
class Attended(Signal):
    """Where the last of each row's first five tokens looks, (n, 5)."""

    by_row: ClassVar[bool] = True

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        return torch.stack([meter.language.attention(t[:5], layer=0)[-1] for t in meter.tokens(ids)])


SMALL = {"dimensions": 64, "rank": 4}
SIGNALS: Mapping[str, Signal] = {
    "length": Length(),
    "loss": Loss(),
    "hidden states, last layer": Embedding(),
    "hidden states, a layer below": Embedding(layer=0, pooling="last"),
    "similarity to the target set": Similarity(of=Embedding(), to=None),
    "next tokens (Ask-LLM)": AskLlm(max_tokens=16, question="Good?"),
    "text that the model writes": Written(),
    "attention": Attended(),
    "answers and attention (Data Whisperer)": DataWhisperer(shown=2, asked=1, max_new_tokens=4, instruction="Do."),
    "gradient sketches, folded": GradientSketch(sketch=Sketch(**SMALL)),
    "gradient sketches, factored": GradientSketch(sketch=Sketch(kind="factored", **SMALL)),
    "gradient sketches, whole": GradientSketch(sketch=Sketch(kind="whole", parameters="mlp")),
    "gradient sketches, Adam's direction": GradientSketch(sketch=Sketch(adam="outside", **SMALL)),
    "influence on the target set": Influence(run=None, sketch=Sketch(adam="inside", **SMALL)),
    "influence on written answers": PolicyInfluence(
        run=None, samples=2, max_new_tokens=2, fallback="reference", sketch=Sketch(**SMALL)
    ),
}
"""Signals of rows, by what is measured."""

OF_DOMAINS: Mapping[str, Signal] = {
    "validation loss of domains": ValidationLoss(),
    "gradients of domains, inner products": GradientGram(),
    "gradients of domains, moments": GradientMoments(rows_per_domain=3),
}

LOOP = {"gradient sketches, row by row": GradientSketch(sketch=Sketch(backend="loop", **SMALL))}
"""What needs whole parameters on every rank."""


@dataclass(frozen=True, kw_only=True)
class EverySignal(Selector):
    """Keeps all rows. names: of the signals that are measured, null for all. to: where their values go."""

    to: str
    names: tuple[str, ...] | None = None

    def measured(self) -> dict[str, Signal]:
        """By name."""
        wanted = SIGNALS if self.names is None else self.names
        return {name: signal for name, signal in {**SIGNALS, **LOOP}.items() if name in wanted}

    def needs(self) -> tuple[Signal, ...]:
        return tuple(self.measured().values())

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """All ids (n,)."""
        _keep(self.measured(), seen, Path(self.to) / f"{seen.step}.pt")
        return seen.ids


@dataclass(frozen=True, kw_only=True)
class EveryDomainSignal(Natural):
    """The natural mixture. to: where the values of signals of domains go."""

    to: str

    def needs(self) -> tuple[Signal, ...]:
        return tuple(OF_DOMAINS.values())

    def decide(self, state: Any, seen: Observation) -> Tensor | None:
        """None: the natural shares."""
        _keep(OF_DOMAINS, seen, Path(self.to) / f"{seen.step}-domains.pt")
        return super().decide(state, seen)


def _keep(signals: Mapping[str, Signal], seen: Observation, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: seen.values[signal] for name, signal in signals.items()}, to)
