"""W&B offline and TensorBoard: what arrives there, read back from their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.cli import CommandLine
from tests.support.runs import DOMAINS, lines
from tests.support.wandb_files import WandbRun, read

EVERY_KIND = (
    *("method=[topk,odm,sorted,loss_weighting]", "strategies.topk.ratio=0.6", "strategies.odm.draw_groups=4"),
    *("trainer.log_every=2", "seed=3"),
)


@pytest.fixture
def regimen(
    corpus: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """Without an account: no key, no netrc, nothing in the environment that says offline."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return CommandLine(corpus, home, capsys)


def wandb_runs(folder: Path) -> list[WandbRun]:
    return [read(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def test_wandb_gets_metrics_decisions_and_names(regimen: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tags = "logger.wandb.tags=[mine]"
    done = regimen.small("train", *EVERY_KIND, "logger=wandb", tags, f"run_dir={folder}")
    assert done.status == 0, done.err
    (run,) = wandb_runs(folder)
    assert run.exit_code == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert run.id == summary["hash"] and run.name == summary["name"]
    assert run.job_type == "train" and run.group == "nano-jsonl"
    methods = [f"method:{name}" for name in ("topk", "odm", "sorted", "loss_weighting")]
    assert set(run.tags) == {*methods, "model:nano", "dataset:jsonl", "seed:3", "mine"}
    assert run.config["seed"] == 3 and run.config["strategies"]["topk"]["ratio"] == 0.6
    metrics = [row for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]
    assert run.series("train/loss") == [(row["step"], pytest.approx(row["loss"])) for row in metrics]
    for key in ("lr", "gradient_norm", "tokens_per_second", "memory_mb", "effective_sample_size"):
        assert len(run.series(f"train/{key}")) == 8, key
    assert [step for step, _ in run.series("eval/macro/bits_per_byte")] == [0, 4, 8]
    mixtures = [row for row in lines(folder / "record.jsonl") if row["kind"] == "mixer"]
    for domain in DOMAINS:
        expected = [(row["step"], pytest.approx(row["mixture"][domain])) for row in mixtures]
        assert run.series(f"mixture/{domain}") == expected and len(expected) == 8
    ((step, share),) = run.series("selection/share")
    assert step == 0 and share == pytest.approx(0.6, abs=0.01)
    assert run.series("weights/_type") == [(step, "histogram") for step in (1, 2, 4, 6, 8)]
    assert [sum(counts) for _, counts in run.series("weights/values")] == [8] * 5


def test_a_resumed_run_goes_on_in_the_same_wandb_run(regimen: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ("logger=wandb", f"run_dir={folder}", "trainer.save_every_steps=1", "trainer.keep_checkpoints=null")
    assert regimen.small("train", *command).status == 0
    for path in checkpoints(folder)[5:]:
        path.unlink()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    assert regimen.small("train", *command).status == 0
    first, second = wandb_runs(folder)
    assert first.id == second.id == summary["hash"]
    assert [step for step, _ in second.series("train/loss")] == [6, 7, 8]


def test_a_grid_makes_one_wandb_run_per_cell(regimen: CommandLine, home: Path) -> None:
    grid = ("logger=wandb", "method=natural,uniform", "budget.steps=2", "sweep=tracked")
    assert regimen.small("train", *grid, flags=("-m",)).status == 0
    runs = [run for folder in sorted(home.glob("outputs/tracked/*/")) for run in wandb_runs(folder)]
    assert [run.name for run in runs] == ["natural-nano-jsonl-seed0", "uniform-nano-jsonl-seed0"]
    assert {run.group for run in runs} == {"tracked"} and len({run.id for run in runs}) == 2
    assert [len(run.series("train/loss")) for run in runs] == [2, 2]


def test_a_failed_run_is_failed_in_wandb_too(regimen: CommandLine, tmp_path: Path) -> None:
    explodes = ("optimizer.lr=1e30", "trainer.gradient_clip_val=null", "optimizer.schedule.warmup=0")
    done = regimen.small("train", *explodes, "logger=wandb", f"run_dir={tmp_path}/run")
    assert done.status == 1 and "Traceback" not in done.err
    (run,) = wandb_runs(tmp_path / "run")
    assert run.exit_code == 1 and len(run.series("train/loss")) == 1


def test_wandb_online_needs_a_key(regimen: CommandLine) -> None:
    error = regimen.refused("logger=wandb", "logger.wandb.mode=online", "budget.steps=3")
    assert "no key" in error and "wandb login" in error and "logger.wandb.mode=offline" in error
    error = regimen.refused("logger=wandb", "+logger.wandb.projekt=x")
    assert "logger.wandb.projekt" in error and "did you mean 'project'" in error


def test_both_trackers_compose(regimen: CommandLine, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    done = regimen.small("train", *EVERY_KIND, "logger=[wandb,tensorboard]", f"run_dir={folder}")
    assert done.status == 0, done.err
    assert len(wandb_runs(folder)) == 1
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    assert [event.step for event in events.Scalars("mixture/code")] == list(range(8))
    assert [event.step for event in events.Scalars("eval/macro/loss")] == [0, 4, 8]
    assert [event.step for event in events.Histograms("weights")] == [1, 2, 4, 6, 8]


def test_a_run_needs_no_tracker(regimen: CommandLine, tmp_path: Path) -> None:
    assert regimen.small("train", "budget.steps=2", f"run_dir={tmp_path}/run").status == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} & {"wandb", "tensorboard"} == set()
