"""`regimen score`: signals and selectors over a corpus as Parquet, found again, and trained from."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.training.sweep import Sweeper
from tests.support.cli import CommandLine
from tests.support.runs import SMALL, lines


def scored(regimen: CommandLine, tmp_path: Path, *overrides: str) -> tuple[dict, dict]:
    done = regimen.small("score", f"run_dir={tmp_path}/scores", *overrides)
    assert done.status == 0, done.err
    assert done.out.strip().endswith("scores.parquet")
    table = pq.read_table(tmp_path / "scores" / "scores.parquet").to_pydict()
    return table, json.loads((tmp_path / "scores" / "manifest.json").read_text())


def pool_of(regimen: CommandLine) -> Pool:
    from tests.support.runs import compose_settings

    return make_pool(compose_settings(*SMALL, *regimen.places()), progress=False)


def test_a_signal_over_all_rows(regimen: CommandLine, tmp_path: Path) -> None:
    table, manifest = scored(regimen, tmp_path, "score.by=${signal.loss}")
    pool = pool_of(regimen)
    rows = pool.train.index.rows
    assert table["id"] == list(range(rows)) and set(table["unit"]) == {"row"}
    assert table["domain"] == [pool.domains[k] for k in pool.train.index.domain_of(torch.arange(rows)).tolist()]
    best = sorted(range(rows), key=lambda i: (-table["score"][i], i))
    assert sorted(range(rows), key=lambda i: table["rank"][i]) == best
    assert manifest["pool"] == pool.fingerprint and manifest["by"] == {"class": "Loss"}
    assert manifest["rows"] == rows and manifest["measuring"]["flops"] > 0 and manifest["stages"]["flops"] == 0
    again = regimen.small("score", f"run_dir={tmp_path}/scores", "score.by=${signal.loss}")
    assert again.status == 0 and "scored before" in again.err


def test_documents_have_the_mean_of_their_rows(regimen: CommandLine, tmp_path: Path) -> None:
    by_row, _ = scored(regimen, tmp_path / "a", "score.by=${signal.loss}")
    table, _ = scored(regimen, tmp_path / "b", "score.by=${signal.loss}", "score.unit=document")
    pool = pool_of(regimen)
    spans = pool.train.documents(torch.arange(pool.train.index.rows))
    sums: dict[str, list[float]] = {}
    for row, document, length in zip(*(t.tolist() for t in (spans.row, spans.document, spans.length)), strict=True):
        total = sums.setdefault(pool.documents.ids[document], [0.0, 0.0])
        total[0] += by_row["score"][row] * length
        total[1] += length
    assert set(table["unit"]) == {"document"} and set(table["id"]) == set(sums)
    for name, score in zip(table["id"], table["score"], strict=True):
        assert score == pytest.approx(sums[name][0] / sums[name][1])


def test_a_selector_ranks_what_it_would_keep_first(regimen: CommandLine, tmp_path: Path) -> None:
    table, manifest = scored(
        regimen, tmp_path, "method=topk", "strategies.topk.ratio=0.25", "strategies.topk.polarity=-1"
    )
    kept = [i for i, keeps in enumerate(table["kept"]) if keeps]
    assert len(kept) == len(table["id"]) // 4
    assert sorted(table["rank"][i] for i in kept) == list(range(len(kept)))
    assert max(table["score"][i] for i in range(len(table["id"])) if i not in kept) <= min(
        table["score"][i] for i in kept
    ), "a higher score is better, whatever the polarity of the loss"
    assert manifest["by"]["class"] == "TopK"


@pytest.mark.parametrize("unit", ["row", "document"])
def test_training_from_scores(regimen: CommandLine, tmp_path: Path, unit: str) -> None:
    table, manifest = scored(regimen, tmp_path, "score.by=${signal.loss}", f"score.unit={unit}")
    run = tmp_path / "run"
    by = ("path", f"{tmp_path}/scores/scores.parquet"), ("pool", manifest["pool"]), ("unit", unit)
    given = [f"strategies.scores.by.{name}={value}" for name, value in by]
    done = regimen.small("train", "method=scores", *given, "strategies.scores.ratio=0.5", f"run_dir={run}")
    assert done.status == 0, done.err
    (kept,) = [row for row in lines(run / "record.jsonl") if row["kind"] == "selector"]
    if unit == "row":
        best = {i for i, rank in enumerate(table["rank"]) if rank < kept["kept"]}
        assert kept["kept"] == len(table["id"]) // 2
        served = pool_of(regimen)
        assert len(best) == kept["kept"] <= served.train.index.rows


def test_a_second_run_finds_what_was_measured(
    regimen: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With enough rows that they are kept: the run's own measurement before training is that of `score`."""
    swept: list[int] = []
    measure = Sweeper.measure
    monkeypatch.setattr(Sweeper, "measure", lambda self, ids: swept.append(len(ids)) or measure(self, ids))
    more = ("dataset.seq_len=8", "dataset.validation.max_rows=1")
    _, manifest = scored(regimen, tmp_path, "score.by=${signal.loss}", *more)
    rows = manifest["rows"]
    assert rows >= 512 and sum(swept) == rows
    swept.clear()
    done = regimen.small("train", "method=topk", *more, f"run_dir={tmp_path}/run", "evaluation.at=[1]")
    assert done.status == 0, done.err
    assert max(swept) < rows, "nothing but the validation rows was swept"
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert told["flops"]["measuring"] == pytest.approx(manifest["measuring"]["flops"])


def test_mistakes(regimen: CommandLine) -> None:
    assert "nothing to score by" in regimen.refused(command="score")
    assert "row, document" in regimen.refused("score.unit=page", "score.by=${signal.loss}", command="score")
    assert "gives vectors" in regimen.refused(
        "score.by={_target_: regimen.signals.ngrams.NgramFeatures}", command="score"
    )
    assert "signal of rows" in regimen.refused("score.by=3", command="score")
