"""Readers of JSON lines, Parquet and plain text, compressed or not. Lines and rows are counted from 1."""

from __future__ import annotations

import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from regimen.core.errors import DataError
from regimen.data.settings import DatasetSettings
from regimen.data.sources.fields import record_of
from regimen.data.sources.records import BadRecords, Record, usable_text

BLOCK = 1 << 20  # characters read at a time where a separator is looked for


@contextmanager
def opened(fs: Any, path: str) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a file. Raises DataError where they cannot be read."""
    compression = None if path.endswith(".zst") else "infer"
    try:
        with fs.open(path, "rb", compression=compression) as stream:
            if path.endswith(".zst"):
                import pyarrow as pa

                stream = io.BufferedReader(pa.CompressedInputStream(stream, "zstd"))  # in no standard library yet
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path}: the file cannot be read to its end",
            got=f"{type(error).__name__}: {error}",
            do="check that it is complete and that its name says how it is compressed",
        ) from error


def read_jsonl(fs: Any, part: Any, settings: DatasetSettings, bad: BadRecords) -> Iterator[Record]:
    """One JSON object per line; blank lines are passed over."""
    with opened(fs, part.path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
            except json.JSONDecodeError as error:
                shown = line[:60].decode(errors="replace").strip()
                what = f"not valid JSON: {error.msg}, column {error.colno}"
                bad.report(what, file=part.path, line=number, got=shown, allowed="one JSON object per line")
                continue
            except (UnicodeDecodeError, RecursionError) as error:
                bad.report(f"not readable: {error}", file=part.path, line=number, allowed="JSON in UTF-8")
                continue
            record = record_of(raw, settings, bad, domain=part.domain, file=part.path, line=number)
            if record is not None:
                yield record


def read_parquet(fs: Any, part: Any, settings: DatasetSettings, bad: BadRecords) -> Iterator[Record]:
    """One row per document; only the columns that are needed are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = settings.sft.fields if settings.format == "sft" else (settings.text_field,)
    wanted = [f for f in (*fields, settings.id_field, settings.domain_field) if f]
    with opened(fs, part.path) as stream:
        try:
            table = pq.ParquetFile(stream)
            there = table.schema_arrow.names
            columns = [name for name in there if any(f == name or f.startswith(name + ".") for f in wanted)]
            if not any(fields[0] == c or fields[0].startswith(c + ".") for c in columns):
                usable_text(None, file=part.path, line=0, field=fields[0], fields=there, bad=bad)
                return
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for raw in batch.to_pylist():
                    number += 1
                    record = record_of(raw, settings, bad, domain=part.domain, file=part.path, line=number)
                    if record is not None:
                        yield record
        except pa.ArrowInvalid as error:
            raise DataError(f"{part.path}: not a readable Parquet file", got=str(error).splitlines()[0]) from error


def read_text(fs: Any, part: Any, settings: DatasetSettings, bad: BadRecords) -> Iterator[Record]:
    """The whole file as one document, or one document between two separators."""
    with opened(fs, part.path) as stream:
        text = io.TextIOWrapper(cast(Any, stream), encoding="utf-8-sig")
        try:
            if not settings.separator:
                whole = usable_text(text.read(), file=part.path, line=0, field="file", fields=[], bad=bad)
                if whole is not None:
                    yield Record(part.domain, part.name, whole, part.path, 0)
                return
            line = 1
            for piece in _pieces(text, settings.separator):
                if piece.strip():
                    yield Record(part.domain, None, piece, part.path, line)
                line += piece.count("\n") + settings.separator.count("\n")
        except UnicodeDecodeError as error:
            bad.report(f"not UTF-8: {error.reason} at byte {error.start}", file=part.path, line=0)


def _pieces(text: io.TextIOWrapper, separator: str) -> Iterator[str]:
    left = ""
    while block := text.read(BLOCK):
        *whole, left = (left + block).split(separator)
        yield from whole
    yield left
