"""Hashes: of settings, of files (remembered by path, size and time), of texts."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from regimen.data.locking import locked


def digest(value: Any) -> str:
    """sha256 in hex of a JSON-able value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def text_digest(text: str) -> str:
    """32 hex digits that two texts share only if they are equal."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def seeded_key(content: str, *salt: object) -> int:
    """A 64-bit number from a content hash, uniform over contents."""
    text = "\x1f".join(map(str, (content, *salt))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is either absent, the old one, or complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class DigestCache:
    """Content digests of local files. A file whose path, size and mtime are as before is not read again.

    path: of the JSON file that remembers them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new: dict[str, list[Any]] = {}
        self._known: dict[str, list[Any]] = json.loads(path.read_text()) if path.exists() else {}

    def digest(self, file: Path) -> str:
        """sha256 in hex of the content of `file`."""
        stat = file.stat()
        key, mark = str(file.absolute()), [stat.st_size, stat.st_mtime_ns]
        known = self._new.get(key) or self._known.get(key)
        if known and known[:2] == mark:
            return known[2]
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        self._new[key] = [*mark, content]
        return content

    def save(self) -> None:
        """Adds the new digests to the file; other processes may do the same."""
        if not self._new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f"{self.path.name}.lock")):
            stored = json.loads(self.path.read_text()) if self.path.exists() else {}
            write_atomically(self.path, json.dumps(stored | self._new))
        self._known |= self._new
        self._new = {}
