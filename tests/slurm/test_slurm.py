"""A real SLURM of two nodes: grids, shards, and runs over both nodes that make room and come back."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from regimen.training.callbacks.checkpoint import checkpoints
from tests.contract.test_methods import assert_equal_weights
from tests.support.cli import environment
from tests.support.runs import SMALL, story, write_corpus

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(os.getuid() != 0, reason="the daemons of a testing cluster need root"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in NEEDED),
        reason="SLURM is not installed: apt-get install --no-install-recommends slurm-wlm munge",
    ),
    pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason='pip install "regimen[slurm]"'),
]
CPU = ("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=20")
ONE = ("hydra/launcher=slurm_1gpu", *CPU)
TWO = (
    *("hydra/launcher=slurm_multinode", *CPU, "hydra.launcher.tasks_per_node=1", "hydra.launcher.max_num_timeout=3"),
    *(
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.num_nodes=2",
        "trainer.micro_batch_size=2",
    ),
)
LONG = ("method=[odm,loss_weighting]", "budget.steps=400", "dataset.max_epochs_per_domain=null", "trainer.threads=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    spec = importlib.util.spec_from_file_location("cluster", ROOT / "launchers" / "testing" / "cluster.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    extra = module.start(folder)
    try:
        yield environment(**extra)
    finally:
        module.stop(folder)
        assert not folder.exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "corpus")
    return home


def submit(
    cluster: dict[str, str], home: Path, *overrides: str, command: tuple[str, ...] = ("train", "-m")
) -> subprocess.Popen[str]:
    places = ("dataset.path=corpus", f"paths.pools={home}/pools", f"paths.outputs={home}/outputs")
    words = [sys.executable, "-m", "regimen", *command, *SMALL, *places, f"paths.store={home}/store", *overrides]
    return subprocess.Popen(words, env=cluster, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said


def summary(folder: Path) -> dict[str, object]:
    return json.loads((folder / "summary.json").read_text())


def test_a_grid_is_sent_and_sent_again(cluster: dict[str, str], home: Path) -> None:
    grid = (*ONE, "method=natural,uniform", "sweep=grid")
    end(submit(cluster, home, *grid))
    runs = [path.parent for path in (home / "outputs" / "grid").glob("*/summary.json")]
    assert [summary(run)["status"] for run in runs] == ["finished"] * 2
    ended = {run: (run / "summary.json").stat().st_mtime_ns for run in runs}
    end(submit(cluster, home, *grid))
    assert ended == {run: (run / "summary.json").stat().st_mtime_ns for run in runs}, "finished runs are skipped"


def test_a_grid_that_nobody_waits_for_goes_on_and_sent_again_runs_once(cluster: dict[str, str], home: Path) -> None:
    grid = (*ONE, "method=natural,uniform", "sweep=left", "budget.steps=60", "dataset.max_epochs_per_domain=null")
    said = end(submit(cluster, home, *grid, "wait=false"))
    assert said.count("is in the queue") == 2
    ended = [path for path in (home / "outputs" / "left").glob("*/summary.json") if summary(path.parent)["steps"] == 60]
    assert len(ended) < 2, "it returned before the runs were done"
    waiting = submit(cluster, home, *grid)  # while the first jobs wait or run
    for run in ("natural", "uniform"):
        await_status("finished", home / "outputs" / "left", run)
    end(waiting)
    begun = [(home / "outputs" / "left").glob(f"{run}*/metrics.jsonl") for run in ("natural", "uniform")]
    for (metrics,) in map(list, begun):
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"train"' in line]
        assert steps == sorted(set(steps)) and steps[-1] == 60, "one process alone wrote it"


def test_shards_become_the_whole_pool_and_the_whole_scores(cluster: dict[str, str], home: Path) -> None:
    pools = f"paths.pools={home}/shards"
    end(submit(cluster, home, pools, "shard.count=3", "shard.index=range(3)", *ONE, command=("prepare", "-m")))
    (manifest,) = (home / "shards").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["shard_count"] == 3
    ask = (pools, "score.by=${signal.loss}")
    one, many = (home / "scores" / name for name in ("one", "many"))
    end(submit(cluster, home, *ask, f"run_dir={one}", command=("score",)))
    shards = ("shard.count=2", "shard.index=range(2)")
    end(submit(cluster, home, *ask, f"run_dir={many}", *shards, *ONE, command=("score", "-m")))
    alone, merged = (pq.read_table(folder / "scores.parquet").to_pydict() for folder in (one, many))
    assert merged["id"] == alone["id"] and json.loads((many / "manifest.json").read_text())["shards"] == 2
    assert merged["score"] == pytest.approx(alone["score"], rel=1e-5)


def test_submitit_is_told_of_the_time_limit_and_requeues(cluster: dict[str, str], home: Path) -> None:
    """SIGUSR2 is what submitit has SLURM send before the time limit; its handler counts how often."""
    whole, cut = home / "whole", home / "usr2"
    if not whole.is_dir():
        end(submit(cluster, home, *TWO, *LONG, "sweep=whole", f"run_dir={whole}"))
    process = submit(cluster, home, *TWO, *LONG, "sweep=usr2", f"run_dir={cut}")
    logs = home / "outputs" / "usr2" / ".submitit"
    await_text(cut / "metrics.jsonl", '"step": 10, "split": "train"', logs)
    (job,) = [path.name for path in logs.iterdir() if path.name.isdigit()]
    subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
    await_text(cut / "summary.json", '"status": "preempted"', logs)
    end(process)
    assert summary(cut)["status"] == "finished"
    assert "SIGUSR2" in "".join(path.read_text() for path in logs.glob("*/*.err"))
    assert story(cut) == story(whole)
    assert_equal_weights(checkpoints(cut)[-1], checkpoints(whole)[-1])


def test_a_run_over_two_nodes_makes_room_and_ends_as_if_undisturbed(cluster: dict[str, str], home: Path) -> None:
    whole, cut = home / "whole", home / "cut"
    end(submit(cluster, home, *TWO, *LONG, "sweep=whole", f"run_dir={whole}"))
    process = submit(cluster, home, *TWO, *LONG, "sweep=cut", f"run_dir={cut}", "hydra.launcher.partition=main")
    metrics, deadline = cut / "metrics.jsonl", time.monotonic() + 120
    while not metrics.is_file() or '"step": 10, "split": "train"' not in metrics.read_text():
        assert process.poll() is None and time.monotonic() < deadline, "the run did not get far enough"
        time.sleep(0.05)
    urgent = ["srun", "--partition=high", "--nodes=2", "--ntasks=2", "--cpus-per-task=4", "true"]
    subprocess.run(urgent, env=cluster, check=True, timeout=90, capture_output=True)
    told = summary(cut)
    assert told["status"] == "preempted" and "SIGTERM" in str(told["reason"])
    end(process)
    assert summary(cut)["status"] == "finished"
    assert story(cut) == story(whole)
    assert_equal_weights(checkpoints(cut)[-1], checkpoints(whole)[-1])


def test_a_job_of_plain_sbatch_is_signalled_and_requeued(cluster: dict[str, str], home: Path) -> None:
    """The script of `launchers/` on two nodes; SIGUSR1 is what SLURM sends before the time limit."""
    whole, cut = home / "whole", home / "sbatch"
    if not whole.is_dir():
        end(submit(cluster, home, *TWO, *LONG, "sweep=whole", f"run_dir={whole}"))
    asked = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--parsable", f"--chdir={home}")
    places = ("dataset.path=corpus", f"paths.pools={home}/pools", f"paths.store={home}/store", f"run_dir={cut}")
    layout = [word for word in TWO if not word.startswith("hydra")]
    script = ROOT / "launchers" / "sbatch_nodes.sh"
    found = cluster | {"PATH": f"{Path(sys.executable).parent}:{cluster['PATH']}"}
    command = ["sbatch", *asked, str(script), *SMALL, *LONG, *layout, *places]
    job = subprocess.run(command, env=found, check=True, capture_output=True, text=True).stdout.strip()
    log = home / f"regimen-{job}.log"
    await_text(cut / "metrics.jsonl", '"step": 10, "split": "train"', log)
    subprocess.run(["scancel", "--signal=USR1", job], env=cluster, check=True)
    await_text(cut / "summary.json", '"status": "preempted"', log)
    await_text(cut / "summary.json", '"status": "finished"', log)
    assert "stopped by SIGUSR1" in log.read_text()
    assert story(cut) == story(whole)
    assert_equal_weights(checkpoints(cut)[-1], checkpoints(whole)[-1])


def await_status(status: str, sweep: Path, run: str) -> None:
    deadline = time.monotonic() + 200
    while not any(summary(path.parent)["status"] == status for path in sweep.glob(f"{run}*/summary.json")):
        assert time.monotonic() < deadline, f"{run} is not {status}"
        time.sleep(0.2)


def await_text(file: Path, text: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.is_file() or text not in file.read_text():
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "the job did not begin"
        time.sleep(0.05)
