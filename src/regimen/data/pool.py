"""A prepared pool: rows of tokens with one id and one domain each, memory mapped.

Letters: n rows asked for, L tokens of the longest of them, V vocabulary, S spans, D documents.
A row is read by a model as inputs tokens[:, :-1] and targets tokens[:, 1:].
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import DataError
from regimen.core.index import PoolIndex
from regimen.data.manifest import FORMAT, MANIFEST
from regimen.data.tables import RowFile, column


class Rows(NamedTuple):
    """tokens: (n, L) int64, padded with pad_id. lengths: (n,) int64. positions: (n, L) int64 or None.

    targets: (n, L) bool, whether each token is in the loss; None where all but the first are.
    """

    tokens: Tensor
    lengths: Tensor
    positions: Tensor | None
    targets: Tensor | None = None


class Spans(NamedTuple):
    """Parts of documents in rows, (S,) int64 each, in the order of the rows asked for.

    row: index into the ids asked for. document: number in the pool's document table. start, length: in the row,
    the EOS before the document included. offset: where the span begins in the document, 0 being that EOS.
    """

    row: Tensor
    document: Tensor
    start: Tensor
    length: Tensor
    offset: Tensor


class RowTable:
    """The rows of one split. Row ids run over the files in domain-major order."""

    def __init__(self, pool: Path, split: str, manifest: dict[str, Any]) -> None:
        self._files = [_File(pool / f["path"], split, f) for f in manifest["files"]]
        counts = np.array([f.rows for f in self._files])
        self._first = np.cumsum([0, *counts])  # (files + 1,)
        self._pad = manifest["tokenizer"]["pad_id"]
        self.examples = manifest.get("format_of_rows") == "sft"  # pools made before there was another lack it
        domains = tuple(manifest["domains"])
        owner = np.array([domains.index(f["domain"]) for f in manifest["files"]])
        per_domain = np.bincount(owner, weights=counts, minlength=len(domains)).astype(np.int64)
        self.index = PoolIndex(
            domains=domains,
            offsets=torch.from_numpy(np.cumsum([0, *per_domain])),
            target_tokens=self._target_tokens(manifest["row_tokens"][split]),
            fingerprint=manifest["fingerprint"],
            input_tokens=self._lengths() - 1 if self.examples else None,
        )

    def read(self, ids: Tensor, *, positions: bool = False) -> Rows:
        """The rows `ids` (n,), each padded to the longest. Raises IndexError for an id that the table lacks."""
        found = [self._find(row) for row in ids.tolist()]
        pieces = [view["tokens"][k] for view, k, _ in found]
        lengths = [len(piece) for piece in pieces]
        tokens = np.full((len(pieces), max(lengths, default=0)), self._pad, np.int64)
        for out, piece, length in zip(tokens, pieces, lengths, strict=True):
            out[:length] = piece
        places = None
        if positions:
            places = torch.from_numpy(_positions([view["start"][k] for view, k, _ in found], tokens.shape[1]))
        targets = None
        if self.examples:
            targets = torch.zeros(tokens.shape, dtype=torch.bool)
            for out, (view, k, _), length in zip(targets, found, lengths, strict=True):
                out[:length] = torch.from_numpy(view["target"][k] > 0)
        return Rows(torch.from_numpy(tokens), torch.tensor(lengths, dtype=torch.int64), places, targets)

    def documents(self, ids: Tensor) -> Spans:
        """The spans of documents that rows `ids` (n,) hold."""
        parts: list[np.ndarray] = []
        for i, row in enumerate(ids.tolist()):
            view, k, file = self._find(row)
            start = view["start"][k].astype(np.int64)
            length = np.diff(start, append=len(view["tokens"][k]))
            document = view["document"][k] + file.first_document
            parts.append(np.stack([np.full(len(start), i), document, start, length, view["offset"][k]]))
        table = np.concatenate(parts, axis=1) if parts else np.zeros((5, 0), np.int64)
        return Spans(*torch.from_numpy(table))

    def _find(self, row: int) -> tuple[dict[str, Any], int, _File]:
        if not 0 <= row < self._first[-1]:
            raise IndexError(f"row {row} of a table with rows 0 to {self._first[-1] - 1}")
        k = int(np.searchsorted(self._first, row, side="right")) - 1
        file = self._files[k]
        view, place = file.table.at(row - int(self._first[k]))
        return view, place, file

    def _target_tokens(self, row_tokens: int | None) -> Tensor | int:
        """Every row's tokens in the loss; an int where the manifest says that all rows have the same length."""
        if self.examples:
            sums = np.concatenate([f.table.sums("target", f.rows) for f in self._files])
            return torch.from_numpy(sums.astype(np.int32))
        return self._lengths() - 1 if row_tokens is None else row_tokens - 1

    def _lengths(self) -> Tensor:
        """(N,) int32 tokens of each row."""
        lengths = np.concatenate([f.table.lengths(f.rows) for f in self._files])
        return torch.from_numpy(lengths.astype(np.int32))


