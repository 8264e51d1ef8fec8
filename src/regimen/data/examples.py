"""Stage 3 for examples: every conversation becomes one row, with a mark at each token that is in the loss.

A row is at most seq_len + 1 tokens, as packed rows are: what is over is cut off its end. An example of which no target
is left is counted, and in no row.
Letters: t tokens of an example.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from regimen.core.errors import DataError
from regimen.data.encoding import SPLITS, Encoder
from regimen.data.packing import FLUSH_TOKENS, as_lists
from regimen.data.tables import DOCUMENTS, Folder, TableWriter, read_batches, rows_schema
from regimen.data.templates import ChatTemplate, Part, Template, alpaca, special_pattern

TARGET = "target"  # the split of a pool's target set
_COUNTS = ("documents", "bytes", "tokens", "tokens_in_no_row", "target_tokens", "short_row", "cut", "without_target")


class ExampleEncoder:
    """Conversations to tokens and target marks."""

    def __init__(self, tokenizer: Any, token_bytes: np.ndarray, *, template: str, seq_len: int) -> None:
        chat = template == "chat"
        self.encoder = Encoder(tokenizer, token_bytes, special_tokens=chat)  # a chat template writes some out
        self.seq_len = seq_len
        self._template: Template = ChatTemplate(tokenizer) if chat else alpaca
        self._special = special_pattern(tokenizer) if chat else None
        self._begin = [] if chat or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def encode(self, conversations: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """(t,) int32 tokens, (t,) uint8 marks of targets, and the bytes of the text, of each conversation."""
        parts = [self._template(json.loads(text)) for text in conversations]
        found = self.encoder.encode([part.text for row in parts for part in row])
        for row in parts:
            tokens, marks = [np.array(self._begin, np.int32)], [np.zeros(len(self._begin), np.uint8)]
            for part in row:
                ids = next(found)
                if part.ends:
                    ids = np.append(ids, np.int32(self.encoder.eos_id))
                tokens.append(ids)
                marks.append(np.full(len(ids), part.target, np.uint8))
            marked = np.concatenate(marks)
            marked[:1] = 0  # nothing predicts the first token
            yield np.concatenate(tokens), marked, self._bytes(row)

    def _bytes(self, row: list[Part]) -> int:
        text = "".join(part.text for part in row)
        return len((self._special.sub("", text) if self._special else text).encode())


class ExampleWriter:
    """Writes one file of examples, buffered, and counts them. `max_rows` of None is no limit."""

    def __init__(
        self, path: Path | pa.NativeFile, *, seq_len: int, vocab_size: int, max_rows: int | None = None
    ) -> None:
        self.length, self.max_rows = seq_len + 1, max_rows
        self._schema = rows_schema(vocab_size, targets=True)
        self._dtype = self._schema.field("tokens").type.value_type.to_pandas_dtype()
        self._writer = TableWriter(path, self._schema)
        self._rows: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._pending = 0
        self.counts = dict.fromkeys(_COUNTS, 0)

    def add(self, document: int, tokens: np.ndarray, marks: np.ndarray, size: int) -> None:
        """Appends an example of (t,) tokens and marks, `size` bytes of text, numbered inside its file."""
        counts = self.counts
        counts["documents"] += 1
        counts["bytes"] += size
        counts["tokens"] += len(tokens)
        kept, marked = tokens[: self.length], marks[: self.length]
        full = self.max_rows is not None and self._writer.rows + len(self._rows) >= self.max_rows
        if full or not marked.any():
            counts["without_target"] += not marked.any()
            counts["tokens_in_no_row"] += len(tokens)
            return
        counts["cut"] += len(kept) < len(tokens)
        counts["tokens_in_no_row"] += len(tokens) - len(kept)
        counts["target_tokens"] += int(marked.sum())
        self._rows.append((document, kept.astype(self._dtype), marked))
        self._pending += len(kept)
        if self._pending >= FLUSH_TOKENS:
            self._flush()

    def close(self) -> dict[str, int]:
        """Writes what is left; returns the counts."""
        self._flush()
        self._writer.close()
        return self.counts | {"rows": self._writer.rows}

    def _flush(self) -> None:
        if not self._rows:
            return
        documents, tokens, marks = zip(*self._rows, strict=True)
        ends = np.cumsum([0, *map(len, tokens)])
        each = np.arange(len(tokens) + 1)
        zeros = np.zeros(len(tokens))
        self._writer.write(
            {
                "tokens": as_lists(np.concatenate(tokens), ends),
                "document": as_lists(np.array(documents, np.int64), each),
                "start": as_lists(zeros.astype(np.int32), each),
                "offset": as_lists(zeros.astype(np.int64), each),
                "target": as_lists(np.concatenate(marks), ends),
            }
        )
        self._rows, self._pending = [], 0


def encode_examples(
    texts: Path | pa.Buffer,
    folder: Folder,
    *,
    domain: str,
    encoder: ExampleEncoder,
    threshold: int,
    held_out: Mapping[str, str],
    max_validation_rows: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Writes train, validation, target and documents.arrow of one domain to `folder`; returns the counts.

    held_out: by content hash, the subtask of each example of the target set; a copy in another domain is in no row.
    Raises DataError for a validation example that is in the target set.
    """
    shape = {"seq_len": encoder.seq_len, "vocab_size": encoder.encoder.vocab_size}
    limits = {"train": None, "validation": max_validation_rows, TARGET: None}
    writers = {s: ExampleWriter(folder / f"{s}.arrow", max_rows=limit, **shape) for s, limit in limits.items()}
    table = TableWriter(folder / "documents.arrow", DOCUMENTS)
    spelled = removed = 0
    for batch in read_batches(texts):
        splits = ["validation" if key <= threshold else "train" for key in batch.column("key").to_pylist()]
        found = [held_out.get(content) for content in batch.column("hash").to_pylist()]
        splits = [_split(split, domain, subtask) for split, subtask in zip(splits, found, strict=True)]
        lines = _encode_batch(batch, table.rows, encoder, writers, splits)
        table.write(lines | {"domain": [domain] * len(splits)})
        spelled += lines["spelled"]
        removed += splits.count("removed")
        advance(sum(len(text.encode()) for text in batch.column("text").to_pylist()))
    table.close()
    counts = {split: writer.close() for split, writer in writers.items()}
    _refuse_empty(domain, counts, encoder.seq_len)
    return {"domain": domain, "documents": table.rows, "spelled_bytes": spelled, "removed": removed, **counts}


