"""Packing: the documents of one domain become one stream of tokens, cut to rows.

The stream is EOS, document, EOS, document, ...; the EOS before a document belongs to that document, as position 0.
A row holds `length` = seq_len + 1 tokens and lists the spans of documents that it holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from regimen.data.tables import TableWriter, rows_schema

FLUSH_TOKENS = 1 << 22  # tokens per record batch: 8 MB of 16-bit tokens


class Packer:
    """Writes rows of `length` tokens to one file. `max_rows` of None is no limit."""

    def __init__(
        self, path: Path | pa.NativeFile, *, length: int, eos_id: int, vocab_size: int, max_rows: int | None = None
    ) -> None:
        self.length, self.eos_id, self.max_rows = length, eos_id, max_rows
        self._schema = rows_schema(vocab_size)
        self._dtype = self._schema.field("tokens").type.value_type.to_pandas_dtype()
        self._writer = TableWriter(path, self._schema)
        self._parts: list[np.ndarray] = []
        self._documents: list[tuple[int, int]] = []  # (document, tokens already in written rows)
        self._pending = 0
        self.tokens = 0
        self.short_row = 0

    @property
    def rows(self) -> int:
        """Rows written."""
        return self._writer.rows

    @property
    def full(self) -> bool:
        """Whether further documents would be dropped."""
        return self.max_rows is not None and self.rows + self._pending // self.length >= self.max_rows

    def add(self, document: int, tokens: np.ndarray) -> None:
        """Appends a document, numbered inside its file, of (t,) token ids."""
        self.tokens += len(tokens) + 1
        if self.full:
            return
        part = np.empty(len(tokens) + 1, self._dtype)
        part[0], part[1:] = self.eos_id, tokens
        self._parts.append(part)
        self._documents.append((document, 0))
        self._pending += len(part)
        if self._pending >= FLUSH_TOKENS:
            self._flush()

    def close(self) -> int:
        """Writes what is left; returns the tokens that are in no row.

        The unfinished last row is dropped, unless it is the only one: then it is kept, shorter (`short_row` tokens).
        """
        self._flush()
        if self.rows == 0 and self._pending:
            self.short_row = self._pending
            self._write(1, self._pending)
        kept = self.short_row or self.rows * self.length
        self._writer.close()
        return self.tokens - kept

    def _flush(self) -> None:
        rows = self._pending // self.length
        if self.max_rows is not None:
            rows = min(rows, self.max_rows - self.rows)
        if rows:
            self._write(rows, self.length)

    def _write(self, rows: int, length: int) -> None:
        """Writes the first `rows` rows of `length` tokens and keeps the rest of the stream."""
        lengths = np.array([len(part) for part in self._parts])
        ends = np.cumsum(lengths)
        begins = ends - lengths
        cut = rows * length
        stream = np.concatenate(self._parts)
        # A span starts where a document or a row does.
        starts = np.union1d(begins[begins < cut], np.arange(rows) * length)  # (S,)
        owner = np.searchsorted(ends, starts, side="right")  # (S,) index into the pending documents
        numbers, done = np.array(self._documents).T
        bounds = np.searchsorted(starts, np.arange(rows + 1) * length)  # (rows+1,)
        self._writer.write(
            {
                "tokens": as_lists(stream[:cut], np.arange(rows + 1) * length),
                "document": as_lists(numbers[owner], bounds),
                "start": as_lists((starts % length).astype(np.int32), bounds),
                "offset": as_lists(starts - begins[owner] + done[owner], bounds),
            }
        )
        self._keep_after(cut, stream, begins, ends)

    def _keep_after(self, cut: int, stream: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
        left = [k for k in range(len(ends)) if ends[k] > cut]
        self._parts = [stream[max(begins[k], cut) : ends[k]].copy() for k in left]
        self._documents = [(self._documents[k][0], self._documents[k][1] + max(0, cut - int(begins[k]))) for k in left]
        self._pending = len(stream) - cut


def as_lists(values: np.ndarray, offsets: np.ndarray) -> object:
    """A list column: item i is `values[offsets[i]:offsets[i + 1]]`."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
