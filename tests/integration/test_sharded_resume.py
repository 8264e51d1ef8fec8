"""Runs that go on under another strategy than the one that saved them: the table of docs/sharding.md, and both ways.

One launch per number of processes: all runs write what they measured to one place, which is a part of what they are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from regimen.training.capabilities import SHARDED
from tests.support.sharded import STRATEGIES, TWO, assert_same_run, cut, decisions, grid, of_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CPU = "trainer.accelerator=cpu"
OTHERS = tuple(s for s in ("ddp", *SHARDED) if s not in STRATEGIES)
LOSS = "++strategies.every.names=['loss']"
ON_TWO = {  # goes on: saved, on two processes as well
    "ddp": "deepspeed_zero3",
    "fsdp": "ddp",
    "deepspeed_zero1": "deepspeed_zero2",
    "deepspeed_zero2": "deepspeed_zero1",
    "deepspeed_zero3": "deepspeed_zero3_offload",
    "deepspeed_zero2_offload": "deepspeed_zero2",
    "deepspeed_zero3_offload": "deepspeed_zero3",
}
AGAIN_ON_TWO = {"ddp": "fsdp", "fsdp": "deepspeed_zero3_offload"}
ON_ONE = {
    "cpu": "deepspeed_zero2_offload",
    "ddp": "fsdp",
    "fsdp": "deepspeed_zero1",
    "deepspeed_zero1": "deepspeed_zero2",
    "deepspeed_zero3": "deepspeed_zero3_offload",
}


@pytest.fixture(scope="module")
def saved(examples: Path) -> Path:
    """A run under every strategy on two processes, and one on one."""
    grid(examples, "saved", ("ddp", *SHARDED), *TWO, LOSS, values=f"{examples}/values")
    grid(examples, "saved", ("cpu",), LOSS, values=f"{examples}/values")
    return examples / "saved"


@pytest.mark.parametrize(
    ("group", "pairs", "devices"),
    [("on-two", ON_TWO, 2), ("again-on-two", AGAIN_ON_TWO, 2), ("on-one", ON_ONE, 1)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_run_goes_on_under_another_strategy(
    group: str, pairs: dict[str, str], devices: int, examples: Path, saved: Path
) -> None:
    for strategy, source in pairs.items():
        cut(saved / source, examples / group / strategy)
    on = (CPU, f"trainer.devices={devices}", LOSS)
    said = grid(examples, group, tuple(pairs), *on, values=f"{examples}/values")
    assert said.count("from step 3") == len(pairs)
    for strategy in pairs:
        assert_same_run(examples / group / strategy, saved / "cpu")
        assert not list((examples / group).rglob("*.tmp"))


def test_the_other_strategies_go_on_bit_for_bit(examples: Path, saved: Path) -> None:
    for strategy in OTHERS:
        cut(saved / strategy, examples / "others" / strategy)
    grid(examples, "others", OTHERS, *TWO, LOSS, values=f"{examples}/values")
    for strategy in OTHERS:
        for name in ("batch", "loss", "gradient_norm"):
            assert of_steps(examples / "others" / strategy, name) == of_steps(saved / strategy, name), strategy
        assert decisions(examples / "others" / strategy) == decisions(saved / strategy)
