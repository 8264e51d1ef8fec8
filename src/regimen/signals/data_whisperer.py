"""Data Whisperer: how much each row helps a model to answer others, shown as one of a few examples in its prompt.

Paper: Data Whisperer, arXiv 2505.12212, section 3, and its code. A chunk of d rows is shown, q questions of the target
set are asked, and what the answers are worth is given to the rows by the attention that all after them pays to them.
Differs from the paper:
- Rows are shuffled first, since a pool is sorted by domain, and `rounds` shuffles are averaged: rows of one chunk share
  the worth of its answers, so that one round is coarse. The last chunk is filled up with rows of the first ones.
- The paper's code gives nothing to a chunk whose answers cannot be read, and so ranks its rows last in silence. Here
  the first half of its questions is asked again; a chunk that fails twice is left out of the mean. A row that was only
  in such chunks has no score: minus infinity, which ranks it last.
- Where examples lie in the prompt is told by the tokenizer, ROUGE-L has no stemmer, the layer is 0.4 of the depth, and
  a row's score is kept in float64.
Letters: n rows, d shown at once, q questions of a chunk, M target rows, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Language
from regimen.core.seeding import generator
from regimen.core.signal import Meter, Signal
from regimen.signals.in_context import Pair, Prompt, pairs_of, parsed, prompt_of
from regimen.signals.rouge import rouge_l

INSTRUCTION = "Each example below is a task with its answer. Learn from them how tasks are answered."
_DEPTH = 0.4  # of the layers, about where the paper's choices lie
_AT_ONCE = 256  # prompts that are answered together
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class Chunk(NamedTuple):
    """Rows that are shown together, by their place among those measured, and what is asked."""

    rows: list[int]
    asked: list[Pair]


class Answered(NamedTuple):
    """A chunk, how it was asked, and the answers that can be read, at most one for each question."""

    chunk: Chunk
    prompt: Prompt
    answers: list[str]


@dataclass(frozen=True, kw_only=True)
class DataWhisperer(Signal):
    """Scores (n,) float64, high for rows that help; -inf for a row no chunk of which could be read.

    They depend on which rows are measured together. A row's mean over rounds of weight times mean worth of the answers;
    the weights of a chunk sum to 1.
    model: null for the model in training, or the folder of a finished run or one of its checkpoints.
    shown: rows shown at once (d). asked: questions asked of them (q), at most all that there are.
    rounds: shuffles that are averaged. seed: of the shuffles.
    questions: `target` asks those of the target set; `pool` asks rows of one half about the other, and the reverse.
    metric: of an answer: `rouge_l`, or `number`: 1 where the number after #### is right, or else the last number.
    layer: whose attention is read, from 0; null for 0.4 of the depth.
    max_new_tokens: of all answers of a chunk. max_tokens: of a question, longer ones lose their end; null for all.
    instruction: what stands before the examples.
    """

    model: str | None = None
    shown: int = 10
    asked: int = 5
    rounds: int = 1
    seed: int = 0
    questions: Literal["target", "pool"] = "target"
    metric: Literal["rouge_l", "number"] = "rouge_l"
    layer: int | None = None
    max_new_tokens: int = 256
    max_tokens: int | None = None
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        for name in ("shown", "asked", "rounds", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is a number of things", got=f"{name}={getattr(self, name)}", allowed="1, 2, ..."
                )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError("max_tokens counts tokens of a question", got=self.max_tokens, allowed="1 or more, null")
        for name, allowed in (("questions", ("target", "pool")), ("metric", ("rouge_l", "number"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"unknown {name}", got=f"{name}={getattr(self, name)}", allowed=", ".join(allowed))

    def passes(self) -> float:
        """A prompt is read twice, to answer and for its attention; writing the answers comes on top."""
        return 2.0 * self.rounds * (self.shown + self.asked) / self.shown

    def models(self) -> tuple[str | None, ...]:
        return (self.model,)

    def aims(self) -> bool:
        return self.questions == "target"

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Scores (n,). Raises ConfigError for rows that ask nothing, a context too short, no answer that is read."""
        judge = meter if self.model is None else meter.under(self.model)
        language = judge.language
        rows = pairs_of(language, judge.examples(ids), max_tokens=self.max_tokens)
        chunks = self._chunks(rows, self._questions(judge) if self.questions == "target" else None)
        layer = self._layer(language)
        self._refuse_long(language, rows, chunks)
        worth = torch.zeros(len(rows), dtype=torch.float64)  # (n,)
        count = torch.zeros(len(rows), dtype=torch.float64)  # (n,)
        for start in range(0, len(chunks), _AT_ONCE):
            for chunk, prompt, answers in self._answered(language, rows, chunks[start : start + _AT_ONCE]):
                shares = weights(language.attention(prompt.tokens, layer=layer), prompt)  # (d,)
                worth[chunk.rows] += shares * sum(self._values(chunk, answers))
                count[chunk.rows] += len(answers)
        if not bool(count.any()):
            raise ConfigError(
                "the model answered no question in the form that was asked for, so that no row has a score",
                got=f"{len(chunks)} prompts of {self.shown} examples and {self.asked} questions",
                do="lower the signal's `asked`, to 1 for a model that cannot number its answers, or take another model",
            )
        return torch.where(count > 0, worth / count.clamp(min=1), -torch.inf)  # (n,)

    # ---- which rows and questions meet ---------------------------------------------------------------------------

    def _questions(self, judge: Meter) -> list[Pair]:
        target = judge.target
        found = pairs_of(judge.language, target.examples(torch.arange(target.index.rows)), max_tokens=self.max_tokens)
        self._refuse_unusable(found)
        return found

    def _refuse_unusable(self, asked: Sequence[Pair]) -> None:
        """ConfigError for answers without a number, where numbers are compared."""
        for pair in asked:
            if self.metric == "number" and final_number(pair.answer) is None:
                raise ConfigError(
                    "the right answer has no number", got=f"{pair.answer[:80]!r}", do="set the signal's metric=rouge_l"
                )

    def _chunks(self, rows: Sequence[Pair], asked: Sequence[Pair] | None) -> list[Chunk]:
        """All chunks of all rounds. asked: the questions; None asks each half of the rows about the other."""
        if asked is None:
            self._refuse_unusable(rows)
        least = self.shown if asked is not None else 2 * self.shown
        if len(rows) < least:
            raise ConfigError(
                "there are fewer rows than are shown at once",
                got=f"{len(rows)} rows, shown={self.shown}, questions={self.questions}",
                allowed=f"{least} rows or more",
                do="lower the signal's `shown`, or give it more rows",
            )
        found: list[Chunk] = []
        for number in range(self.rounds):
            order = torch.randperm(len(rows), generator=generator(self.seed, "data_whisperer", number)).tolist()
            half = len(order) // 2
            folds = [(order[:half], order[half:]), (order[half:], order[:half])] if asked is None else [(order, [])]
            for shown, others in folds:
                questions = [rows[i] for i in others] if asked is None else asked
                found += self._cycled(shown, questions, first=len(found))
        return found

    def _cycled(self, order: list[int], questions: Sequence[Pair], *, first: int) -> Iterator[Chunk]:
        """Chunks of rows in `order`, with questions in turn. first: chunks that were made before."""
        count = min(self.asked, len(questions))
        order = order + order[: -len(order) % self.shown]
        for number, start in enumerate(range(0, len(order), self.shown), start=first):
            places = [(number * count + j) % len(questions) for j in range(count)]
            yield Chunk(order[start : start + self.shown], [questions[j] for j in places])

    # ---- what the answers are worth ------------------------------------------------------------------------------

    def _prompt(self, language: Language, rows: Sequence[Pair], chunk: Chunk) -> Prompt:
        shown, questions = [rows[i] for i in chunk.rows], [pair.question for pair in chunk.asked]
        return prompt_of(language, shown, questions, instruction=self.instruction)

    def _refuse_long(self, language: Language, rows: Sequence[Pair], chunks: Sequence[Chunk]) -> None:
        """ConfigError, before anything is asked, where a prompt and its answers do not fit into the context."""
        longest = max(len(self._prompt(language, rows, chunk).tokens) for chunk in chunks)
        if longest + self.max_new_tokens > language.context:
            raise ConfigError(
                "the model's context is too short for the examples, the questions and their answers",
                got=f"a prompt of {longest} tokens (shown={self.shown}, asked={self.asked}) and "
                f"max_new_tokens={self.max_new_tokens}",
                allowed=f"{language.context} tokens together",
                do="lower the signal's shown, asked, max_new_tokens or max_tokens, or raise "
                "model.config.max_position_embeddings",
            )

    def _layer(self, language: Language) -> int:
        count = language.layers
        layer = min(round(_DEPTH * count), count - 1) if self.layer is None else self.layer
        if not 0 <= layer < count:
            raise ConfigError("the model has no such layer", got=f"layer={layer}", allowed=f"0 to {count - 1}, or null")
        return layer

    def _answered(self, language: Language, rows: Sequence[Pair], chunks: Sequence[Chunk]) -> list[Answered]:
        """The chunks whose answers can all be read, at the first or at the second time."""
        first = self._asked(language, rows, chunks)
        failed = [chunk for chunk, _, answers in first if 1 < len(chunk.asked) != len(answers)]
        again = self._asked(language, rows, [Chunk(c.rows, c.asked[: -(-len(c.asked) // 2)]) for c in failed])
        return [found for found in first + again if len(found.answers) == len(found.chunk.asked)]

    def _asked(self, language: Language, rows: Sequence[Pair], chunks: Sequence[Chunk]) -> list[Answered]:
        prompts = [self._prompt(language, rows, chunk) for chunk in chunks]
        said = language.generate([prompt.tokens for prompt in prompts], max_new_tokens=self.max_new_tokens)
        answers = [parsed(language.decode(t), len(chunk.asked)) for t, chunk in zip(said, chunks, strict=True)]
        return [Answered(*found) for found in zip(chunks, prompts, answers, strict=True)]

    def _values(self, chunk: Chunk, answers: Sequence[str]) -> list[float]:
        metric = rouge_l if self.metric == "rouge_l" else same_number
        return [metric(answer, pair.answer) for answer, pair in zip(answers, chunk.asked, strict=True)]


def weights(attention: Tensor, prompt: Prompt) -> Tensor:
    """(d,) float64, sum 1: mean attention (T, T) that all tokens after the examples pay to a token of each."""
    after = attention[int(prompt.shown[-1, 1]) :].double()  # (rows, T)
    means = torch.stack([after[:, start:stop].mean() for start, stop in prompt.shown.tolist()])  # (d,)
    return means / means.sum()


def same_number(answer: str, reference: str) -> float:
    """1 where both texts end with the same number, else 0."""
    said = final_number(answer)
    return float(said is not None and said == final_number(reference))


def final_number(text: str) -> Decimal | None:
    """The first number after the last ####, or without such a mark the last number; None where there is none."""
    _, marked, rest = text.rpartition("####")
    found = _NUMBER.findall(rest)
    return Decimal(found[0 if marked else -1].replace(",", "")) if found else None
