"""The target set of a pool of packed text: whole documents of each subtask, in no row of training or validation.

Documents are taken by content hash, lowest first, until the rows of their subtask are full. Reading keeps the texts of
more than that, since it knows no tokens yet; which of them are in the set is decided when there is a tokenizer. Every
shard reads all documents and decides the same; the first one packs the rows.
Letters: t tokens of a document.
"""

from __future__ import annotations

import heapq
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regimen.core.errors import DataError
from regimen.data.encoding import Encoder
from regimen.data.fingerprint import text_digest
from regimen.data.packing import Packer
from regimen.data.settings import DatasetSettings
from regimen.data.sources.records import BadRecords, Record, Source
from regimen.data.tables import DOCUMENTS, TableWriter, TextWriter, file_name, read_batches
from regimen.data.targets import FOLDER, check_domains, rank

MAX_CHARACTERS = 16  # of a token, on average over the documents of a subtask
MIN_DOCUMENTS = 64  # kept of a subtask however small its rows are


class _Lowest:
    """The documents of lowest rank of one subtask, `limit` characters or more: the same whatever order they come in.

    certain: documents with a key above this are all but surely in training; others do not count towards the limit.
    """

    def __init__(self, limit: float, certain: int) -> None:
        self.limit, self.certain = limit, certain
        self.keys = array("Q")  # of all documents of the subtask
        self._heap: list[tuple[int, str, str, str, int]] = []  # (-rank, content hash, id, text, split key)
        self._size = self._count = 0

    def add(self, order: int, record: Record, content: str, key: int) -> None:
        self.keys.append(key)
        heapq.heappush(self._heap, (-order, content, record.id or content, record.text, key))
        self._size += self._weight(record.text, key)[0]
        self._count += self._weight(record.text, key)[1]
        while True:
            size, count = self._weight(*self._heap[0][3:])
            if self._size - size < self.limit or self._count - count < MIN_DOCUMENTS:
                break
            heapq.heappop(self._heap)
            self._size, self._count = self._size - size, self._count - count

    def write(self, path: Path, threshold: int) -> int:
        """Writes the training documents in their order; returns how many the subtask has, those not kept included."""
        writer = TextWriter(path)
        for _, content, id_, text, key in sorted(self._heap, reverse=True):
            if key > threshold:
                writer.add(id_, text, content, key)
        writer.close()
        return sum(key > threshold for key in self.keys)

    def _weight(self, text: str, key: int) -> tuple[int, int]:
        return (len(text), 1) if key > self.certain else (0, 0)


class TextCandidates:
    """Documents of the domains that a target set is held out of, of all domains where it comes from files."""

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings, rows = settings.target, settings.target.rows_per_subtask
        limit = float("inf") if rows is None else rows * (settings.seq_len + 1) * MAX_CHARACTERS
        certain = -1 if self.settings.path else int(settings.validation.fraction * 2**64)
        self._found: dict[str, _Lowest] = defaultdict(lambda: _Lowest(limit, certain))

    def add(self, record: Record, content: str, key: int) -> None:
        """Offers a document of the dataset with its content hash and split key."""
        if record.domain in self.settings.domains:
            self.take(record, content, key)

    def take(self, record: Record, content: str, key: int) -> None:
        """Takes a document into its subtask, if its rank is low enough."""
        self._found[record.domain].add(rank(content, self.settings), record, content, key)

    def close(self, folder: Path, thresholds: Mapping[str, int]) -> dict[str, Any]:
        """Writes the texts to `folder`; returns `candidates`, the training documents of each subtask.

        thresholds: highest validation key by domain. Raises ConfigError for an unknown domain.
        """
        check_domains(self.settings, thresholds)
        return {
            "candidates": {
                domain: found.write(folder / FOLDER / f"{file_name(domain)}.arrow", thresholds[domain])
                for domain, found in sorted(self._found.items())
            }
        }


