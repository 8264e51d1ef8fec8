"""What `regimen check` foretells of the memory of a rank is what two gloo processes hold, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regimen.training.capabilities import SHARDED, ZERO
from tests.support.ranks import on_two_ranks

pytestmark = pytest.mark.processes

SCRIPT = """
import os, sys
from regimen.runs.train import quiet_libraries
from tests.support.held import measure
quiet_libraries()
measure(*sys.argv[1:3], int(os.environ["RANK"]), *sys.argv[3:])
"""
CASES = [f"{strategy}:{precision}" for strategy in ("ddp", *SHARDED) for precision in ("32-true", "bf16-mixed")]
QUICK = ["fsdp:32-true", "deepspeed_zero2:bf16-mixed", "deepspeed_zero3:32-true", "deepspeed_zero3_offload:bf16-mixed"]
UNEVEN = ("model.config.num_hidden_layers=2", "model.config.intermediate_size=23", "evaluation.at=[]")


def measured(cases: list[str], corpus: Path, home: Path) -> dict[str, dict[str, dict[str, int]]]:
    on_two_ranks(SCRIPT, [str(corpus), str(home), ",".join(cases), *UNEVEN], name="held")
    return {case: json.loads((home / case / "held.json").read_text()) for case in cases}


def assert_as_foretold(case: str, held: dict[str, int], told: dict[str, int]) -> None:
    if ZERO.get(case.split(":")[0], (0, False))[1]:
        assert told["optimizer"] == 0 < held["optimizer"], case
        assert sum(held.values()) == told["host"] + told["parameters"], case
        return
    assert held == {kind: told[kind] for kind in ("parameters", "gradients", "optimizer")} | {"offloaded": 0}, case


def test_a_rank_holds_what_was_foretold(corpus: Path, home: Path) -> None:
    for case, found in measured(QUICK, corpus, home).items():
        assert_as_foretold(case, **found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rank_holds_what_was_foretold_under_every_other_strategy(corpus: Path, home: Path) -> None:
    others = [case for case in CASES if case not in QUICK]
    for case, found in measured(others, corpus, home).items():
        assert_as_foretold(case, **found)
