"""The command line: what it answers, how fast and with what imported; grids, resumes, checks, reports."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regimen.cli import conf_dir
from regimen.training.callbacks.checkpoint import checkpoints, step_of
from tests.support.cli import CommandLine, environment
from tests.support.runs import SMALL, lines, story

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))


# ---- as a process ----------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "pytorch_lightning", "datasets", "wandb", "matplotlib")


def process(*arguments: str, cwd: Path, **extra: str) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """`python -m regimen ...`, the modules it imported, and its seconds."""
    command = [sys.executable, "-X", "importtime", "-m", "regimen", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment(**extra))
    seconds = time.perf_counter() - start
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    done.stderr = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("import time:"))
    return done, imported, seconds


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    done, imported, seconds = process("--help", cwd=tmp_path)
    assert done.returncode == 0 and "regimen train resume=outputs/RUN" in done.stdout
    assert not imported & {*HEAVY, "hydra", "omegaconf"}
    assert seconds < 5, "about 0.1 s on an idle machine"


def test_help_of_train_lists_every_method_without_torch(tmp_path: Path) -> None:
    done, imported, seconds = process("train", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"method: {', '.join(METHODS)}" in done.stdout
    assert "strategies:" in done.stdout and 'eval "$(regimen -sc install=bash)"' in done.stdout
    assert not imported & set(HEAVY)
    assert seconds < 8, "about 0.7 s on an idle machine"


@pytest.mark.parametrize(
    ("arguments", "word"), [(("method=foldin",), "folding"), (("trainer.log_every=0",), "1 or more")]
)
def test_a_wrong_setting_is_refused_before_torch_is_imported(
    tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    done, imported, seconds = process("train", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert word in done.stderr and "Traceback" not in done.stderr
    assert not imported & set(HEAVY)
    assert seconds < 8, "about 0.7 s on an idle machine"
    assert list(tmp_path.iterdir()) == []


# ---- help, composition, completion -----------------------------------------------------------------------------


def test_an_unknown_command_gets_a_suggestion(regimen: CommandLine) -> None:
    done = regimen("tran")
    assert done.status == 1 and "did you mean 'train'" in done.err and "regimen --help" in done.err
    assert regimen().status == 1
    assert regimen("--version").out.strip() == "0.1.0"


@pytest.mark.parametrize("command", ["report", "export"])
def test_help_of_the_small_commands(regimen: CommandLine, command: str) -> None:
    done = regimen(command, "--help")
    assert done.status == 0 and "=..." in done.out
    wrong = regimen(command, "rums=x")
    assert wrong.status == 1 and "'rums=x'" in wrong.err
    lacking = regimen(command)
    assert lacking.status == 1 and f"regimen {command} " in lacking.err


def test_the_configuration_can_be_shown(regimen: CommandLine) -> None:
    plain = regimen("train", "--cfg", "job", "method=folding")
    assert plain.status == 0 and "by: ${signal.loss}" in plain.out and "folds: 3" in plain.out
    resolved = regimen("train", "--cfg", "job", "--resolve", "method=[folding,loss_weighting]")
    assert resolved.status == 0 and "_target_: regimen.signals.loss.Loss" in resolved.out
    assert "${" not in resolved.out and "loss_weighting:" in resolved.out


def completed(regimen: CommandLine, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    done = regimen("-sc", "query=bash")
    assert done.status == 0, done.err
    return done.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("regimen tr", ["train"]),
        ("regimen ", ["train", "prepare", "check", "score", "report", "export", "fit", "store"]),
        ("regimen train method=fo", ["method=focal", "method=folding"]),
        ("regimen check model=qwen2_5_0", ["model=qwen2_5_0_5b"]),
        ("regimen train seed=1 budget.st", ["budget.steps="]),
        ("regimen report ru", ["runs="]),
        ("regimen export ", ["run=", "to=", "merge="]),
    ],
)
def test_words_are_completed(
    regimen: CommandLine, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    assert completed(regimen, monkeypatch, line) == expected


def test_the_completion_script_works_in_bash(regimen: CommandLine, tmp_path: Path) -> None:
    script = regimen("-sc", "install=bash").out
    assert "complete -o nospace" in script and script.rstrip().endswith("regimen")
    (tmp_path / "regimen").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m regimen "$@"\n')
    (tmp_path / "regimen").chmod(0o755)
    ask = 'COMP_WORDS=(regimen train method=fol); COMP_CWORD=2; COMP_LINE="regimen train method=fol"; COMP_POINT=24'
    typed = f'{script}\n{ask}\nhydra_bash_completion\necho "${{COMPREPLY[@]}}"'
    path = f"{tmp_path}:{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-c", typed], capture_output=True, text=True, timeout=60, env=environment(PATH=path), cwd=tmp_path
    )
    assert done.stdout.split() == ["method=folding"], done.stderr


# ---- a method of one's own -------------------------------------------------------------------------------------

MINE = '''
"""Every other row, the later half first."""
from dataclasses import dataclass
from torch import Tensor
from regimen.core.strategy import Observation, Orderer

@dataclass(frozen=True, kw_only=True)
class Backwards(Orderer):
    step: int = 1

    def decide(self, state: object, seen: Observation) -> Tensor:
        return -(seen.ids // self.step)
'''
MINE_YAML = """# @package _global_
# Backwards: rows by falling id.
strategies:
  backwards:
    _target_: backwards_strategy.Backwards
    step: 1
    when: {_target_: regimen.core.trigger.Once, at: 0}
