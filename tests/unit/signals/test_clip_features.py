"""Files of features of image-text pairs: what is read, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.signals.clip_features import ClipFeatures, Pairs, joined, split
from tests.reference.texts import Texts

IMAGE = np.arange(15, dtype=np.float32).reshape(5, 3)
GOOD = {"image": IMAGE, "text": -IMAGE}


def measured(folder: Path, arrays: dict[str, np.ndarray], ids: list[int] | None = None) -> Pairs:
    np.savez(folder / "a.npz", **arrays)
    meter = Texts(["x"] * 5)
    rows = meter.ids if ids is None else torch.tensor(ids)
    return split(ClipFeatures(path=str(folder / "a.npz")).measure(meter, rows))


def test_lines_are_rows_or_rows_are_named(tmp_path: Path) -> None:
    pairs = measured(tmp_path, GOOD)
    assert pairs.image.tolist() == IMAGE.tolist() and pairs.text.tolist() == (-IMAGE).tolist()
    assert pairs.label is None and pairs.image.dtype == torch.float32
    turned = GOOD | {"row": np.array([4, 3, 2, 1, 0]), "label": np.array([7, 0, 7, 2**24 - 1, 1], np.int32)}
    pairs = measured(tmp_path, turned, [0, 3])
    assert pairs.image.tolist() == IMAGE[[4, 1]].tolist()
    assert pairs.label is not None and pairs.label.tolist() == [1, 0]
    some = {name: array[:3] for name, array in turned.items()}
    assert measured(tmp_path, some, [2, 4]).image.tolist() == IMAGE[[2, 0]].tolist()
    halves = {name: array.astype(np.float16) for name, array in GOOD.items()}
    assert measured(tmp_path, halves).image.tolist() == IMAGE.tolist()


def test_pairs_survive_the_way_through_vectors() -> None:
    for label in (None, torch.tensor([0, 2**24 - 1])):
        pairs = split(joined(Pairs(torch.rand(2, 4), torch.rand(2, 4), label)))
        assert pairs.image.shape == pairs.text.shape == (2, 4)
        assert pairs.label is label is None or torch.equal(pairs.label, label)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": None}, "no features of pairs"),
        ({"image": None}, "no features of pairs"),
        ({"text": IMAGE[:4]}, "no features of pairs"),
        ({"text": IMAGE[0]}, "no features of pairs"),
        ({"text": IMAGE.astype(np.int64)}, "no features of pairs"),
        ({"image": np.array("x"), "text": np.array("y")}, "no features of pairs"),
        ({"label": np.array([0.0] * 5)}, "no classes"),
        ({"label": np.array([0, 1, 2, 3, -1])}, "no classes"),
        ({"label": np.array([0, 1, 2, 3, 2**24])}, "no classes"),
        ({"label": np.array([0, 1])}, "no classes"),
        ({"row": np.array([0, 1, 2, 3, 5])}, "0 to 4"),
        ({"row": np.array([0, 1, 2, 3, -1])}, "0 to 4"),
        ({"row": np.array([0, 1, 2, 3, 3])}, "two pairs"),
        ({"row": np.array([0, 1, 2])}, "one whole number per pair"),
        ({"row": np.array([0.0] * 5)}, "one whole number per pair"),
        ({"image": np.vstack([IMAGE, IMAGE]), "text": np.vstack([IMAGE, IMAGE])}, "0 to 4"),
        ({"image": IMAGE[:3], "text": IMAGE[:3]}, r"no features of 2 of 5 rows\n.*\[3, 4\]"),
        ({"text": np.where(IMAGE == 7, np.nan, IMAGE)}, r"1 of 5 rows are not finite\n.*\[2\]"),
        ({"image": np.where(IMAGE == 0, np.inf, IMAGE)}, r"not finite\n.*\[0\]"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, change: dict[str, np.ndarray | None], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        measured(tmp_path, {name: array for name, array in (GOOD | change).items() if array is not None})


def test_only_rows_asked_for_must_be_there(tmp_path: Path) -> None:
    arrays = {"image": IMAGE[:3], "text": np.where(IMAGE == 7, np.nan, IMAGE)[:3]}
    assert measured(tmp_path, arrays, [0, 1]).text.tolist() == IMAGE[:2].tolist()


def test_another_pool_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **GOOD, pool=np.array("f1"))
    meter, signal = Texts(["x"] * 5), ClipFeatures(path=str(tmp_path / "a.npz"))
    meter.index = dataclasses.replace(meter.index, fingerprint="f1")
    assert signal.measure(meter, meter.ids).shape == (5, 6)
    meter.index = dataclasses.replace(meter.index, fingerprint="f2")
    with pytest.raises(ConfigError, match=r"of f1\n.*f2"):
        signal.measure(meter, meter.ids)


def test_paths(tmp_path: Path) -> None:
    for path, words in (
        (None, r"clip\.target=null"),
        ("", "no file"),
        ("a.npy", r"\.npz"),
        ("no.npz", "names no file"),
    ):
        with pytest.raises(ConfigError, match=words):
            ClipFeatures(path=path)  # type: ignore[arg-type]
    (tmp_path / "a.npz").write_text("no archive")
    meter = Texts(["x"])
    with pytest.raises(ConfigError, match="no NumPy archive"):
        ClipFeatures(path=str(tmp_path / "a.npz")).measure(meter, meter.ids)
    np.savez(tmp_path / "b.npz", image=np.array([object()]), text=IMAGE)
    with pytest.raises(ConfigError, match="no NumPy archive"):
        ClipFeatures(path=str(tmp_path / "b.npz")).measure(meter, meter.ids)
