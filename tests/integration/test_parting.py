"""Two real processes of a multirun of which one fails: both go on to the next job, or the launch ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from regimen.training.callbacks.checkpoint import checkpoints
from tests.contract.test_methods import assert_equal_weights
from tests.support.cli import environment
from tests.support.ranks import ROOT, on_two_ranks
from tests.support.runs import SMALL, story

pytestmark = pytest.mark.processes

# The command line as it is, but that ranks wait for each other's reasons for a shorter time.
SCRIPT = """
import sys
from regimen.runs import parting
parting._PATIENCE_SECONDS = 5.0
from regimen import cli
sys.argv = ["regimen", *sys.argv[1:]]
sys.exit(cli.main())
"""
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.micro_batch_size=2")
WHY = "this weighter was asked to fail"


def grid(corpus: Path, home: Path, asked: Path, *overrides: str) -> list[str]:
    fixed = (f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.outputs={home}/outputs", "budget.steps=4")
    failing = ("++strategies.failing._target_=tests.support.failing.Failing", f"++strategies.failing.at={asked}")
    return [*SMALL, *fixed, *TWO, *failing, *overrides]


def numbered(*numbers: int) -> list[str]:
    return ["train", "-m", f"++strategies.failing.number={','.join(map(str, numbers))}"]


def statuses(sweep: Path) -> dict[int, str]:
    """The status of each run, by its number in the grid."""
    told = {}
    for path in sweep.glob("*/summary.json"):
        number = path.parent.joinpath("config.yaml").read_text().split("number: ")[1].split()[0]
        told[int(number)] = json.loads(path.read_text())["status"]
    return told


@pytest.mark.parametrize(
    ("rank", "kind"), [(1, "RunError"), pytest.param(1, "RuntimeError", marks=pytest.mark.slow), (0, "RunError")]
)
def test_a_rank_that_fails_alone_ends_the_launch_and_the_same_command_goes_on(
    corpus: Path, home: Path, tmp_path: Path, rank: int, kind: str
) -> None:
    sweep = f"{rank}-{kind}"
    command = [*numbered(0, 1), *grid(corpus, home, tmp_path, f"sweep={sweep}")]
    (tmp_path / f"job0.rank{rank}").write_text(kind)
    said = "".join(on_two_ranks(SCRIPT, command, name=f"{sweep}-failing", status=1, timeout=240))
    assert said.count(f"{WHY}\n") == 1 and f"rank {rank} stopped there" in said, said
    assert statuses(home / "outputs" / sweep) == {0: "failed"}, "no rank went on to the next job"
    (summary,) = (home / "outputs" / sweep).glob("*/summary.json")
    assert WHY in json.loads(summary.read_text())["reason"] or kind == "RuntimeError"
    (tmp_path / f"job0.rank{rank}").unlink()
    on_two_ranks(SCRIPT, command, name=f"{sweep}-again", timeout=240)
    assert statuses(home / "outputs" / sweep) == {0: "finished", 1: "finished"}


def test_so_does_a_rank_that_lightning_started(corpus: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "job0.rank1").write_text("RunError")
    (tmp_path / "start.py").write_text(SCRIPT.replace('"regimen"', "__file__"))
    command = [sys.executable, str(tmp_path / "start.py"), *numbered(0, 1), *grid(corpus, home, tmp_path, "sweep=own")]
    more = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(command, env=environment(**more), cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode in (1, -9), done.stderr  # Lightning may kill rank 0 before it has left by itself
    assert done.stderr.count(f"{WHY}\n") == 1 and "rank 1 stopped there" in done.stderr, done.stderr
    assert set(statuses(home / "outputs/own")) == {0}, "no rank went on to the next job"


def test_ranks_that_fail_alike_go_on_to_the_next_job(corpus: Path, home: Path, tmp_path: Path) -> None:
    """In a job that trains, and in one whose data rank 0 alone has looked at."""
    for rank in range(2):
        (tmp_path / f"job0.rank{rank}").write_text("RunError")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.jsonl").write_text("{\n")
    paths = f"dataset.path={corpus},{bad}"
    command = [*numbered(0, 1), *grid(corpus, home, tmp_path, paths, "sweep=alike")]
    said = on_two_ranks(SCRIPT, command, name="alike", status=1, timeout=240)
    assert said[0].count(WHY) == 1 and "a.jsonl" in said[0] and not said[1].strip(), said
    assert statuses(home / "outputs/alike") == {0: "failed", 1: "finished"}


def test_stages_alone_and_scores_that_are_there_leave_no_rank_waiting(corpus: Path, home: Path) -> None:
    place = f"paths.store={home}/store"
    command = ["train", "-m", "method=doremi", "seed=1,2", *SMALL, *TWO, place, "stages=only"]
    command += [
        f"dataset.path={corpus}",
        f"paths.pools={home}/pools",
        f"paths.outputs={home}/outputs",
        "budget.steps=2",
    ]
    for again in ("first", "again"):
        on_two_ranks(SCRIPT, command, name=f"stages-{again}", timeout=240)
    command = ["score", "-m", "score.by=${signal.loss}", "seed=1,2", *SMALL, *TWO, place, *command[-4:-1]]
    for again in ("first", "again"):
        on_two_ranks(SCRIPT, command, name=f"scores-{again}", timeout=240)
    assert len(list((home / "outputs").glob("scores-*/scores.parquet"))) == 2


def test_torchrun_of_the_same_line_takes_no_decision_of_the_launch_before(
    corpus: Path, home: Path, tmp_path: Path
) -> None:
    """Torchrun gives every launch one name; a rank that acted on an old decision would begin where rank 0 resumes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    places = (f"dataset.path={corpus}", f"paths.pools={home}/pools", "trainer.save_every_steps=2")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--module", "regimen", "train"]
    more = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT / "src"))}
    for folder, steps in ((whole, ()), (cut, ("trainer.keep_checkpoints=9",)), (cut, ())):
        with_port = [*command[:3], f"--master-port={free_port()}", *command[3:]]
        asked = [*with_port, *SMALL, *TWO, *places, *steps, f"run_dir={folder}"]
        done = subprocess.run(asked, env=environment(**more), cwd=home, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        if steps:
            for path in checkpoints(cut)[1:]:
                path.unlink()
            told = json.loads((cut / "summary.json").read_text())
            (cut / "summary.json").write_text(json.dumps(told | {"status": "running"}))
    assert "from step 2" in done.stderr
    assert story(cut) == story(whole)
    assert_equal_weights(checkpoints(cut)[-1], checkpoints(whole)[-1])


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
