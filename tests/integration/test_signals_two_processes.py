"""Two gloo processes measure rows as one does: gradients, states and losses, of fine-tuning and its target set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.runs import SMALL, lines, write_corpus

pytestmark = pytest.mark.processes

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.micro_batch_size=2")
SFT = (
    *("dataset=sft_files", "objective=sft", "dataset.seq_len=256", "dataset.domain_field=task", "dataset.overlap.n=0"),
    *("dataset.target={path: null, from: [a], rows_per_subtask: 4, seed: 0}", "model.lora.rank=2", "optimizer.lr=3e-2"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "corpus")
    records = [{"instruction": f"say {i}", "output": "x" * (1 + i % 7), "task": "abc"[i % 3]} for i in range(59)]
    (home / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return home


def regimen(home: Path, command: str, name: str, *overrides: str) -> Path:
    fixed = (f"paths.pools={home}/pools", f"paths.store={home}/{name}-store", f"run_dir={home}/{name}")
    arguments = [sys.executable, "-m", "regimen", command, *SMALL, *fixed, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return home / name


def test_scores_of_two_processes_are_those_of_one(home: Path) -> None:
    """LESS with its warm-up, adapters and Adam's moments: an odd number of rows, so that one rank has one twice."""
    less = ("method=less", "strategies.less.by.sketch.dimensions=64", "strategies.less.ratio=0.3")
    warm = "stages.warmup.overrides=['method=random','budget.steps=6','trainer.save_at=[0.5,1]']"
    common = (*SFT, f"dataset.path={home}/examples.jsonl", *less, warm)
    tables = [
        pq.read_table(regimen(home, "score", name, *common, *more) / "scores.parquet").to_pydict()
        for name, more in (("one", ()), ("two", TWO))
    ]
    assert len(tables[0]["id"]) % 2, "one rank measures a row that counts nothing"
    assert tables[0]["score"] == pytest.approx(tables[1]["score"], abs=1e-5)
    assert max(tables[0]["score"]) - min(tables[0]["score"]) > 0.02
    assert tables[0]["kept"] == tables[1]["kept"]


def test_measuring_gradients_does_not_touch_training(home: Path) -> None:
    """Under DDP with accumulation and dropout, bit for bit: weights are all 1, and every step is measured."""
    common = (f"dataset.path={home}/corpus", *TWO, "+model.config.attention_dropout=0.2", "evaluation.at=[1]")
    target = "dataset.target={path: null, from: [sums], rows_per_subtask: 3, seed: 0}"
    measured = regimen(home, "train", "measured", *common, target, "method=in_run_values")
    plain = regimen(home, "train", "plain", *common, target, "method=natural")

    def losses(folder: Path) -> list[float]:
        return [row["loss"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]

    assert losses(measured) == losses(plain)
    assert (measured / "gives" / "scores.npy").is_file()
