"""A dry run against what preparing then makes: exact where the source is read whole, near where it is sampled."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sft_corpora
from data_corpora import make, settings, texts, write_jsonl

from regimen.core.errors import ConfigError, DataError
from regimen.data.forecast import Forecast, forecast, packed_bytes, set_bytes
from regimen.data.packing import Packer
from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.data.sampling import InMemory, Sample, take_sample
from regimen.data.settings import parse


def foreseen(dataset: dict[str, Any], root: Path, *, megabytes: float = 8, **stated: Any) -> tuple[Sample, Forecast]:
    given = parse(dataset)
    sample = take_sample(given, root, megabytes=megabytes)
    return sample, forecast(sample, given, **stated)


def on_disk(pool: Pool, name: str) -> int:
    return sum((pool.path / f["path"] / f"{name}.arrow").stat().st_size for f in pool.manifest["files"])


def check_exact(found: Forecast, pool: Pool) -> None:
    counts = pool.manifest["counts"].values()
    assert found.documents == len(pool.documents)
    assert found.tokens == int(pool.documents.tokens.sum())
    assert found.bytes == sum(c["bytes"] for c in counts)
    assert found.rows == pool.train.index.rows
    assert found.row_bytes == on_disk(pool, "train")
    assert found.table_bytes == on_disk(pool, "documents")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_source_that_is_read_whole_is_foreseen_exactly(corpus: Path, tmp_path: Path, kind: str) -> None:
    dataset = settings(corpus, tokenizer={"kind": kind, "vocab_size": 300})
    sample, found = foreseen(dataset, tmp_path / "pools")
    assert sample.whole and not (tmp_path / "pools").exists()
    pool = make(dataset, tmp_path / "pools")
    check_exact(found, pool)
    assert found.row_tokens == pool.train.index.rows * 33


def test_examples_are_foreseen_exactly(tmp_path: Path) -> None:
    path = sft_corpora.write(tmp_path / "sums.jsonl", [sft_corpora.example(k) for k in range(60)])
    _, found = foreseen(settings(path, format="sft", seq_len=256), tmp_path / "pools")
    pool = sft_corpora.make(path, tmp_path / "pools")
    check_exact(found, pool)
    inputs = pool.train.index.input_tokens
    assert inputs is not None and found.row_tokens == int(inputs.sum()) + pool.train.index.rows


def test_what_is_left_out_is_no_document(tmp_path: Path) -> None:
    documents = texts(30, seed="web")
    write_jsonl(tmp_path / "c" / "web.jsonl", documents + documents[:7])
    with (tmp_path / "c" / "web.jsonl").open("a") as file:
        file.write("oops\n")
    with pytest.raises(DataError, match="web.jsonl:38"):
        foreseen(settings(tmp_path / "c"), tmp_path / "pools")
    sample, found = foreseen(settings(tmp_path / "c", on_bad_record="skip"), tmp_path / "pools")
    assert (found.documents, sample.duplicates, sample.skipped) == (30, 7, 1)


def test_a_small_corpus_scaled_up_is_the_large_one(tmp_path: Path) -> None:
    """The large one has ten documents as long for each of the small one."""
    for domain in ("code", "web"):
        small = texts(80, seed=domain)
        write_jsonl(tmp_path / "small" / f"{domain}.jsonl", [f"0 {text}" for text in small])
        write_jsonl(tmp_path / "large" / f"{domain}.jsonl", [f"{k} {text}" for k in range(10) for text in small])
    large = make(settings(tmp_path / "large"), tmp_path / "pools")
    _, by_documents = foreseen(settings(tmp_path / "small"), tmp_path / "pools", documents=1600)
    _, by_rows = foreseen(settings(tmp_path / "small"), tmp_path / "pools", rows=large.train.index.rows)
    assert by_documents.tokens == int(large.documents.tokens.sum())
    assert by_documents.bytes == int(large.documents.bytes.sum())
    assert by_rows.rows == large.train.index.rows and by_rows.row_tokens == 33 * large.train.index.rows
    assert by_documents.rows == pytest.approx(large.train.index.rows, rel=0.01)
    assert by_rows.documents == pytest.approx(1600, rel=0.01)
    for found in (by_documents, by_rows):
        assert found.row_bytes == pytest.approx(on_disk(large, "train"), rel=0.02)
        assert found.table_bytes == pytest.approx(on_disk(large, "documents"), rel=0.05)  # ids are longer


def test_a_stated_mean_length_stands_in_for_that_of_the_sample(corpus: Path, tmp_path: Path) -> None:
    _, found = foreseen(settings(corpus), tmp_path, documents=1e6, document_tokens=999)
    assert found.tokens == pytest.approx(999e6)
    assert found.rows == pytest.approx(0.9 * 1e6 * 1000 / 33)
    _, by_rows = foreseen(settings(corpus), tmp_path, rows=found.rows, document_tokens=999)
    assert by_rows.documents == pytest.approx(1e6) and by_rows.row_bytes == pytest.approx(found.row_bytes)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "text"])
def test_a_part_of_a_source_tells_how_large_it_is(tmp_path: Path, form: str) -> None:
    """Two domains of other sizes and lengths, in files that are read in part."""
    files, times, megabytes = (1, 4, 0.3) if form == "jsonl.gz" else (4, 1, 0.2)  # a few kB are unpacked ahead
    for domain, count, longest in (("code", 3000, 30), ("web", 1000, 90)):
        for k in range(files):
            documents = texts(count // files, seed=f"{domain}{k}", longest=longest * times)
            write_part(tmp_path / "c" / domain, f"{k}.{form}", documents)
    source = {"jsonl.gz": "jsonl", "text": "text"}.get(form, form)
    dataset = settings(tmp_path / "c", source=source, separator="\n\n" if form == "text" else None)
    sample, found = foreseen(dataset, tmp_path / "pools", megabytes=megabytes)
    assert not sample.whole and sample.total("documents") < 2500
    assert found.documents == pytest.approx(4000, rel=0.12)
    read = {name: c.documents * c.factor for name, c in sample.domains.items()}
    assert read == {"code": pytest.approx(3000, rel=0.2), "web": pytest.approx(1000, rel=0.2)}
    pool = make(dataset, tmp_path / "pools")
    assert found.rows == pytest.approx(pool.train.index.rows, rel=0.12)
    assert found.tokens == pytest.approx(int(pool.documents.tokens.sum()), rel=0.12)


def write_part(folder: Path, name: str, documents: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith("parquet"):
        pq.write_table(pa.table({"id": [str(k) for k in range(len(documents))], "text": documents}), folder / name)
    elif name.endswith("text"):
        (folder / name.replace(".text", ".txt")).write_text("\n\n".join(documents))
    else:
        plain = write_jsonl(folder / name.removesuffix(".gz"), documents)
        if name.endswith(".gz"):
            (folder / name).write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()


def test_a_source_of_unknown_size_must_be_told(tmp_path: Path, corpus: Path) -> None:
    """As a dataset of the hub is."""
    given = parse(settings(corpus))
    sample = take_sample(given, tmp_path, megabytes=1)
    unknown = Sample(**{**vars(sample), "scaled": False, "whole": False})
    with pytest.raises(ConfigError, match=r"forecast\.documents=NUMBER"):
        forecast(unknown, given)
    assert forecast(unknown, given, documents=650).tokens == pytest.approx(10 * sample.total("tokens"))


def test_shards(corpus: Path, tmp_path: Path) -> None:
    """What each has to do; and three real shards leave no more than a row each of what one makes."""
    dataset = settings(corpus)
    sample, one = foreseen(dataset, tmp_path)
    content = forecast(sample, parse(dataset), shards=3)
    assert content.encode_seconds == pytest.approx(one.encode_seconds / 3)
    assert (content.read_seconds, content.shard_memory) == (one.read_seconds, one.shard_memory)
    by_file = forecast(sample, parse(dataset | {"shard_by": "file"}), shards=3, documents=6.5e6)
    all_of_it = forecast(sample, parse(dataset), shards=3, documents=6.5e6)
    assert by_file.read_seconds == pytest.approx(all_of_it.read_seconds / 3)
    assert by_file.shard_memory < all_of_it.shard_memory / 2
    for k in range(3):
        path = prepare(dataset, root=tmp_path / "pools", shard_index=k, shard_count=3)
    assert path is not None
    rows = Pool.open(path).train.index.rows
    assert 0 <= one.rows - rows <= 2 * 3


# ---- closed forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "mean"), [(4096, 300), (100_000, 40)])
def test_bytes_of_packed_rows(vocabulary: int, mean: int) -> None:
    """The files of a few megabytes, against the closed form; the rest is a schema and the heads of batches."""
    rng, folder, documents = np.random.default_rng(0), InMemory(), 40_000 // mean * 10
    packer = Packer(folder / "rows", length=129, eos_id=0, vocab_size=vocabulary)
    for k in range(documents):
        packer.add(k, np.ones(rng.integers(1, 2 * mean), np.int32))
    packer.close()
    assert packer.rows > 1000
    wanted = packed_bytes(packer.rows, documents, 129, vocabulary)
    assert folder.buffer("rows").size == pytest.approx(wanted, rel=0.005)


@pytest.mark.parametrize("n", [100_000, 300_000])
def test_bytes_of_the_hashes_that_find_duplicates(n: int) -> None:
    seen: set[bytes] = set()
    for k in range(n):
        seen.add(k.to_bytes(16, "big"))
    hashes = n * -(-sys.getsizeof(b"0" * 16) // 16) * 16  # objects lie at multiples of 16 bytes
    assert set_bytes(n) == pytest.approx(sys.getsizeof(seen) + hashes, rel=0.001)
