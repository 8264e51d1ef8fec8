import gzip
import json
import shutil

import pytest
import torch
from data_corpora import make, settings, texts, write_jsonl
from datasets import Dataset

from regimen.core.errors import ConfigError, DataError
from regimen.data import tables
from regimen.data.pool import Pool
from regimen.data.prepare import locate, prepare
from regimen.data.tokenizer import load


def contents(pool):
    """(domain, split, id) of every document."""
    table = pool.documents
    return set(zip(table.domains, table.splits, table.ids, strict=True))


def files_of(path):
    keep = [f for f in sorted(path.rglob("*")) if f.is_file() and f.suffix != ".lock"]
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in keep}


def test_a_pool_holds_the_text_of_its_source(corpus, tmp_path):
    pool = make(settings(corpus), tmp_path / "pools")
    assert pool.domains == ("code", "web")
    assert pool.train.index.target_tokens == 32
    assert len(pool.documents) == 65
    assert int(pool.documents.bytes.sum()) == sum(c["bytes"] for c in pool.manifest["counts"].values())
    tokenizer, wanted = load(pool.tokenizer_path), texts(40, seed="web")
    table, found = pool.train, {}
    ids = table.index.ids(1)
    rows, spans = table.read(ids), table.documents(ids)
    for row, document, start, length in zip(*(s.tolist() for s in spans[:4]), strict=True):
        found.setdefault(document, []).extend(rows.tokens[row, start : start + length].tolist())
    assert len(found) > 30
    for document, tokens in list(found.items())[:-1]:
        number = int(pool.documents.ids[document].removeprefix("web-"))
        assert tokens[0] == pool.eos_id
        assert tokenizer.decode(tokens[1:]) == wanted[number]


def test_files_open_with_datasets(corpus, tmp_path):
    pool = make(settings(corpus), tmp_path / "pools")
    entry = pool.manifest["files"][0]
    table = Dataset.from_file(str(pool.path / entry["path"] / "train.arrow"))
    assert len(table) == entry["train_rows"]
    assert table[3]["tokens"] == pool.train.read(torch.tensor([3])).tokens[0].tolist()


def test_no_document_is_on_both_sides_and_none_is_lost(corpus, tmp_path):
    pool = make(settings(corpus), tmp_path / "pools")
    hashes = {split: set() for split in ("train", "validation")}
    for content, split in zip(pool.documents.hashes, pool.documents.splits, strict=True):
        hashes[split].add(content)
    assert not hashes["train"] & hashes["validation"]
    for table, split in ((pool.train, "train"), (pool.validation, "validation")):
        spans = table.documents(torch.arange(table.index.rows))
        assert {pool.documents.splits[k] for k in spans.document.tolist()} == {split}
    for counts in pool.manifest["counts"].values():
        assert counts["validation"]["documents"] >= 1
        assert counts["validation"]["bytes"] / counts["bytes"] == pytest.approx(0.1, abs=0.06)


def test_a_domain_of_two_documents_has_one_on_each_side(tmp_path):
    write_jsonl(tmp_path / "two.jsonl", ["a " * 300, "b " * 300])
    pool = make(settings(tmp_path / "two.jsonl", validation={"fraction": 0.99}), tmp_path / "pools")
    assert sorted(pool.documents.splits) == ["train", "validation"]


def test_a_domain_that_repeats_others_is_refused(tmp_path):
    write_jsonl(tmp_path / "c" / "a.jsonl", texts(9, seed="a"))
    write_jsonl(tmp_path / "c" / "b.jsonl", texts(5, seed="a"))
    with pytest.raises(DataError, match="every document of domain 'b' is in another domain too"):
        make(settings(tmp_path / "c"), tmp_path / "pools")


def test_a_domain_of_one_document_is_refused(tmp_path):
    write_jsonl(tmp_path / "c" / "one.jsonl", ["the same", "the same"])
    with pytest.raises(DataError, match="'one' has one document only"):
        make(settings(tmp_path / "c"), tmp_path / "pools")


