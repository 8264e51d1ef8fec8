"""LR-matched: the learning rate of plain training times what a weighted run had in effect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.weighting.lr_matched import LrMatched, multipliers_of
from tests.reference.observations import index_of, weighing
from tests.support.runs import lines, run, write_corpus

FOCAL = ("method=focal", "strategies.focal.gamma=1.0")
PLAIN = ("optimizer=sgd", "optimizer.lr=0.05", "trainer.gradient_clip_val=null", "evaluation.at=[1]")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("home")
    return write_corpus(home / "corpus"), home


def told(folder: Path, key: str) -> list[float]:
    return [row[key] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


def test_the_learning_rate_is_that_of_the_weighted_run(folders: tuple[Path, Path]) -> None:
    weighted = run(*folders, *FOCAL, *PLAIN)
    m = torch.tensor(told(weighted, "effective_lr_multiplier"), dtype=torch.float64)
    assert float(m.std()) > 0 and float((m - 1).abs().max()) > 0.01
    assert multipliers_of(weighted).tolist() == m.tolist()
    match = ("method=lr_matched", f"strategies.lr_matched.run={weighted}")
    by_step = run(*folders, *PLAIN, *match, "strategies.lr_matched.match=step")
    assert told(by_step, "lr") == pytest.approx((0.05 * m).tolist())
    by_mean = run(*folders, *PLAIN, *match)
    assert told(by_mean, "lr") == pytest.approx([0.05 * float(m.mean())] * 8)
    # Under SGD without decay it is the same to scale the loss.
    by_loss = run(*folders, *PLAIN, *match, "strategies.lr_matched.match=step", "strategies.lr_matched.scale=loss")
    assert told(by_loss, "lr") == [0.05] * 8
    assert told(by_loss, "loss") == pytest.approx(told(by_step, "loss"), rel=1e-5)
    assert told(by_loss, "effective_lr_multiplier") == pytest.approx(m.tolist(), rel=1e-6)


def test_adams_learning_rate_is_scaled_where_its_loss_could_not_be(folders: tuple[Path, Path]) -> None:
    rate = ("method=lr_matched", "strategies.lr_matched.multiplier=0.25", "evaluation.at=[1]")
    scaled = run(*folders, *rate)
    lower = run(*folders, "method=natural", "optimizer.lr=0.00025", "evaluation.at=[1]")
    assert told(scaled, "loss") == pytest.approx(told(lower, "loss"), rel=1e-6)


def test_a_run_that_is_too_short_or_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not tell"):
        LrMatched(run=str(tmp_path)).init(index_of([1]))
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "effective_lr_multiplier": 0.5}\n{"step": 1, "split": "eval"}\n'
        '{"step": 2, "split": "train", "effective_lr_multiplier": 0.7}\n'
    )
    by_step = LrMatched(run=str(tmp_path), match="step")
    state = by_step.init(index_of([1]))
    assert [by_step.learning_rate_factor(state, step) for step in (0, 1)] == [0.5, 0.7]
    with pytest.raises(ConfigError, match="shorter"):
        by_step.weigh(state, torch.ones(1), weighing([0], total_steps=3))
    assert by_step.weigh(state, torch.ones(1), weighing([0], total_steps=2)).tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "either a number or a run"),
        ({"multiplier": 1.0, "run": "x"}, "either a number or a run"),
        ({"multiplier": -1.0}, "0 or more"),
        ({"multiplier": 1.0, "match": "epoch"}, "mean, step"),
        ({"multiplier": 1.0, "scale": "both"}, "lr, loss"),
    ],
)
def test_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LrMatched(**settings)  # type: ignore[arg-type]
