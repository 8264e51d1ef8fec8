"""Stages as a user meets them: shared through the store, resumed, filled by hand, waited for, and refused early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import filelock
import pytest

from regimen.core.errors import ConfigError
from regimen.runs import validate
from regimen.runs.identity import run_folder
from regimen.runs.store import Store
from regimen.runs.train import train
from regimen.training.callbacks.checkpoint import checkpoints
from tests.contract.test_methods import cut_after
from tests.support.runs import SMALL, lines, run, settings_of, story

DOREMI = ("method=doremi", "trainer.save_every_steps=1", "trainer.keep_checkpoints=null")


@pytest.fixture(scope="module")
def doremi(corpus: Path, home: Path) -> Path:
    return run(corpus, home, *DOREMI)


def summary(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return told


def staged(folder: Path) -> list[tuple[str, bool]]:
    return [(stage["stage"], stage["trained"]) for stage in summary(folder)["stages"]]


def command(corpus: Path, home: Path, *overrides: str) -> list[str]:
    fixed = (f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.outputs={home}/outputs")
    return [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *overrides]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_the_run_draws_what_the_proxy_found_and_pays_for_it(doremi: Path) -> None:
    told = summary(doremi)
    assert staged(doremi) == [("reference", True), ("proxy", True)]
    proxy = summary(Path(told["stages"][1]["folder"]))
    assert told["mixture"]["decided"] == pytest.approx(proxy["gives"]["mixture"])
    costs = [summary(Path(stage["folder"]))["flops"]["total"] for stage in told["stages"]]
    assert told["flops"]["stages"] == pytest.approx(sum(costs))
    assert proxy["flops"]["measuring"] == pytest.approx(proxy["flops"]["training"] / 3, rel=0.01), (
        "the reference's pass"
    )


def test_another_run_of_the_method_shares_the_stages(corpus: Path, home: Path, doremi: Path) -> None:
    other = run(corpus, home, *DOREMI, "strategies.doremi.draw=fixed_counts")
    assert staged(other) == [("reference", False), ("proxy", False)]
    assert summary(other)["mixture"]["decided"] == summary(doremi)["mixture"]["decided"]
    (entry, *_) = Store(home / "store").entries()
    assert len(entry.asked_by) == 2


@pytest.mark.parametrize(
    "overrides", [["seed=5"], ["strategies.doremi.draw=multinomial", "model.config.hidden_size=8"]]
)
def test_what_determines_a_stage_makes_another(corpus: Path, home: Path, doremi: Path, overrides: list[str]) -> None:
    assert staged(run(corpus, home, *DOREMI, *overrides)) == [("reference", True), ("proxy", True)]


def test_layout_makes_no_other_stage(corpus: Path, home: Path, doremi: Path) -> None:
    again = run(corpus, home, *DOREMI, "trainer.micro_batch_size=4", f"run_dir={home}/accumulated")
    assert staged(again) == [("reference", False), ("proxy", False)]


def test_a_stage_run_by_hand_is_found(corpus: Path, tmp_path: Path) -> None:
    """With what reaches a stage and nothing else: evaluation is each run's own."""
    common = ("evaluation.at=[0,0.25,0.5,0.75,1]",)
    reference = run(corpus, tmp_path, "method=uniform", *common)
    proxy = run(corpus, tmp_path, "method=doremi_proxy", f"strategies.doremi_proxy.reference={reference}", *common)
    done = run(corpus, tmp_path, "method=doremi")
    assert staged(done) == [("reference", False), ("proxy", False)]
    assert [stage["folder"] for stage in summary(done)["stages"]] == [str(reference), str(proxy)]


@pytest.mark.parametrize("stage", ["reference", "proxy"])
def test_a_kill_inside_a_stage_changes_nothing(
    corpus: Path, home: Path, doremi: Path, tmp_path: Path, stage: str
) -> None:
    """The store as a kill in the stage leaves it: what came before it is finished, the stage is not."""
    found = {s["stage"]: Path(s["folder"]) for s in summary(doremi)["stages"]}
    whole = run(corpus, tmp_path, *DOREMI, f"paths.pools={home}/pools", f"paths.store={tmp_path}/store")
    mine = {s["stage"]: Path(s["folder"]) for s in summary(whole)["stages"]}
    for path in (*(path for name, path in mine.items() if name >= stage), whole):
        subprocess.run(["rm", "-r", str(path)], check=True)
    cut_after(found[stage], mine[stage], step=5)
    resumed = run(corpus, tmp_path, *DOREMI, f"paths.pools={home}/pools", f"paths.store={tmp_path}/store")
    assert json.loads((mine[stage] / "attempt.json").read_text())["action"] == "resume"
    assert story(mine[stage]) == story(found[stage])
    assert story(resumed) == story(doremi)


