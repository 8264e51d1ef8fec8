import gzip
import json
import lzma
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_corpora import make, settings, texts, write_jsonl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from regimen.core.errors import ConfigError, DataError
from regimen.data.settings import parse
from regimen.data.sources.factory import open_source
from regimen.data.sources.local import DOMAINS, ROOTS, LocalSource
from regimen.data.sources.records import BadRecords

REPOSITORY = Path(__file__).parents[3]


def records(root, policy="fail", **dataset):
    source, bad = open_source(parse(dataset), root), BadRecords(policy)
    return [r for part in source.parts() for r in source.read(part, bad)], bad


def jsonl(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


GOOD = '{"text": "good", "id": 7, "meta": {"set": "A"}}'


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"text": "cut', "w.jsonl:2: not valid JSON: Unterminated string"),
        (
            '{"body": "x", "id": 1}',
            r"w.jsonl:2: no text: field 'text' is missing or null\n  got:     fields \['body', 'id'\]",
        ),
        ('{"text": null}', "w.jsonl:2: no text"),
        ('{"text": "  "}', "w.jsonl:2: no text: field 'text' is empty"),
        ('{"text": 5}', r"w.jsonl:2: field 'text' must be a string\n  got:     int '5'"),
        ('["text"]', "w.jsonl:2: a record must be an object"),
        ('{"text": "\\ud800"}', "w.jsonl:2: the text in 'text' is not valid Unicode"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path, bad, message):
    path = jsonl(tmp_path / "w.jsonl", GOOD, bad, GOOD)
    with pytest.raises(DataError, match=message) as raised:
        records(tmp_path, source="jsonl", path=path)
    assert "on_bad_record=skip" in str(raised.value)
    found, report = records(tmp_path, "skip", source="jsonl", path=path)
    assert [(r.domain, r.id, r.text, r.line) for r in found] == [("w", "7", "good", 1), ("w", "7", "good", 3)]
    assert report.skipped == {path: 1}


def test_a_file_of_bad_records_alone_is_refused_even_when_skipping(tmp_path):
    path = jsonl(tmp_path / "w.jsonl", GOOD, GOOD)
    with pytest.raises(DataError, match="w.jsonl: not one of its records can be used"):
        records(tmp_path, "skip", source="jsonl", path=path, text_field="body")


def test_skipped_records_are_in_the_manifest(tmp_path):
    lines = [json.dumps({"text": text}) for text in texts(20, seed="w")]
    path = jsonl(tmp_path / "c" / "w.jsonl", *lines[:5], "{", *lines[5:], "{}")
    with pytest.raises(DataError, match="w.jsonl:6"):
        make(settings(path), tmp_path / "pools")
    pool = make(settings(path, on_bad_record="skip"), tmp_path / "pools")
    assert pool.manifest["skipped"] == {path: 2}
    assert len(pool.documents) == 20


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "w.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="w.jsonl:2: not readable"):
        records(tmp_path, source="jsonl", path=str(tmp_path / "w.jsonl"))
    (tmp_path / "w.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="w.txt: not UTF-8"):
        records(tmp_path, source="text", path=str(tmp_path / "w.txt"))


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="empty.jsonl: the file is empty"):
        records(tmp_path, source="jsonl", path=str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="has no records"):
        records(tmp_path, source="jsonl", path=jsonl(tmp_path / "blank.jsonl", "", " "))
    with pytest.raises(DataError, match=r"no file to read(.|\n)*blank.jsonl, empty.jsonl"):
        records(tmp_path, source="jsonl", path=str(tmp_path / "gone.jsonl"))
    with pytest.raises(DataError, match=r"dataset=jsonl, parquet or text"):
        records(tmp_path, source="parquet", path=str(tmp_path))
    with pytest.raises(DataError, match="cannot be opened"):
        records(tmp_path, source="jsonl", path="nosuch://x/y")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_compressed_files(tmp_path, suffix):
    path, content = tmp_path / f"w.jsonl{suffix}", f"{GOOD}\n".encode() * 3000
    opener = {".gz": gzip.open, ".xz": lzma.open, ".zst": lambda p, mode: pa.CompressedOutputStream(str(p), "zstd")}
    with opener[suffix](path, "wb") as file:
        file.write(content)
    found, _ = records(tmp_path, source="jsonl", path=str(path))
    assert len(found) == 3000
    assert found[-1].domain == "w"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read to its end"):
        records(tmp_path, source="jsonl", path=str(path))


def test_domains_come_from_names_fields_or_a_constant(tmp_path):
    for name in ("c/web-00000-of-00002.jsonl", "c/web-00001-of-00002.jsonl", "c/code/x.jsonl", "c/code/deep/y.jsonl"):
        jsonl(tmp_path / name, GOOD)
    folder = str(tmp_path / "c")
    assert [r.domain for r in records(tmp_path, source="jsonl", path=folder)[0]] == ["code", "code", "web", "web"]
    assert [r.domain for r in records(tmp_path, source="jsonl", path=f"{folder}/*.jsonl")[0]] == ["web", "web"]
    assert {r.domain for r in records(tmp_path, source="jsonl", path=folder, domain="all")[0]} == {"all"}
    assert {r.domain for r in records(tmp_path, source="jsonl", path=folder, domain_field="meta.set")[0]} == {"A"}
    with pytest.raises(DataError, match=r"x.jsonl|y.jsonl:1: no domain: field 'meta.sett'"):
        records(tmp_path, source="jsonl", path=folder, domain_field="meta.sett")


def test_a_remote_file_system(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/web.jsonl", f"{GOOD}\n".encode())
    source = open_source(parse({"source": "jsonl", "path": "memory://corpus"}), tmp_path)
    before = source.identity()
    assert [r.text for part in source.parts() for r in source.read(part, BadRecords("fail"))] == ["good"]
    memory.pipe("/corpus/web.jsonl", f"{GOOD}\n{GOOD}\n".encode())
    assert open_source(parse({"source": "jsonl", "path": "memory://corpus"}), tmp_path).identity() != before
    memory.rm("/corpus", recursive=True)


def test_text_files_are_documents_or_are_cut_at_a_separator(tmp_path):
    for k in range(3):
        (tmp_path / f"books/{k}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"books/{k}.txt").write_text(f"a{k}\nb\n\n\nc{k}")
    whole, _ = records(tmp_path, source="text", path=str(tmp_path / "books"))
    assert [(r.domain, r.id) for r in whole] == [("books", "0.txt"), ("books", "1.txt"), ("books", "2.txt")]
    assert {r.domain for r in records(tmp_path, source="text", path=str(tmp_path))[0]} == {"books"}
    cut, _ = records(tmp_path, source="text", path=str(tmp_path / "books"), separator="\n\n\n")
    assert [(r.domain, r.text, r.line) for r in cut][:3] == [("0", "a0\nb", 1), ("0", "c0", 5), ("1", "a1\nb", 1)]


def test_separators_that_straddle_blocks_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("regimen.data.sources.formats.BLOCK", 3)
    (tmp_path / "t.txt").write_text("one==two==three" * 5)
    found, _ = records(tmp_path, source="text", path=str(tmp_path / "t.txt"), separator="==")
    assert "==".join(r.text for r in found) == "one==two==three" * 5


def test_parquet(tmp_path):
    table = pa.table({"text": ["one", None, "three"], "meta": [{"set": "A"}] * 3, "other": [1, 2, 3]})
    path = str(tmp_path / "w.parquet")
    pq.write_table(table, path)
    with pytest.raises(DataError, match="w.parquet:2: no text"):
        records(tmp_path, source="parquet", path=path)
    found, report = records(tmp_path, "skip", source="parquet", path=path, domain_field="meta.set")
    assert [(r.domain, r.text, r.line) for r in found] == [("A", "one", 1), ("A", "three", 3)]
    assert report.skipped == {path: 1}
    with pytest.raises(DataError, match=r"'body' is missing(.|\n)*\['text', 'meta', 'other'\]"):
        records(tmp_path, source="parquet", path=path, text_field="body")
    (tmp_path / "w.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        records(tmp_path, source="parquet", path=path)


def test_the_hub_reader_reads_a_repository_folder(tmp_path):
    write_jsonl(tmp_path / "repo" / "train.jsonl", texts(4, seed="hub"))
    found, _ = records(tmp_path, source="hub", repo=str(tmp_path / "repo"), domain="hub")
    assert [(r.domain, r.id, r.text) for r in found] == [
        ("hub", f"train-{k}", text) for k, text in enumerate(texts(4, seed="hub"))
    ]
    with pytest.raises(DataError, match="cannot be read from the Hugging Face hub"):
        records(tmp_path, source="hub", repo=str(tmp_path / "repo"), split="nosuch")


def test_local_text_is_there_in_every_domain_and_always_the_same(tmp_path):
    dataset = {"source": "local", "max_mb_per_domain": 0.05}
    first, _ = records(tmp_path, **dataset)
    again, _ = records(tmp_path, **dataset)
    assert first == again
    for domain in DOMAINS:
        own = [r for r in first if r.domain == domain]
        assert len(own) >= 2
        assert 50_000 <= sum(len(r.text.encode()) for r in own) < 250_000
    assert len({r.id for r in first}) == len(first)
    source = LocalSource(parse(dataset))
    assert source.identity() == LocalSource(parse(dataset)).identity()
    assert "torch" in source.identity()["packages"]
    assert "pytest" not in source.identity()["packages"]


def test_local_text_comes_from_the_base_dependencies_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {*ROOTS, "scipy", "lightgbm"} == {
        line.partition(">=")[0].partition("[")[0] for line in project["dependencies"]
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "jsnl"}, "did you mean 'jsonl'"),
        ({"seq_length": 5}, r"unknown setting dataset.seq_length, did you mean 'seq_len'"),
        ({"seq_len": 0}, "dataset.seq_len is out of range"),
        ({"seq_len": "many"}, "dataset.seq_len"),
        ({"tokenizer": {"vocab": 5}}, r"dataset.tokenizer.vocab, did you mean 'vocab_size'"),
        ({"tokenizer": {"vocab_size": 100}}, "258 or more"),
        ({"tokenizer": {"kind": "hf"}}, r"dataset.tokenizer.path=gpt2"),
        ({"validation": {"fraction": 0}}, "dataset.validation.fraction"),
        ({"on_bad_record": "ignore"}, "unknown on_bad_record"),
        ({"source": "jsonl", "path": "???"}, r"dataset.path=FILE"),
        ({"source": "hub"}, r"dataset.repo=OWNER/NAME"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        parse({"source": "local"} | change)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf" / "dataset").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_dataset_file_parses(path, tmp_path):
    if path.stem in ("base", "sft_base"):
        return
    (tmp_path / "root.yaml").write_text(
        f"hydra:\n  searchpath: ['file://{REPOSITORY}/conf']\ndefaults: [dataset: local, _self_]\non_bad_record: fail\n"
    )
    missing = dict.fromkeys(("jsonl", "parquet", "text", "sft_files"), "dataset.path=x")
    missing |= dict.fromkeys(("hub", "sft_hub"), "dataset.repo=a/b")
    overrides = [f"dataset={path.stem}", *([missing[path.stem]] if path.stem in missing else [])]
    with initialize_config_dir(str(tmp_path), version_base=None):
        config = compose("root", overrides=overrides)
    parsed = parse(OmegaConf.to_container(config.dataset, resolve=True))
    assert parsed.name in (path.stem, parsed.source)