def test_duplicates_go_across_files_domains_and_shards(corpus, tmp_path):
    plain = make(settings(corpus), tmp_path / "pools")
    write_jsonl(corpus / "again.jsonl", [*texts(5, seed="web"), *texts(2, seed="code"), *texts(9, seed="again")])
    for count in (1, 3):
        paths = [prepare(settings(corpus), root=tmp_path / "p", shard_index=k, shard_count=count) for k in range(count)]
        assert paths[:-1] == [None] * (count - 1)
        pool = Pool.open(paths[-1])
        assert len(pool.documents) == len(plain.documents) + 9
        assert len(set(pool.documents.hashes)) == len(pool.documents)
        assert sum(pool.manifest["duplicates_removed"].values()) == 7


def test_duplicates_are_kept_on_request_and_stay_on_one_side(tmp_path):
    write_jsonl(tmp_path / "c" / "web.jsonl", texts(20, seed="web") * 3)
    pool = make(settings(tmp_path / "c", deduplicate=False), tmp_path / "pools")
    assert len(pool.documents) == 60
    assert len(set(zip(pool.documents.hashes, pool.documents.splits, strict=True))) == 20


def test_shards_hold_the_documents_of_one_run(corpus, tmp_path):
    dataset = settings(corpus, tokenizer={"kind": "bpe", "vocab_size": 300})
    whole = make(dataset, tmp_path / "one")
    for index in (2, 0):
        assert prepare(dataset, root=tmp_path / "three", shard_index=index, shard_count=3) is None
    assert locate(dataset, root=tmp_path / "three") is None
    pool = make(dataset, tmp_path / "three", shard_index=1, shard_count=3)
    assert contents(pool) == contents(whole)
    assert pool.tokenizer_fingerprint == whole.tokenizer_fingerprint
    assert pool.fingerprint != whole.fingerprint
    assert locate(dataset, root=tmp_path / "three") == pool.path
    domains = [entry["domain"] for entry in pool.manifest["files"]]
    assert domains == sorted(domains)
    spans = pool.train.documents(torch.arange(pool.train.index.rows))
    assert {pool.documents.domains[k] for k in spans.document[spans.row < pool.train.index.sizes[0]].tolist()} == {
        "code"
    }


def test_shards_by_file_share_tokenizer_and_split(tmp_path):
    for k in range(4):
        write_jsonl(tmp_path / "c" / "web" / f"{k}.jsonl", texts(30, seed=f"web{k // 2}"))
    dataset = settings(tmp_path / "c", shard_by="file", tokenizer={"kind": "bpe", "vocab_size": 300})
    assert prepare(dataset, root=tmp_path / "p", shard_index=1, shard_count=2) is None
    pool = make(dataset, tmp_path / "p", shard_index=0, shard_count=2)
    assert pool.manifest["duplicates_left"] == len(pool.documents) - len(set(pool.documents.hashes)) == 60
    assert len(set(zip(pool.documents.hashes, pool.documents.splits, strict=True))) == 60
    with pytest.raises(ConfigError, match="a file for every shard"):
        prepare(dataset, root=tmp_path / "p", shard_index=4, shard_count=5)


@pytest.mark.parametrize("writes", [0, 2, 3, 5, 8])
def test_a_run_that_died_is_taken_up_and_gives_the_same_bytes(corpus, tmp_path, monkeypatch, writes):
    dataset = settings(corpus, tokenizer={"kind": "bpe", "vocab_size": 300})
    whole = make(dataset, tmp_path / "whole").path
    write, count = tables.TableWriter.write, iter(range(1000))

    def dies(self, columns):
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


