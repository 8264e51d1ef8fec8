"""Names, hashes and folders of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regimen.runs.identity import config_hash, run_folder, run_name, sweep_name
from tests.support.runs import compose_settings

SAME = [
    "logger=wandb",
    "paths.outputs=/elsewhere",
    "paths.pools=/elsewhere",
    "run_dir=/elsewhere/run",
    "sweep=other",
    "trainer.accelerator=gpu",
    "trainer.devices=8",
    "trainer.num_nodes=2",
    "trainer.strategy=ddp",
    "trainer.micro_batch_size=4",
    "trainer.sweep_batch_size=7",
    "trainer.threads=1",
    "trainer.progress=none",
    "trainer.log_every=3",
    "trainer.save_every_steps=3",
    "trainer.save_every_minutes=null",
    "trainer.keep_checkpoints=null",
    "accept_other_version=true",
    "shard.count=4",
    "+signal.other={_target_: regimen.signals.loss.Length}",
]
OTHER = [
    "seed=1",
    "method=uniform",
    "model=tiny",
    "model.config.hidden_size=64",
    "dataset.seq_len=128",
    "dataset.validation.seed=1",
    "on_bad_record=skip",
    "dataset.max_epochs_per_domain=2",
    "dataset.document_mask=true",
    "optimizer.lr=2e-3",
    "optimizer.schedule.warmup=0.1",
    "objective.reduction=sample_mean",
    "budget.steps=7",
    "trainer.global_batch_size=32",
    "trainer.gradient_clip_val=null",
    "trainer.precision=bf16-mixed",
    "evaluation.at=[1]",
    "strategies.natural.draw=fixed_counts",
]


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return compose_settings()


@pytest.mark.parametrize("override", SAME)
def test_what_cannot_change_a_result_is_not_in_the_hash(plain: dict[str, Any], override: str) -> None:
    settings = compose_settings(override)
    assert settings != plain
    assert config_hash(settings) == config_hash(plain)


@pytest.mark.parametrize("override", OTHER)
def test_what_can_change_a_result_is_in_the_hash(plain: dict[str, Any], override: str) -> None:
    assert config_hash(compose_settings(override)) != config_hash(plain)


@pytest.mark.parametrize(
    ("by", "off", "on"),
    [
        ({"kind": "lqs"}, {"scorer": {"model": "none", "rows": 7}}, {"scorer": {"model": "own", "rows": 7}}),
        ({"min_count": 1}, {"polarity": 1}, {"polarity": -1}),
    ],
)
def test_what_came_later_and_is_off_keeps_the_hash(by: dict[str, Any], off: dict[str, Any], on: dict[str, Any]) -> None:
    before, same, other = (config_hash({"strategies": {"x": {"by": {**by, **more}}}}) for more in ({}, off, on))
    assert before == same != other


def test_names_and_folders(plain: dict[str, Any]) -> None:
    assert run_name(plain) == "natural-nano-local-seed0"
    both = compose_settings("method=[folding,loss_weighting]", "model=tiny", "seed=4")
    assert run_name(both) == "folding+loss_weighting-tiny-local-seed4"
    assert run_folder(plain, sweep=None) == Path("outputs") / f"natural-nano-local-seed0-{config_hash(plain)}"
    assert run_folder(plain, sweep="grid").parent == Path("outputs/grid")
    assert run_folder(plain | {"run_dir": "/a/b"}, sweep="grid") == Path("/a/b")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=natural,uniform,odm", "seed=1,2"], "method3-seed2"),
        (["method=[folding,loss_weighting],natural", "model=tiny"], "method2"),
        (["seed=range(5)", "optimizer.lr=1e-3,1e-4"], "seed5-lr2"),
        (["seed=range(2,5)"], "seed3"),
        (["+strategies.fixed.weights={a: 0.5, b: 0.5}", "seed=1,2,3"], "seed3"),
        (["note='a,b'", "seed=1"], "multirun"),
    ],
)
def test_a_sweep_is_named_after_what_is_swept(overrides: list[str], name: str) -> None:
    found, _, digest = sweep_name(overrides).rpartition("-")
    assert found == name and len(digest) == 6
    assert sweep_name(overrides[::-1]).endswith(digest), "the order of overrides does not matter"
    assert sweep_name([*overrides, "logger=wandb", "trainer.devices=2"]) == sweep_name(overrides)
    assert sweep_name([*overrides, "optimizer.lr=7"]) != sweep_name(overrides)


def test_a_file_in_a_strategy_counts_by_its_content(tmp_path: Path) -> None:
    def hashed(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return config_hash({"strategies": {"scores": {"by": {"path": str(tmp_path / name)}}}})

    first = hashed("a.csv", "score\n1\n")
    assert hashed("b.csv", "score\n1\n") == first
    assert hashed("a.csv", "score\n2\n") != first
    assert config_hash({"strategies": {"by": "no/such/file"}}) != config_hash({"strategies": {"by": "no/such/other"}})
