"""Prompts that show examples and then ask numbered questions: how they are made, and how the answers are read.

Where an example lies in the prompt is told by the characters that each token stands for, in the text as it is read
whole: tokens of pieces, put together, need not be the tokens of the text.
Letters: T tokens of a prompt, d examples shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Example, Language

_MARK = "<mark-of-the-question>"


class Pair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class Prompt(NamedTuple):
    """tokens: (T,) int64. shown: (d, 2) int64, where each example begins and ends in them."""

    tokens: Tensor
    shown: Tensor


def pairs_of(language: Language, examples: Sequence[Example], *, max_tokens: int | None) -> list[Pair]:
    """Question and answer of rows: the last run of tokens that is learnt, and all before it without the template.

    max_tokens: of each question, what is over is cut off its end; null for all.
    Raises ConfigError for a row in which nothing is asked, as in packed text.
    """
    head, _, tail = language.decode(language.prompt(_MARK)).partition(_MARK)
    found = []
    for tokens, learnt in examples:
        last = int(learnt.nonzero()[-1]) + 1 if bool(learnt.any()) else 0
        first = last - int((~learnt[:last].flip(0)).long().argmax()) if last else 0
        question = language.decode(tokens[:first]).removeprefix(head).removesuffix(tail)
        if not question.strip():
            raise ConfigError(
                "a row asks nothing, so that it is no example of an answer",
                got=f"a row that begins {language.decode(tokens[:40])[:60]!r}",
                do="choose a dataset of examples: dataset=sft_files dataset.path=FILE objective=sft",
            )
        found.append(Pair(cut(language, question, max_tokens), language.decode(tokens[first:last]).strip()))
    return found


def cut(language: Language, text: str, limit: int | None) -> str:
    """A text without what is over `limit` tokens."""
    if limit is None:
        return text
    spans = language.encode(text).spans
    return text if len(spans) <= limit else text[: int(spans[limit - 1, 1])]


def prompt_of(language: Language, shown: Sequence[Pair], questions: Sequence[str], *, instruction: str) -> Prompt:
    """Examples and questions as one instruction, by the template of the dataset."""
    text, places = f"{instruction}\n\n", []
    for k, pair in enumerate(shown, start=1):
        text += f"Example {k}\n"
        example = demonstration(pair)
        places.append((len(text), len(text) + len(example)))
        text += f"{example}\n\n"
    text += f"Do these {len(questions)} tasks alike.\n\n"
    text += "".join(f"Task {k}\n{question}\n\n" for k, question in enumerate(questions, start=1))
    text += "Write nothing but the answers in this form, each on a new line:\n"
    text += "\n".join(f"Answer {k}: ..." for k in range(1, len(questions) + 1))
    encoded = language.encode(text)
    where = torch.tensor([token_range(encoded.spans, place) for place in places])  # (d, 2)
    tokens = language.prompt(text)  # (T,)
    first, last = int(where[0, 0]), int(where[-1, 1])
    return Prompt(tokens, where - first + place_of(encoded.tokens[first:last], tokens))


def demonstration(pair: Pair) -> str:
    """How an example is shown."""
    return f"{pair.question}\nAnswer: {pair.answer}"


def token_range(spans: Tensor, place: tuple[int, int]) -> tuple[int, int]:
    """First token and the one after the last that stand for characters of `place`, from spans (T, 2).

    A token that reaches over the border of `place` belongs to it.
    """
    begin, end = place
    inside = ((spans[:, 1] > begin) & (spans[:, 0] < end)).nonzero()[:, 0]
    return int(inside[0]), int(inside[-1]) + 1


def place_of(part: Tensor, whole: Tensor) -> int:
    """Where the tokens `part` first begin in `whole`. Raises ConfigError where they do not occur."""
    step, sought, searched = whole.element_size(), part.numpy().tobytes(), whole.numpy().tobytes()
    at = searched.find(sought)
    while at >= 0 and at % step:  # bytes of a token, but not at its begin
        at = searched.find(sought, at + 1)
    if at < 0:
        raise ConfigError(
            "the template changes the text that it is given, so that examples cannot be found in the prompt",
            got=f"{len(part)} tokens that are not in the prompt of {len(whole)}",
            do="type dataset.sft.template=alpaca",
        )
    return at // step


def parsed(said: str, count: int) -> list[str]:
    """Answers 1 to `count` in what a model said, as many as there are before the first that is missing or empty.

    An answer begins after `Answer k:` or `k.` at the begin of a line and goes on to the next number, be it one that was
    not asked for. To a single question all that is said is the answer where it has no number, even nothing.
    """
    answers: list[str] = []
    marks = _marks(said, count + 1)
    for k, mark in enumerate(marks[:count]):
        end = marks[k + 1].start() if k + 1 < len(marks) else len(said)
        answer = said[mark.end() : end].strip(" \t\r\n*")
        if not answer:
            break
        answers.append(answer)
    return [said.strip()] if count == 1 and not marks else answers


def _marks(said: str, count: int) -> list[re.Match[str]]:
    """The numbers 1, 2, ... that begin answers, in sequence, each after the one before."""
    for form in (r"answer[ \t]*{}[ \t]*[.:)]", r"{}[.:)](?!\d)"):
        found: list[re.Match[str]] = []
        for k in range(1, count + 1):
            pattern = re.compile(rf"^[ \t*]*{form.format(k)}", re.IGNORECASE | re.MULTILINE)
            mark = pattern.search(said, found[-1].end() if found else 0)
            if mark is None:
                break
            found.append(mark)
        if found:
            return found
    return []