def test_finished_stages_are_not_done_again(corpus, tmp_path, monkeypatch):
    dataset = settings(corpus)
    with monkeypatch.context() as patch:
        patch.setattr("regimen.data.merging.manifest_of", lambda job: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(dataset, root=tmp_path / "pools")
    monkeypatch.setattr("regimen.data.reading.Reader.write", lambda *_: 1 / 0)
    monkeypatch.setattr("regimen.data.encoding.encode_domain", lambda *_, **__: 1 / 0)
    first = make(dataset, tmp_path / "pools")
    assert make(dataset, tmp_path / "pools").path == first.path
    assert not (first.path / "texts").exists()


def test_the_fingerprint_follows_content_and_not_place(corpus, tmp_path):
    root, dataset = tmp_path / "pools", settings(corpus)
    first = make(dataset, root)
    shutil.copytree(corpus, tmp_path / "elsewhere" / "moved")
    moved = settings(tmp_path / "elsewhere" / "moved")
    assert locate(moved, root=root) == first.path
    assert locate(dict(reversed(list(dataset.items()))), root=root) == first.path
    assert locate(dataset | {"document_mask": True, "max_epochs_per_domain": 1}, root=root) == first.path
    for change in (
        {"seq_len": 16},
        {"tokenizer": {"kind": "bpe", "vocab_size": 300}},
        {"validation": {"fraction": 0.1, "seed": 1}},
        {"deduplicate": False},
        {"on_bad_record": "skip"},
        {"domains": {"web": "net"}},
    ):
        assert locate(dataset | change, root=root) is None
    with (tmp_path / "elsewhere" / "moved" / "web.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert locate(moved, root=root) is None
    assert locate(dataset, root=root) == first.path


def test_a_moved_pool_opens(corpus, tmp_path):
    path = make(settings(corpus), tmp_path / "pools").path
    moved = shutil.move(path, tmp_path / "moved")
    pool = Pool.open(moved)
    assert pool.train.read(torch.tensor([0])).tokens.shape == (1, 33)
    assert pool.token_bytes.shape == (pool.vocab_size,)


def test_what_is_no_pool_is_refused(corpus, tmp_path):
    with pytest.raises(DataError, match="no finished pool"):
        Pool.open(tmp_path)
    pool = make(settings(corpus), tmp_path / "pools")
    manifest = pool.path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    with pytest.raises(DataError, match="another version"):
        Pool.open(pool.path)


def test_renamed_domains_are_merged(tmp_path):
    write_jsonl(tmp_path / "c" / "cc1.jsonl", texts(20, seed="x"))
    with gzip.open(tmp_path / "c" / "cc2.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in texts(20, seed="y")))
    pool = make(settings(tmp_path / "c", domains={"cc1": "Common Crawl", "cc2": "Common Crawl"}), tmp_path / "p")
    assert pool.domains == ("Common Crawl",)
    assert len(pool.documents) == 40
    assert pool.documents.ids[25] == pool.documents.hashes[25]


def test_validation_rows_are_capped(corpus, tmp_path):
    dataset = settings(corpus, validation={"fraction": 0.5, "max_rows": 5})
    for count in (1, 3):
        for k in range(count):
            path = prepare(dataset, root=tmp_path / "p", shard_index=k, shard_count=count)
        assert Pool.open(path).validation.index.sizes.tolist() == [5, 5]


def test_overlap_is_the_share_of_validation_text_in_training_text(tmp_path):
    common = "These forty characters occur everywhere. "
    write_jsonl(tmp_path / "c" / "copied.jsonl", [f"{k:04d}{common}" for k in range(50)])
    write_jsonl(tmp_path / "c" / "own.jsonl", [f"{chr(0x4E00 + 97 * k)}" * 60 for k in range(50)])
    dataset = settings(tmp_path / "c", overlap={"n": 13})
    pool = make(dataset, tmp_path / "pools")
    shares = pool.manifest["overlap"]["validation"]
    assert shares["own"] == 0
    assert 0.8 < shares["copied"] < 1
    (tmp_path / "seen.txt").write_text(common)
    (tmp_path / "new.txt").write_text("Nothing of this was ever seen in any of the files above")
    against = [str(tmp_path / "seen.txt"), str(tmp_path / "new.txt")]
    again = make(dataset | {"overlap": {"n": 13, "against": against}}, tmp_path / "pools")
    assert again.path == pool.path
    assert again.manifest["overlap"]["against"] == {against[0]: 1.0, against[1]: 0.0}
    with pytest.raises(DataError, match=r"overlap\.against is not there"):
        make(dataset | {"overlap": {"n": 13, "against": [str(tmp_path / "gone.txt")]}}, tmp_path / "pools")
