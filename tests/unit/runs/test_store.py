"""The store's files: what is kept, why, how large; a mismatch is another key; a busy entry is not removed."""

from __future__ import annotations

import json
from pathlib import Path

import filelock
import pytest

from regimen.core.errors import ConfigError
from regimen.runs.store import Store, fit_key
from regimen.runs.store_command import chosen, main


def finished(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    (folder / "weights").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_an_entry_is_found_by_its_key_alone(store: Store, tmp_path: Path) -> None:
    place = store.place("run", "uniform", "k1")
    assert place == tmp_path / "store/runs/uniform-k1"
    by_hand = finished(tmp_path / "outputs/uniform")
    store.note("run", "uniform", "k1", by_hand, asked_by=None)
    assert store.place("run", "uniform", "k1") == by_hand
    assert store.entries() == [], "a run by hand that nobody asked for is not the store's business"
    store.note("run", "uniform", "k1", by_hand, asked_by="doremi")
    (entry,) = store.entries()
    assert (entry.own, entry.asked_by, entry.state) == (False, ("doremi",), "finished")


def test_what_is_gone_or_unfinished_is_not_used(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    store.note("run", "a", "k1", elsewhere, asked_by="x")
    assert store.place("run", "a", "k1") == tmp_path / "store/runs/a-k1"
    assert store.entries()[0].state == "gone"
    elsewhere.mkdir()
    (elsewhere / "summary.json").write_text(json.dumps({"status": "running"}))
    assert store.place("run", "a", "k1") == tmp_path / "store/runs/a-k1"
    assert store.entries()[0].state == "unfinished"


def test_the_same_run_made_again_elsewhere_hides_nothing(store: Store, tmp_path: Path) -> None:
    own = finished(store.place("run", "a", "k1"))
    store.note("run", "a", "k1", own, asked_by="x")
    store.note("run", "a", "k1", finished(tmp_path / "outputs/a"), asked_by=None)
    (entry,) = store.entries()
    assert entry.folder == own
    assert entry.own


def test_asked_by_is_noted_once(store: Store) -> None:
    folder = finished(store.place("run", "a", "k1"))
    for who in ("x", "y", "x"):
        store.note("run", "a", "k1", folder, asked_by=who)
    (entry,) = store.entries()
    assert entry.asked_by == ("x", "y")
    assert entry.size >= 1000


def test_removal_deletes_its_own_and_forgets_the_others(store: Store, tmp_path: Path) -> None:
    own = finished(store.place("run", "a", "k1"))
    other = finished(tmp_path / "outputs/b")
    store.note("run", "a", "k1", own, asked_by="x")
    store.note("run", "b", "k2", other, asked_by="x")
    for entry in store.entries():
        store.remove(entry)
    assert not own.exists()
    assert other.exists()
    assert store.entries() == []


def test_an_entry_in_use_is_not_removed(store: Store) -> None:
    own = finished(store.place("run", "a", "k1"))
    store.note("run", "a", "k1", own, asked_by=None)
    with filelock.FileLock(own / ".lock"), pytest.raises(ConfigError, match="busy"):
        store.remove(store.entries()[0])
    assert own.exists()


def test_choosing(store: Store, tmp_path: Path) -> None:
    store.note("run", "a", "k1", finished(store.place("run", "a", "k1")), asked_by="x")
    store.note("run", "b", "k2", finished(store.place("run", "b", "k2")), asked_by=None)
    store.note("run", "c", "k3", tmp_path / "gone", asked_by="x")
    entries = store.entries()

    def keys(wanted: str) -> list[str]:
        return [entry.key for entry in chosen(entries, wanted)]

    assert keys("all") == ["k1", "k2", "k3"]
    assert keys("unused") == ["k2", "k3"]
    assert keys("unfinished") == ["k3"]
    assert keys("k3,k1") == ["k3", "k1"]
    with pytest.raises(ConfigError, match="no such entry"):
        chosen(entries, "k9")


def test_the_command_lists_and_removes(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.note("run", "a", "k1", finished(store.place("run", "a", "k1")), asked_by="doremi-nano")
    assert main({"at": str(store.root)}) == 0
    out = capsys.readouterr().out
    assert "k1" in out
    assert "doremi-nano" in out
    assert "1 entries" in out
    assert main({"at": str(store.root), "remove": "all"}) == 0
    assert "0 entries" in capsys.readouterr().out


def test_keys_hang_on_everything() -> None:
    spec = {"fit": {"_target_": "a.B"}, "target": "mean"}
    keys = {fit_key(spec, ["a"]), fit_key(spec, ["a", "b"]), fit_key({**spec, "target": "code"}, ["a"])}
    assert len(keys) == 3
