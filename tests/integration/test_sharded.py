"""FSDP2 and ZeRO on two gloo processes against one process: rows, decisions, losses, signals, resume and export.

One launch trains under all strategies one after the other, as a grid does: starting processes costs most of the time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regimen.runs.export import export
from regimen.training.callbacks.checkpoint import checkpoints
from regimen.training.capabilities import SHARDED
from tests.support.every_signal import OF_DOMAINS, SIGNALS
from tests.support.runs import SMALL, lines

ROOT = Path(__file__).parents[2]
STRATEGIES = ("fsdp", "deepspeed_zero2", "deepspeed_zero3")
REST = tuple(pytest.param(s, marks=pytest.mark.slow) for s in ("ddp", *SHARDED) if s not in STRATEGIES)
EVERY = "tests.support.every_signal"
WHEN = ("when._target_=regimen.core.trigger.Every", "when.steps=2", "when.start=2")
DATA = (
    *("dataset=sft_files", "objective=sft", "dataset.seq_len=256", "dataset.domain_field=task", "dataset.overlap.n=0"),
    "dataset.target={path: null, from: [a], rows_per_subtask: 3, seed: 0}",
)
METHOD = (
    *("method=[sorted,loss_weighting]", "strategies.sorted.when._target_=regimen.core.trigger.Every"),
    *("++strategies.sorted.when.steps=3", "++strategies.sorted.when.start=3", "~strategies.sorted.when.at"),
    *(f"++strategies.every._target_={EVERY}.EverySignal", "++strategies.every.candidates=27"),
    *(f"++strategies.domains._target_={EVERY}.EveryDomainSignal",),
    *(f"++strategies.{name}.{when}" for name in ("every", "domains") for when in WHEN),
    *("trainer.micro_batch_size=2", "budget.steps=6", "trainer.save_every_steps=3", "trainer.keep_checkpoints=9"),
)
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    records = [{"instruction": f"say {i}", "output": "x" * (1 + i % 7), "task": "abc"[i % 3]} for i in range(89)]
    (home / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return home


def regimen(home: Path, *overrides: str, command: tuple[str, ...] = ("train",)) -> str:
    """Run a command in processes of its own; returns what it put on the screen."""
    fixed = (f"dataset.path={home}/examples.jsonl", f"paths.pools={home}/pools", f"paths.store={home}/store")
    arguments = [sys.executable, "-m", "regimen", *command, *SMALL, *DATA, *fixed, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def grid(home: Path, group: str, strategies: tuple[str, ...], *overrides: str, values: str | None = None) -> str:
    """Train under each strategy, into folders named after it. values: where they go, which names the configuration."""
    place = f"{home}/{group}/${{choices.trainer}}"
    values = values or f"{home}/{group}-values/${{choices.trainer}}"
    to = (f"++strategies.{name}.to='{values}'" for name in ("every", "domains"))
    many = f"trainer={','.join(strategies)}"
    return regimen(home, "-m", many, *METHOD, *to, f"run_dir='{place}'", f"sweep={group}", *overrides)


@pytest.fixture(scope="module")
def one(home: Path) -> Path:
    """One process."""
    grid(home, "one", ("cpu",))
    return home / "one/cpu"


@pytest.fixture(scope="module")
def two(home: Path) -> Path:
    """Two processes under each strategy; a folder for each."""
    said = grid(home, "two", STRATEGIES, *TWO)
    assert said.count("bits per byte") == len(STRATEGIES), "one rank alone speaks"
    assert "Warning" not in said and "[INFO]" not in said
    return home / "two"


def of_steps(folder: Path, name: str) -> list:
    return [row[name] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


def decisions(folder: Path) -> list[tuple]:
    return [(r["step"], r["kind"], r["digest"]) for r in lines(folder / "record.jsonl") if r["kind"] != "weighter"]


def assert_same_run(folder: Path, one: Path) -> None:
    assert of_steps(folder, "batch") == of_steps(one, "batch")
    assert decisions(folder) == decisions(one) and len(decisions(one)) > 3
    assert of_steps(folder, "loss") == pytest.approx(of_steps(one, "loss"), abs=2e-6)
    assert of_steps(folder, "gradient_norm") == pytest.approx(of_steps(one, "gradient_norm"), rel=2e-5)
    weighed = [[r["effective_sample_size"] for r in lines(f / "metrics.jsonl") if "batch" in r] for f in (folder, one)]
    assert weighed[0] == pytest.approx(weighed[1], abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_decisions_and_losses_are_those_of_one_process(strategy: str, one: Path, two: Path) -> None:
    assert_same_run(two / strategy, one)


def assert_same_signals(folder: Path, one: Path, step: int) -> None:
    for file, known in ((f"{step}.pt", SIGNALS), (f"{step}-domains.pt", OF_DOMAINS)):
        mine, theirs = (
            torch.load(f.parent.with_name(f"{f.parent.name}-values") / f.name / file) for f in (folder, one)
        )
        assert list(mine) == list(theirs) == list(known)
        for name in known:
            scale = max(float(theirs[name].abs().max()), 1e-6)
            worst = float((mine[name].double() - theirs[name].double()).abs().max())
            assert worst <= 1e-5 * scale, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_signals_are_those_of_one_process(strategy: str, one: Path, two: Path) -> None:
    """Gradient sketches of all kinds, with Adam's moments, states, text, attention, gradients of domains: to 1e-5."""
    for step in (2, 4):
        assert_same_signals(two / strategy, one, step)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_export_is_the_model_that_one_process_trains(strategy: str, one: Path, two: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(export(run, tmp_path / run.name)) for run in (one, two / strategy)]
    first, second = (dict(m.named_parameters()) for m in models)
    assert first.keys() == second.keys()
    assert max(float((first[n] - second[n]).detach().abs().max()) for n in first) < 2e-6


def cut(folder: Path, to: Path, step: int = 3) -> Path:
    """A copy of a run that was stopped after `step`."""
    shutil.copytree(folder, to)
    for path in checkpoints(to):
        if not path.name.endswith(f"{step}.ckpt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    summary = json.loads((to / "summary.json").read_text())
    (to / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    return to


def test_a_stopped_run_goes_on_bit_for_bit(home: Path, two: Path) -> None:
    for strategy in STRATEGIES:
        cut(two / strategy, home / "resumed" / strategy)
    said = grid(home, "resumed", STRATEGIES, *TWO, values=f"{home}/two-values/${{choices.trainer}}")
    assert said.count("from step 3") == len(STRATEGIES)
    for strategy in STRATEGIES:
        resumed = home / "resumed" / strategy
        for name in ("batch", "loss", "gradient_norm"):
            assert of_steps(resumed, name) == of_steps(two / strategy, name), strategy
        assert decisions(resumed) == decisions(two / strategy)
        assert not list(resumed.rglob("*.tmp"))


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_zero3"])
def test_one_process_goes_on_from_a_sharded_checkpoint(strategy: str, home: Path, one: Path, two: Path) -> None:
    group = f"{strategy}-to-one"
    cut(two / strategy, home / group / "cpu")
    assert "from step 3" in grid(home, group, ("cpu",), values=f"{home}/two-values/{strategy}")
    assert_same_run(home / group / "cpu", one)
