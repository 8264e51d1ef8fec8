"""A sample of a source, prepared in memory by the code that prepares the corpus: what a forecast scales up."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from regimen.data.heads import Heads, read_heads
from regimen.data.settings import DatasetSettings, TargetSettings
from regimen.data.sources.factory import open_source
from regimen.data.sources.records import BadRecords, Record

_HEADS = {"row_bytes": 1024, "table_bytes": 1024, "text_bytes": 1024}  # about what a file has beside its rows


class Counted(NamedTuple):
    """One domain of the sample. tokens: without EOS. rows, row_bytes, row_tokens: of the training split.

    row_bytes, table_bytes, text_bytes: of the files. whole: what the sample is of the domain, as a factor.
    """

    documents: int
    bytes: int
    tokens: int
    rows: int
    row_bytes: int
    row_tokens: int
    table_bytes: int
    text_bytes: int
    factor: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prepared sample. seconds: of reading, of training the tokenizer, of encoding, and of the overlap report.

    scaled: whether the source tells how large it is. whole: it was read to its end. examples: rows of `format: sft`.
    tokenizer_bytes: that the tokenizer was trained on.
    """

    domains: dict[str, Counted]
    examples: bool
    scaled: bool
    whole: bool
    duplicates: int
    skipped: int
    vocab_size: int
    eos_id: int
    pad_id: int
    tokenizer_bytes: int
    seconds: dict[str, float]

    def total(self, name: str, *, times: float | None = None) -> float:
        """A field of all domains together: of the sample, or of `times` as much as the source; heads of files once."""
        head = _HEADS.get(name, 0)
        scale = [1.0 if times is None else times * c.factor for c in self.domains.values()]
        return sum((getattr(c, name) - head) * k + head for c, k in zip(self.domains.values(), scale, strict=True))


def take_sample(settings: DatasetSettings, root: Path, *, megabytes: float) -> Sample:
    """Read and prepare about `megabytes` of text (10^6 bytes) in memory. root: of the pools, where nothing is written.

    Raises what `prepare` raises for text that cannot be used.
    """
    import datasets.arrow_writer  # noqa: F401 (its import is no part of what reading takes)

    from regimen.data.reading import Reader

    bad = BadRecords(settings.on_bad_record)
    heads = read_heads(open_source(settings, root), settings, bad, megabytes=megabytes)
    plain = dataclasses.replace(settings, target=TargetSettings())  # it is small
    # By file a document's split hangs on its own hash: a sample may hold a domain's only document.
    plain = dataclasses.replace(plain, shard_by="content" if heads.whole else "file")
    reader, texts = Reader(_Listed(heads.records), plain, shard_index=0, shard_count=1), InMemory()
    start = time.perf_counter()
    read = reader.write(texts, lambda size: None)
    seconds = {"read": heads.seconds + time.perf_counter() - start}
    told = _encoded(plain, reader, texts, read, heads, seconds)
    duplicates, skipped = sum(reader.duplicates.values()), sum((bad.skipped + reader.bad.skipped).values())
    return Sample(
        examples=settings.format == "sft",
        scaled=heads.factors is not None,
        whole=heads.whole,
        duplicates=duplicates,
        skipped=skipped,
        seconds=seconds,
        **told,
    )


