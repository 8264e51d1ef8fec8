"""A language of characters whose model is a function that the test writes, and a meter of pairs in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.measuring import Encoded, Example

BEGIN, END = 1, 2  # special tokens; all others are the characters' code points


@dataclass
class Characters:
    """Every character is a token. The template puts the instruction between <...> and BEGIN before it.

    says: from the text of a prompt to the answer. looks: from the text to attention (T, T).
    likes: from the text to logits by token; a token that is not named has logit 0, and there are `context` of them.
    """

    says: Callable[[str], str] = lambda text: ""
    looks: Callable[[str], Tensor] = lambda text: torch.ones(len(text), len(text))
    likes: Callable[[str], dict[int, float]] = lambda text: {}
    context: int = 100_000
    layers: int = 5
    end: int = END
    asked: list[str] = field(default_factory=list)  # all prompts that were answered
    layers_asked: list[int] = field(default_factory=list)

    def encode(self, text: str) -> Encoded:
        places = torch.arange(len(text))
        return Encoded(torch.tensor([ord(c) for c in text], dtype=torch.int64), torch.stack([places, places + 1], 1))

    def decode(self, tokens: Tensor) -> str:
        return "".join(chr(t) for t in tokens.tolist() if t not in (BEGIN, END))

    def prompt(self, instruction: str) -> Tensor:
        return torch.tensor([BEGIN, *map(ord, f"<{instruction}>")])

    def answer(self, instruction: str, answer: str) -> Example:
        before = self.prompt(instruction)
        tokens = torch.cat([before, torch.tensor([*map(ord, answer), END])])
        return Example(tokens, torch.arange(len(tokens)) >= len(before))

    def next_log_probabilities(self, prompts: Sequence[Tensor], choices: Tensor) -> Tensor:
        rows = []
        for prompt in prompts:
            assert len(prompt) <= self.context
            logits = torch.zeros(256, dtype=torch.float64)
            for token, value in self.likes(self.decode(prompt)).items():
                logits[token] = value
            rows.append(logits.log_softmax(0)[choices])
        return torch.stack(rows)

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
        assert temperature == 0
        texts = [self.decode(prompt) for prompt in prompts]
        self.asked += texts
        return [self.encode(self.says(text)).tokens[:max_new_tokens] for text in texts]

    def attention(self, prompt: Tensor, *, layer: int) -> Tensor:
        self.layers_asked.append(layer)
        inner = self.looks(self.decode(prompt))
        found = torch.zeros(len(prompt), len(prompt))
        found[1:, 1:] = inner  # without BEGIN, which is no character
        return found


class Pairs:
    """Rows of questions and answers, and those of a target set if there is one."""

    def __init__(
        self,
        language: Characters,
        rows: Sequence[tuple[str, str]],
        target: Sequence[tuple[str, str]] | None = None,
        others: dict[str, Pairs] | None = None,
    ) -> None:
        self.language, self.rows, self._target, self._others = language, rows, target, others or {}
        self.index = PoolIndex(domains=("a",), offsets=torch.tensor([0, len(rows)]), target_tokens=1)

    @property
    def target(self) -> Pairs:
        if self._target is None:
            raise ConfigError("the dataset has no target set")
        return Pairs(self.language, self._target)

    def under(self, model: str) -> Pairs:
        return self._others[model]

    def examples(self, ids: Tensor) -> list[Example]:
        return [self.language.answer(*self.rows[i]) for i in ids.tolist()]

    def texts(self, ids: Tensor) -> list[str]:
        return ["".join(self.rows[i]) for i in ids.tolist()]
