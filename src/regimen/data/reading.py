"""Stage 1: the source becomes documents on disk, one file per domain, without exact duplicates.

A document's place is decided by hashes alone: a `key` (64 bits, seeded by validation.seed) at or below the threshold of
its domain means validation. So every shard, in any order, takes the same decisions without asking another.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError, DataError
from regimen.data.fingerprint import seeded_key, text_digest
from regimen.data.settings import DatasetSettings
from regimen.data.sources.records import BadRecords, Record, Source
from regimen.data.tables import Folder, TextWriter, file_name
from regimen.data.targets import Candidates, read_targets
from regimen.data.text_targets import TextCandidates, read_text_targets

SAMPLE = "sample.arrow"
MIN_SAMPLE = 64  # documents that a tokenizer sees however small train_mb is


class Sample:
    """The texts with the lowest hashes, up to `limit` characters: the same whatever order they come in."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._size = 0
        self._heap: list[tuple[int, str, str, int]] = []  # (-sample key, domain, text, split key)

    def add(self, domain: str, content: str, text: str, key: int) -> None:
        """Offers a document."""
        rank = -seeded_key(content, "tokenizer")
        if self._size >= self.limit and len(self._heap) >= MIN_SAMPLE and rank < self._heap[0][0]:
            return
        heapq.heappush(self._heap, (rank, domain, text, key))
        self._size += len(text)
        while len(self._heap) > MIN_SAMPLE and self._size - len(self._heap[0][2]) >= self.limit:
            self._size -= len(heapq.heappop(self._heap)[2])

    def training_texts(self, thresholds: Mapping[str, int]) -> Iterator[str]:
        """The texts of the training split, in the order of their hashes."""
        for _, domain, text, key in sorted(self._heap, reverse=True):
            if key > thresholds[domain]:
                yield text


class Tally:
    """What the split of a domain needs: the key and the bytes of each document of it, whichever shard holds them."""

    def __init__(self) -> None:
        self.keys: dict[str, array[int]] = defaultdict(lambda: array("Q"))
        self.sizes: dict[str, array[int]] = defaultdict(lambda: array("Q"))

    def add(self, domain: str, key: int, size: int) -> None:
        """Counts one document."""
        self.keys[domain].append(key)
        self.sizes[domain].append(size)

    def thresholds(self, fraction: float) -> dict[str, int]:
        """The highest validation key of each domain.

        Validation takes the first documents by key that hold `fraction` of the bytes, at least one and never all.
        Raises DataError for a domain with one document.
        """
        found = {}
        for domain, keys in sorted(self.keys.items()):
            key = np.frombuffer(keys, np.uint64)
            order = key.argsort()
            distinct = np.unique(key)
            if len(distinct) < 2:
                raise single_document(domain)
            share = np.cumsum(np.frombuffer(self.sizes[domain], np.uint64)[order])
            last = int(np.searchsorted(share, fraction * float(share[-1])))
            found[domain] = int(min(key[order][min(last, len(key) - 1)], distinct[-2]))
        return found


def single_document(domain: str) -> DataError:
    """The error for a domain that cannot be split."""
    return DataError(
        f"domain {domain!r} has one document only, so nothing can be held out for validation",
        do="cut it into several documents (for text files type 'dataset.separator=\"\\n\\n\"'), add text, or merge "
        "the domain into another one with dataset.domain=NAME",
    )


