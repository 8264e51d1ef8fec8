"""A target set of packed text: whole documents, in no row of training or validation, the same for every shard."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_corpora import make, settings, texts, write_jsonl

from regimen.core.errors import ConfigError, DataError
from regimen.data import tables
from regimen.data.fingerprint import seeded_key, text_digest
from regimen.data.overlap import _Hasher
from regimen.data.pool import Pool, RowTable
from regimen.data.prepare import locate, prepare
from regimen.data.settings import parse
from regimen.data.sources.records import Record
from regimen.data.text_targets import MIN_DOCUMENTS, _Lowest
from regimen.data.tokenizer import load
from regimen.training.loader import collate


def held(*domains: str, rows: int = 12, seed: int = 0) -> dict[str, Any]:
    return {"target": {"from": list(domains), "rows_per_subtask": rows, "seed": seed}}


def rows_of(table: RowTable) -> list[list[int]]:
    """The tokens of every row."""
    found = table.read(torch.arange(table.index.rows))
    return [row[:n].tolist() for row, n in zip(found.tokens, found.lengths.tolist(), strict=True)]


def hashes(pool: Pool, table: RowTable) -> set[str]:
    """Of the documents that rows hold a part of."""
    spans = table.documents(torch.arange(table.index.rows))
    return {pool.documents.hashes[k] for k in spans.document.tolist()}


def files_of(path: Path) -> dict[str, bytes]:
    found = [f for f in sorted(path.rglob("*")) if f.is_file() and f.suffix != ".lock"]
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in found}


def listed(pool: Pool, split: str) -> set[str]:
    """Hashes that the document table has under a split."""
    return {h for h, s in zip(pool.documents.hashes, pool.documents.splits, strict=True) if s == split}


def packed(pool: Pool, documents: list[str], rows: int | None, *, seed: int = 0) -> tuple[list[list[int]], set[str]]:
    """The rows of a subtask and the hashes of its documents, from the texts that it may take."""
    tokenizer, stream, used = load(pool.tokenizer_path), [], set()
    length = pool.seq_len + 1
    for text in sorted(documents, key=lambda text: seeded_key(text_digest(text), "target", seed)):
        if rows is not None and len(stream) >= rows * length:
            break
        stream += [pool.eos_id, *tokenizer.encode(text, add_special_tokens=False)]
        used.add(text_digest(text))
    full = [stream[k : k + length] for k in range(0, len(stream) - length + 1, length)][:rows]
    return full or [stream], used


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_target_set_held_out_is_in_no_other_split(corpus: Path, tmp_path: Path, fraction: float) -> None:
    """And it is the documents of lowest rank: as many as fill the rows, none of them of the validation split."""
    dataset = settings(corpus, validation={"fraction": fraction})
    plain = make(dataset, tmp_path / "pools")
    assert plain.target is None and "target" not in plain.manifest
    pool = make(dataset | held("web", "code", rows=15), tmp_path / "pools")
    assert pool.target is not None and pool.fingerprint != plain.fingerprint
    assert pool.target.index.domains == ("code", "web") and pool.target.index.sizes.tolist() == [15, 15]
    assert pool.target.index.target_tokens == 32 and pool.target.index.input_tokens is None
    trained, written = listed(plain, "train"), {"web": texts(40, seed="web"), "code": texts(25, seed="code")}
    expected = [packed(pool, [t for t in written[d] if text_digest(t) in trained], 15) for d in ("code", "web")]
    assert rows_of(pool.target) == expected[0][0] + expected[1][0]
    target = listed(pool, "target")
    assert target == expected[0][1] | expected[1][1] == hashes(pool, pool.target)
    assert not target & (hashes(pool, pool.train) | hashes(pool, pool.validation))
    assert listed(pool, "train") == trained - target and set(pool.documents.splits) == {"train", "validation", "target"}
    assert len(set(pool.documents.hashes)) == len(pool.documents) == len(plain.documents)
    assert rows_of(pool.validation) == rows_of(plain.validation), "validation is that of the pool without a target set"
    assert hashes(pool, pool.validation) == hashes(plain, plain.validation)
    assert pool.manifest["target"]["removed"] == 0
    batch = collate(pool.target, torch.arange(8), document_mask=True)
    assert batch["tokens"].tolist() == [32] * 8


def test_training_rows_are_those_of_a_corpus_without_the_documents(corpus: Path, tmp_path: Path) -> None:
    """Token for token, with the tokenizer of the whole; the split is given by the same texts alone."""
    pool = make(settings(corpus) | held("code"), tmp_path / "pools")
    tokenizer, target = load(pool.tokenizer_path), listed(pool, "target")
    validation = listed(pool, "validation")
    for number, (domain, count) in enumerate((("code", 25), ("web", 40))):
        left = [t for t in texts(count, seed=domain) if text_digest(t) not in target | validation]
        stream = [token for text in left for token in (pool.eos_id, *tokenizer.encode(text, add_special_tokens=False))]
        found = pool.train.read(pool.train.index.ids(number)).tokens.flatten().tolist()
        assert found == stream[: len(found)] and 0 <= len(stream) - len(found) < 33


def test_no_more_documents_are_held_out_than_fill_the_rows(tmp_path: Path) -> None:
    """Of documents of 10 tokens and an EOS 2 rows of 33 tokens take 6, which must leave some to train on."""
    documents = [f"number {k:03d}" for k in range(200)]
    write_jsonl(tmp_path / "many" / "a.jsonl", documents)
    dataset = settings(tmp_path / "many")
    trained = listed(make(dataset, tmp_path / "pools"), "train")
    pool = make(dataset | held("a", rows=2), tmp_path / "pools")
    assert pool.target is not None
    expected = packed(pool, [t for t in documents if text_digest(t) in trained], 2)
    assert (rows_of(pool.target), listed(pool, "target")) == expected and len(expected[1]) == 6
    assert len(listed(pool, "train")) == len(trained) - 6
    for count in (8, 7):  # one of which is in validation
        write_jsonl(tmp_path / "few" / "a.jsonl", documents[:count])
        if count == 8:
            assert len(listed(make(settings(tmp_path / "few") | held("a", rows=2), tmp_path / "pools"), "train")) == 1
    with pytest.raises(DataError, match="too few training documents"):
        make(settings(tmp_path / "few") | held("a", rows=2), tmp_path / "pools")


def test_rows_decode_to_the_texts_of_their_documents(corpus: Path, tmp_path: Path) -> None:
    pool = make(settings(corpus, tokenizer={"kind": "bpe", "vocab_size": 300}) | held("web"), tmp_path / "pools")
    assert pool.target is not None
    tokenizer, wanted = load(pool.tokenizer_path), texts(40, seed="web")
    ids = torch.arange(pool.target.index.rows)
    rows, spans = pool.target.read(ids), pool.target.documents(ids)
    found: dict[int, list[int]] = {}
    for row, document, start, length, offset in zip(*(s.tolist() for s in spans), strict=True):
        parts = found.setdefault(document, [])
        assert offset == len(parts)
        parts.extend(rows.tokens[row, start : start + length].tolist())
    assert len(found) >= 3
    *whole, last = found.items()
    for document, tokens in whole:
        number = int(pool.documents.ids[document].removeprefix("web-"))
        assert tokenizer.decode(tokens[1:]) == wanted[number]
        assert (pool.documents.domains[document], pool.documents.splits[document]) == ("web", "target")
        assert int(pool.documents.tokens[document]) == len(tokens) - 1
        assert int(pool.documents.bytes[document]) == len(wanted[number].encode())
    number = int(pool.documents.ids[last[0]].removeprefix("web-"))
    encoded = tokenizer.encode(wanted[number], add_special_tokens=False)
    assert last[1] == [pool.eos_id, *encoded][: len(last[1])], "the last document is cut where the rows are full"


def test_the_seed_and_the_number_of_rows_choose(corpus: Path, tmp_path: Path) -> None:
    pools = [
        make(settings(corpus) | held("web", rows=rows, seed=seed), tmp_path / "pools")
        for rows, seed in ((2, 0), (5, 0), (5, 1))
    ]
    few, more, other = (listed(pool, "target") for pool in pools)
    assert few < more and other != more
    assert [pool.target.index.rows for pool in pools if pool.target] == [2, 5, 5]
    assert len({pool.fingerprint for pool in pools}) == 3


def test_the_tokenizer_and_the_settings_without_a_target_set_stay(corpus: Path, tmp_path: Path) -> None:
    dataset = settings(corpus, tokenizer={"kind": "bpe", "vocab_size": 300})
    plain, root = make(dataset, tmp_path / "pools"), tmp_path / "pools"
    for target in ({}, {"path": None, "from": None, "rows_per_subtask": 3, "seed": 5}):
        assert locate(dataset | {"target": target}, root=root) == plain.path
    pool = make(dataset | held("web"), root)
    assert pool.tokenizer_fingerprint == plain.tokenizer_fingerprint
    assert len([path for path in (root / "tokenizers").iterdir() if path.is_dir()]) == 1
    assert rows_of(pool.validation) == rows_of(plain.validation)


def test_a_target_set_of_files_leaves_training(corpus: Path, tmp_path: Path) -> None:
    """Copies are in no row. A subtask of few tokens is one short row, the others are cut to full rows.

    A document of two subtasks is in the first.
    """
    dataset, root = settings(corpus), tmp_path / "pools"
    plain = make(dataset, root)
    trained = [t for t in texts(40, seed="web") if text_digest(t) in listed(plain, "train")]
    new = texts(6, seed="new")
    wanted = tmp_path / "wanted"
    write_jsonl(wanted / "web.jsonl", [*trained[:3], *new, "c", new[0]])
    write_jsonl(wanted / "tiny.jsonl", ["ab", "c"])
    pool = make(dataset | {"target": {"path": str(wanted), "rows_per_subtask": None}}, root)
    assert pool.target is not None and pool.target.index.domains == ("tiny", "web")
    tiny, web = packed(pool, ["ab", "c"], None), packed(pool, trained[:3] + new, None)
    assert rows_of(pool.target) == tiny[0] + web[0] and len(tiny[0]) == 1 and len(tiny[0][0]) == 5
    assert pool.target.index.tokens_of(torch.arange(3)).tolist() == [4, 32, 32] and pool.target.index.rows > 8
    assert listed(pool, "target") == tiny[1] | web[1]
    copies = {text_digest(t) for t in trained[:3]}
    assert listed(pool, "removed") == copies and pool.manifest["target"]["removed"] == 3
    assert not hashes(pool, pool.train) & copies and listed(pool, "train") == listed(plain, "train") - copies
    assert rows_of(pool.validation) == rows_of(plain.validation)
    batch = collate(pool.target, torch.arange(2), document_mask=False)
    assert batch["tokens"].tolist() == [4, 32]
    few = make(dataset | {"target": {"path": str(wanted), "rows_per_subtask": 1}}, root)
    assert few.target is not None and few.target.index.sizes.tolist() == [1, 1]
    assert rows_of(few.target) == tiny[0] + web[0][:1]


def test_copies_of_what_is_evaluated_are_refused(corpus: Path, tmp_path: Path) -> None:
    plain = make(settings(corpus), tmp_path / "pools")
    evaluated = [t for t in texts(40, seed="web") if text_digest(t) in listed(plain, "validation")]
    path = write_jsonl(tmp_path / "wanted.jsonl", evaluated[:1])
    with pytest.raises(DataError, match="is a validation document of domain 'web'"):
        make(settings(corpus, target={"path": str(path)}), tmp_path / "pools")


@pytest.mark.parametrize("kind", ["from", "path"])
def test_every_shard_takes_the_same(corpus: Path, tmp_path: Path, kind: str) -> None:
    """The rows of the target set are those of one shard, byte for byte, whatever order the shards are made in."""
    wanted = write_jsonl(tmp_path / "wanted.jsonl", texts(9, seed="web") + texts(9, seed="new"))
    target = held("web", "code") if kind == "from" else {"target": {"path": str(wanted), "rows_per_subtask": 6}}
    dataset = settings(corpus, tokenizer={"kind": "bpe", "vocab_size": 300}, validation={"fraction": 0.1, "seed": 4})
    dataset |= target
    whole = make(dataset, tmp_path / "one")
    for index in (2, 1):
        assert prepare(dataset, root=tmp_path / "three", shard_index=index, shard_count=3) is None
    parted = make(dataset, tmp_path / "three", shard_index=0, shard_count=3)
    assert whole.target is not None and parted.target is not None
    assert rows_of(parted.target) == rows_of(whole.target)
    for split in ("train", "validation", "target", "removed"):
        assert listed(parted, split) == listed(whole, split)
    assert bool(listed(whole, "removed")) == (kind == "path")
    for entry in whole.manifest["target"]["files"]:
        for name in ("target.arrow", "documents.arrow", "counts.json"):
            assert (whole.path / entry["path"] / name).read_bytes() == (parted.path / entry["path"] / name).read_bytes()
    assert not listed(parted, "target") & (hashes(parted, parted.train) | hashes(parted, parted.validation))
    assert locate(dataset, root=tmp_path / "three") == parted.path


@pytest.mark.parametrize("writes", [1, 4, 6, 8, 11, 13])
def test_a_run_that_died_is_taken_up_and_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    dataset = settings(corpus) | held("web", "code")
    whole = make(dataset, tmp_path / "whole").path
    write, count = tables.TableWriter.write, iter(range(1000))

    def dies(self: tables.TableWriter, columns: dict[str, object]) -> None:
        if next(count) == writes:
            raise KeyboardInterrupt
        write(self, columns)

    with monkeypatch.context() as patch:
        patch.setattr(tables.TableWriter, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, root=tmp_path / "pools")
    assert locate(dataset, root=tmp_path / "pools") is None
    pool = make(dataset, tmp_path / "pools").path
    assert files_of(pool) == files_of(whole)


@pytest.mark.parametrize("dataset", ["text", "sft"])
def test_a_run_that_died_before_its_manifest_is_taken_up(
    dataset: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the target set are there, and are not made again."""
    lines = [{"instruction": f"Say {i}", "input": "", "output": f"{i}"} for i in range(20)]
    for name in ("sft/a.jsonl", "wanted.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        kept = lines if name == "sft/a.jsonl" else [line | {"output": "yes"} for line in lines[:5]]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in kept))
    asked = settings(corpus) | held("web")
    if dataset == "sft":
        asked = settings(tmp_path / "sft", format="sft", seq_len=256, target={"path": str(tmp_path / "wanted.jsonl")})
    with monkeypatch.context() as patch:
        patch.setattr("regimen.data.prepare.write_atomically", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(asked, root=tmp_path / "pools")
    pool = make(asked, tmp_path / "pools")
    assert pool.target is not None and pool.target.index.rows == (5 if dataset == "sft" else 12)


def test_the_overlap_report_is_of_training_rows_alone(tmp_path: Path) -> None:
    """Text that validation shares with the target set alone is not overlap; the shares are those of a plain count."""
    rng = random.Random(0)
    documents = ["".join(rng.choices("abcdefghij", k=60)) for _ in range(60)]
    write_jsonl(tmp_path / "c" / "a.jsonl", documents)
    dataset = settings(tmp_path / "c", overlap={"n": 5})
    plain = make(dataset, tmp_path / "pools")
    evaluated = [t for t in documents if text_digest(t) in listed(plain, "validation")]
    wanted = write_jsonl(tmp_path / "wanted.jsonl", ["See: " + text for text in evaluated])
    aimed = make(dataset | {"target": {"path": str(wanted), "rows_per_subtask": None}}, tmp_path / "pools")
    assert aimed.target is not None and aimed.manifest["overlap"] == plain.manifest["overlap"]
    pool = make(dataset | held("a"), tmp_path / "pools")
    hasher = _Hasher(5, pool.vocab_size, pool.eos_id)
    grams = []
    for table in (pool.validation, pool.train):
        stream = torch.tensor([token for row in rows_of(table) for token in row])
        grams.append(hasher.of_text(stream.numpy()).tolist())
    assert pool.manifest["overlap"]["all"] == pytest.approx(sum(g in set(grams[1]) for g in grams[0]) / len(grams[0]))


def test_target_sets_that_cannot_be_are_refused(corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "pools"
    with pytest.raises(ConfigError, match=r"not there, did you mean 'web'(.|\n)*allowed: code, web"):
        make(settings(corpus) | held("wed"), root)
    with pytest.raises(DataError, match=r"'code' has too few training documents(.|\n)*rows of 33 tokens"):
        make(settings(corpus) | held("code", rows=500), root)
    write_jsonl(tmp_path / "two" / "a.jsonl", ["a " * 300, "b " * 300])
    with pytest.raises(DataError, match=r"too few training documents(.|\n)*, 1 training documents"):
        make(settings(tmp_path / "two") | held("a", rows=1), root)
    for change in ({"deduplicate": False}, {"shard_by": "file"}):
        with pytest.raises(ConfigError, match="cannot hold a target set apart"):
            parse(settings(corpus) | held("web") | change)
    with pytest.raises(ConfigError, match="not from both"):
        parse(settings(corpus, target={"from": ["web"], "path": "y"}))
    with pytest.raises(ConfigError, match="where dataset.target.from holds rows out"):
        parse(settings(corpus, target={"from": ["web"], "rows_per_subtask": None}))
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="not one of its records|has no documents"):
        make(settings(corpus, on_bad_record="skip", target={"path": str(tmp_path / "blank.jsonl")}), root)
    pool = make(settings(corpus), root)
    with pytest.raises(ConfigError, match="is a prepared pool"):
        make(settings(corpus, target={"path": str(pool.path)}), root)


def test_files_are_read_as_those_of_the_dataset(tmp_path: Path) -> None:
    """Plain text by folder, Parquet by a field, and JSON lines where the dataset has no files."""
    for folder, seed in (("data/web", "web"), ("wanted/ask", "ask"), ("wanted/say", "say")):
        (tmp_path / folder).mkdir(parents=True)
        for k, text in enumerate(texts(12, seed=seed)):
            (tmp_path / folder / f"{k}.txt").write_text(text)
    target = {"path": str(tmp_path / "wanted"), "rows_per_subtask": 2}
    pool = make(settings(tmp_path / "data", source="text", target=target), tmp_path / "pools")
    assert pool.target is not None and pool.target.index.domains == ("ask", "say")
    for name, seeds in (("a", ("x", "y")), ("b", ("p", "q"))):
        columns = {
            "body": [t for seed in seeds for t in texts(12, seed=name + seed)],
            "task": [seed for seed in seeds for _ in range(12)],
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    fields = {"text_field": "body", "domain_field": "task", "domains": {"q": "questions"}}
    target = {"path": str(tmp_path / "b.parquet"), "rows_per_subtask": 2}
    pool = make(settings(tmp_path / "a.parquet", source="parquet", target=target, **fields), tmp_path / "pools")
    assert pool.domains == ("x", "y")
    assert pool.target is not None and pool.target.index.domains == ("p", "questions")
    assert rows_of(pool.target) == packed(pool, texts(12, seed="bp"), 2)[0] + packed(pool, texts(12, seed="bq"), 2)[0]


def test_local_text_has_target_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimen.data.sources.local.DOMAINS", ("prose",))  # the others take long to find
    dataset = {"source": "local", "max_mb_per_domain": 0.05, "seq_len": 64, "tokenizer": {"kind": "bytes"}}
    dataset |= {"overlap": {"n": 0}, "validation": {"fraction": 0.1}}
    pool = make(dataset | held("prose", rows=3), tmp_path / "pools")
    assert pool.target is not None and pool.target.index.sizes.tolist() == [3]
    assert not hashes(pool, pool.target) & (hashes(pool, pool.train) | hashes(pool, pool.validation))
    path = write_jsonl(tmp_path / "mine.jsonl", texts(9, seed="mine"))
    pool = make(dataset | {"target": {"path": str(path), "rows_per_subtask": 3}}, tmp_path / "pools")
    assert pool.target is not None and rows_of(pool.target) == packed(pool, texts(9, seed="mine"), 3)[0]


def test_what_is_kept_while_reading_does_not_depend_on_the_order(tmp_path: Path) -> None:
    """It is the beginning of the documents by rank: the shortest that has enough of those above `certain`."""
    rng = random.Random(1)
    found = []
    documents = [(rng.getrandbits(63), rng.getrandbits(64), "x" * rng.randint(1, 9)) for _ in range(400)]
    for _ in range(3):
        rng.shuffle(documents)
        lowest = _Lowest(limit=600, certain=2**63)
        for rank, key, text in documents:
            lowest.add(rank, Record("a", None, text, "f", 0), f"{rank:x}", key)
        assert lowest.write(tmp_path / "a.arrow", threshold=2**62) == sum(key > 2**62 for _, key, _ in documents)
        (batch,) = tables.read_batches(tmp_path / "a.arrow")
        found.append(batch.column("hash").to_pylist())
    kept, size, count = [], 0, 0
    for rank, key, text in sorted(documents):
        if size >= 600 and count >= MIN_DOCUMENTS:
            break
        kept += [f"{rank:x}"] if key > 2**62 else []
        size, count = size + len(text) * (key > 2**63), count + (key > 2**63)
    assert found[0] == found[1] == found[2] == kept and 64 < len(kept) < 300