def test_two_runs_at_once_train_each_stage_once(corpus: Path, tmp_path: Path) -> None:
    draws = ("multinomial", "fixed_counts")
    commands = [command(corpus, tmp_path, "method=doremi", f"strategies.doremi.draw={draw}") for draw in draws]
    subprocess.run(
        command(corpus, tmp_path, "method=natural", "budget.steps=1"), check=True, env=ENVIRONMENT, cwd=tmp_path
    )
    both = [subprocess.Popen(c, env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for c in commands]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folders = [path.parent for path in (tmp_path / "outputs").glob("doremi-*/summary.json")]
    trained = sorted(stage for folder in folders for stage in staged(folder))
    assert trained == [("proxy", False), ("proxy", True), ("reference", False), ("reference", True)]


def test_a_busy_stage_is_waited_for(corpus: Path, tmp_path: Path) -> None:
    first = run(corpus, tmp_path, "method=doremi")
    folder = Path(summary(first)["stages"][1]["folder"])
    told = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(json.dumps({**json.loads(told), "status": "running"}))
    lock = filelock.FileLock(folder / ".lock", thread_local=False)
    lock.acquire()

    def finish() -> None:
        (folder / "summary.json").write_text(told)
        lock.release()

    timer = threading.Timer(2.0, finish)
    timer.start()
    second = run(corpus, tmp_path, "method=doremi", "strategies.doremi.draw=fixed_counts")
    timer.join()
    assert staged(second) == [("reference", False), ("proxy", False)]


def test_stages_only(corpus: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(corpus, tmp_path, "method=doremi", "stages=only"),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
        check=True,
    )
    assert "2 done now, 0 found" in done.stderr
    assert not list((tmp_path / "outputs").glob("*/summary.json"))
    assert staged(run(corpus, tmp_path, "method=doremi")) == [("reference", False), ("proxy", False)]


def test_rounds_go_on_from_the_last_mixture(corpus: Path, home: Path) -> None:
    done = run(corpus, home, *DOREMI, "rounds=2")
    told = summary(done)["stages"]
    assert [(s["stage"], s["round"]) for s in told] == [(n, r) for r in (1, 2) for n in ("reference", "proxy")]
    first, second = (summary(Path(told[k]["folder"]))["gives"]["mixture"] for k in (1, 3))
    record = lines(Path(told[2]["folder"]) / "record.jsonl")
    assert next(row for row in record if row["kind"] == "mixer")["mixture"] == pytest.approx(first)
    assert summary(done)["mixture"]["decided"] == pytest.approx(second)


def test_rounds_stop_when_the_mixture_does(corpus: Path, home: Path) -> None:
    done = run(corpus, home, *DOREMI, "rounds=5", "stages.proxy.converged=0.9")
    assert max(stage["round"] for stage in summary(done)["stages"]) == 2


def test_two_processes_agree_with_one(corpus: Path, home: Path, doremi: Path, tmp_path: Path) -> None:
    """The proxy weighs by losses of all ranks; the second rank joins each stage that the first one trains."""
    fixed = (f"paths.store={tmp_path}/store", f"paths.pools={home}/pools", "trainer=ddp", "trainer.accelerator=cpu")
    done = subprocess.run(
        command(corpus, tmp_path, *DOREMI, *fixed), capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (two,) = (path.parent for path in (tmp_path / "outputs").glob("*/summary.json"))
    assert staged(two) == [("reference", True), ("proxy", True)]
    found = [summary(Path(summary(folder)["stages"][1]["folder"]))["gives"]["mixture"] for folder in (doremi, two)]
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert [r["batch"] for r in lines(two / "metrics.jsonl") if r["split"] == "train"] != []


def test_a_larger_step_size_changes_the_proxy(corpus: Path, home: Path, doremi: Path) -> None:
    """Weights, and through them gradients: the released code of a peer leaves the loss unweighted."""
    reference = summary(doremi)["stages"][0]["folder"]
    common = ("method=doremi_proxy", f"strategies.doremi_proxy.reference={reference}")
    norms = []
    for eta in (0.0, 50.0):
        folder = run(corpus, home, *common, f"strategies.doremi_proxy.eta={eta}")
        norms.append([row["gradient_norm"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"])
    assert all(abs(a - b) > 1e-6 for a, b in zip(*norms, strict=True))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stages.proxy.overrides=['method=doremi_proxi']"], "doremi_proxi"),
        (["stages.proxy.overrides=['method=doremi_proxy','strategies.doremi_proxy.etta=3']"], "etta"),
        (["+stages.proxy.conut=3"], "did you mean 'count'"),
        (["strategies.doremi.weights={stage: prox, gives: mixture}"], "not there"),
        (["stages.proxy.overrides=['method=uniform']"], "does not give mixture"),
        (["stages.reference.overrides=['method=uniform','dataset.seq_len=9999999']"], "in stage reference"),
        (["+stages.proxy.count=2"], "a set of runs gives a list"),
    ],
)
def test_mistakes(corpus: Path, tmp_path: Path, overrides: list[str], words: str) -> None:
    settings = settings_of(corpus, tmp_path, "method=doremi", "trainer.micro_batch_size=4", *overrides)

    def as_the_command_line() -> None:
        validate.settings(settings)
        train(settings, run_folder(settings, sweep=None))

    with pytest.raises(ConfigError, match=words):
        as_the_command_line()


def test_a_mistake_in_the_last_stage_is_found_before_the_first_runs(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="etta"):
        run(
            corpus,
            tmp_path,
            "method=doremi",
            "stages.proxy.overrides=['method=doremi_proxy','strategies.doremi_proxy.etta=3']",
        )
    assert not list((tmp_path / "store").glob("runs/*"))
    assert not list((tmp_path / "outputs").glob("*"))


def test_a_reference_of_another_tokenizer(corpus: Path, home: Path, doremi: Path, tmp_path: Path) -> None:
    reference = summary(doremi)["stages"][0]["folder"]
    bpe = ("dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=300")
    with pytest.raises(ConfigError, match="another tokenizer"):
        run(corpus, tmp_path, "method=doremi_proxy", f"strategies.doremi_proxy.reference={reference}", *bpe)


@pytest.mark.parametrize(
    ("change", "words"), [("status", "not finished"), ("checkpoints", "no checkpoint"), ("all", "not a run")]
)
def test_a_reference_that_is_no_finished_run(corpus: Path, home: Path, tmp_path: Path, change: str, words: str) -> None:
    reference = run(corpus, home, "method=uniform", f"run_dir={tmp_path}/reference", "budget.steps=1")
    if change == "status":
        (reference / "summary.json").write_text(json.dumps({**summary(reference), "status": "failed"}))
    elif change == "checkpoints":
        for path in checkpoints(reference):
            path.unlink()
    else:
        reference = tmp_path
    with pytest.raises(ConfigError, match=words):
        run(corpus, home, "method=doremi_proxy", f"strategies.doremi_proxy.reference={reference}")


def test_a_kill_inside_a_swarm_changes_nothing(corpus: Path, home: Path, tmp_path: Path) -> None:
    """What was finished is found, what was not goes on, the others are trained; the fit is the same."""
    regmix = ("method=regmix", "proxy.runs=6", "trainer.save_every_steps=1", "trainer.keep_checkpoints=null")
    whole = run(corpus, tmp_path, *regmix, f"paths.pools={home}/pools", f"paths.store={tmp_path}/store")
    members = [Path(stage["folder"]) for stage in summary(whole)["stages"] if stage["stage"] == "swarm"]
    fit = Path(summary(whole)["stages"][-1]["folder"])
    told, expected = summary(whole), json.loads((fit / "fit.json").read_text())["mixture"]
    kept = tmp_path / "kept"
    members[2].rename(kept)
    for path in (whole, fit, *members[3:]):
        subprocess.run(["rm", "-r", str(path)], check=True)
    cut_after(kept, members[2], step=5)
    again = run(corpus, tmp_path, *regmix, f"paths.pools={home}/pools", f"paths.store={tmp_path}/store")
    assert [stage["trained"] for stage in summary(again)["stages"]] == [False, False, *[True] * 5]
    assert story(members[2]) == story(kept)
    assert json.loads((fit / "fit.json").read_text())["mixture"] == expected
    assert summary(again)["evaluation"] == told["evaluation"]


def test_what_a_stage_would_give_can_be_given(corpus: Path, tmp_path: Path) -> None:
    done = run(corpus, tmp_path, "method=doremi", "++strategies.doremi.weights={code: 0.2, prose: 0.3, sums: 0.5}")
    assert summary(done)["mixture"]["decided"] == pytest.approx({"code": 0.2, "prose": 0.3, "sums": 0.5})
    assert "stages" not in summary(done)
    assert not (tmp_path / "store" / "runs").exists()


def test_the_user_is_told_which_stage_trains(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(corpus, tmp_path, "method=mixmin", "proxy.steps=2")
    told = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("stage ")]
    assert told == ["stage sources 1 of 3", "stage sources 2 of 3", "stage sources 3 of 3"]
