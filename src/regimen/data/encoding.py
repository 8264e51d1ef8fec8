"""Stage 3: the texts of one domain become token rows of two splits, and lines of the document table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from regimen.data.packing import Packer
from regimen.data.tables import DOCUMENTS, TableWriter, read_batches

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
    texts: Path,
    folder: Path,
    *,
    domain: str,
    encoder: Encoder,
    seq_len: int,
    threshold: int,
    max_validation_rows: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Writes train.arrow, validation.arrow and documents.arrow of one domain to `folder`; returns the counts."""
    shape = {"length": seq_len + 1, "eos_id": encoder.eos_id, "vocab_size": encoder.vocab_size}
    packers = {
        "train": Packer(folder / "train.arrow", **shape),
        "validation": Packer(folder / "validation.arrow", max_rows=max_validation_rows, **shape),
    }
    table = TableWriter(folder / "documents.arrow", DOCUMENTS)
    counts = dict.fromkeys(("documents", "bytes", "tokens"), 0)
    split_counts = {split: dict(counts) for split in SPLITS}
    spelled = 0
    for batch in read_batches(texts):
        lines = _encode_batch(batch, table.rows, encoder, packers, threshold, domain)
        table.write(lines)
        for split, tokens, size in zip(lines["split"], lines["tokens"], lines["bytes"], strict=True):
            part = split_counts[split]
            part["documents"] += 1
            part["bytes"] += size
            part["tokens"] += tokens
        spelled += lines["spelled"]
        advance(sum(lines["bytes"]))
    table.close()
    for split, packer in packers.items():
        split_counts[split]["tokens_in_no_row"] = packer.close()
        split_counts[split] |= {"rows": packer.rows, "short_row": packer.short_row}
    return {"domain": domain, "documents": table.rows, "spelled_bytes": spelled, **split_counts}


def _encode_batch(
    batch: pa.RecordBatch, first: int, encoder: Encoder, packers: dict[str, Packer], threshold: int, domain: str
) -> dict[str, Any]:
    """Packs the documents of a batch, numbered from `first`; returns their lines of the document table.

    `spelled` counts the bytes that the tokens stand for, to be held against the bytes of the texts.
    """
    texts = batch.column("text").to_pylist()
    keys = batch.column("key").to_pylist()
    splits = ["validation" if key <= threshold else "train" for key in keys]
    tokens, spelled = [], 0
    for number, (split, ids) in enumerate(zip(splits, encoder.encode(texts), strict=True), first):
        packers[split].add(number, ids)
        tokens.append(len(ids))
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
