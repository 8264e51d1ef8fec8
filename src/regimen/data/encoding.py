"""Stage 3: the texts of one domain become token rows of two splits, and lines of the document table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from regimen.core.errors import DataError
from regimen.data.packing import Packer
from regimen.data.tables import DOCUMENTS, Folder, TableWriter, read_batches

SPLITS = ("train", "validation")


class Encoder:
    """Turns texts into token ids on all cores.

    special_tokens: read those that a text spells out as such; otherwise they are plain text.
    """

    def __init__(self, tokenizer: Any, token_bytes: np.ndarray, *, special_tokens: bool = False) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = not special_tokens
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id
        self.token_bytes = token_bytes

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.token_bytes)

    def encode(self, texts: list[str]) -> Iterator[np.ndarray]:
        """(t,) int32 token ids of each text, without special tokens."""
        for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False):
            yield np.array(encoding.ids, np.int32)


def encode_domain(
    texts: Path | pa.Buffer,
    folder: Folder,
    *,
    domain: str,
    encoder: Encoder,
    seq_len: int,
    threshold: int,
    max_validation_rows: int,
    advance: Callable[[int], None],
    held_out: Mapping[str, str],
    copied: bool,
) -> dict[str, Any]:
    """Writes train.arrow, validation.arrow and documents.arrow of one domain to `folder`; returns the counts.

    held_out: by content hash, the subtask of each document of the target set, which is in no row here. copied: the
    target set comes from files, so that these are copies, listed as `removed`; else they are listed with the target
    set's rows alone. Raises DataError for a validation document that is in the target set.
    """
    shape = {"length": seq_len + 1, "eos_id": encoder.eos_id, "vocab_size": encoder.vocab_size}
    packers = {
        "train": Packer(folder / "train.arrow", **shape),
        "validation": Packer(folder / "validation.arrow", max_rows=max_validation_rows, **shape),
    }
    table = TableWriter(folder / "documents.arrow", DOCUMENTS)
    split_counts = {split: dict.fromkeys(("documents", "bytes", "tokens"), 0) for split in SPLITS}
    spelled = removed = 0
    for batch in read_batches(texts):
        if not copied:
            batch = _without(batch, held_out)
        lines = _encode_batch(batch, table.rows, encoder, packers, _splits(batch, threshold, domain, held_out), domain)
        table.write(lines)
        removed += lines["split"].count("removed")
        for split, tokens, size in zip(lines["split"], lines["tokens"], lines["bytes"], strict=True):
            for name, count in (("documents", 1), ("bytes", size), ("tokens", tokens)):
                if split in SPLITS:
                    split_counts[split][name] += count
        spelled += lines["spelled"]
        advance(sum(lines["bytes"]))
    table.close()
    for split, packer in packers.items():
        split_counts[split]["tokens_in_no_row"] = packer.close()
        split_counts[split] |= {"rows": packer.rows, "short_row": packer.short_row}
    counted = {"removed": removed} if held_out else {}
    return {"domain": domain, "documents": table.rows, "spelled_bytes": spelled, **counted, **split_counts}


def _encode_batch(
    batch: pa.RecordBatch, first: int, encoder: Encoder, packers: dict[str, Packer], splits: list[str], domain: str
) -> dict[str, Any]:
    """Packs the documents of a batch, numbered from `first`; returns their lines of the document table.

    `spelled` counts the bytes that the tokens in packed documents stand for, to be held against those of the texts.
    """
    texts = batch.column("text").to_pylist()
    tokens, spelled = [], 0
    for number, (split, ids) in enumerate(zip(splits, encoder.encode(texts), strict=True), first):
        tokens.append(len(ids))
        if split in packers:
            packers[split].add(number, ids)
            spelled += int(encoder.token_bytes[ids].sum())
    return {
        "id": batch.column("id"),
        "hash": batch.column("hash"),
        "domain": [domain] * len(texts),
        "split": splits,
        "tokens": tokens,
        "bytes": [len(text.encode()) for text in texts],
        "spelled": spelled,
    }


def _without(batch: pa.RecordBatch, held_out: Mapping[str, str]) -> pa.RecordBatch:
    """A batch without the documents of the target set."""
    if not held_out:
        return batch
    return batch.filter(pa.array([content not in held_out for content in batch.column("hash").to_pylist()]))


def _splits(batch: pa.RecordBatch, threshold: int, domain: str, held_out: Mapping[str, str]) -> list[str]:
    """Where each document of a batch goes."""
    splits = ["validation" if key <= threshold else "train" for key in batch.column("key").to_pylist()]
    for k, content in enumerate(batch.column("hash").to_pylist() if held_out else ()):
        if content not in held_out:
            continue
        if splits[k] == "validation":
            raise DataError(
                f"a document of the target set is a validation document of domain {domain!r} too",
                got=f"dataset.target, subtask {held_out[content]!r}",
                do="take it out of one of the files, or type another dataset.validation.seed",
            )
        splits[k] = "removed"
    return splits
