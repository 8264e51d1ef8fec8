"""Two ranks that a launcher started, on nodes that differ: both leave before the first step, and one of them speaks."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import environment
from tests.support.runs import SMALL

pytestmark = pytest.mark.processes


def launch(
    corpus: Path, folder: Path, homes: tuple[Path, Path], *overrides: str, command: str = "train"
) -> list[tuple[int, str]]:
    """Both ranks as torchrun starts them, each with a REGIMEN_HOME; status and screen of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "regimen", command, *SMALL, f"dataset.path={corpus}", f"run_dir={folder}"]
    line += ["trainer=ddp", "trainer.accelerator=cpu", *overrides]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": f"t{port}"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            line,
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank), REGIMEN_HOME=str(home)),
            cwd=folder.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, home in enumerate(homes)
    ]
    try:
        return [(process.wait(), said) for process in ranks for said in [process.communicate(timeout=200)[1]]]
    finally:
        for process in ranks:
            process.kill()


def check_refused(ranks: list[tuple[int, str]], *words: str) -> None:
    (first, said), (second, silent) = ranks
    assert (first, second) == (1, 1), (said, silent)
    assert silent == "" and "Traceback" not in said and said.count("error:") == 1
    assert [word for word in words if word not in said] == [], said


@pytest.fixture(scope="module")
def seen(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with the pool, and the name of the pool; the run that prepared it had both ranks see it."""
    home = tmp_path_factory.mktemp("seen")
    (first, said), (second, silent) = launch(corpus, home / "run", (home, home), "budget.steps=2")
    assert (first, second) == (0, 0), (said, silent)
    assert not (home / "run" / ".ranks").exists()
    decided = json.loads((home / "run" / "attempt.json").read_text())
    assert decided["agreed"] and len(decided["fingerprint"]) == 64
    return home, decided["pool"]


def test_a_rank_without_the_folder_of_pools(corpus: Path, seen: tuple[Path, str], tmp_path: Path) -> None:
    ranks = launch(corpus, tmp_path / "run", (seen[0], tmp_path / "nowhere"))
    words = (
        "1 of 2 ranks do not see the data",
        f"rank 1 on {socket.gethostname()}",
        f"{tmp_path}/nowhere/pools",
        "not",
    )
    check_refused(ranks, *words, f"the pool {seen[1]} with fingerprint", "REGIMEN_HOME", "regimen prepare")
    assert not (tmp_path / "run").exists() and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "what",
    ["another fingerprint", *(pytest.param(w, marks=pytest.mark.slow) for w in ("no such pool", "a torn manifest"))],
)
def test_a_rank_with_another_pool(corpus: Path, seen: tuple[Path, str], tmp_path: Path, what: str) -> None:
    own, words = tmp_path / "own" / "pools", ["has no folder"]
    own.mkdir(parents=True)
    if what != "no such pool":
        manifest = Path(shutil.copytree(seen[0] / "pools" / seen[1], own / seen[1])) / "manifest.json"
        told = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(told | {"fingerprint": "f00d" * 16}) if what != "a torn manifest" else '{"fo')
        words = ["has fingerprint f00df00df00d"] if what != "a torn manifest" else ["rank 1 on"]
    ranks = launch(corpus, tmp_path / "run", (seen[0], own.parent))
    check_refused(ranks, "1 of 2 ranks do not see the data", *words)
    assert not (tmp_path / "run").exists()


def test_a_rank_needs_the_pool_and_not_the_text(seen: tuple[Path, str], corpus: Path, tmp_path: Path) -> None:
    """The text is on rank 0's node alone; a copy of the pool is on the other."""
    shutil.copytree(seen[0] / "pools" / seen[1], tmp_path / "own" / "pools" / seen[1])
    ranks = launch(corpus, tmp_path / "run", (seen[0], tmp_path / "own"), "budget.steps=2")
    assert [status for status, _ in ranks] == [0, 0], ranks
    assert [path.name for path in (tmp_path / "own" / "pools").iterdir()] == [seen[1]], "nothing was prepared again"


def test_a_batch_that_does_not_divide_over_the_ranks(corpus: Path, seen: tuple[Path, str], tmp_path: Path) -> None:
    ranks = launch(corpus, tmp_path / "run", (seen[0], seen[0]), "trainer.global_batch_size=7")
    check_refused(ranks, "does not divide", "trainer.global_batch_size=7, ranks 2", "a multiple of")


def test_what_rank_0_refuses_ends_both(corpus: Path, seen: tuple[Path, str], tmp_path: Path) -> None:
    """A mistake in a line of text, which rank 0 alone reads."""
    damaged = Path(shutil.copytree(corpus, tmp_path / "damaged"))
    (damaged / "code.jsonl").write_text("oops\n")
    check_refused(launch(damaged, tmp_path / "run", (seen[0], seen[0])), "code.jsonl:1: not valid JSON")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "score"])
def test_a_rank_with_another_store(corpus: Path, seen: tuple[Path, str], tmp_path: Path, command: str) -> None:
    """What rank 0 measures is read by all ranks; a pool alone may be a copy."""
    shutil.copytree(seen[0] / "pools" / seen[1], tmp_path / "own" / "pools" / seen[1])
    by = ("score.by=${signal.loss}",) if command == "score" else ("method=topk", "strategies.topk.ratio=0.5")
    ranks = launch(corpus, tmp_path / "run", (seen[0], tmp_path / "own"), *by, command=command)
    check_refused(ranks, "1 of 2 ranks do not see the data", f"{tmp_path}/own/", "is not rank 0's", "paths.store")
    assert not (tmp_path / "run").exists() and not list((seen[0] / "store").glob(".seen-*"))
    if command == "train":  # with one store: as every other run of two ranks
        return
    ranks = launch(
        corpus, tmp_path / "run", (seen[0], tmp_path / "own"), *by, f"paths.store={seen[0]}/store", command=command
    )
    assert [status for status, _ in ranks] == [0, 0], ranks
    assert (tmp_path / "run" / "scores.parquet").is_file()
    assert not (tmp_path / "run" / ".ranks").exists() and not list((seen[0] / "store").glob(".seen-*"))
