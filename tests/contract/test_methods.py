"""Every method file composes, trains on real text, records what it decided, and resumes exactly."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from regimen.cli import conf_dir
from regimen.core.strategy import KINDS
from regimen.mixing.laws.constraints import Constraints
from regimen.runs.handover import rehearsed, resolve
from regimen.runs.strategies import instantiate, make_strategies
from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.runs import DOMAINS, lines, run, settings_of, story, write_corpus

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
# What a method cannot do without on any corpus.
NEEDED = {
    "aioli": ["strategies.aioli.lp_rounds=1", "strategies.aioli.lp_steps=1", "strategies.aioli.update_steps=4"],
    "dsir": ["strategies.dsir.by.target=[sums]", "strategies.dsir.min_tokens=0"],
    "fixed": ["strategies.fixed.weights={code: 0.5, prose: 0.3, sums: 0.2}"],
}
# Decide often enough that a resume falls between decisions.
OFTEN = {
    "ado": ["strategies.ado.start=3", "strategies.ado.refit_every=2"],
    "climb": ["rounds=2", "stages.swarm.count=[6,4]"],
    "loss_selection": ["strategies.loss_selection.when.steps=3"],
    "mixing_laws": ["stages.law.fit.starts=1"],
    "mixture_schedule": ["strategies.mixture_schedule.interpolate=linear"],
    "odm": ["strategies.odm.draw_groups=4"],
    "olmix": ["stages.law.fit.starts=1"],
    "pike": ["strategies.pike.when.steps=3", "strategies.pike.rows_per_domain=2"],
    "sheared": ["strategies.sheared.when.steps=2"],
    "skillit": ["strategies.skillit.when.steps=1", "strategies.skillit.update_every=2"],
    "velocitune": ["strategies.velocitune.when.steps=2"],
}
COMPOSED = {
    "folding+loss_weighting": ["method=[folding,loss_weighting]", "trainer.micro_batch_size=2"],
    "topk+odm+sorted+loss_weighting": [
        "method=[topk,odm,sorted,loss_weighting]",
        *("strategies.topk.ratio=0.6", "strategies.odm.draw_groups=4", "trainer.micro_batch_size=4"),
    ],
    "loss_selection+temperature+zigzag": [
        "method=[loss_selection,temperature,zigzag]",
        *("strategies.loss_selection.when.steps=3", "strategies.loss_selection.count=24"),
    ],
}


def overrides_of(method: str, corpus: Path, home: Path) -> list[str]:
    if method in COMPOSED:
        return COMPOSED[method]
    out = [f"method={method}", "proxy.runs=8", "proxy.steps=4", *NEEDED.get(method, []), *OFTEN.get(method, [])]
    if method == "scores":
        file = home / "scores.csv"
        file.write_text("id,score\n" + "".join(f"{i},{i % 7}\n" for i in range(40)))
        out += [f"strategies.scores.by.path={file}", "strategies.scores.missing=drop"]
    if method == "doremi_proxy":
        out.append(f"strategies.doremi_proxy.reference={run(corpus, home, 'method=uniform')}")
    return out


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("method", METHODS)
def test_the_file_says_what_it_is(method: str) -> None:
    text = (conf_dir() / "method" / f"{method}.yaml").read_text()
    first, second, *_ = text.splitlines()
    assert first == "# @package _global_"
    assert second.startswith("# ") and len(second) > 20, "the second line describes the method"
    content = yaml.safe_load(text) or {}
    assert set(content) <= {"strategies", "stages", "rounds", "proxy"}
    assert list(content.get("strategies", {}))[:1] in ([], [method]), "the strategy is named after its file"


@pytest.mark.parametrize("method", METHODS)
def test_every_hyper_parameter_is_spelled_out(method: str, corpus: Path, home: Path) -> None:
    """So that each can be overridden without `+`, and --help shows it."""
    settings = settings_of(corpus, home, *overrides_of(method, corpus, home))
    for placed in make_strategies(resolve(settings["strategies"], rehearsed(DOMAINS))):
        given = set(settings["strategies"][placed.name]) - {"_target_", "when"}
        assert given == {field.name for field in dataclasses.fields(placed.strategy)}
        assert placed.kind in KINDS


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_fit_is_spelled_out(method: str) -> None:
    content = yaml.safe_load((conf_dir() / "method" / f"{method}.yaml").read_text()) or {}
    for name, spec in content.get("stages", {}).items():
        if "fit" not in spec:
            continue
        law = instantiate(f"stages.{name}.fit", spec["fit"])
        assert set(spec["fit"]) - {"_target_"} == {field.name for field in dataclasses.fields(law)}
        bounds = {field.name for field in dataclasses.fields(Constraints)}
        assert set(spec.get("constraints", bounds)) in (bounds, bounds - {"kl"})  # MixMin knows no divergence


@pytest.mark.parametrize("method", [*METHODS, *COMPOSED])
def test_a_resumed_run_is_the_same_run(method: str, corpus: Path, home: Path, tmp_path: Path) -> None:
    """Bit for bit: losses, batches, decisions, weights, with dropout, accumulation and evaluation in between."""
    common = [
        "trainer.micro_batch_size=4",
        *overrides_of(method, corpus, home),
    ]  # accumulation; a composition may want more of it
    common += ["+model.config.attention_dropout=0.1", "trainer.save_every_steps=1"]
    whole = run(corpus, home, *common, f"run_dir={tmp_path}/whole", "trainer.keep_checkpoints=null")
    saved = checkpoints(whole)
    assert [path.name for path in saved] == [f"step-{step:08d}.ckpt" for step in range(1, 9)]
    cut = cut_after(whole, tmp_path / "cut", step=5)
    resumed = run(corpus, home, *common, f"run_dir={cut}", "trainer.keep_checkpoints=null")
    assert json.loads((resumed / "attempt.json").read_text())["action"] == "resume"
    assert story(resumed) == story(whole)
    assert_equal_weights(checkpoints(resumed)[-1], saved[-1])
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (whole, resumed))
    for key in ("steps", "tokens", "unique_tokens", "flops", "evaluation", "mixture", "warnings", "status"):
        assert before[key] == after[key], key


def cut_after(whole: Path, copy: Path, *, step: int) -> Path:
    """What a kill between step+1 and step+2 leaves: later metrics on disk, no later checkpoint, no summary."""
    shutil.copytree(whole, copy)
    for path in checkpoints(copy):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    for name in ("metrics.jsonl", "record.jsonl"):
        kept = [row for row in lines(copy / name) if row["step"] <= step + 1]
        (copy / name).write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"step": 7, "torn')
    return copy


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = (torch.load(path, weights_only=True) for path in (a, b))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    moments = [[s["exp_avg"] for s in c["optimizer_states"][0]["state"].values()] for c in (first, second)]
    assert all(torch.equal(x, y) for x, y in zip(*moments, strict=True))
