"""A target set is in no row of training or validation, whichever shard makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sft_corpora import example, hashes, make, texts, write

from regimen.core.errors import ConfigError, DataError
from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.data.settings import parse
from regimen.training.loader import collate


def test_a_target_set_held_out_is_in_no_other_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [example(i, task) for i in range(30) for task in ("sums", "code", "talk")])
    plain = make(path, tmp_path / "pools", domain_field="task")
    assert plain.target is None
    pool = make(path, tmp_path / "pools", domain_field="task", target={"from": ["talk", "code"], "rows_per_subtask": 5})
    assert pool.target is not None and pool.fingerprint != plain.fingerprint
    assert pool.target.index.domains == ("code", "talk") and pool.target.index.sizes.tolist() == [5, 5]
    target, train, validation = (set(hashes(pool, table)) for table in (pool.target, pool.train, pool.validation))
    assert len(target) == 10 and not target & train and not target & validation
    assert validation == set(hashes(plain, plain.validation)), "validation is that of the pool without a target set"
    assert train | target == set(hashes(plain, plain.train))
    batch = collate(pool.target, torch.arange(10), document_mask=False)
    assert batch["tokens"].tolist() == pool.target.index.tokens_of(torch.arange(10)).tolist()
    other = make(
        path,
        tmp_path / "pools",
        domain_field="task",
        target={"from": ["talk", "code"], "rows_per_subtask": 5, "seed": 1},
    )
    assert other.target is not None and set(hashes(other, other.target)) != target


def test_a_target_set_of_files_leaves_training(tmp_path: Path) -> None:
    records = [example(i) for i in range(30)]
    path = write(tmp_path / "data" / "a.jsonl", records)
    plain = make(path, tmp_path / "pools")
    trained = set(texts(plain))
    copies = [r for r in records if r["id"] in trained][:3]
    target = write(tmp_path / "wanted" / "b.jsonl", copies + [example(100 + i) for i in range(4)])
    wanted = {"path": str(target), "rows_per_subtask": None}
    pool = make(path, tmp_path / "pools", target=wanted)
    assert pool.target is not None and pool.target.index.domains == ("b",) and pool.target.index.rows == 7
    assert set(texts(pool)) == trained - {r["id"] for r in copies}
    spans = pool.target.documents(torch.arange(7))
    assert [pool.documents.domains[k] for k in spans.document.tolist()] == ["b"] * 7
    assert not set(hashes(pool, pool.target)) & set(hashes(pool, pool.train))
    held = [r for r in records if r["id"] not in trained][:1]
    write(target, held)
    with pytest.raises(DataError, match="is a validation example"):
        make(path, tmp_path / "pools", target=wanted)


def test_target_sets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [example(i) for i in range(12)])
    with pytest.raises(ConfigError, match=r"not there, did you mean 'a'(.|\n)*allowed: a"):
        make(path, tmp_path / "pools", target={"from": ["aa"]})
    with pytest.raises(DataError, match="too few training examples"):
        make(path, tmp_path / "pools", target={"from": ["a"], "rows_per_subtask": 50})
    for change in ({"deduplicate": False}, {"shard_by": "file"}):
        with pytest.raises(ConfigError, match="cannot hold a target set apart"):
            parse({"source": "jsonl", "path": "x", "format": "sft", "target": {"from": ["a"]}} | change)
    with pytest.raises(ConfigError, match="not from both"):
        parse({"source": "jsonl", "path": "x", "format": "sft", "target": {"from": ["a"], "path": "y"}})


def test_shards_make_the_rows_of_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [example(i) for i in range(40)])
    changes = {"target": {"from": ["a"], "rows_per_subtask": 4}}
    whole = make(path, tmp_path / "one", **changes)
    settings = {"source": "jsonl", "format": "sft", "path": str(path), "tokenizer": {"kind": "bytes"}, "seq_len": 256}
    settings |= {"validation": {"fraction": 0.1}, "overlap": {"n": 0}, **changes}
    assert prepare(settings, root=tmp_path / "two", shard_index=0, shard_count=2) is None
    found = prepare(settings, root=tmp_path / "two", shard_index=1, shard_count=2)
    assert found is not None
    parted = Pool.open(found)
    assert parted.target is not None and whole.target is not None
    for mine, theirs in ((parted.train, whole.train), (parted.target, whole.target)):
        assert sorted(hashes(parted, mine)) == sorted(hashes(whole, theirs))
