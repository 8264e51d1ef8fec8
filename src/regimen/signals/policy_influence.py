"""Influence on a reward: how much an update on a row raises the reward of what the model answers to target prompts.

Paper: NICE (ICML 2025): LESS (see `influence`) with a policy gradient as what is wanted. For target prompt j the model
writes K answers y_k of reward r_k, and
    G_j = 1/K sum_k (r_k - b) grad NLL(y_k | x_j),
NLL summed over the tokens of an answer, which estimates the gradient of minus the expected reward. The baseline b is 0
in the paper's code; the mean of the r_k takes out what the answers have in common, and only scales the expectation, by
1 - 1/K. Rewards that are all 0, or all alike under a baseline, give no direction, and the value 0.
Differs from DataFlex's version: the model whose gradient is taken also writes the answers, as in the paper's code.
As in that code, temperature, top-k and top-p shape what is written, but not the likelihood that is differentiated: the
estimate is unbiased at temperature 1 without the other two. Its filters by reward are left out, but for `fallback`.
Letters: n rows, M target rows, K answers to each, b target rows of a part, d numbers of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.measuring import GRADIENT, Example, Language, Sketch
from regimen.core.seeding import generator
from regimen.core.signal import Meter
from regimen.signals.influence import CheckpointInfluence, ValAgg, check_val_agg, columns
from regimen.signals.rewards import reward_of

_ROWS = 1024  # answers whose sketches are held at once


class Prompt(NamedTuple):
    """Of a target row, the tokens (T,) before its first learnt one, and those (A,) that are learnt from there on."""

    tokens: Tensor
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class PolicyInfluence(CheckpointInfluence):
    """Influence (n, M) float32 of rows on the reward of the answers to each target row's prompt, which is a column.

    reward: `exact` or `rouge`, see `rewards`; or a function at package.module.function, from the texts (prompt, answer,
        reference) to 0 to 1. It must give the same number on every process.
    samples, temperature, top_k, top_p, max_new_tokens: K, and how answers are written. seed: of the draw, the same at
        every checkpoint.
    baseline: `mean` subtracts the mean reward of a row's answers; `none` nothing.
    fallback: `reference` takes the gradient of the target row itself where all rewards are 0; `none` nothing.
    val_agg: as of `Influence`.
    """

    reward: str = "exact"
    samples: int = 20
    temperature: float = 1.2
    top_k: int | None = 50
    top_p: float = 0.95
    max_new_tokens: int = 100
    seed: int = 0
    baseline: Literal["none", "mean"] = "none"
    fallback: Literal["none", "reference"] = "none"
    val_agg: ValAgg = "mean_of_cos"

    def __post_init__(self) -> None:
        check_val_agg(self.val_agg)
        reward_of(self.reward)
        for name, allowed in (("baseline", ("none", "mean")), ("fallback", ("none", "reference"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"unknown {name}", got=getattr(self, name), allowed=", ".join(allowed))
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ConfigError(
                "answers are drawn from the likeliest tokens at a temperature",
                got=f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}",
                allowed="temperature above 0, top_k of 1 or more or null, top_p from 0 to 1",
            )
        least = 2 if self.baseline == "mean" else 1
        if self.samples < least or self.max_new_tokens < 1:
            raise ConfigError(
                "samples and max_new_tokens count answers and tokens",
                got=f"samples={self.samples}, max_new_tokens={self.max_new_tokens}",
                allowed=f"samples of {least} or more with baseline={self.baseline}, max_new_tokens of 1 or more",
            )

    def aims(self) -> bool:
        return True

    def beside(self, target: PoolIndex) -> float:
        """Answers are written and then differentiated, four passes over prompt and answer; all of full length."""
        rows = torch.arange(target.rows)
        read = float(target.inputs_of(rows).sum())
        prompts = read - float(target.tokens_of(rows).sum())
        answers = self.samples * (prompts + target.rows * self.max_new_tokens)
        own = GRADIENT * read if self.fallback == "reference" else 0.0
        return self._expected * ((1 + GRADIENT) * answers + own)

    def directions(self, at: Meter) -> Tensor:
        """(M, d) unit policy gradients. Raises ConfigError where the pool has no target set."""
        target = at.target
        rows = torch.arange(target.index.rows)
        prompts = [prompt_of(row) for row in target.examples(rows)]
        draw = generator("answers", self.seed)
        size = max(_ROWS // self.samples, 1)
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        gradients, rewards = map(torch.cat, zip(*(self.estimates(at, part, draw) for part in parts), strict=True))
        if self.fallback == "reference":
            own = target.sketches(rows, self._plain())  # (M, d)
            gradients = torch.where((rewards == 0).all(dim=1, keepdim=True), own, gradients)
        return columns(gradients, target.index, self.val_agg)

    def estimates(self, at: Meter, prompts: list[Prompt], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Policy gradients (b, d) and rewards (b, K) float64 of answers that are drawn with `draw`."""
        language = at.language
        answers = language.generate(
            [prompt.tokens for prompt in prompts for _ in range(self.samples)],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            generator=draw,
        )
        pairs = [(prompts[place // self.samples], answer) for place, answer in enumerate(answers)]
        rewards = self._rewards(language, pairs).view(-1, self.samples)  # (b, K)
        rows = self._written(language, pairs)
        sketches = at.of(rows).sketches(torch.arange(len(rows)), self._plain())  # (b * K, d)
        weights = centred(rewards) if self.baseline == "mean" else rewards  # (b, K)
        by_prompt = sketches.view(len(prompts), self.samples, -1)  # (b, K, d)
        return torch.einsum("bk,bkd->bd", weights.to(sketches) / self.samples, by_prompt), rewards

    def _rewards(self, language: Language, pairs: list[tuple[Prompt, Tensor]]) -> Tensor:
        """(b * K,) float64. Raises ConfigError for a reward that is not from 0 to 1."""
        rule, found = reward_of(self.reward), []
        for prompt, answer in pairs:
            texts = [language.decode(tokens) for tokens in (prompt.tokens, answer, prompt.reference)]
            found.append(float(rule(texts[0], texts[1], texts[2])))
            if not 0 <= found[-1] <= 1:
                got = f"{found[-1]} by reward={self.reward} for the answer {texts[1][:80]!r}"
                raise ConfigError("a reward is a number from 0 to 1", got=got)
        return torch.tensor(found, dtype=torch.float64)

    def _written(self, language: Language, pairs: list[tuple[Prompt, Tensor]]) -> list[Example]:
        """Rows of answers. Where the model had room to write on and did not, it wrote the token that ends an answer."""
        pattern, rows = language.answer("a", "a"), []
        end = pattern.tokens[pattern.learnt][-1:]  # of the template, which may have one of its own
        for prompt, answer in pairs:
            room = min(self.max_new_tokens, language.context - len(prompt.tokens))
            rows.append(answered(prompt.tokens, torch.cat([answer, end]) if len(answer) < room else answer))
        return rows

    def _plain(self) -> Sketch:
        return replace(self.sketch, adam="none", reduction="sum")


def prompt_of(row: Example) -> Prompt:
    """What comes before the first learnt token of a row, and the learnt tokens up to the next that is not."""
    first = int(row.learnt.int().argmax())
    after = (~row.learnt[first:]).nonzero()
    last = first + int(after[0]) if len(after) else len(row.tokens)
    return Prompt(row.tokens[:first], row.tokens[first:last])


def answered(prompt: Tensor, answer: Tensor) -> Example:
    """A row of tokens (T,) and (A,), of which the answer is learnt."""
    learnt = torch.arange(len(prompt) + len(answer)) >= len(prompt)
    return Example(torch.cat([prompt, answer]), learnt)


def centred(rewards: Tensor) -> Tensor:
    """Rewards (b, K) less their mean over K; exactly 0 where all are alike."""
    alike = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return (rewards - rewards.mean(dim=1, keepdim=True)) * ~alike
