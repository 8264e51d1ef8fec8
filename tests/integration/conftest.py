"""A small corpus, a place for pools and runs, and the command line on them; one of each per test file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.runs import write_corpus


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
