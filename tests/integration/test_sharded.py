"""FSDP2 and ZeRO on two gloo processes against one process: rows, decisions, losses, signals, resume and export.

One launch trains under all strategies one after the other, as a grid does: starting processes costs most of the time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from regimen.runs.export import export
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
