"""From a conversation to the parts of its row: what the model is told and what it must learn to say.

Parts are tokenized apart, as they are when a model answers: the prompt ends where the answer begins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from regimen.core.errors import ConfigError, DataError

PREAMBLE = "Here is a task. Do what the instruction asks for and write the response.\n\n"


class Part(NamedTuple):
    """A piece of a row's text. target: whether it is in the loss. ends: an EOS follows, in the loss as the part is."""

    text: str
    target: bool
    ends: bool = False


Template = Callable[[list[list[str]]], list[Part]]  # turns of a conversation -> parts of a row


def alpaca(turns: list[list[str]]) -> list[Part]:
    """Headings in plain text, for any tokenizer; every answer is followed by EOS."""
    parts = [] if turns[0][0] == "system" else [Part(PREAMBLE, False)]
    for role, text, *more in turns:
        if role == "assistant":
            parts += [Part("### Response\n", False), Part(text, True, ends=True)]
        elif role == "system":
            parts.append(Part(f"{text}\n\n", False))
        else:
            given = f"### Input\n{more[0]}\n\n" if more else ""
            parts.append(Part(f"### Instruction\n{text}\n\n{given}", False))
    return parts


class ChatTemplate:
    """The tokenizer's own template. A turn of the assistant ends with the template's special token, or else with EOS.

    Raises ConfigError for a tokenizer without one.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template",
                got="dataset.sft.template=chat",
                do="type dataset.sft.template=alpaca, or the tokenizer of a chat model: dataset.tokenizer.kind=hf "
                "dataset.tokenizer.path=NAME",
            )
        self._tokenizer = tokenizer
        self._special = special_pattern(tokenizer)

    def __call__(self, turns: list[list[str]]) -> list[Part]:
        messages = [{"role": role, "content": "\n\n".join(texts)} for role, *texts in turns]
        for message in messages:
            if found := self._special.search(message["content"]):
                raise DataError(
                    f"a text spells out the special token {found[0]!r}, which the chat template would take for its own",
                    got=message["content"][:80],
                    do="leave such records out of the file, or type dataset.sft.template=alpaca",
                )
        parts: list[Part] = []
        done = ""
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._text(messages[:k], ask=True)
            after = self._text(messages[: k + 1], ask=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ConfigError(
                    "the chat template changes earlier turns when a later one is added",
                    got=f"{before[-60:]!r} before the answer, {after[-60:]!r} after it",
                    do="type dataset.sft.template=alpaca, or give conversations of one turn",
                )
            parts += [Part(before[len(done) :], False), *self._answer(after[len(before) :])]
            done = after
        return parts

    def _answer(self, text: str) -> list[Part]:
        """What the template writes for an answer; the white space after its end is not learnt."""
        said = text.rstrip()
        ended = any(match.end() == len(said) for match in self._special.finditer(said))
        return [Part(said, True, ends=not ended), Part(text[len(said) :], False)]

    def _text(self, messages: list[dict[str, str]], *, ask: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
        except (TemplateError, IndexError) as error:  # IndexError: nothing before the assistant's first turn
            raise DataError(
                "the chat template refuses a conversation",
                got=f"roles {', '.join(m['role'] for m in messages)}: {error}",
                do="correct the record, or type dataset.sft.template=alpaca",
            ) from error


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the special tokens of a tokenizer in a text, the longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")


def plain_text(conversation: str) -> str:
    """The text that a tokenizer is trained on, of a conversation as sources give it."""
    return "".join(part.text for part in alpaca(json.loads(conversation)))
