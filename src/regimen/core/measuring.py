"""What can be asked of a model about rows and text, beside their losses. Settings and protocols, no code that measures.

Letters: n rows or prompts, T tokens, d dimensions of a sketch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from regimen.core.errors import ConfigError

Pooling = Literal["mean", "position_weighted", "last"]
"""How hidden states of a row's T tokens become one: their mean, with weights t / (1 + ... + T), or the last one."""

BACKWARD = 2.0  # a backward pass in forward passes
GRADIENT = 1 + BACKWARD  # a gradient: a forward and a backward pass

POOLINGS: tuple[Pooling, ...] = ("mean", "position_weighted", "last")


class Example(NamedTuple):
    """A row: tokens (T,) int64, and whether each is in the loss, (T,) bool; the first token never is."""

    tokens: Tensor
    learnt: Tensor


class Parts(NamedTuple):
    """Documents in rows: row (S,) int64 place in the ids asked for, document: S ids, tokens (S,) int64 in the row."""

    row: Tensor
    document: list[str]
    tokens: Tensor


class Checkpoint(NamedTuple):
    """A checkpoint of a run. weight: mean learning rate since the checkpoint before, all weights together 1."""

    path: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Which per-example gradients are taken, and how they are made short.

    kind: `fold` multiplies a gradient by random signs and folds it into d numbers, which keeps inner products in
        expectation with a relative error of 1 / sqrt(d); `factored` projects both factors of each linear layer's
        gradient to `rank` numbers (LoGra, arXiv 2405.13954), for layers too large to hold a gradient per example, at
        the price of an error of 2 / sqrt(rank) per layer; `whole` keeps every number, for small models and tests.
    dimensions: d of `fold`. rank: of `factored`. seed: of the random signs.
    parameters: a regular expression found in the names of the parameters, null for all that are trained.
    reduction: of a row's token losses, `mean` or `sum`.
    adam: `none` for the plain gradient; `inside` and `outside` for the direction of Adam's next step with eps inside or
        outside the square root (LESS, arXiv 2402.04333, section 3.1), from the moments of the model's optimizer;
        `scaled` for g / (sqrt(v) + eps), without the momentum (arXiv 2505.19051).
    backend: `hooks` differentiates a batch at once; `loop` one row after another, the reference.
    labels: `given` by the pool, or `drawn` by the model from its own prediction, which makes a sketch f of a row, for
        which f f^T has the Gauss-Newton matrix of its loss as its mean; costs one more forward pass.
    """

    kind: Literal["fold", "factored", "whole"] = "fold"
    dimensions: int = 8192
    rank: int = 64
    seed: int = 0
    parameters: str | None = None
    reduction: Literal["mean", "sum"] = "mean"
    adam: Literal["none", "inside", "outside", "scaled"] = "none"
    backend: Literal["hooks", "loop"] = "hooks"
    labels: Literal["given", "drawn"] = "given"

    def __post_init__(self) -> None:
        choices = {
            "kind": ("fold", "factored", "whole"),
            "reduction": ("mean", "sum"),
            "adam": ("none", "inside", "outside", "scaled"),
            "backend": ("hooks", "loop"),
            "labels": ("given", "drawn"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"unknown {name} of a gradient sketch", got=getattr(self, name), allowed=", ".join(allowed)
                )
        for name in ("dimensions", "rank"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} of a gradient sketch is a size", got=getattr(self, name), allowed="1, 2, ..."
                )
        if self.labels == "drawn" and self.adam != "none":
            raise ConfigError(
                "Adam's direction is no factor of a Gauss-Newton matrix",
                got=f"labels=drawn, adam={self.adam}",
                do="set adam=none, or labels=given",
            )
        if self.kind == "factored" and self.adam != "none":
            raise ConfigError(
                "Adam's direction is no product of two factors",
                got=f"kind=factored, adam={self.adam}",
                do="set adam=none, or kind=fold",
            )

    @property
    def passes(self) -> float:
        """Forward passes over a row that it costs: one, a backward pass that counts as two, and one to draw labels."""
        return GRADIENT + (1.0 if self.labels == "drawn" else 0.0)


class Encoded(NamedTuple):
    """tokens (T,) int64 of a text, without special tokens added; spans (T, 2) int64: each token's characters."""

    tokens: Tensor
    spans: Tensor


class Language(Protocol):
    """Text in and out of a model. All that runs the model is collective over ranks and charged."""

    @property
    def end(self) -> int:
        """The token that ends a text."""
        ...

    @property
    def context(self) -> int:
        """The most tokens that the model reads at once."""
        ...

    @property
    def layers(self) -> int:
        """How many layers attention can be asked of."""
        ...

    def encode(self, text: str) -> Encoded:
        """The tokens of a text, with the characters that each stands for."""
        ...

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (T,), without special tokens."""
        ...

    def answer(self, instruction: str, answer: str) -> Example:
        """A row that is asked `instruction` and must say `answer`, by the template of the dataset."""
        ...

    def prompt(self, instruction: str) -> Tensor:
        """Tokens (T,) int64 after which an answer to `instruction` begins, by the template of the dataset."""
        ...

    def next_log_probabilities(self, prompts: Sequence[Tensor], choices: Tensor) -> Tensor:
        """(n, c) float64: log probability of each token of `choices` (c,) right after each prompt (T_i,)."""
        ...

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
        """What the model writes after each prompt (T_i,), up to and without its end token. Temperature 0 is greedy.

        generator: needed above temperature 0; an answer depends on it, its prompt's place and no other prompt.
        """
        ...

    def attention(self, prompt: Tensor, *, layer: int) -> Tensor:
        """Attention (T, T) float32 of layer `layer`, from 0, summed over heads: row t says where token t looks.

        Raises ConfigError where the model has no such layer.
        """
        ...