class Reader:
    """Reads one shard of a source. target: the files of a target set, if it comes from files."""

    def __init__(
        self,
        source: Source,
        settings: DatasetSettings,
        *,
        shard_index: int,
        shard_count: int,
        target: Source | None = None,
    ) -> None:
        self.source, self.settings, self.target = source, settings, target
        self.shard_index, self.shard_count = shard_index, shard_count
        self.bad = BadRecords(settings.on_bad_record)
        self.duplicates: Counter[str] = Counter()
        self.sample = Sample(settings.tokenizer.train_mb * 1e6)
        self.tally = Tally()
        of = Candidates if settings.format == "sft" else TextCandidates
        self.candidates: Candidates | TextCandidates = of(settings)

    def write(self, folder: Folder, advance: Callable[[int], None]) -> dict[str, Any]:
        """Writes texts and the tokenizer's sample to `folder`; returns the counts."""
        writers: dict[str, TextWriter] = {}
        sizes: Counter[str] = Counter()
        for record, content, key in self._kept(self._records(advance)):
            if record.domain not in writers:
                writers[record.domain] = TextWriter(folder / f"{file_name(record.domain)}.arrow")
            writers[record.domain].add(record.id or content, record.text, content, key)
            sizes[record.domain] += len(record.text.encode())
        for writer in writers.values():
            writer.close()
        if not self.tally.keys:
            raise DataError(
                "the source has no documents",
                got=f"dataset.source={self.settings.source}, {sum(self.bad.skipped.values())} bad records skipped",
            )
        thresholds = self._thresholds()
        if self.settings.shard_by == "content":
            self._write_sample(folder / SAMPLE, thresholds)
        aimed = self.candidates.close(folder, thresholds)
        if self.target is not None:
            read = read_targets if self.settings.format == "sft" else read_text_targets
            aimed = read(self.target, self.settings, folder)
        return {
            "domains": sorted(writers),
            "bytes": dict(sizes),
            "thresholds": thresholds,
            "duplicates": dict(self.duplicates),
            "skipped": dict(self.bad.skipped),
            **aimed,
        }

    def heads(self) -> Iterator[str]:
        """Training texts from the beginning of every part, the same in every shard. For `shard_by: file`."""
        parts = self.source.parts()
        for part in parts:
            left = self.sample.limit / len(parts)
            for record in self.source.read(part, BadRecords("skip")):
                key = seeded_key(text_digest(record.text), "split", self.settings.validation.seed)
                if key > self._uniform_threshold():
                    yield record.text
                left -= len(record.text)
                if left <= 0:
                    break

    def _records(self, advance: Callable[[int], None]) -> Iterator[Record]:
        parts = self.source.parts()
        if self.settings.shard_by == "file":
            parts = parts[self.shard_index :: self.shard_count]
            if not parts:
                raise ConfigError(
                    "dataset.shard_by=file needs a file for every shard",
                    got=f"shard.count={self.shard_count}",
                    allowed=f"shard.count up to {len(self.source.parts())}",
                )
        names = self.settings.domains
        for part in parts:
            for record in self.source.read(part, self.bad):
                advance(len(record.text))
                yield record._replace(domain=names.get(record.domain, record.domain))

    def _kept(self, records: Iterable[Record]) -> Iterator[tuple[Record, str, int]]:
        """Documents of this shard without duplicates, each with its content hash and split key.

        By content, every shard sees all documents, so that duplicates, split and sample are those of the whole.
        """
        by_content = self.settings.shard_by == "content"
        seen: set[bytes] = set()
        for record in records:
            content = text_digest(record.text)
            key = seeded_key(content, "split", self.settings.validation.seed)
            if self.settings.deduplicate:
                packed = bytes.fromhex(content)
                if packed in seen:
                    self.duplicates[record.domain] += 1
                    continue
                seen.add(packed)
            self.tally.add(record.domain, key, len(record.text.encode()))
            self.candidates.add(record, content, key)
            if self.settings.tokenizer.kind == "bpe":
                self.sample.add(record.domain, content, record.text, key)
            if not by_content or int(content[:16], 16) % self.shard_count == self.shard_index:
                yield record, content, key

    def _thresholds(self) -> dict[str, int]:
        if self.settings.shard_by == "content":
            return self.tally.thresholds(self.settings.validation.fraction)
        # No shard sees the whole, so a document goes by its key alone; equal documents still meet on one side.
        return dict.fromkeys(sorted(self.tally.keys), self._uniform_threshold())

    def _uniform_threshold(self) -> int:
        return int(self.settings.validation.fraction * 2**64)

    def _write_sample(self, path: Any, thresholds: Mapping[str, int]) -> None:
        writer = TextWriter(path)
        for text in self.sample.training_texts(thresholds):
            writer.add("", text, "", 0)
        writer.close()
