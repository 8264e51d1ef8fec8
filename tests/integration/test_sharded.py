"""FSDP2 and ZeRO on two gloo processes against one process: rows, decisions, losses, signals, resume and export.

One launch trains under all strategies one after the other, as a grid does: starting processes costs most of the time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from regimen.runs.experiment import make_pool
from regimen.runs.export import export
from regimen.runs.optimizers import make_optimizer
from regimen.runs.references import RunModels, read_run
from regimen.training.module import LanguageModule, Objective
from regimen.training.sketching import Moments
from tests.support.sharded import (
    STRATEGIES,
    TWO,
    assert_same_run,
    assert_same_signals,
    cut,
    decisions,
    grid,
    of_steps,
)

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_decisions_and_losses_are_those_of_one_process(strategy: str, one: Path, two: Path) -> None:
    assert_same_run(two / strategy, one)


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_methods_read_the_model_and_its_moments(strategy: str, one: Path, two: Path) -> None:
    """As those that measure under a finished run do, in one process; Adam's moments make directions of gradients."""
    models, moments = zip(*(loaded(run) for run in (one, two / strategy)), strict=True)
    first, second = (dict(m.named_parameters()) for m in models)
    assert max(float((first[n] - second[n]).detach().abs().max()) for n in first) < 2e-6
    mine, theirs = moments
    assert mine.first.keys() == theirs.first.keys() == first.keys()
    assert (mine.betas, mine.eps) == (theirs.betas, theirs.eps)
    for name in first:
        for a, b in ((mine.first, theirs.first), (mine.second, theirs.second)):
            assert torch.allclose(a[name].view_as(b[name]), b[name], rtol=1e-3, atol=1e-7), name


def loaded(run: Path) -> tuple[torch.nn.Module, Moments]:
    settings, _ = read_run(run)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    host = LanguageModule(torch.nn.Linear(1, 1), Objective(kind="sft"), make_optimizer(settings["optimizer"], 1))
    found = RunModels(make_pool(settings, progress=False), trainer, host).load(str(run))
    moments = found.moments()
    assert moments is not None
    return found.module.model, moments


def test_a_stopped_run_goes_on_bit_for_bit(examples: Path, two: Path) -> None:
    for strategy in STRATEGIES:
        cut(two / strategy, examples / "resumed" / strategy)
    said = grid(examples, "resumed", STRATEGIES, *TWO, values=f"{examples}/two-values/${{choices.trainer}}")
    assert said.count("from step 3") == len(STRATEGIES)
    for strategy in STRATEGIES:
        resumed = examples / "resumed" / strategy
        for name in ("batch", "loss", "gradient_norm"):
            assert of_steps(resumed, name) == of_steps(two / strategy, name), strategy
        assert decisions(resumed) == decisions(two / strategy)
        assert not list(resumed.rglob("*.tmp"))


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_zero3"])
def test_one_process_goes_on_from_a_sharded_checkpoint(strategy: str, examples: Path, one: Path, two: Path) -> None:
    group = f"{strategy}-to-one"
    cut(two / strategy, examples / group / "cpu")
    assert "from step 3" in grid(examples, group, ("cpu",), values=f"{examples}/two-values/{strategy}")
    assert_same_run(examples / group / "cpu", one)
