"""A real multirun under Ray on this machine: runs, and scores in two shards that are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.cli import environment
from tests.support.ranks import ROOT
from tests.support.runs import SMALL

pytestmark = pytest.mark.processes
ON_CPUS = ("hydra/launcher=ray_1gpu", "hydra.launcher.ray.remote.num_gpus=0")


def run(command: str, corpus: Path, home: Path, *overrides: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install hydra-ray-launcher, beside the project")
    places = (f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.outputs={home}/outputs")
    line = [sys.executable, "-m", "regimen", command, *SMALL, *places, f"paths.store={home}/store", *overrides]
    seen = environment(PYTHONPATH=f"{ROOT / 'src'}:{ROOT}")
    done = subprocess.run(line, env=seen, cwd=home, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def test_runs_of_a_grid(corpus: Path, home: Path) -> None:
    run("train", corpus, home, "-m", *ON_CPUS, "method=natural,odm", "budget.steps=2", "sweep=ray")
    told = [json.loads(path.read_text())["status"] for path in (home / "outputs/ray").glob("*/summary.json")]
    assert told == ["finished"] * 2


def test_scores_in_shards_are_those_of_one_process(corpus: Path, home: Path) -> None:
    by = "score.by=${signal.loss}"
    run("score", corpus, home, by, f"run_dir={home}/one")
    sharded = ("-m", *ON_CPUS, "shard.count=2", "shard.index=range(2)", f"run_dir={home}/two", by)
    run("score", corpus, home, *sharded, f"paths.store={home}/other")
    one, two = (pq.read_table(home / name / "scores.parquet").to_pydict() for name in ("one", "two"))
    assert two == one
