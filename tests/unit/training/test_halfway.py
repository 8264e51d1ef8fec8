"""What an unfinished measurement keeps: whole states under their own names, with what they have cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from regimen.training.cost import CostClock
from regimen.training.halfway import Charged, Halfway


@pytest.fixture
def halfway() -> Halfway:
    return Halfway(pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False))


def test_a_state_comes_back_to_the_bit_under_its_own_name(halfway: Halfway, tmp_path: Path) -> None:
    state = {"co_state": torch.randn(7), "columns": [torch.randn(3, 2).double()], "last": None, "time": 4}
    with halfway.at(tmp_path / "here"):
        assert halfway.read("a") is None
        halfway.write("a", {"time": 5})
        halfway.write("a", state)
        found = halfway.read("a")
        assert halfway.read("b") is None
    assert found is not None and found["time"] == 4 and found["last"] is None
    assert torch.equal(found["co_state"], state["co_state"])
    assert torch.equal(found["columns"][0], state["columns"][0]) and found["columns"][0].dtype == torch.float64
    with halfway.at(tmp_path / "there"):
        assert halfway.read("a") is None


def test_nothing_is_kept_without_a_folder(halfway: Halfway, tmp_path: Path) -> None:
    with halfway.at(tmp_path):
        pass
    halfway.write("a", {"time": 1})
    assert halfway.read("a") is None and not list(tmp_path.iterdir())


def test_what_a_kill_tore_is_removed(halfway: Halfway, tmp_path: Path) -> None:
    (tmp_path / ".a.pt.123.tmp").write_bytes(b"half of it")
    with halfway.at(tmp_path):
        assert halfway.read("a") is None
        halfway.write("a", {"time": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_cost_is_charged_once(halfway: Halfway, tmp_path: Path) -> None:
    with halfway.at(tmp_path):
        clock = CostClock()
        clock.add("measuring", flops=100.0)  # of something before
        first = Charged(halfway, "a", clock=clock, purpose="measuring")
        clock.add("measuring", flops=3.0, tokens=2.0)
        first.write({"time": 1})
        clock.add("measuring", flops=50.0)  # lost by the kill
        clock = CostClock()
        second = Charged(halfway, "a", clock=clock, purpose="measuring")
        assert second.read() == {"time": 1} and clock.charges["measuring"].flops == 3.0
        clock.add("measuring", flops=4.0)
        second.write({"time": 0})
        clock = CostClock()
        assert Charged(halfway, "a", clock=clock, purpose="measuring").read() == {"time": 0}
        assert (clock.charges["measuring"].flops, clock.charges["measuring"].tokens) == (7.0, 2.0)
