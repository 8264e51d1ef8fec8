"""What a pool will take before a byte of it is written: a sample, scaled up.

Of a source that was read whole the counts are those that `prepare` will make, for one shard; more shards leave an
unfinished row per domain each. Else documents, rows and bytes are those of the sample, domain by domain, times what the
sample is of it.
Letters: D documents, R training rows, L tokens of a packed row (seq_len + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from regimen.core.errors import ConfigError
from regimen.data.sampling import Sample
from regimen.data.settings import DatasetSettings

_HASH_BYTES = 64  # a content hash of 16 bytes as a Python object
_SLOT_BYTES = 16  # of the table that finds it
_KEY_BYTES = 16  # split key and size of a document


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What preparing takes. row_bytes, table_bytes: of the pool; text_bytes: beside it until it is finished.

    rows: of training. row_tokens: tokens in them. shard_seconds: of each shard, beside what it waits for another;
    tokenizer_seconds: of the first, which trains it; overlap_seconds: of the process that ends the work.
    shard_memory: bytes that a shard keeps while it reads, to find duplicates.
    """

    documents: float
    bytes: float
    tokens: float
    rows: float
    row_tokens: float
    row_bytes: float
    table_bytes: float
    text_bytes: float
    read_seconds: float
    encode_seconds: float
    tokenizer_seconds: float
    overlap_seconds: float
    shard_memory: float


def forecast(
    sample: Sample,
    settings: DatasetSettings,
    *,
    shards: int = 1,
    rows: float | None = None,
    documents: float | None = None,
    document_tokens: float | None = None,
) -> Forecast:
    """Scale a sample up: to the source, or to a stated number of training rows R, or of documents D.

    document_tokens: mean tokens of a document instead of the sample's.
    Raises ConfigError where neither the source nor the user says how much there is.
    """
    if rows is None and documents is None and not sample.scaled:
        raise ConfigError(
            "the source does not say how large it is",
            got=f"dataset.source={settings.source}, {sample.total('documents'):,.0f} documents in the sample",
            do="type forecast.documents=NUMBER, or forecast.rows=NUMBER for rows of the pool",
        )
    exact = sample.whole and rows is None and documents is None and document_tokens is None
    mean = sample.total("tokens", times=1) / sample.total("documents", times=1)
    stretch = 1.0 if document_tokens is None else document_tokens / mean
    per_document = _rows_per_document(sample, settings, mean * stretch)
    found = sample.total("documents", times=1)
    D = documents if documents is not None else found if rows is None else rows / per_document
    R = rows if rows is not None else sample.total("rows") if exact else D * per_document
    k = D / found
    tokens = k * stretch * sample.total("tokens", times=1)
    size = k * stretch * sample.total("bytes", times=1)
    kept_bytes, row_tokens = _row_bytes(sample, settings, R, D, stretch, exact=exact)
    ratio = size / sample.total("bytes")
    seen = D / (shards if settings.shard_by == "file" else 1)
    trained = min(settings.tokenizer.train_mb * 1e6, size) / max(sample.tokenizer_bytes, 1)
    return Forecast(
        documents=D,
        bytes=size,
        tokens=tokens,
        rows=R,
        row_tokens=row_tokens,
        row_bytes=kept_bytes,
        table_bytes=sample.total("table_bytes", times=k),
        text_bytes=stretch * sample.total("text_bytes", times=k),
        read_seconds=ratio * sample.seconds["read"] / (shards if settings.shard_by == "file" else 1),
        encode_seconds=ratio * sample.seconds["encode"] / shards,
        tokenizer_seconds=sample.seconds["tokenizer"] * (trained if settings.tokenizer.kind == "bpe" else 1),
        overlap_seconds=sample.seconds["overlap"] * row_tokens / max(sample.total("row_tokens"), 1),
        shard_memory=_KEY_BYTES * seen + (set_bytes(seen) if settings.deduplicate else 0),
    )


def _rows_per_document(sample: Sample, settings: DatasetSettings, mean_tokens: float) -> float:
    """Training rows per document of the source. An EOS goes with each document; what is held out is in no row."""
    training = 1 - settings.validation.fraction
    if not sample.examples:
        return training * (mean_tokens + 1) / (settings.seq_len + 1)
    rows, documents = (sample.total(name, times=1) for name in ("rows", "documents"))
    return rows / documents * (1.0 if sample.whole else training)  # of a part, all documents are in training rows


def _row_bytes(
    sample: Sample, settings: DatasetSettings, R: float, D: float, stretch: float, *, exact: bool
) -> tuple[float, float]:
    """Bytes of the training rows' files, and the tokens in them."""
    if exact:
        return sample.total("row_bytes"), sample.total("row_tokens")
    if sample.examples:
        each = R / max(sample.total("rows", times=1), 1) * stretch
        return each * sample.total("row_bytes", times=1), each * sample.total("row_tokens", times=1)
    L = settings.seq_len + 1
    return packed_bytes(R, D * (1 - settings.validation.fraction), L, sample.vocab_size), R * L


def packed_bytes(rows: float, documents: float, length: int, vocab_size: int) -> float:
    """Bytes of `rows` packed rows of `length` tokens that hold `documents` documents.

    A row has its tokens and the ends of four lists; a span of a document has a number, a start and an offset. A row
    begins a span, and so does a document, unless it begins where a row does.
    """
    token = 2 if vocab_size <= 1 << 16 else 4
    spans = rows + documents * (1 - 1 / length)
    return rows * (length * token + 4 * 4) + spans * (8 + 4 + 8)


def set_bytes(entries: float) -> float:
    """Bytes of a Python set of content hashes: the hashes, and a table of a power of two, filled up to 3/5."""
    slots = 8.0
    while slots * 3 < entries * 5:
        slots *= 2
    return entries * _HASH_BYTES + slots * _SLOT_BYTES
