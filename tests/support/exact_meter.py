"""A meter that differentiates a tiny language model row by row with autograd: exact, slow, apart from the engine.

Letters: n rows, T tokens, V vocabulary, P numbers of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.measuring import Checkpoint, Encoded, Example, Sketch
from regimen.core.seeding import generator as seeded
from regimen.core.signal import Signal


class TinyLM(nn.Module):
    """Logits (T, V) of the next token from the tokens (T,) so far, of which it reads the last one alone."""

    def __init__(self, vocabulary: int, *, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        shapes = {"embedding": (vocabulary, width), "inner": (width, width), "head": (vocabulary, width)}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=draw, dtype=torch.float64) / width**0.5
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.embedding[tokens] @ self.inner)  # (T, width)
        return hidden @ self.head.T  # (T, V)


class Letters:
    """A language whose tokens are the letters a, b, ...; the last token ends a text."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        self.model, self.end, self.context = model, vocabulary - 1, 32
        self.asked: list[list[Tensor]] = []  # the prompts of each call of `generate`

    def encode(self, text: str) -> Encoded:
        places = torch.arange(len(text))
        return Encoded(tokens_of(text), torch.stack([places, places + 1], 1))

    def decode(self, tokens: Tensor) -> str:
        return "".join(chr(ord("a") + token) for token in tokens.tolist() if token != self.end)

    def answer(self, instruction: str, answer: str) -> Example:
        tokens = torch.cat([tokens_of(instruction + answer), torch.tensor([self.end])])
        return Example(tokens, torch.arange(len(tokens)) >= max(len(instruction), 1))

    def generate(
        self,
        prompts: Sequence[Tensor],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        assert generator is not None and temperature == 1 and top_k is None and top_p == 1, "only plain draws"
        self.asked.append(list(prompts))
        out = []
        for prompt in prompts:
            tokens = prompt
            while len(tokens) < min(len(prompt) + max_new_tokens, self.context):
                likely = self.model(tokens)[-1].softmax(-1)
                drawn = torch.multinomial(likely.detach(), 1, generator=generator)
                if int(drawn) == self.end:
                    break
                tokens = torch.cat([tokens, drawn])
            out.append(tokens[len(prompt) :])
        return out


def tokens_of(text: str) -> Tensor:
    """The tokens (T,) of letters."""
    return torch.tensor([ord(letter) - ord("a") for letter in text], dtype=torch.int64)


class State(NamedTuple):
    """A model with Adam's moments (P,) of its parameters; None where it was never trained."""

    model: nn.Module
    first: Tensor | None = None
    second: Tensor | None = None


@dataclass(frozen=True)
class ExactMeter:
    """Implements what signals of gradients use. rows by domain; others: by path; runs: checkpoints by run."""

    state: State
    rows: Mapping[str, Sequence[Example]]
    vocabulary: int
    targets: Mapping[str, Sequence[Example]] | None = None
    others: Mapping[str, State] = field(default_factory=dict)
    runs: Mapping[str, list[Checkpoint]] = field(default_factory=dict)
    largest: list[int] = field(default_factory=list)  # rows of each call of `sketches`

    @property
    def index(self) -> PoolIndex:
        sizes = torch.tensor([0, *(len(self.rows[name]) for name in sorted(self.rows))])
        tokens = torch.tensor([int(row.learnt.sum()) for row in self._all], dtype=torch.int32)
        return PoolIndex(domains=tuple(sorted(self.rows)), offsets=sizes.cumsum(0), target_tokens=tokens)

    @property
    def _all(self) -> list[Example]:
        return [row for name in sorted(self.rows) for row in self.rows[name]]

    @property
    def target(self) -> ExactMeter:
        if self.targets is None:
            raise ConfigError("the pool has no target set", do="set dataset.target.path=FILE")
        return replace(self, rows=self.targets, targets=None)

    @property
    def language(self) -> Letters:
        return Letters(self.state.model, self.vocabulary)

    def of(self, examples: list[Example]) -> ExactMeter:
        return replace(self, rows={"rows": examples}, targets=None)

    def values(self, signal: Signal, ids: Tensor) -> Tensor:
        return signal.measure(self, ids)

    def once(self, what: object, measure: Callable[[], Tensor]) -> Tensor:
        return measure()

    def under(self, model: str) -> ExactMeter:
        return replace(self, state=self.others[model])

    def checkpoints(self, run: str) -> list[Checkpoint]:
        return self.runs[run]

    def examples(self, ids: Tensor) -> list[Example]:
        return [self._all[i] for i in ids.tolist()]

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([int(row.learnt.sum()) for row in self.examples(ids)])
        with torch.no_grad():
            return torch.stack([summed_loss(self.state.model, row) for row in self.examples(ids)]), counts

    def sketches(self, ids: Tensor, sketch: Sketch) -> Tensor:
        self.largest.append(len(ids))
        made = []
        for row in self.examples(ids):
            loss = summed_loss(self.state.model, row)
            if sketch.reduction == "mean":
                loss = loss / max(int(row.learnt.sum()), 1)
            gradient = flat_gradient(self.state.model, loss)  # (P,)
            made.append(folded(self._direction(gradient, sketch, bool(row.learnt.any())), sketch))
        return torch.stack(made).float()  # (n, d)

    def _direction(self, gradient: Tensor, sketch: Sketch, learnt: bool) -> Tensor:
        if sketch.adam == "none" or not learnt:
            return gradient
        first = 0.9 * self.state.first + (1 - 0.9) * gradient
        second = 0.999 * self.state.second + (1 - 0.999) * gradient**2
        return first / ((second + 1e-8).sqrt() if sketch.adam == "inside" else second.sqrt() + 1e-8)


def summed_loss(model: nn.Module, row: Example) -> Tensor:
    """The summed loss of a row's learnt tokens, nats."""
    if not bool(row.learnt.any()):
        return sum(p.sum() for p in model.parameters()) * 0.0
    places = row.learnt.nonzero()[:, 0]
    logs = model(row.tokens[:-1]).log_softmax(-1)  # (T-1, V)
    return -logs[places - 1, row.tokens[places]].sum()


def flat_gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """The gradient (P,) of a loss."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def folded(vector: Tensor, sketch: Sketch) -> Tensor:
    """A vector (P,) whole, or with random signs folded into d numbers."""
    if sketch.kind == "whole":
        return vector
    draw = seeded("signs", sketch.seed)
    signs = torch.randint(2, vector.shape, generator=draw) * 2.0 - 1  # (P,)
    padded = torch.nn.functional.pad(vector * signs, (0, -len(vector) % sketch.dimensions))
    return padded.view(-1, sketch.dimensions).sum(0)
