"""Arrow tables on disk: written with the writer of `datasets`, read as numpy views of memory-mapped buffers.

Files are Arrow streams that `datasets.Dataset.from_file` opens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa

FLUSH_CHARACTERS = 8 << 20  # text per record batch
DOCUMENT_TEXTS = pa.schema(
    {"id": pa.large_string(), "text": pa.large_string(), "hash": pa.large_string(), "key": pa.uint64()}
)
DOCUMENTS = pa.schema(
    {
        "id": pa.large_string(),
        "hash": pa.large_string(),
        "domain": pa.large_string(),
        "split": pa.large_string(),
        "tokens": pa.int32(),
        "bytes": pa.int64(),
    }
)


class Folder(Protocol):
    """A place for the files of a stage: a Path, or one in memory, whose files are Arrow streams."""

    def __truediv__(self, name: str) -> Any:
        """The file of a name."""
        ...


def rows_schema(vocab_size: int, *, targets: bool = False) -> pa.Schema:
    """Columns of a row table.

    `document` numbers documents inside the file; `start` and `offset` are where the span begins in row and document.
    targets: with `target`, 1 at each token that is in the loss and 0 at the others.
    """
    token = pa.uint16() if vocab_size <= 1 << 16 else pa.int32()
    columns = {
        "tokens": pa.list_(token),
        "document": pa.list_(pa.int64()),
        "start": pa.list_(pa.int32()),
        "offset": pa.list_(pa.int64()),
    }
    return pa.schema(columns | ({"target": pa.list_(pa.uint8())} if targets else {}))


def file_name(domain: str) -> str:
    """A file name for any domain name."""
    return quote(domain, safe=" ()+,").replace(".", "%2E")


class TableWriter:
    """Writes tables of one schema to one file, or into an Arrow stream."""

    def __init__(self, path: Path | pa.NativeFile, schema: pa.Schema) -> None:
        from datasets import Features
        from datasets.arrow_writer import ArrowWriter

        place: dict[str, Any] = {"stream": path}
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            place = {"path": str(path)}
        features = Features.from_arrow_schema(schema)
        self.schema = schema
        self.rows = 0
        self._writer = ArrowWriter(features=features, disable_nullable=False, **place)

    def write(self, columns: dict[str, object]) -> None:
        """Appends one record batch."""
        table = pa.table([_array(columns[f.name], f.type) for f in self.schema], schema=self.schema)
        if table.num_rows:
            self.rows += table.num_rows
            self._writer.write_table(table, writer_batch_size=table.num_rows)

    def close(self) -> None:
        """Finishes the file, which may be empty."""
        if not self.rows:
            self._writer.write_table(self.schema.empty_table())
        self._writer.finalize()


class TextWriter:
    """The documents of one domain, buffered."""

    def __init__(self, path: Path | pa.NativeFile) -> None:
        self._writer = TableWriter(path, DOCUMENT_TEXTS)
        self._rows: list[tuple[str, str, str, int]] = []
        self._characters = 0

    def add(self, id_: str, text: str, content: str, key: int) -> None:
        """Appends one document."""
        self._rows.append((id_, text, content, key))
        self._characters += len(text)
        if self._characters >= FLUSH_CHARACTERS or len(self._rows) >= 10_000:
            self._flush()

    def close(self) -> None:
        """Finishes the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            self._writer.write(dict(zip(DOCUMENT_TEXTS.names, map(list, columns), strict=True)))
        self._rows, self._characters = [], 0


def read_batches(path: Path | pa.Buffer) -> Iterator[pa.RecordBatch]:
    """The record batches of a file, memory mapped, or of what was written in memory."""
    with (
        pa.memory_map(str(path)) if isinstance(path, Path) else pa.BufferReader(path) as source,
        pa.ipc.open_stream(source) as reader,
    ):
        yield from reader


class ListView(NamedTuple):
    """A list column of one record batch: item i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class RowFile:
    """Numpy views of one row file: batches of list columns, found by row number."""

    def __init__(self, path: Path) -> None:
        batches = [b for b in read_batches(path) if b.num_rows]
        self.first = np.cumsum([0, *(b.num_rows for b in batches)])
        self._batches = [{name: _list_view(b.column(name)) for name in b.schema.names} for b in batches]

    def at(self, row: int) -> tuple[dict[str, ListView], int]:
        """The batch that holds a row, and the row's place in it."""
        k = int(np.searchsorted(self.first, row, side="right")) - 1
        return self._batches[k], row - int(self.first[k])

    def lengths(self, rows: int) -> np.ndarray:
        """(rows,) tokens of the first `rows` rows."""
        parts = [np.diff(view["tokens"].offsets) for view in self._batches]
        return np.concatenate([np.zeros(0, np.int32), *parts])[:rows]

    def sums(self, name: str, rows: int) -> np.ndarray:
        """(rows,) int64 sum of each item of a list column of the first `rows` rows."""
        parts = []
        for values, offsets in self.stretches(name, rows):
            running = np.concatenate([[0], values.cumsum(dtype=np.int64)])
            parts.append(running[offsets[1:]] - running[offsets[:-1]])
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def stretches(self, name: str, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(values, offsets) of a list column of the first `rows` rows, batch by batch."""
        for view, first in zip(self._batches, self.first, strict=False):
            count = min(rows - int(first), len(view[name].offsets) - 1)
            if count > 0:
                yield view[name].values, view[name].offsets[: count + 1]


def _array(values: object, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _list_view(column: pa.ListArray) -> ListView:
    return ListView(column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy(zero_copy_only=True))


def column(paths: Iterable[Path], name: str) -> pa.ChunkedArray:
    """One column of several files of one schema, at least one of them."""
    chunks: list[pa.Array] = []
    for path in paths:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            kind = reader.schema.field(name).type
            chunks += [batch.column(name) for batch in reader]
    return pa.chunked_array(chunks, kind)
