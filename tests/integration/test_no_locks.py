"""A file system without locks: every place that takes one says so, names the folder and the setting, and leaves it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import environment
from tests.support.no_locks import FLOCK
from tests.support.runs import SMALL, write_corpus

pytestmark = pytest.mark.skipif(FLOCK is None, reason="the number of the flock call of this machine is not known")

ROOT = Path(__file__).resolve().parents[2]
PLACES = """
import sys
from pathlib import Path
from regimen.core.errors import ConfigError
from regimen.data.fingerprint import DigestCache
from regimen.data.prepare import prepare
from regimen.runs.locks import held
from regimen.runs.store import Store
from tests.support.no_locks import forbid_flock

number, home = int(sys.argv[1]), Path(sys.argv[2])
dataset = {"source": "local", "tokenizer": {"kind": "bytes"}}
file = home / "file"
file.write_text("x")
cache = DigestCache(home / "digests" / "d.json")
cache.digest(file)
forbid_flock(number)
for call in (lambda: held(home / "run").__enter__(), Store(home / "store").ready, cache.save,
             lambda: prepare(dataset, root=home / "pools")):
    try:
        call()
        print("NOT REFUSED", call)
    except ConfigError as error:
        print(str(error).replace(chr(10), " "))
"""
CLI = """
import sys
from regimen import cli
from tests.support.no_locks import forbid_flock

forbid_flock(int(sys.argv.pop(1)))
sys.exit(cli.main())
"""


def child(script: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "REGIMEN_HOME": str(home)}
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(**paths), cwd=home)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_every_lock_is_refused_in_words(number: int, tmp_path: Path) -> None:
    """The last is what filelock answers with a file that a killed process would leave locked for good."""
    done = child(PLACES, str(number), str(tmp_path), home=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    settings = ("run_dir=DIR", "paths.store=DIR", "paths.pools=DIR", "paths.pools=DIR")
    folders = ("run", "store", "digests", "pools/local-")
    assert len(said) == len(settings)
    for line, setting, folder in zip(said, settings, folders, strict=True):
        assert "has no file locks" in line and setting in line and f"{tmp_path}/{folder}" in line
        assert os.strerror(number) in line
    assert not (tmp_path / "run").exists() and list(tmp_path.rglob("*lock")) == []


def test_a_run_is_refused_on_one_screen_and_leaves_nothing(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    command = ["train", *SMALL, f"dataset.path={corpus}", f"run_dir={tmp_path}/run"]
    done = child(CLI, str(errno.ENOLCK), *command, home=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: the file system of this folder has no file locks")
    assert f"{tmp_path}/run: No locks available" in done.stderr and "run_dir=DIR" in done.stderr
    assert not (tmp_path / "run").exists()
