"""`regimen export`: a model that transformers loads and that is the one the run measured, and what was decided."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from regimen.data.pool import Pool
from tests.support.cli import CommandLine
from tests.support.runs import DOMAINS, lines

METHOD = ("method=[topk,temperature]", "strategies.topk.ratio=0.5", "strategies.temperature.tau=2.0")


@pytest.fixture
def trained(regimen: CommandLine, home: Path) -> Path:
    """A finished run; the second test that asks finds it."""
    assert regimen.small("train", *METHOD, f"run_dir={home}/run", "optimizer.lr=3e-3").status == 0
    return home / "run"


@pytest.fixture
def pool(trained: Path, home: Path) -> Pool:
    (manifest,) = home.glob("pools/*/manifest.json")
    return Pool.open(manifest.parent)


@pytest.fixture
def exported(regimen: CommandLine, trained: Path, tmp_path: Path) -> Path:
    done = regimen("export", f"run={trained}", f"to={tmp_path}/exported")
    assert done.status == 0, done.err
    assert done.out.strip() == f"{tmp_path}/exported"
    return tmp_path / "exported"


def test_transformers_loads_the_model_that_the_run_measured(exported: Path, trained: Path, pool: Pool) -> None:
    """Mean loss of every domain's validation rows, computed by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    scores = json.loads((trained / "summary.json").read_text())["evaluation"]["domains"]
    ids = torch.arange(pool.validation.index.rows)
    tokens = pool.validation.read(ids, positions=False).tokens
    with torch.no_grad():
        losses = torch.stack([model(input_ids=row[None], labels=row[None]).loss for row in tokens])
    domain = pool.validation.index.domain_of(ids)
    for k, name in enumerate(pool.domains):
        assert float(losses[domain == k].double().mean()) == pytest.approx(scores[name]["loss"], abs=1e-5), name


def test_the_model_generates_with_its_tokenizer(exported: Path, pool: Pool) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    given = tokenizer("def model(x):", return_tensors="pt", return_token_type_ids=False)
    assert tokenizer.decode(given["input_ids"][0]) == "def model(x):"
    out = model.generate(**given, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > given["input_ids"].shape[1] and int(out.max()) < pool.vocab_size
    assert model.config.use_cache and model.config.eos_token_id == pool.eos_id


def test_rows_tell_what_was_kept_and_served(exported: Path, trained: Path, pool: Pool) -> None:
    table = pq.read_table(exported / "rows.parquet").to_pydict()
    index = pool.train.index
    assert table["id"] == list(range(index.rows))
    assert table["domain"] == [pool.domains[k] for k in index.domain_of(torch.arange(index.rows)).tolist()]
    (selection,) = (row for row in lines(trained / "record.jsonl") if row["kind"] == "selector")
    assert sum(table["kept"]) == selection["kept"] < index.rows
    assert sum(table["served"]) == 8 * 8
    assert all(kept for kept, served in zip(table["kept"], table["served"], strict=True) if served)
    documents = {name for row in table["documents"] for name in row}
    assert {name.split("-")[0] for name in documents} == set(DOMAINS)
    for domain, row in zip(table["domain"], table["documents"], strict=True):
        assert row and all(name.startswith(f"{domain}-") for name in row), "no row holds two domains"


def test_the_mixture_is_that_of_the_summary(exported: Path, trained: Path) -> None:
    mixture = json.loads((exported / "mixture.json").read_text())
    assert mixture == json.loads((trained / "summary.json").read_text())["mixture"]
    assert set(mixture["decided"]) == set(DOMAINS) and sum(mixture["decided"].values()) == pytest.approx(1)


def test_exporting_twice_is_refused(regimen: CommandLine, exported: Path, trained: Path) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    done = regimen("export", f"run={trained}", f"to={exported}")
    assert done.status == 1 and "exists" in done.err and "name a new folder" in done.err
    assert {path: path.read_bytes() for path in before} == before


def test_what_cannot_be_exported_is_refused(regimen: CommandLine, trained: Path, tmp_path: Path) -> None:
    to = f"to={tmp_path}/to"
    summary = json.loads((trained / "summary.json").read_text())
    missing = regimen("export", f"run={tmp_path}/nothing", to)
    assert missing.status == 1 and "not a run folder" in missing.err
    try:
        (trained / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
        unfinished = regimen("export", f"run={trained}", to)
    finally:
        (trained / "summary.json").write_text(json.dumps(summary))
    assert unfinished.status == 1 and "interrupted" in unfinished.err
    assert f"regimen train resume={trained}" in unfinished.err
    nowhere = regimen("export", f"run={trained}", "to=/proc/version/to")
    assert nowhere.status == 1 and "cannot write /proc/version/to" in nowhere.err and "to=DIR" in nowhere.err
    assert list(tmp_path.iterdir()) == []
