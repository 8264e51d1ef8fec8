"""Long measurements are kept, gone on with after a kill, found by other runs, charged alike, and never mistaken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.signal import Meter, Signal
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.runs.locks import held
from regimen.runs.row_measurements import (
    ARRAY,
    HALFWAY,
    PROGRESS,
    SCRATCH,
    ModelIdentity,
    RowMeasurements,
    passes_between,
)
from regimen.runs.store import VALUES, Store
from regimen.training.cost import CostClock
from regimen.training.halfway import Charged, Halfway
from tests.support.runs import settings_of, write_corpus


class Killed(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class Squares(Signal):
    """The square of a row's id, as a vector of `width` where that is given."""

    forwards: ClassVar[float] = 10.0
    by_row: ClassVar[bool] = True
    width: int = 0

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        assert isinstance(meter, Counter)
        meter.count(ids)
        values = ids.double() ** 2
        return values[:, None].float().expand(-1, self.width) if self.width else values


@dataclass(frozen=True, kw_only=True)
class Together(Squares):
    """A row's value depends on the others."""

    by_row: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Halved(Together):
    """All rows at once, in two halves: the first is kept."""

    halfway: ClassVar[bool] = True

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        assert isinstance(meter, Counter) and meter.halfway is not None
        kept = Charged(meter.halfway, "half", clock=meter.clock, purpose="measuring")
        state = kept.read()
        if state is None:
            meter.count(ids[: len(ids) // 2])
            state = {"first": ids[: len(ids) // 2].double() ** 2}
            kept.write(state)
        meter.halfway.told["said"] = "both halves"
        rest = ids[len(state["first"]) :]
        meter.count(rest)
        return torch.cat([state["first"], rest.double() ** 2])


class Counter:
    """Counts rows and charges a FLOP for each; stops after `most`."""

    def __init__(self, clock: CostClock, most: int | None = None) -> None:
        self.clock, self.most, self.asked = clock, most, []
        self.halfway: Halfway | None = None

    def count(self, ids: Tensor) -> None:
        if self.most is not None and len(self.asked) + len(ids) > self.most:
            raise Killed
        self.asked += ids.tolist()
        self.clock.add("measuring", flops=float(len(ids)), tokens=2.0 * len(ids), seconds=1.0)


class Bench:
    """Runs that share a store."""

    def __init__(self, root: Path, pool: Pool) -> None:
        self.root, self.pool, self.store = root, pool, Store(root / "store")

    def run(
        self, name: str, *, identity: Callable[[int], str] = lambda step: "model", most: int | None = None
    ) -> tuple[RowMeasurements, Counter, CostClock]:
        clock = CostClock()
        trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        rows = RowMeasurements(
            self.store, self.pool, folder=self.root / name, trainer=trainer, clock=clock, identity=identity, part=300
        )
        meter = Counter(clock, most)
        meter.halfway = rows.halfway
        return rows, meter, clock


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    home = tmp_path_factory.mktemp("home")
    return make_pool(settings_of(write_corpus(home / "corpus"), home), progress=False)


@pytest.fixture
def bench(tmp_path: Path, pool: Pool) -> Bench:
    return Bench(tmp_path, pool)


IDS = torch.arange(100)


def test_what_one_run_measured_another_finds_and_pays_for(bench: Bench) -> None:
    rows, meter, clock = bench.run("a")
    first = rows.measure(Squares(), meter, IDS, step=0)
    assert torch.equal(first, IDS.double() ** 2) and sorted(meter.asked) == IDS.tolist()
    again, other, paid = bench.run("b")
    assert torch.equal(again.measure(Squares(), other, IDS, step=0), first)
    assert other.asked == []
    assert paid.charges["measuring"] == clock.charges["measuring"]
    assert paid.charges["training"].seconds == 0
    (entry,) = bench.store.entries()
    assert entry.kind == "measurement" and entry.asked_by == ("a", "b") and entry.state == "finished"


@pytest.mark.parametrize("signal", [Squares(), Squares(width=3)])
def test_a_kill_loses_less_than_a_part(bench: Bench, signal: Squares) -> None:
    rows, meter, _ = bench.run("a", most=95)
    with pytest.raises(Killed):
        rows.measure(signal, meter, IDS, step=0)
    assert len(meter.asked) == 90  # parts of 300 / 10 rows
    (place,) = (bench.store.root / "measurements").iterdir()
    assert json.loads((place / PROGRESS).read_text())["rows"] == 90
    rows, meter, clock = bench.run("a")
    values = rows.measure(signal, meter, IDS, step=0)
    assert torch.equal(values.flatten(), signal.measure(Counter(CostClock()), IDS).flatten())
    assert meter.asked == IDS[90:].tolist()
    whole = clock.charges["measuring"]
    assert (whole.flops, whole.tokens, whole.seconds) == (100, 200, 4)
    assert not (place / PROGRESS).exists()


@pytest.mark.parametrize("step", [0, 4])
def test_a_measurement_of_all_rows_goes_on_half_way(bench: Bench, step: int) -> None:
    """Before training in the store, on the way in the run's folder; what was kept is gone when the values are there."""
    rows, meter, _ = bench.run("a", most=60)
    with pytest.raises(Killed):
        rows.measure(Halved(), meter, IDS, step=step)
    (kept,) = bench.root.rglob(f"{HALFWAY}/half.pt")
    assert (SCRATCH in kept.parts) == (step > 0)
    rows, meter, clock = bench.run("a")
    assert torch.equal(rows.measure(Halved(), meter, IDS, step=step), IDS.double() ** 2)
    assert meter.asked == IDS[50:].tolist() and clock.charges["measuring"].flops == 100, "charged once"
    assert not list(bench.root.rglob(HALFWAY)) and not list(bench.root.rglob("*.tmp"))
    assert json.loads((kept.parents[1] / VALUES).read_text())["said"] == "both halves"
    other, meter, _ = bench.run("b", identity=lambda step: "another model")
    other.measure(Halved(), meter, IDS, step=step)
    assert meter.asked == IDS.tolist()
    rows.end()
    assert not (bench.root / "a" / SCRATCH).exists()


@pytest.mark.parametrize(
    "other",
    [
        {"signal": Squares(width=1)},
        {"signal": Together()},
        {"ids": IDS[:-1]},
        {"ids": IDS + 1},
        {"model": "another model"},
    ],
)
def test_nothing_else_is_taken_for_it(bench: Bench, other: dict) -> None:
    """Other settings, another class, other rows or another model are measured anew."""
    rows, meter, _ = bench.run("a")
    rows.measure(Squares(), meter, IDS, step=0)
    rows, meter, _ = bench.run("b", identity=lambda step: other.get("model", "model"))
    signal, ids = other.get("signal", Squares()), other.get("ids", IDS)
    values = rows.measure(signal, meter, ids, step=0)
    assert sorted(meter.asked) == ids.tolist()
    assert torch.equal(values.flatten(), (ids.double() ** 2).to(values.dtype))


def test_another_pool_is_measured_anew(bench: Bench, tmp_path: Path) -> None:
    rows, meter, _ = bench.run("a")
    rows.measure(Squares(), meter, IDS, step=0)
    bench.pool = make_pool(settings_of(write_corpus(tmp_path / "other", seed=1), tmp_path), progress=False)
    rows, meter, _ = bench.run("b")
    rows.measure(Squares(), meter, IDS, step=0)
    assert len(meter.asked) == len(IDS)


def test_what_is_measured_in_training_stays_with_the_run(bench: Bench) -> None:
    rows, meter, _ = bench.run("a", most=95)
    with pytest.raises(Killed):
        rows.measure(Squares(), meter, IDS, step=3)
    assert bench.store.entries() == []
    (place,) = (bench.root / "a" / SCRATCH).iterdir()
    assert (place / ARRAY).is_file()
    rows, meter, _ = bench.run("a")
    rows.measure(Squares(), meter, IDS, step=3)
    assert len(meter.asked) == 10
    saved = bench.root / "a" / "checkpoints"
    saved.mkdir()
    torch.save({}, saved / "step-00000004.ckpt")
    rows.measure(Squares(), meter, IDS, step=6)
    assert [path.name[:8] for path in (bench.root / "a" / SCRATCH).iterdir()] == ["00000006"]
    rows.end()
    assert not (bench.root / "a" / SCRATCH).exists()


def test_small_measurements_leave_nothing(bench: Bench) -> None:
    rows, meter, _ = bench.run("a")
    rows.measure(Squares(), meter, IDS[:50], step=0)
    rows.measure(Squares(), meter, IDS[:25], step=3)
    assert not bench.store.root.exists() and not (bench.root / "a").exists()


def test_a_place_that_another_process_holds_is_not_waited_for(bench: Bench) -> None:
    rows, meter, _ = bench.run("a", most=30)
    with pytest.raises(Killed):
        rows.measure(Squares(), meter, IDS, step=0)
    (place,) = (bench.store.root / "measurements").iterdir()
    with held(place):
        rows, meter, _ = bench.run("b")
        assert torch.equal(rows.measure(Squares(), meter, IDS, step=0), IDS.double() ** 2)
    assert len(meter.asked) == len(IDS)


def test_a_part_of_a_large_model_has_fewer_rows() -> None:
    """So that a kill loses minutes, and progress is told, whatever the model."""
    nano, small, large = (2.0 * parameters * 512 for parameters in (1e6, 135e6, 70e9))
    assert passes_between(nano, "cpu") == passes_between(small, "cuda") == 4096
    assert 1 < passes_between(small, "cpu") < 256
    assert 1 < passes_between(large, "cuda") < 1024
    assert passes_between(large, "cpu") == 1


def test_vectors_that_are_not_finite_are_refused(bench: Bench) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(Squares):
        def measure(self, meter: Meter, ids: Tensor) -> Tensor:
            return torch.full((len(ids), 2), torch.inf)

    rows, meter, _ = bench.run("a")
    with pytest.raises(ConfigError, match="Broken is not finite for 30 of 30 rows"):
        rows.measure(Broken(), meter, IDS, step=0)


def test_the_identity_of_a_model(bench: Bench) -> None:
    """Before training its weights and how it is run; on the way the run and the step."""
    settings = {
        "seed": 1,
        "model": {"config": {"heads": 2}, "compile": False},
        "trainer": {"precision": "32-true"},
        "dataset": {"document_mask": False},
        "objective": {},
    }
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    first = ModelIdentity(settings, model)
    assert ModelIdentity({**settings, "seed": 2}, model)(0) == first(0)
    assert ModelIdentity({**settings, "seed": 2}, model)(1) != first(1) != first(2)
    assert ModelIdentity(settings, nn.Linear(2, 2))(0) != first(0)
    assert ModelIdentity({**settings, "trainer": {"precision": "bf16-mixed"}}, model)(0) != first(0)
    assert ModelIdentity({**settings, "model": {"config": {"heads": 1}, "compile": False}}, model)(0) != first(0)
    assert ModelIdentity({**settings, "model": {"config": {"heads": 2}, "compile": True}}, model)(0) == first(0)