def _encoded(
    settings: DatasetSettings,
    reader: Any,
    texts: InMemory,
    read: dict[str, Any],
    heads: Heads,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The tokenizer of a sample, and its rows; adds to `seconds`."""
    from regimen.data.overlap import hashing_seconds
    from regimen.data.tables import file_name
    from regimen.data.templates import plain_text
    from regimen.data.tokenizer import build, token_bytes

    given = list(reader.sample.training_texts(read["thresholds"]))
    if settings.format == "sft":
        given = [plain_text(text) for text in given]
    start = time.perf_counter()
    tokenizer = build(settings.tokenizer, given)
    trained, sizes = time.perf_counter(), token_bytes(tokenizer)
    encoder, encode = _encoder(settings, tokenizer, sizes)
    found, some = {}, np.zeros(0, np.int64)
    begun = time.perf_counter()
    for domain in read["domains"]:
        text, rows = texts.buffer(f"{file_name(domain)}.arrow"), InMemory()
        threshold = read["thresholds"][domain] if heads.whole else -1
        counts = encode(text, rows, domain=domain, threshold=threshold)
        factor = 1.0 if heads.factors is None else heads.factors[domain]
        found[domain] = _counted(counts, rows, text.size, factor, settings.seq_len)
        some = some if len(some) else rows.tokens("train.arrow")
    ended = time.perf_counter()
    hashed = hashing_seconds(settings.overlap.n, some, encoder.vocab_size, encoder.eos_id)
    row_tokens = sum(c.row_tokens for c in found.values())
    overlap = hashed / max(len(some), 1) * row_tokens
    seconds |= {"tokenizer": trained - start, "encode": ended - begun, "overlap": overlap}
    return {
        "domains": found,
        "vocab_size": encoder.vocab_size,
        "eos_id": encoder.eos_id,
        "pad_id": encoder.pad_id,
        "tokenizer_bytes": sum(len(text.encode()) for text in given),
    }


def _encoder(settings: DatasetSettings, tokenizer: Any, sizes: np.ndarray) -> tuple[Any, Callable[..., Any]]:
    """The encoder, and what encodes a domain with it as `prepare` does."""
    from regimen.data.encoding import Encoder, encode_domain
    from regimen.data.examples import ExampleEncoder, encode_examples

    shared: dict[str, Any] = {"max_validation_rows": settings.validation.max_rows, "held_out": {}}
    shared["advance"] = lambda size: None
    if settings.format == "sft":
        examples = ExampleEncoder(tokenizer, sizes, template=settings.sft.template, seq_len=settings.seq_len)
        return examples.encoder, partial(encode_examples, encoder=examples, **shared)
    encoder = Encoder(tokenizer, sizes)
    return encoder, partial(encode_domain, encoder=encoder, seq_len=settings.seq_len, copied=False, **shared)


def _counted(counts: dict[str, Any], rows: InMemory, text_bytes: int, factor: float, seq_len: int) -> Counted:
    splits, train = [counts["train"], counts["validation"]], counts["train"]
    return Counted(
        documents=sum(split["documents"] for split in splits),
        bytes=sum(split["bytes"] for split in splits),
        tokens=sum(split["tokens"] for split in splits),
        rows=train["rows"],
        row_bytes=rows.buffer("train.arrow").size,
        row_tokens=len(rows.tokens("train.arrow")),
        table_bytes=rows.buffer("documents.arrow").size,
        text_bytes=text_bytes,
        factor=factor,
    )


class InMemory:
    """A folder whose files are Arrow streams in memory."""

    def __init__(self) -> None:
        self._files: dict[str, pa.BufferOutputStream] = {}
        self._read: dict[str, pa.Buffer] = {}

    def __truediv__(self, name: str) -> pa.BufferOutputStream:
        return self._files.setdefault(name, pa.BufferOutputStream())

    def buffer(self, name: str) -> pa.Buffer:
        """What a file holds, once it is written."""
        if name not in self._read:
            self._read[name] = self._files[name].getvalue()
        return self._read[name]

    def tokens(self, name: str) -> np.ndarray:
        """All tokens of a file of rows, one row after the other."""
        from regimen.data.tables import read_batches

        parts = [batch.column("tokens").values.to_numpy() for batch in read_batches(self.buffer(name))]
        return np.concatenate([np.zeros(0, np.uint16), *parts])


class _Listed:
    """Records that were read before, as a source."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    def identity(self) -> Any:
        raise AssertionError("a sample has no identity")

    def parts(self) -> list[Any]:
        return [0]

    def read(self, part: Any, bad: BadRecords) -> Any:
        return iter(self._records)
