"""The built wheel carries its configuration and runs from another folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.runs import SMALL, write_corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_it_holds_every_configuration_file_and_nothing_of_the_checkout(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    held = {name.removeprefix("regimen/conf/") for name in names if name.startswith("regimen/conf/")}
    assert held == {str(p.relative_to(ROOT / "conf")) for p in (ROOT / "conf").rglob("*.yaml")}
    assert "regimen/reports/template.html" in names
    assert all(name.startswith(("regimen/", "regimen-")) for name in names)


def test_it_trains_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own that borrows this one's libraries, but not its regimen."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    write_corpus(elsewhere / "corpus")
    wanted = [*SMALL, "dataset.path=corpus", "paths.pools=pools", "run_dir=out", "method=folding"]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [environment / "bin" / "regimen", "train", *wanted]
    done = subprocess.run(command, cwd=elsewhere, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stderr
    where = "import regimen; print(regimen.__file__)"
    found = subprocess.run([python, "-c", where], cwd=elsewhere, env=clean, capture_output=True, text=True).stdout
    assert found.startswith(str(environment))
