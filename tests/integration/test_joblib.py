"""A real multirun under joblib: runs side by side, each process with one of the visible GPUs to itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import environment
from tests.support.ranks import ROOT
from tests.support.runs import SMALL

pytestmark = pytest.mark.processes


def start(corpus: Path, home: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    places = (f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.outputs={home}/outputs")
    command = [sys.executable, "-m", "regimen", "train", "-m", "hydra/launcher=joblib", *SMALL, *places, *overrides]
    seen = environment(CUDA_VISIBLE_DEVICES="5,GPU-7", PYTHONPATH=f"{ROOT / 'src'}:{ROOT}")
    return subprocess.run(command, env=seen, cwd=home, capture_output=True, text=True, timeout=280)


def test_each_process_of_joblib_sees_one_gpu_and_keeps_it(corpus: Path, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    seeing = ("++strategies.seeing._target_=tests.support.failing.Seeing", f"++strategies.seeing.to={tmp_path}")
    numbers = ("++strategies.seeing.number=0,1,2,3", "++strategies.seeing.others=2", "budget.steps=2", "sweep=side")
    done = start(corpus, home, *seeing, *numbers)
    assert done.returncode == 0, done.stderr
    seen = [path.read_text().split() for path in tmp_path.iterdir()]
    assert len(seen) == 4 and {gpu for gpu, _ in seen} == {"5", "GPU-7"}
    assert len({process for _, process in seen}) == len({tuple(pair) for pair in seen}) == 2, "a process keeps its GPU"
    told = [json.loads(path.read_text())["status"] for path in (home / "outputs/side").glob("*/summary.json")]
    assert told == ["finished"] * 4


def test_a_run_on_several_processes_is_refused_with_the_reason(corpus: Path, home: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = start(corpus, home, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "seed=1")
    assert done.returncode == 1 and "this launcher gives a run one process" in done.stderr
    assert "Traceback" not in done.stderr
