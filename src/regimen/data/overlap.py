"""How much of the validation text occurs in the training text: the share of its n-grams of tokens that both have.

Letters: t tokens of a stretch of text, G n-grams. n-grams are compared by a 64-bit hash; those that hold an EOS, and so
cross documents, are left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regimen.core.errors import DataError
from regimen.data.manifest import MANIFEST
from regimen.data.settings import OverlapSettings
from regimen.data.tables import RowFile

FILTER_BITS = 24


def identity_of(settings: OverlapSettings) -> Any:
    """What determines the report, apart from the pool; texts to hold against it by path, size and time."""
    return {"n": settings.n, "against": [[str(path), *_mark(Path(path))] for path in settings.against]}


def report(folder: Path, settings: OverlapSettings) -> dict[str, Any]:
    """Shares of n-grams found in training rows, of each validation domain, of all, and of each text of `against`."""
    if settings.n == 0:
        return {"validation": {}, "all": None, "against": {}}
    manifest = json.loads((folder / MANIFEST).read_text())
    hasher = _Hasher(settings.n, manifest["tokenizer"]["vocab_size"], manifest["tokenizer"]["eos_id"])
    wanted: dict[tuple[str, str], np.ndarray] = {}
    for domain in manifest["domains"]:
        parts = [hasher.of_rows(*rows) for rows in _rows(folder, manifest, "validation", domain)]
        wanted["validation", domain] = np.concatenate([np.zeros(0, np.uint64), *parts])
    for path, ids in _encoded(folder, settings.against):
        wanted["against", path] = hasher.of_text(ids)
    found = _found_in_training(folder, manifest, hasher, np.unique(np.concatenate(list(wanted.values()))))
    shares = {key: _share(grams, found) for key, grams in wanted.items()}
    every = np.concatenate([grams for (kind, _), grams in wanted.items() if kind == "validation"])
    return {
        "all": _share(every, found),
        "validation": {name: share for (kind, name), share in shares.items() if kind == "validation"},
        "against": {name: share for (kind, name), share in shares.items() if kind == "against"},
    }


def hashing_seconds(n: int, tokens: np.ndarray, vocab_size: int, eos_id: int) -> float:
    """Seconds that the n-grams of (t,) training tokens take here; 0 where no report is wanted."""
    if n == 0:
        return 0.0
    hasher, possible = _Hasher(n, vocab_size, eos_id), np.zeros(1 << FILTER_BITS, bool)
    start = time.perf_counter()
    possible[hasher.of_text(tokens) & np.uint64((1 << FILTER_BITS) - 1)].any()
    return time.perf_counter() - start


class _Hasher:
    """Hashes of n-grams: sums of random 64-bit numbers, one per token, times powers of an odd one."""

    def __init__(self, n: int, vocab_size: int, eos_id: int) -> None:
        draw = np.random.default_rng(0)
        self.n, self.eos_id = n, eos_id
        self._number = draw.integers(0, 2**64, vocab_size, np.uint64)
        self._powers = np.cumprod(np.full(n, int(draw.integers(0, 2**63)) * 2 + 1, np.uint64))

    def of_text(self, tokens: np.ndarray) -> np.ndarray:
        """(G,) uint64 hashes of the n-grams of (t,) consecutive tokens."""
        count = len(tokens) - self.n + 1
        if count < 1:
            return np.zeros(0, np.uint64)
        numbers = self._number[tokens]
        hashes = np.zeros(count, np.uint64)
        for k, power in enumerate(self._powers):
            hashes += numbers[k : k + count] * power
        ends = np.cumsum(tokens == self.eos_id)
        crossing = ends[self.n - 1 :] - ends[:count] + (tokens[:count] == self.eos_id)
        return hashes[crossing == 0]

    def of_rows(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(G,) hashes of consecutive rows: packed rows of a file continue each other."""
        return self.of_text(tokens[offsets[0] : offsets[-1]])


def _rows(folder: Path, manifest: dict[str, Any], split: str, domain: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for entry in manifest["files"]:
        rows = entry[f"{split}_rows"]
        if entry["domain"] != domain or not rows:
            continue
        file = RowFile(folder / entry["path"] / f"{split}.arrow")
        if manifest.get("format_of_rows") != "sft":
            yield from file.stretches("tokens", rows)
            continue
        for (tokens, offsets), (targets, _) in zip(
            file.stretches("tokens", rows), file.stretches("target", rows), strict=True
        ):
            # Answers are compared, not prompts: all share their template. An EOS ends an n-gram.
            yield np.where(targets > 0, tokens, manifest["tokenizer"]["eos_id"]), offsets


def _found_in_training(folder: Path, manifest: dict[str, Any], hasher: _Hasher, wanted: np.ndarray) -> np.ndarray:
    """The hashes out of `wanted` (sorted) that occur in training rows. A bit table sorts out most n-grams cheaply."""
    low = np.uint64((1 << FILTER_BITS) - 1)
    possible = np.zeros(1 << FILTER_BITS, bool)
    possible[wanted & low] = True
    found = np.zeros(len(wanted), bool)
    for domain in manifest["domains"]:
        for rows in _rows(folder, manifest, "train", domain):
            grams = hasher.of_rows(*rows)
            grams = grams[possible[grams & low]]
            place = np.searchsorted(wanted, grams)
            place[place == len(wanted)] = 0
            found[place[wanted[place] == grams]] = True
    return wanted[found]


def _encoded(folder: Path, paths: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    from regimen.data.encoding import Encoder
    from regimen.data.tokenizer import load

    if not paths:
        return
    encoder = Encoder(load(folder / "tokenizer"), np.load(folder / "tokenizer" / "token_bytes.npy"))
    for path in paths:
        (ids,) = encoder.encode([Path(path).read_text(encoding="utf-8")])
        yield str(path), ids


def _share(grams: np.ndarray, found: np.ndarray) -> float | None:
    return float(np.isin(grams, found).mean()) if len(grams) else None


def _mark(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise DataError(
            "a text of dataset.overlap.against is not there", got=path, do="correct the path, or leave it out"
        )
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
