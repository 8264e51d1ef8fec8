"""Averages of weights: their values from all checkpoints, evaluated, exported, resumed, and no part of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from regimen.core.errors import ConfigError
from regimen.data.pool import Pool
from regimen.runs.export import export
from regimen.runs.references import load_model
from regimen.training.callbacks.checkpoint import checkpoints
from tests.integration.test_two_processes import TWO, regimen
from tests.support.runs import lines, run, story

EVERY = (
    "trainer.save_every_steps=1",
    "trainer.keep_checkpoints=null",
    "optimizer.lr=1e-2",
    "trainer.micro_batch_size=4",
)
MEAN = ("optimizer.schedule.kind=constant", "optimizer.average.kind=mean", "optimizer.average.start=0.5")
EMA = ("optimizer.average.kind=ema", "optimizer.average.start=2", "optimizer.average.decay=0.7")


def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True)["state_dict"] for path in checkpoints(folder)]


def kept(folder: Path, at: int = -1) -> dict[str, torch.Tensor]:
    return torch.load(checkpoints(folder)[at], weights_only=True)["callbacks"]["averaging"]["weights"]


@pytest.fixture(scope="module")
def mean_run(corpus: Path, home: Path) -> Path:
    return run(corpus, home, *EVERY, *MEAN, f"run_dir={home}/mean")


def test_the_mean_of_the_last_half(mean_run: Path) -> None:
    steps, average = weights(mean_run), kept(mean_run)
    assert len(steps) == 8 and {f"model.{name}" for name in average} == set(steps[0]), "tied weights under both names"
    for name, value in average.items():
        expected = torch.stack([step[f"model.{name}"].double() for step in steps[4:]]).mean(0)
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)
    assert kept(mean_run, 3) == {}, "before the start there is none"
    told = json.loads((mean_run / "summary.json").read_text())
    assert told["averaging"] == {"kind": "mean", "from_step": 5, "steps": 4}


def test_the_exponential_average(corpus: Path, home: Path) -> None:
    folder = run(corpus, home, *EVERY, *EMA, f"run_dir={home}/ema")
    steps, average = weights(folder), kept(folder)
    for name, value in average.items():
        expected = steps[2][f"model.{name}"].double()
        for step in steps[3:]:
            expected = 0.7 * expected + 0.3 * step[f"model.{name}"].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)


def test_averages_are_evaluated_loaded_and_exported(mean_run: Path, home: Path, tmp_path: Path) -> None:
    (manifest,) = home.glob("pools/*/manifest.json")
    pool = Pool.open(manifest.parent)
    told = json.loads((mean_run / "summary.json").read_text())["evaluation"]["micro"]["loss"]
    rows = pool.validation.read(torch.arange(pool.validation.index.rows), positions=False).tokens
    exported = AutoModelForCausalLM.from_pretrained(export(mean_run, tmp_path / "exported"))
    last = load_model(mean_run, pool)
    last.load_state_dict({key.removeprefix("model."): value for key, value in weights(mean_run)[-1].items()})
    found = []
    for model in (load_model(mean_run, pool), exported, last):
        with torch.no_grad():
            found.append(float(model.eval()(input_ids=rows, labels=rows).loss))
    assert found[:2] == pytest.approx([told, told], abs=1e-5)
    assert abs(found[2] - told) > 1e-4, "the last weights are others"


def test_training_does_not_notice(mean_run: Path, corpus: Path, home: Path) -> None:
    plain = run(corpus, home, *EVERY, MEAN[0], f"run_dir={home}/plain")
    losses = [[r["loss"] for r in lines(f / "metrics.jsonl") if r["split"] == "train"] for f in (mean_run, plain)]
    assert losses[0] == losses[1]
    for one, other in zip(weights(mean_run), weights(plain), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((plain / "summary.json").read_text())["averaging"] is None


@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_average_is_the_same(mean_run: Path, corpus: Path, home: Path, tmp_path: Path, step: int) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(mean_run, cut)
    for path in checkpoints(cut)[step:]:
        path.unlink()
    told = json.loads((cut / "summary.json").read_text())
    (cut / "summary.json").write_text(json.dumps(told | {"status": "running"}))
    resumed = run(corpus, home, *EVERY, *MEAN, f"run_dir={cut}")
    assert json.loads((resumed / "attempt.json").read_text())["action"] == "resume"
    assert story(resumed) == story(mean_run)
    one, other = kept(resumed), kept(mean_run)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_average_alike(mean_run: Path, corpus: Path, home: Path) -> None:
    regimen(corpus, home, *EVERY[2:], *MEAN, *TWO, f"run_dir={home}/mean-two")
    one, two = kept(mean_run), kept(home / "mean-two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    told = [
        json.loads((f / "summary.json").read_text())["evaluation"]["macro"]["loss"]
        for f in (mean_run, home / "mean-two")
    ]
    assert told[0] == pytest.approx(told[1], abs=1e-4)


def test_what_cannot_be_averaged_is_refused(corpus: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match="(?s)after the end of the run.*run of 8 steps.*average.start"):
        run(corpus, home, "optimizer.average.kind=mean", "optimizer.average.start=8", f"run_dir={home}/late")
