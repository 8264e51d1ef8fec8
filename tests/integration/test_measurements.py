"""What is measured on text is measured once for all runs on a pool, and never taken for another pool's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regimen.core.measuring import Pooling
from regimen.core.signal import DomainSignal
from regimen.runs.store import VALUES, Entry, Store
from regimen.signals.entropy import Entropy
from regimen.training.meter import RowMeter
from tests.support.runs import lines, run, story, write_corpus

METHOD = "method=entropy_conditional"


def measurements(home: Path) -> list[Entry]:
    return [entry for entry in Store(home / "store").entries() if entry.kind == "measurement"]


def mixture(folder: Path) -> dict[str, float]:
    found: dict[str, float] = lines(folder / "record.jsonl")[-1]["mixture"]
    return found


def test_a_second_run_finds_the_entropies(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(corpus, tmp_path, METHOD, "seed=1")
    (entry,) = measurements(tmp_path)
    assert (entry.state, entry.own, entry.asked_by) == ("finished", True, (first.name,))
    monkeypatch.setattr(Entropy, "survey", None)  # would fail if it were called
    second = run(corpus, tmp_path, METHOD, "seed=2")
    assert mixture(second) == mixture(first)
    assert measurements(tmp_path)[0].asked_by == (first.name, second.name)


def test_other_settings_and_other_text_are_measured_anew(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path, METHOD)
    run(corpus, tmp_path, METHOD, "strategies.entropy_conditional.by.max_tokens=500")
    assert len(measurements(tmp_path)) == 2
    other = write_corpus(tmp_path / "other", seed=1)
    changed = run(other, tmp_path, METHOD)
    assert len(measurements(tmp_path)) == 3
    assert mixture(changed) != mixture(run(corpus, tmp_path, METHOD, "seed=5"))


def test_kept_values_are_the_measured_ones(corpus: Path, tmp_path: Path) -> None:
    first = run(corpus, tmp_path, METHOD)
    told = json.loads((measurements(tmp_path)[0].folder / VALUES).read_text())
    shares = torch.tensor(told["values"], dtype=torch.float64).softmax(0)
    assert mixture(first) == pytest.approx(dict(zip(told["domains"], shares.tolist(), strict=True)), rel=1e-12)


def test_a_signal_of_a_model_is_never_kept() -> None:
    kept = [kind for kind in DomainSignal.__subclasses__() if kind.of_text]
    assert kept == [Entropy]


TARGET = "dataset.target={path: null, from: [sums], rows_per_subtask: 4, seed: 0}"


class Swept:
    """Rows whose hidden states were taken by the model; everything else is as it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, measured = 0, RowMeter._states

        def counted(meter: RowMeter, ids: Tensor, layer: int, pooling: Pooling) -> Tensor:
            self.rows += len(ids)
            return measured(meter, ids, layer, pooling)

        monkeypatch.setattr(RowMeter, "_states", counted)

    def by(self, *made: Any) -> tuple[int, Path]:
        """How many it were in a run, and its folder."""
        self.rows = 0
        folder = run(*made)
        return self.rows, folder


def measuring_flops(folder: Path) -> float:
    found: float = json.loads((folder / "summary.json").read_text())["flops"]["measuring"]
    return found


def test_methods_that_compare_one_embedding_share_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = Swept(monkeypatch)
    alone, fresh = swept.by(corpus, tmp_path / "alone", "method=tsds", TARGET)
    rows, _ = swept.by(corpus, tmp_path / "shared", "method=near", TARGET)
    assert rows == alone > 512  # the pool and the target set once
    rows, second = swept.by(corpus, tmp_path / "shared", "method=tsds", TARGET)
    assert rows == 4  # the target set's
    assert story(second) == story(fresh)
    assert measuring_flops(second) == measuring_flops(fresh)
    rows, _ = swept.by(corpus, tmp_path / "shared", "method=cluster_less", TARGET)
    assert rows == 0
    rows, _ = swept.by(corpus, tmp_path / "shared", "method=rds", TARGET)
    assert rows == alone  # other weights over the tokens