class _File:
    """One file of rows, opened when it is first read."""

    def __init__(self, folder: Path, split: str, entry: dict[str, Any]) -> None:
        self.path = folder / f"{split}.arrow"
        self.rows: int = entry[f"{split}_rows"]
        self.first_document: int = entry["first_document"]

    @cached_property
    def table(self) -> RowFile:
        return RowFile(self.path)


class Documents:
    """The document table: documents are numbered as `Spans.document` numbers them."""

    def __init__(self, pool: Path, manifest: dict[str, Any]) -> None:
        own = manifest["target"]["files"] if manifest.get("target", {}).get("own") else []
        self._paths = [pool / f["path"] / "documents.arrow" for f in (*manifest["files"], *own)]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> list[str]:
        """(D,) the user's ids, or content hashes."""
        return column(self._paths, "id").to_pylist()

    @cached_property
    def splits(self) -> list[str]:
        """(D,) `train` or `validation`; with a target set `target`, or `removed` for a copy of what is in it."""
        return column(self._paths, "split").to_pylist()

    @cached_property
    def domains(self) -> list[str]:
        """(D,) domain names."""
        return column(self._paths, "domain").to_pylist()

    @cached_property
    def hashes(self) -> list[str]:
        """(D,) content hashes in hex."""
        return column(self._paths, "hash").to_pylist()

    @cached_property
    def tokens(self) -> Tensor:
        """(D,) int64 tokens, without the EOS."""
        return torch.from_numpy(column(self._paths, "tokens").to_numpy().astype(np.int64))

    @cached_property
    def bytes(self) -> Tensor:
        """(D,) int64 UTF-8 bytes."""
        return torch.from_numpy(column(self._paths, "bytes").to_numpy().astype(np.int64))


class Pool:
    """A prepared dataset on disk. Made by `regimen.data.prepare.prepare`, opened with `Pool.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        tokenizer = manifest["tokenizer"]
        self.path = path
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.name: str = manifest["name"]
        self.seq_len: int = manifest["seq_len"]
        self.domains: tuple[str, ...] = tuple(manifest["domains"])
        self.vocab_size: int = tokenizer["vocab_size"]
        self.eos_id: int = tokenizer["eos_id"]
        self.pad_id: int = tokenizer["pad_id"]
        self.tokenizer_fingerprint: str = tokenizer["fingerprint"]
        self.tokenizer_path = path / "tokenizer"
        self.train = RowTable(path, "train", manifest)
        self.validation = RowTable(path, "validation", manifest)
        self.target = RowTable(path, "target", manifest["target"]) if "target" in manifest else None
        self.documents = Documents(path, manifest)

    @cached_property
    def token_bytes(self) -> Tensor:
        """(V,) int32 UTF-8 bytes that each token stands for; 0 for special tokens."""
        return torch.from_numpy(np.load(self.tokenizer_path / "token_bytes.npy"))

    @classmethod
    def open(cls, path: Path) -> Pool:
        """Opens a finished pool. Raises DataError where there is none."""
        file = Path(path) / MANIFEST
        if not file.exists():
            raise DataError("no finished pool here", got=path, do="make it with regimen prepare dataset=...")
        manifest = json.loads(file.read_text())
        if manifest["format"] != FORMAT:
            raise DataError(
                "this pool was written by another version of regimen",
                got=f"format {manifest['format']} in {file}",
                allowed=f"format {FORMAT}",
                do="make it again with regimen prepare dataset=...",
            )
        return cls(Path(path), manifest)


def _positions(starts: list[np.ndarray], length: int) -> np.ndarray:
    """(n, length) places counted from the last span start; a document cut by the row's start counts from there."""
    count = np.arange(length)
    places = np.tile(count, (len(starts), 1))
    for out, begins in zip(places, starts, strict=True):
        for begin in begins[1:].tolist():
            out[begin:] = count[: length - begin]
    return places
