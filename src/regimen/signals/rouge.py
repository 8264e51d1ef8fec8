"""ROUGE-L: how much of a reference an answer says, in the same order.

Paper: Lin 2004, section 3.1, with equal weight of precision and recall. Differs from common packages: words are runs of
letters and digits of any script in lower case, and no stemmer is used, so that "answers" and "answer" differ.
Letters: m words of the answer, k of the reference.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

_WORD = re.compile(r"[^\W_]+")


def rouge_l(answer: str, reference: str) -> float:
    """F1 in 0 to 1 of the longest common subsequence of words; 0 where either text has no word."""
    said, wanted = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
    common = longest_common(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def longest_common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence of m and k things.

    A column of the usual table is one integer, in which a bit is 0 where the length grows. Source: Hyyro 2004.
    """
    places: dict[Hashable, int] = defaultdict(int)
    for i, thing in enumerate(first):
        places[thing] |= 1 << i
    full = (1 << len(first)) - 1
    column = full
    for thing in second:
        met = column & places.get(thing, 0)
        column = ((column + met) | (column - met)) & full
    return len(first) - column.bit_count()
