"""Rewards: how good an answer is, from 0 to 1, by a rule or by a user's function.

`exact` is 1 or 0: the last number of the answer equals that of the reference, where the reference ends in a number by
itself or after ####, as in GSM8K; else both texts are equal but for case, space and punctuation around them.
`rouge` is ROUGE-L, how much of the reference the answer says in the same order.
"""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Callable

from regimen.core.errors import ConfigError
from regimen.signals.rouge import rouge_l

Reward = Callable[[str, str, str], float]
"""From a prompt, an answer and a reference answer to a number from 0 to 1."""

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact(prompt: str, answer: str, reference: str) -> float:
    """1 where the answer says what the reference says, else 0."""
    final = reference.rsplit("####", 1)[-1].strip()
    wanted = _number(final) if _NUMBER.fullmatch(final) else None
    if wanted is None:
        return float(_plain(answer) == _plain(reference))
    said = _NUMBER.findall(answer)
    return float(bool(said) and _number(said[-1]) == wanted)


def rouge(prompt: str, answer: str, reference: str) -> float:
    """ROUGE-L of the answer; 1 for equal words, 0 for none in common."""
    return rouge_l(answer, reference)


def reward_of(name: str) -> Reward:
    """The rule `exact` or `rouge`, or the function at a dotted path. Raises ConfigError where there is none."""
    rules: dict[str, Reward] = {"exact": exact, "rouge": rouge}
    if name in rules:
        return rules[name]
    module, _, function = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "unknown reward",
            got=f"reward={name}: {error}",
            allowed="exact, rouge, or package.module.function of (prompt, answer, reference)",
            do="a module of your own must lie in the folder where you start, or on PYTHONPATH",
        ) from error
    if not callable(found):
        raise ConfigError("the reward is no function", got=f"reward={name}")
    rule: Reward = found
    return rule


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _plain(text: str) -> str:
    return " ".join(word.strip(string.punctuation) for word in text.lower().split()).strip()
