"""The course of an order in the report: means and ranges over seeds, gaps, and its figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_grid

from regimen.reports import build
from regimen.reports.courses import course_of
from regimen.reports.groups import Arm
from regimen.reports.runs import Run


def made(*records: list[dict]) -> Arm:
    runs = [
        Run(
            folder=Path("run"),
            status="finished",
            reason=None,
            method="folding",
            model="nano",
            dataset="local",
            seed=seed,
            summary={},
            curve=(),
            record=tuple(rows),
            settings={},
            notes=(),
        )
        for seed, rows in enumerate(records)
    ]
    return Arm(label="folding", method="folding", counted=tuple(runs), others=())


def row(step: int, mean: float | None, a: float, loss: float | None = None) -> dict:
    score = None if mean is None else {"mean": mean, "deviation": 0.0}
    lowest = None if loss is None else {"loss": loss, "rows": 4}
    told = {"score": score, "domains": {"a": a, "b": 1 - a}, "lowest_decile": lowest}
    return {"kind": "course", "strategy": "folding", "step": step, "rows": 8, **told}


def test_seeds_meet_at_the_steps_that_all_tell_of() -> None:
    one, two = [row(1, 1.0, 0.2, 5.0), row(2, 2.0, 0.4, 4.0)], [row(2, 4.0, 0.8, 2.0), row(3, 9.0, 0.0, 1.0)]
    course = course_of(made(one, two))
    assert course is not None and course.seeds == 2 and course.strategy == "folding"
    assert course.steps.tolist() == [2.0]
    assert course.scores.tolist() == [[2.0], [4.0]] and course.lowest.tolist() == [[4.0], [2.0]]
    assert course.domains["a"].tolist() == pytest.approx([0.6]) and course.domains["b"].tolist() == pytest.approx([0.4])


def test_what_was_not_measured_is_not_drawn() -> None:
    course = course_of(made([row(1, None, 0.5), row(2, None, 0.5)]))
    assert course is not None and course.scores is None and course.lowest is None
    some = course_of(made([row(1, None, 0.5, 3.0), row(2, 1.0, 0.5, 2.0)]))
    assert np.isnan(some.scores[0, 0]) and some.scores[0, 1] == 1.0
    assert course_of(made([{"kind": "orderer", "step": 0}])) is None
    assert course_of(made([row(1, 1.0, 0.5)], [row(2, 1.0, 0.5)])) is None


def test_the_page_shows_it(tmp_path) -> None:
    root = write_grid(tmp_path)
    text = build([root]).read_text()
    assert "delt: course" in text and "they are forgotten" in text and "loss, lowest 10%" in text
    record = (next(root.glob("delt-*1")) / "record.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "course" for line in record) == 20