def _encode_batch(
    batch: pa.RecordBatch, first: int, encoder: ExampleEncoder, writers: dict[str, ExampleWriter], splits: list[str]
) -> dict[str, Any]:
    """Writes the examples of a batch, numbered from `first`; returns their lines of the document table.

    `spelled` counts the bytes that the tokens of training and validation stand for, to be held against their text's.
    """
    tokens, sizes, spelled = [], [], 0
    conversations = encoder.encode(batch.column("text").to_pylist())
    for number, (split, (ids, marks, size)) in enumerate(zip(splits, conversations, strict=True), first):
        tokens.append(len(ids))
        sizes.append(size)
        if split in SPLITS:
            spelled += int(encoder.encoder.token_bytes[ids].sum())
        if split in writers:
            writers[split].add(number, ids, marks, size)
    columns = {name: batch.column(name) for name in ("id", "hash")}
    return {**columns, "split": splits, "tokens": tokens, "bytes": sizes, "spelled": spelled}


def _split(split: str, domain: str, subtask: str | None) -> str:
    """Where an example goes that is in the target set of `subtask`, or in none."""
    if subtask is None:
        return split
    if split == "validation":
        raise DataError(
            f"an example of the target set is a validation example of domain {domain!r} too",
            got=f"dataset.target, subtask {subtask!r}",
            do="take it out of one of the files, or type another dataset.validation.seed",
        )
    return TARGET if subtask == domain else "removed"


def _refuse_empty(domain: str, counts: Mapping[str, Mapping[str, int]], seq_len: int) -> None:
    """A split none of whose examples has a target left."""
    for split in (*SPLITS, TARGET):
        lost, rows = counts[split]["without_target"], counts[split]["rows"]
        if lost and not rows:
            raise DataError(
                f"every {split} example of domain {domain!r} has a prompt longer than a row, so no target is left",
                got=f"dataset.seq_len={seq_len}, {lost} examples",
                do="raise dataset.seq_len, or leave the domain out",
            )
