"""A small corpus, a place for pools and runs, and the command line on them; one of each per test file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.runs import write_corpus
from tests.support.sharded import STRATEGIES, TWO, grid


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def regimen(corpus: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(corpus, home, capsys)


@pytest.fixture
def damaged(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus to damage."""
    return Path(shutil.copytree(corpus, tmp_path / "damaged"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    records = [{"instruction": f"say {i}", "output": "x" * (1 + i % 7), "task": "abc"[i % 3]} for i in range(89)]
    (home / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return home


@pytest.fixture(scope="module")
def one(examples: Path) -> Path:
    """One process."""
    grid(examples, "one", ("cpu",))
    return examples / "one/cpu"


@pytest.fixture(scope="module")
def two(examples: Path) -> Path:
    """Two processes under each strategy; a folder for each."""
    said = grid(examples, "two", STRATEGIES, *TWO)
    assert said.count("bits per byte") == len(STRATEGIES), "one rank alone speaks"
    assert "Warning" not in said and "[INFO]" not in said
    return examples / "two"
