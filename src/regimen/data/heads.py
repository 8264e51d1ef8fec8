"""The first records of the parts of a source, and how many there are in all: what a forecast is made from.

Parts are visited in an order that spreads over them. A source that is no larger than what may be read is read whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from regimen.data.settings import DatasetSettings
from regimen.data.sources.files import FileSource
from regimen.data.sources.records import BadRecords, Record, Source

SPREAD = 32  # parts that a sample is spread over, unless each gives less
_BOUNDED = ("local", "local_sft")  # sources that their settings keep small: they are read whole


class Head(NamedTuple):
    """The first records of a part. share: of the part, None where nothing says. stored: bytes of the part.

    ended: there are no more records in it.
    """

    part: Any
    records: list[Record]
    share: float | None
    stored: int | None
    ended: bool


class Heads(NamedTuple):
    """What was read. factors: by domain, documents of the source per document read; None where nothing tells.

    whole: every record of the source was read. seconds: it took.
    """

    heads: list[Head]
    factors: dict[str, float] | None
    whole: bool
    seconds: float

    @property
    def records(self) -> list[Record]:
        """All records."""
        return [record for head in self.heads for record in head.records]


def read_heads(source: Source, settings: DatasetSettings, bad: BadRecords, *, megabytes: float) -> Heads:
    """Up to about `megabytes` of text (10^6 bytes), spread over the parts of the source."""
    start, budget = time.perf_counter(), megabytes * 1e6
    parts = source.parts()
    each = max(budget / SPREAD, budget / len(parts))
    stored = _stored(source, parts)
    if settings.source in _BOUNDED or (stored is not None and sum(stored) <= budget):
        each = budget = float("inf")
    heads: list[Head] = []
    for k in _spread(len(parts)):
        if budget <= 0:
            break
        size = None if stored is None else stored[k]
        head = _head(source, parts[k], bad, limit=min(each, budget), stored=size)
        budget -= sum(len(record.text.encode()) for record in head.records)
        heads.append(head)
    whole = len(heads) == len(parts) and all(head.ended for head in heads)
    factors = dict.fromkeys(_domains(heads, settings), 1.0) if whole else _factors(heads, parts, stored, settings)
    return Heads(heads, factors, whole, time.perf_counter() - start)


def _spread(n: int) -> Iterator[int]:
    """0 to n-1, each stretch of the order spread over all: by the bits of the place, read backwards."""
    bits = max(n - 1, 1).bit_length()
    return (k for k in (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)) if k < n)


def _stored(source: Source, parts: list[Any]) -> list[int] | None:
    return [source.stored(part) for part in parts] if isinstance(source, FileSource) else None


def _head(source: Source, part: Any, bad: BadRecords, *, limit: float, stored: int | None) -> Head:
    taken: list[Record] = []
    size = 0
    with _metered(source, part, bad) as (records, share_of):
        for record in records:
            taken.append(record)
            size += len(record.text.encode())
            if size >= limit:
                share = share_of(len(taken), size)
                return Head(part, taken, None if share is None else min(share, 1.0), stored, ended=False)
    return Head(part, taken, 1.0, stored, ended=True)


@contextmanager
def _metered(source: Source, part: Any, bad: BadRecords) -> Iterator[Any]:
    if isinstance(source, FileSource):
        with source.metered(part, bad) as found:
            yield found
    else:
        yield source.read(part, bad), lambda n, size: None


def _factors(
    heads: list[Head], parts: list[Any], stored: list[int] | None, settings: DatasetSettings
) -> dict[str, float] | None:
    """By domain of records. Parts of one domain are taken to be alike, byte for byte of what is stored."""
    if stored is None or any(head.share is None for head in heads):
        return None
    groups: dict[str, float] = defaultdict(float)  # stored bytes by domain of parts
    for part, size in zip(parts, stored, strict=True):
        groups[part.domain] += size
    seen: dict[str, float] = defaultdict(float)  # of the parts that were visited
    for head in heads:
        seen[head.part.domain] += head.stored or 0
    unseen = sum(stored) / max(sum(size for name, size in groups.items() if seen[name]), 1)
    counted: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # documents read, and in all
    for head in heads:
        name = head.part.domain
        weight = unseen * groups[name] / max(seen[name], 1) / max(head.share or 0, 1e-9)
        for record in head.records:
            of_domain = counted[settings.domains.get(record.domain, record.domain)]
            of_domain[0] += 1
            of_domain[1] += weight
    return {domain: whole / read for domain, (read, whole) in counted.items()}


def _domains(heads: list[Head], settings: DatasetSettings) -> set[str]:
    return {settings.domains.get(record.domain, record.domain) for head in heads for record in head.records}