"""


def test_a_new_method_is_one_python_file_and_one_yaml(corpus: Path, tmp_path: Path) -> None:
    """In the folder where the user starts, through the command that is installed."""
    (tmp_path / "backwards_strategy.py").write_text(MINE)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "backwards.yaml").write_text(MINE_YAML)
    command = [
        *(str(Path(sys.executable).parent / "regimen"), "train", "--config-dir", "conf", *SMALL),
        *(f"dataset.path={corpus}", "paths.pools=pools", "method=backwards", "strategies.backwards.step=2"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").iterdir()
    assert run.name.startswith("backwards-nano-jsonl-seed0-") and str(run.relative_to(tmp_path)) in done.stderr
    (decision,) = (row for row in lines(run / "record.jsonl") if row["kind"] == "orderer")
    assert decision["groups"]["all"]["rows"] == 64


# ---- grids and resumes -----------------------------------------------------------------------------------------


def statuses(folder: Path) -> dict[str, str]:
    return {p.parent.name: json.loads(p.read_text())["status"] for p in sorted(folder.glob("*/summary.json"))}


def test_a_grid_trains_every_cell_once(regimen: CommandLine, home: Path) -> None:
    grid = ("method=natural,uniform", "seed=1,2", "budget.steps=2")
    done = regimen.small("train", *grid, flags=("-m",))
    assert done.status == 0, done.err
    (folder,) = home.glob("outputs/method2-seed2-*")
    assert set(statuses(folder).values()) == {"finished"}
    assert [name.rpartition("-")[0] for name in statuses(folder)] == [
        f"{method}-nano-jsonl-seed{seed}" for method in ("natural", "uniform") for seed in (1, 2)
    ]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
    again = regimen.small("train", *grid, "trainer.log_every=3", flags=("-m",))
    assert again.status == 0 and again.err.count("skipped, it is finished") == 4
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")} == before


def test_a_failing_cell_does_not_stop_the_others(regimen: CommandLine, home: Path) -> None:
    done = regimen.small("train", "method=natural,fixed,uniform", "budget.steps=2", "sweep=three", flags=("-m",))
    assert done.status == 1
    assert "error: job 1, fixed-nano-jsonl-seed0: the fixed mixture has no weights" in done.err
    assert done.err.count("error:") == 1 and "Traceback" not in done.err
    assert [name.split("-")[0] for name in statuses(home / "outputs" / "three")] == ["natural", "uniform"]


def test_a_misspelt_key_stops_a_grid_before_it_starts(regimen: CommandLine, home: Path) -> None:
    done = regimen.small("train", "budget.stepz=1,2", "sweep=misspelt", flags=("-m",))
    assert done.status == 1 and "budget.stepz" in done.err and "Traceback" not in done.err
    assert statuses(home / "outputs" / "misspelt") == {}


def cut(folder: Path, step: int) -> None:
    """What a kill after `step` leaves."""
    for path in checkpoints(folder)[step:]:
        path.unlink()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))


def test_an_interrupted_run_goes_on_by_the_same_command_and_by_resume(regimen: CommandLine, tmp_path: Path) -> None:
    saving = ("method=odm", "trainer.save_every_steps=1", "trainer.keep_checkpoints=null")
    folders = [tmp_path / name for name in ("whole", "same", "resumed")]
    for folder in folders:
        assert regimen.small("train", *saving, f"run_dir={folder}").status == 0
    whole, same, resumed = folders
    cut(same, 3)
    cut(resumed, 5)
    done = regimen.small("train", *saving, f"run_dir={same}")
    assert done.status == 0 and "from step 3" in done.err and str(same) in done.err
    done = regimen("train", f"resume={resumed}")
    assert done.status == 0 and "from step 5" in done.err
    assert story(same) == story(whole) and story(resumed) == story(whole)
    assert "skipped, it is finished" in regimen("train", f"resume={resumed}").err


def test_ctrl_c_stops_in_words_and_leaves_a_whole_checkpoint(corpus: Path, tmp_path: Path) -> None:
    places = (f"dataset.path={corpus}", "paths.pools=pools", "run_dir=run", "trainer.save_every_steps=5")
    endless = ("dataset.max_epochs_per_domain=null", "budget.steps=100000", "trainer.progress=lines")
    running = subprocess.Popen(
        [sys.executable, "-m", "regimen", "train", *SMALL, *places, *endless],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not checkpoints(tmp_path / "run") and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert "the same command goes on from the last checkpoint" in err and "Traceback" not in err
    (saved,) = checkpoints(tmp_path / "run")
    assert torch.load(saved, weights_only=True)["global_step"] == step_of(saved)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_default_run_has_a_readable_name_and_all_its_files(regimen: CommandLine, home: Path) -> None:
    done = regimen.small("train", "seed=7")
    assert done.status == 0 and done.out == ""
    (folder,) = home.glob("outputs/natural-nano-jsonl-seed7-*")
    assert str(folder) in done.err.splitlines()[-1]
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.yaml", "record.jsonl", "metrics.csv", "metrics.jsonl", "summary.json", "checkpoints"}
    assert [path.name for path in checkpoints(folder)] == ["step-00000008.ckpt"]


def test_recomputing_activations_changes_nothing_but_memory(regimen: CommandLine, tmp_path: Path) -> None:
    plain, recomputed = tmp_path / "plain", tmp_path / "recomputed"
    assert regimen.small("train", f"run_dir={plain}").status == 0
    done = regimen.small("train", f"run_dir={recomputed}", "model.gradient_checkpointing=true")
    assert done.status == 0, done.err
    assert story(recomputed) == story(plain)
