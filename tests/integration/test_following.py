"""The record of an order along training: against the stream itself, with a mixture, a curriculum and two decisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regimen.data.pool import Pool
from regimen.runs.references import load_model
from regimen.training.callbacks.checkpoint import checkpoints
from regimen.training.cross_entropy import token_losses
from tests.support.runs import lines, run

FILE = "strategies.sorted.by={_target_: regimen.signals.file_scores.FileScores, path: PATH}"


def opened(home: Path) -> Pool:
    (manifest,) = home.glob("pools/*/manifest.json")
    return Pool.open(manifest.parent)


def course(folder: Path) -> list[dict]:
    return [row for row in lines(folder / "record.jsonl") if row["kind"] == "course"]


@pytest.fixture(scope="module")
def scores(corpus: Path, home: Path) -> Path:
    """A score per row of the pool: (7 i) mod 101."""
    run(corpus, home, "budget.steps=1")
    path = home / "scores.csv"
    path.write_text("score\n" + "".join(f"{7 * i % 101}\n" for i in range(opened(home).train.index.rows)))
    return path


def test_scores_domains_and_the_lowest_decile(corpus: Path, home: Path, scores: Path) -> None:
    """100 steps, one to a line. The first half of a sorted order has the lower scores."""
    more = ("budget.steps=100", "trainer.global_batch_size=2", "evaluation.decile_rows=5", "evaluation.at=[1]")
    told = ("method=sorted", "~strategies.sorted.by", f"+{FILE.replace('PATH', str(scores))}")
    folder = run(corpus, home, *told, *more, f"run_dir={home}/sorted", "trainer.save_at=[0.5,1]")
    pool, found = opened(home), course(folder)
    assert [row["step"] for row in found] == list(range(1, 101)), "a line per 1%"
    means = [row["score"]["mean"] for row in found]
    assert means == sorted(means) and all(row["rows"] == 2 for row in found)
    assert all(sum(row["domains"].values()) == pytest.approx(1) for row in found)
    decided = next(row for row in lines(folder / "record.jsonl") if row["kind"] == "orderer")["groups"]["all"]
    by_twentieth = [sum(means[i : i + 5]) / 5 for i in range(0, 100, 5)]
    assert by_twentieth == pytest.approx(decided["scores"]), "as decided, since nothing came between"
    state = torch.load(checkpoints(folder)[-1], weights_only=True)["callbacks"]["followed"]
    lowest = state["lowest"]
    assert len(lowest) == 5 and all(7 * i % 101 < 12 for i in lowest.tolist())
    rows = pool.train.read(lowest, positions=False).tokens
    for path, line in zip(checkpoints(folder), (found[49], found[99]), strict=True):
        model = load_model(path, pool).eval()
        with torch.no_grad():
            losses = token_losses(model(input_ids=rows[:, :-1]).logits, rows[:, 1:], chunk=1024)
        assert line["lowest_decile"] == {"loss": pytest.approx(float(losses.mean()), abs=1e-5), "rows": 5}


def test_a_mixture_a_curriculum_and_vectors(corpus: Path, home: Path) -> None:
    short = ("budget.steps=8", "evaluation.decile_rows=3")
    mixed = run(corpus, home, "method=[temperature,folding]", *short, f"run_dir={home}/mixed")
    assert [row["step"] for row in course(mixed)] == list(range(1, 9))
    assert all(
        row["strategy"] == "folding" and row["score"] and row["lowest_decile"]["rows"] == 3 for row in course(mixed)
    )
    paced = ("method=curriculum", "strategies.curriculum.when.steps=2", "strategies.curriculum.by.max_rows=40")
    paced = run(corpus, home, *paced, *short, "dataset.max_epochs_per_domain=null", f"run_dir={home}/paced")
    rising = [row["score"]["mean"] for row in course(paced)]
    assert len(rising) == 8 and max(rising[:2]) < min(rising[4:]), "easy rows alone at first"
    grab = ("method=grab", "strategies.grab.by.sketch.dimensions=16")
    balanced = run(corpus, home, *grab, *short, f"run_dir={home}/grab")
    assert {(row["score"], row["lowest_decile"]) for row in course(balanced)} == {(None, None)}
    assert sum(row["rows"] for row in course(balanced)) == 64
    plain = run(corpus, home, "method=natural", *short, f"run_dir={home}/natural")
    assert course(plain) == []


def test_following_costs_no_budget_and_changes_nothing(corpus: Path, home: Path) -> None:
    runs = [run(corpus, home, "method=sorted", f"evaluation.decile_rows={n}", f"run_dir={home}/d{n}") for n in (0, 8)]
    told = [json.loads((folder / "summary.json").read_text()) for folder in runs]
    assert told[0]["hash"] == told[1]["hash"] and told[0]["flops"]["total"] == told[1]["flops"]["total"]
    losses = [[row["loss"] for row in lines(f / "metrics.jsonl") if row["split"] == "train"] for f in runs]
    assert losses[0] == losses[1]
    assert all(row["lowest_decile"] is None for row in course(runs[0]))
