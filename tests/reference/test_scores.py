"""Scores from files: the three formats, the three rules, and what cannot be read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.selection.scores import Scores
from regimen.signals.file_scores import FileScores
from tests.reference.observations import LOSS
from tests.reference.selections import check_selector, kept
from tests.reference.test_rules import assert_close, frequency, inclusion
from tests.reference.texts import Texts

FIVE = [3.0, 1.0, 4.0, 1.0, 9.0]
NAN = float("nan")


def written(folder, name: str, text: str):
    (folder / name).write_text(text)
    return str(folder / name)


def measured(path: str, *, rows: int = 5, **settings) -> list[float]:
    meter = Texts(["x"] * rows)
    return FileScores(path=path, **settings).measure(meter, torch.arange(rows)).tolist()


def test_formats(tmp_path):
    lines = written(tmp_path, "a.csv", "score\n" + "".join(f"{x}\n" for x in FIVE))
    assert measured(lines) == FIVE
    assert measured(written(tmp_path, "b.csv", "id,q,score\n4,0,9\n0,0,3\n"), column="score")[::4] == [3.0, 9.0]
    objects = "".join(f'{{"row": {i}, "q": {FIVE[i]}}}\n' for i in (4, 2, 0, 1, 3))
    assert measured(written(tmp_path, "c.jsonl", objects + "\n"), column="q", id="row") == FIVE
    np.save(tmp_path / "d.npy", np.array(FIVE, np.float32))
    assert measured(str(tmp_path / "d.npy")) == FIVE
    signal = FileScores(path=lines)
    assert signal.measure(Texts(["x"] * 5), torch.tensor([4, 0])).tolist() == [9.0, 3.0]


def test_rows_without_a_score(tmp_path):
    signal = FileScores(path=written(tmp_path, "a.csv", "id,score\n4,9\n0,3\n2,5\n"))
    seen = Texts(["x"] * 5).seen(signal)
    assert seen.values[signal].isnan().tolist() == [False, True, False, True, False]
    with pytest.raises(ConfigError, match="NaN for 2 of 5 rows"):
        Scores(by=signal).decide(None, seen)
    assert Scores(by=signal, missing="drop", ratio=0.7).decide(None, seen).tolist() == [4, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,score\n5,1\n", "0 to 4"),
        ("id,score\n-1,1\n", "0 to 4"),
        ("id,score\n1,1\n1,2\n", "two scores"),
        ("id,score\n1,high\n", "record 1"),
        ("id,score\n1,1\n1.5,2\n", "record 2"),
        ("id,quality\n1,1\n", "a number in score"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        measured(written(tmp_path, "a.csv", text))


def test_more_that_cannot_be_used(tmp_path):
    for text, words in (("{", "line 1 of the scores is not JSON"), ("[1]", "no object"), ('{"id": 1}', "record 1")):
        with pytest.raises(ConfigError, match=words):
            measured(written(tmp_path, "a.jsonl", text))
    for array in (np.zeros((5, 2)), np.array(["a"])):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ConfigError, match="list of numbers"):
            measured(str(tmp_path / "a.npy"))
    with pytest.raises(ConfigError, match="set path to a file"):
        FileScores(path="")
    with pytest.raises(ConfigError, match="names no file"):
        FileScores(path=str(tmp_path / "no.csv"))
    with pytest.raises(ConfigError, match=r"\.csv, \.jsonl, \.npy"):
        FileScores(path=str(tmp_path))


def test_another_pool_is_refused(tmp_path):
    path = written(tmp_path, "a.csv", "score\n" + "1\n" * 5)
    meter = Texts(["x"] * 5)
    meter.index = dataclasses.replace(meter.index, fingerprint="f1")
    assert FileScores(path=path, pool="f1").measure(meter, meter.ids).tolist() == [1.0] * 5
    with pytest.raises(ConfigError, match="another pool"):
        FileScores(path=path, pool="f2").measure(meter, meter.ids)


def test_rules():
    assert kept(Scores(by=LOSS, ratio=0.6), FIVE) == [0, 2, 4]
    assert kept(Scores(by=LOSS, ratio=None, count=4), FIVE) == [0, 1, 2, 4]
    assert kept(Scores(by=LOSS, rule="threshold", threshold=3.0, ratio=None), FIVE) == [0, 2, 4]
    selector = Scores(by=LOSS, rule="proportional", ratio=None, count=2)
    draws = frequency(lambda g: torch.tensor(kept(selector, FIVE, seed=g.initial_seed())))
    assert_close(draws, inclusion(FIVE, 2))
    for rule in ("top", "proportional"):
        check_selector(Scores(by=LOSS, rule=rule, ratio=None, count=3), FIVE, 3, seed=1)
    assert kept(Scores(by=LOSS, rule="proportional", ratio=None, count=2), [0.0, 1.0, 0.0, 2.0]) == [1, 3]


def test_refused():
    for settings, words in (
        ({"rule": "best"}, "top, threshold, proportional"),
        ({"missing": "zero"}, "refuse, drop"),
        ({"rule": "threshold"}, "needs a threshold"),
        ({"threshold": 1.0}, "needs a threshold"),
        ({"rule": "threshold", "threshold": 1.0}, "set ratio and count to null"),
        ({"ratio": None}, "one of the two"),
    ):
        with pytest.raises(ConfigError, match=words):
            Scores(by=LOSS, **settings)
    for scores in ([1.0, -1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0], [1.0, float("inf"), 1.0, 1.0]):
        with pytest.raises(ConfigError, match="in proportion"):
            kept(Scores(by=LOSS, rule="proportional"), scores)
    with pytest.raises(ConfigError, match="kept no row"):
        kept(Scores(by=LOSS, rule="threshold", threshold=99.0, ratio=None), FIVE)