def read_text_targets(source: Source, settings: DatasetSettings, folder: Path) -> dict[str, Any]:
    """Writes the texts of a target set from files to `folder`; returns `candidates`, the documents of each subtask.

    A document of two subtasks is in the first. Raises DataError if there is none.
    """
    bad = BadRecords(settings.on_bad_record)
    candidates, seen, subtasks = TextCandidates(settings), set(), set()
    for part in source.parts():
        for record in source.read(part, bad):
            content = text_digest(record.text)
            if content in seen:
                continue
            seen.add(content)
            domain = settings.domains.get(record.domain, record.domain)
            subtasks.add(domain)
            candidates.take(record._replace(domain=domain), content, 0)
    if not subtasks:
        raise DataError("the target set has no documents", got=f"dataset.target.path={settings.target.path}")
    return candidates.close(folder, dict.fromkeys(subtasks, -1))


class Taken(NamedTuple):
    """A document of the target set. tokens: (t,) int32."""

    id: str
    content: str
    size: int
    tokens: np.ndarray


def taken(texts: Path, encoder: Encoder, settings: DatasetSettings) -> Iterator[Taken]:
    """The documents of one subtask, until its rows are full."""
    rows = settings.target.rows_per_subtask
    left = float("inf") if rows is None else rows * (settings.seq_len + 1)
    for batch in read_batches(texts):
        ids, contents, found = (batch.column(name).to_pylist() for name in ("id", "hash", "text"))
        for id_, content, text, tokens in zip(ids, contents, found, encoder.encode(found), strict=True):
            if left <= 0:
                return
            left -= len(tokens) + 1  # the EOS before it
            yield Taken(id_, content, len(text.encode()), tokens)


def hold_out(texts: Path, candidates: Mapping[str, int], encoder: Encoder, settings: DatasetSettings) -> dict[str, str]:
    """By content hash, the subtask of each document of the target set.

    texts: the shard's folder of texts. candidates: training documents by subtask. Raises DataError where the rows of a
    subtask would leave its domain nothing to train on.
    """
    held: dict[str, str] = {}
    for domain, there in sorted(candidates.items()):
        chosen = [d.content for d in taken(texts / FOLDER / f"{file_name(domain)}.arrow", encoder, settings)]
        if settings.target.domains and len(chosen) == there:
            raise DataError(
                f"domain {domain!r} has too few training documents to hold a target set out of",
                got=f"dataset.target.rows_per_subtask={settings.target.rows_per_subtask}, {there} training documents "
                f"for rows of {settings.seq_len + 1} tokens",
                do="lower dataset.target.rows_per_subtask, or name other domains in dataset.target.from",
            )
        held |= dict.fromkeys(chosen, domain)
    return held


def encode_target(
    texts: Path, folder: Path, *, domain: str, encoder: Encoder, settings: DatasetSettings
) -> dict[str, Any]:
    """Writes target.arrow and documents.arrow of one subtask to `folder`; returns the counts."""
    limit = settings.target.rows_per_subtask
    shape = {"length": settings.seq_len + 1, "eos_id": encoder.eos_id, "vocab_size": encoder.vocab_size}
    packer = Packer(folder / f"{FOLDER}.arrow", max_rows=limit, **shape)
    table = TableWriter(folder / "documents.arrow", DOCUMENTS)
    lines: dict[str, Any] = {name: [] for name in DOCUMENTS.names}
    for number, document in enumerate(taken(texts, encoder, settings)):
        packer.add(number, document.tokens)
        values = (document.id, document.content, domain, FOLDER, len(document.tokens), document.size)
        for name, value in zip(DOCUMENTS.names, values, strict=True):
            lines[name].append(value)
    table.write(lines)
    table.close()
    counts = {"documents": table.rows, "bytes": sum(lines["bytes"]), "tokens": sum(lines["tokens"])}
    counts |= {"tokens_in_no_row": packer.close(), "rows": packer.rows, "short_row": packer.short_row}
    return {"domain": domain, "documents": table.rows, FOLDER: counts}
