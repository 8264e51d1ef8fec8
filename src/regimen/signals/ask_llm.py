"""Ask-LLM: how sure a language model is that a text is worth training a language model on.

Paper: Ask-LLM, arXiv 2402.09668, section 3.1: the probability of "yes" right after the question.
Differs from the paper: the question is worded anew, with the same three points: clear form, useful knowledge, no harm.
The judge is a decoder, the model in training or that of a finished run, not a Flan-T5. A word that takes several tokens
has the probability of them all, one after another, which is a pass for each distinct beginning; spellings are summed.
The paper has no `before` and no `relative`.
Letters: n rows, v spellings of both words, p distinct beginnings of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Language
from regimen.core.signal import Meter, Signal
from regimen.signals.ngrams import ROWS_AT_ONCE

QUESTION = (
    "Should this text be used to train a language model? It should if it is clearly written and complete, "
    "tells something worth knowing about the world, and has no harmful, private or misleading content."
)
YES, NO = (" yes", "yes", " Yes", "Yes"), (" no", "no", " No", "No")
_FRAME = "=" * 10
Word = tuple[int, ...]  # the tokens of a spelling


@dataclass(frozen=True, kw_only=True)
class AskLlm(Signal):
    """Probability (n,) float64 that the judge answers yes, in 0 to 1. A row's value depends on its text alone.

    model: the judge: null for the model in training, or the folder of a finished run or one of its checkpoints.
    question: what is asked of the text. before: ask before the text instead of after it, which gives other answers.
    relative: P(yes) / (P(yes) + P(no)) instead of P(yes).
    log: the natural logarithm of that, which tells apart what rounds to 1 or 0.
    template: ask as an instruction, by the template of the dataset; for judges that were tuned on one.
    max_tokens: of the text, the rest is cut off; null for as many as the context has room for beside the question.
    yes_words, no_words: the spellings of both words.
    """

    by_row: ClassVar[bool] = True
    model: str | None = None
    question: str = QUESTION
    before: bool = False
    relative: bool = False
    log: bool = False
    template: bool = False
    max_tokens: int | None = None
    yes_words: Sequence[str] = YES
    no_words: Sequence[str] = NO

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ConfigError("the judge is asked nothing", got=f"question={self.question!r}", do="set question")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError("max_tokens counts tokens of a text", got=self.max_tokens, allowed="1 or more, or null")
        for name in ("yes_words", "no_words"):
            words = getattr(self, name)
            object.__setattr__(self, name, (words,) if isinstance(words, str) else tuple(words))
            if not all(getattr(self, name)) or not getattr(self, name):
                raise ConfigError("a word is not spelled", got=f"{name}={words}", do=f'e.g. {name}=[" Yes",Yes]')
        if both := set(self.yes_words) & set(self.no_words):
            raise ConfigError("yes and no share a spelling", got=", ".join(sorted(both)), do="take it out of one")

    def models(self) -> tuple[str | None, ...]:
        return (self.model,)

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Values (n,). Raises ConfigError where the context has no room for a text beside the question."""
        judge = meter if self.model is None else meter.under(self.model)
        language = judge.language
        parts = ids.tensor_split(max(len(ids) // ROWS_AT_ONCE, 1))
        logs = torch.cat([self._logs(language, self._prompts(language, judge.texts(p))) for p in parts])  # (n, 2)
        yes = logs[:, 0]  # (n,)
        if self.relative:
            yes = torch.nn.functional.logsigmoid(yes - logs[:, 1])  # (n,)
        return yes if self.log else yes.exp()

    def _logs(self, language: Language, prompts: Sequence[Tensor]) -> Tensor:
        """Log probabilities (n, 2) float64 of yes and no after prompts."""
        words = [spellings(language, self.yes_words), spellings(language, self.no_words)]
        if doubled := set(words[0]) & set(words[1]):
            raise ConfigError(
                "yes and no are the same tokens", got=f"{sorted(doubled)}", do="set other yes_words and no_words"
            )
        logs = word_logs(language, prompts, [*words[0], *words[1]])  # (n, v)
        count = len(words[0])
        return torch.stack([logs[:, :count].logsumexp(1), logs[:, count:].logsumexp(1)], 1)  # (n, 2)

    def _prompts(self, language: Language, texts: Sequence[str]) -> list[Tensor]:
        room = language.context - max(len(w) for w in spellings(language, (*self.yes_words, *self.no_words))) + 1
        taken = len(self._prompt(language, ""))
        if taken >= room:
            raise ConfigError(
                "the judge's context has no room for a text beside the question",
                got=f"a question of {taken} tokens",
                allowed=f"less than {room}",
                do="shorten the signal's question, or take a judge with a longer context",
            )
        return [self._fitting(language, text, room, taken) for text in texts]

    def _fitting(self, language: Language, text: str, room: int, taken: int) -> Tensor:
        """A prompt of at most `room` tokens: the text loses its end, the question nothing.

        taken: tokens of a prompt without text. A cut text may come out longer than planned where it meets the question.
        """
        spans = language.encode(text).spans
        keep = min(len(spans), room - taken, self.max_tokens or room)
        while True:
            shown = text if keep == len(spans) else text[: int(spans[keep - 1, 1]) if keep > 0 else 0]
            prompt = self._prompt(language, shown)
            if len(prompt) <= room:
                return prompt
            keep -= max(len(prompt) - room, 1)

    def _prompt(self, language: Language, text: str) -> Tensor:
        shown = f"{_FRAME}\n{text}\n{_FRAME}"
        asked = f"{self.question}\n\n{shown}" if self.before else f"{shown}\n\n{self.question}"
        if self.template:
            return language.prompt(f"{asked}\n\nAnswer yes or no.")
        tokens = language.encode(f"{asked}\n\nAnswer (yes or no):").tokens  # (T,)
        return torch.cat([torch.tensor([language.end]), tokens])  # (T+1,) as a text begins in a packed row


def spellings(language: Language, words: Sequence[str]) -> list[Word]:
    """The tokens of each word, without those that another one begins with: they are counted with it."""
    found = sorted({tuple(language.encode(word).tokens.tolist()) for word in words})
    return [word for word in found if not any(word[:k] in found for k in range(1, len(word)))]


def word_logs(language: Language, prompts: Sequence[Tensor], words: Sequence[Word]) -> Tensor:
    """Log probabilities (n, v) float64 that each of `words` is what comes right after each prompt."""
    starts = sorted({word[:k] for word in words for k in range(len(word))})  # p of them
    logs = torch.zeros(len(prompts), len(words), dtype=torch.float64)  # (n, v)
    for start in starts:
        place = len(start)
        after = [k for k, word in enumerate(words) if word[:place] == start and len(word) > place]
        read = [torch.cat([prompt, torch.tensor(start, dtype=torch.int64)]) for prompt in prompts]
        choices = torch.tensor([words[k][place] for k in after])
        logs[:, after] += language.next_log_probabilities(read, choices)
    return logs
