"""The full matrix of strategies and numbers of processes; minutes, so all of it is slow. See test_sharded.py."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from regimen.training.callbacks.checkpoint import checkpoints, step_of
from regimen.training.capabilities import SHARDED
from tests.support.every_signal import LOOP
from tests.support.sharded import (
    STRATEGIES,
    TWO,
    assert_same_run,
    assert_same_signals,
    cut,
    decisions,
    grid,
    launch,
    of_steps,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OTHERS = tuple(s for s in ("ddp", *SHARDED) if s not in STRATEGIES)
CPU = "trainer.accelerator=cpu"


def test_the_other_strategies_are_as_one_process(examples: Path, one: Path) -> None:
    grid(examples, "others", OTHERS, *TWO)
    for strategy in OTHERS:
        assert_same_run(examples / "others" / strategy, one)
        for step in (2, 4):
            assert_same_signals(examples / "others" / strategy, one, step)


def test_gradients_row_by_row_of_whole_parameters(examples: Path) -> None:
    names = f"++strategies.every.names=['{next(iter(LOOP))}']"
    whole = ("ddp", "deepspeed_zero1", "deepspeed_zero2")
    grid(examples, "loop-one", ("cpu",), names)
    grid(examples, "loop-two", whole, *TWO, names)
    for strategy in whole:
        assert_same_signals(examples / "loop-two" / strategy, examples / "loop-one/cpu", 4, LOOP)


def test_measuring_does_not_touch_training(examples: Path) -> None:
    """Bit for bit, under dropout and accumulation, with every signal measured every other step."""
    every, dropout = ("ddp", *STRATEGIES), "+model.config.attention_dropout=0.2"
    grid(examples, "measured", every, *TWO, dropout)
    grid(examples, "plain", every, *TWO, dropout, "++strategies.every.names=[]", domains=False)
    for strategy in every:
        for name in ("batch", "loss", "gradient_norm"):
            measured, plain = (of_steps(examples / group / strategy, name) for group in ("measured", "plain"))
            assert measured == plain, (strategy, name)


@pytest.mark.parametrize("devices", [1, 4])
def test_other_numbers_of_processes(devices: int, examples: Path, one: Path) -> None:
    group = f"on-{devices}"
    grid(examples, group, STRATEGIES, CPU, f"trainer.devices={devices}")
    for strategy in STRATEGIES:
        assert_same_run(examples / group / strategy, one)
        assert_same_signals(examples / group / strategy, one, 4)


@pytest.mark.parametrize(("saved", "resumed"), [(2, 1), (2, 4), (1, 2)])
def test_a_run_goes_on_on_another_number_of_processes(
    saved: int,
    resumed: int,
    examples: Path,
    one: Path,
    two: Path,
    tmp_path: Path,
) -> None:
    """From step 3, an odd number of micro-batches; FSDP2 and both ZeRO stages."""
    group = f"from-{saved}-to-{resumed}"
    if saved == 1:
        grid(examples, "first-1", STRATEGIES, CPU, "trainer.devices=1")
    for strategy in STRATEGIES:
        cut((two if saved == 2 else examples / "first-1") / strategy, examples / group / strategy)
    values = f"{examples}/{'two' if saved == 2 else 'first-1'}-values/${{choices.trainer}}"
    said = grid(examples, group, STRATEGIES, CPU, f"trainer.devices={resumed}", values=values)
    assert said.count("from step 3") == len(STRATEGIES)
    for strategy in STRATEGIES:
        assert_same_run(examples / group / strategy, one)
        assert not list((examples / group).rglob("*.tmp"))


@pytest.mark.parametrize("first", ["cpu", "deepspeed_zero2", "deepspeed_zero3"])
def test_fsdp_goes_on_from_any_strategy(first: str, examples: Path, one: Path, two: Path) -> None:
    group = f"{first}-to-fsdp"
    run = one if first == "cpu" else two / first
    cut(run, examples / group / "fsdp")
    values = f"{examples}/{run.parent.name}-values/{first}"
    assert "from step 3" in grid(examples, group, ("fsdp",), *TWO, values=values)
    assert_same_run(examples / group / "fsdp", one)


def test_adapters_and_recomputed_activations(examples: Path) -> None:
    lora = ("model.lora.rank=2", "model.gradient_checkpointing=true", "optimizer.lr=3e-2")
    grid(examples, "lora-one", ("cpu",), *lora)
    grid(examples, "lora-two", STRATEGIES, *TWO, *lora)
    for strategy in STRATEGIES:
        assert_same_run(examples / "lora-two" / strategy, examples / "lora-one/cpu")
        assert_same_signals(examples / "lora-two" / strategy, examples / "lora-one/cpu", 4)


def test_bfloat16(examples: Path) -> None:
    """DDP and FSDP2 compute alike; the layers of ZeRO are bfloat16 throughout."""
    half = ("trainer.precision=bf16-mixed", "++strategies.every.names=[]")
    grid(examples, "half", ("ddp", *STRATEGIES), *TWO, *half)
    losses = {s: of_steps(examples / "half" / s, "loss") for s in ("ddp", *STRATEGIES)}
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=2e-3)
    for strategy in STRATEGIES[1:]:
        assert losses[strategy] == pytest.approx(losses["ddp"], rel=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_killed_on_both_ranks_goes_on_bit_for_bit(strategy: str, examples: Path) -> None:
    long = ("budget.steps=40", "dataset.max_epochs_per_domain=null", "+model.config.attention_dropout=0.2")
    long += ("++strategies.every.names=['loss']",)
    values = f"{examples}/killed-values"
    grid(examples, "whole", (strategy,), *TWO, *long, values=values)
    whole, killed = examples / "whole" / strategy, examples / "killed" / strategy
    step, metrics, deadline = random.randint(7, 20), killed / "metrics.jsonl", time.monotonic() + 400
    command = launch(examples, "killed", (strategy,), *TWO, *long, values=values)
    process = subprocess.Popen(**command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not metrics.is_file() or f'"step": {step}, "split": "train"' not in metrics.read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 3 <= step_of(checkpoints(killed)[-1]) < 40
    assert "from step" in grid(examples, "killed", (strategy,), *TWO, *long, values=values)
    for name in ("batch", "loss", "gradient_norm"):
        assert of_steps(killed, name) == of_steps(whole, name)
    assert decisions(killed) == decisions(whole)
