"""Documents in files: JSON lines, Parquet, or plain text; a file, a folder, a glob, or any fsspec URL of these.

The domain of a file is, in this order: `domain` of the settings; the first folder below `path`; the file's name up to
the first dot and without `-00000-of-00010`. Text files directly in the folder
are documents of one domain, named after it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from regimen.core.errors import DataError
from regimen.data.fingerprint import DigestCache
from regimen.data.settings import DatasetSettings
from regimen.data.sources.records import BadRecords, Record

SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "text": (".txt", ".text", ".md"),
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
REMOTE_MARKS = ("ETag", "etag", "md5Hash", "md5", "checksum", "sha256", "blob_id", "oid")
REMOTE_TIMES = ("LastModified", "last_modified", "last_commit", "mtime", "updated", "created")


class Part(NamedTuple):
    """A file. `path` is the file system's, `name` is relative to the typed path, so that a corpus may be moved."""

    path: str
    name: str
    domain: str


class FileSource:
    """Files of one format."""

    def __init__(self, settings: DatasetSettings, root: Path) -> None:
        import fsspec

        self.settings = settings
        self._cache = DigestCache(root / "digests.json")
        try:
            self._fs, self._path = fsspec.core.url_to_fs(str(settings.path))
        except (ValueError, ImportError) as error:
            raise DataError("dataset.path cannot be opened", got=settings.path, do=str(error)) from error
        self._local = "file" in self._fs.protocol

    def identity(self) -> Any:
        """Names, domains and contents of the files; remote files by what their file system says of them."""
        found = [[part.name, part.domain, self._content(part)] for part in self.parts()]
        self._cache.save()
        return found

    def parts(self) -> list[Part]:
        return self._parts

    def read(self, part: Part, bad: BadRecords) -> Generator[Record, None, None]:
        from regimen.data.sources import formats

        if self._fs.size(part.path) == 0:
            bad.report("the file is empty", file=part.path, line=0)
            return
        reader = {"jsonl": formats.read_jsonl, "parquet": formats.read_parquet, "text": formats.read_text}
        count = 0
        for record in reader[self.settings.source](self._fs, part, self.settings, bad):
            count += 1
            yield record
        if count == 0 and bad.skipped[part.path]:
            raise DataError(
                f"{part.path}: not one of its records can be used",
                got=f"{bad.skipped[part.path]} bad records",
                do="look at the first of them by typing on_bad_record=fail",
            )
        if count == 0:
            bad.report("the file has no records", file=part.path, line=0)

    def stored(self, part: Part) -> int:
        """Bytes of a part as it lies there, compressed or not."""
        return int(self._fs.size(part.path) or 0)

    @contextmanager
    def metered(self, part: Part, bad: BadRecords) -> Iterator[tuple[Iterator[Record], Callable[[int, int], float]]]:
        """The records of a part, and what says which share of the part the first n of them, of so many bytes, are."""
        if self.settings.source == "parquet":
            import pyarrow.parquet as pq

            with self._fs.open(part.path, "rb") as file:
                rows = pq.ParquetFile(file).metadata.num_rows
            yield self.read(part, bad), lambda n, size: n / max(rows, 1)
            return
        alike, stored = copy.copy(self), max(self.stored(part), 1)
        alike._fs = places = _Places(self._fs)
        records = alike.read(part, bad)
        try:
            if self.settings.separator and not part.path.endswith(COMPRESSED):  # text comes in blocks, far ahead
                between = len(self.settings.separator.encode())
                yield records, lambda n, size: (size + n * between) / stored
            else:
                yield records, lambda n, size: places.at() / stored
        finally:
            records.close()
            places.close()

    @cached_property
    def _parts(self) -> list[Part]:
        fs, path = self._fs, self._path
        if any(mark in str(self.settings.path) for mark in "*?["):
            base = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            files = [f for f in fs.glob(path) if fs.isfile(f)]
        elif fs.isdir(path):
            base = path.rstrip("/")
            suffixes = SUFFIXES[self.settings.source]
            files = [f for f in fs.find(base) if _stem(f).endswith(suffixes) and "/." not in f[len(base) :]]
        else:
            base = path.rpartition("/")[0]
            files = [path] if fs.exists(path) else []
        if not files:
            raise self._nothing_found()
        named = sorted((f[len(base) :].lstrip("/"), f) for f in files)
        single = len(named) == 1 and named[0][1] == path
        return [Part(f, name, self._domain(name, base, single=single)) for name, f in named]

    def _domain(self, name: str, base: str, *, single: bool) -> str:
        if self.settings.domain:
            return self.settings.domain
        folder, _, rest = name.partition("/")
        if rest:
            return folder
        if self.settings.source == "text" and not self.settings.separator and not single:
            return base.rpartition("/")[2] or "text"
        stem = re.sub(r"-\d+-of-\d+$", "", name.partition(".")[0])
        return stem or name

    def _content(self, part: Part) -> Any:
        if self._local:
            return self._cache.digest(Path(part.path))
        info = self._fs.info(part.path)
        marks = [str(info[key]) for key in REMOTE_MARKS if info.get(key)]
        times = [str(info[key]) for key in REMOTE_TIMES if info.get(key)]
        return [info.get("size"), marks or times]

    def _nothing_found(self) -> DataError:
        path, wanted = self._path, ", ".join(SUFFIXES[self.settings.source])
        folder = path if self._fs.isdir(path) else path.rpartition("/")[0] or "/"
        there = self._fs.ls(folder, detail=False)[:8] if self._fs.isdir(folder) else []
        names = ", ".join(sorted(f.rstrip("/").rpartition("/")[2] for f in there))
        return DataError(
            f"dataset.path has no file to read for dataset.source={self.settings.source}",
            got=f"{self.settings.path} ({folder} {'holds ' + names if names else 'is empty or missing'})",
            allowed=f"a file, a glob in quotes, or a folder of {wanted} files, also with {', '.join(COMPRESSED)}",
            do="correct dataset.path=..., or choose another format with dataset=jsonl, parquet or text",
        )


class _Places:
    """A file system that knows how far into the stored bytes of a file its reader has come."""

    def __init__(self, fs: Any) -> None:
        self._fs, self._raw = fs, None

    def open(self, path: str, mode: str, compression: str | None = None) -> Any:
        from fsspec.compression import compr
        from fsspec.utils import infer_compression

        self._raw = self._fs.open(path, mode)
        name = infer_compression(path) if compression == "infer" else compression
        if name is None and not path.endswith(COMPRESSED):
            return self._raw
        return _Sips(self._raw) if name is None else compr[name](_Sips(self._raw), mode=mode)

    def at(self) -> int:
        return 0 if self._raw is None else int(self._raw.tell())

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)


class _Sips:
    """A compressed file read a little at a time, so that its place is near what was made of it."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        return bytes(self._raw.read(min(size, 1024) if size >= 0 else size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _stem(path: str) -> str:
    """The path without the suffix of a compression."""
    return next((path.removesuffix(c) for c in COMPRESSED if path.endswith(c)), path)
