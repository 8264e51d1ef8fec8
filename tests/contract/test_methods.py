"""Every method file composes, trains on real text, records what it decided, and resumes exactly."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from regimen.cli import conf_dir
from regimen.core.strategy import KINDS
from regimen.mixing.laws.constraints import Constraints
from regimen.runs.experiment import make_pool
from regimen.runs.handover import rehearsed, resolve
from regimen.runs.strategies import instantiate, make_strategies
from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.runs import DOMAINS, lines, run, settings_of, story, write_corpus

TARGET = "dataset.target={path: null, from: [sums], rows_per_subtask: 4, seed: 0}"
METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
EXAMPLES = (
    *("dataset=sft_files", "objective=sft", "dataset.tokenizer.kind=bytes", "dataset.seq_len=256"),
    *("dataset.domain_field=task", "dataset.overlap.n=0"),
    "dataset.target={path: null, from: [a], rows_per_subtask: 4, seed: 0}",
)
# What a method cannot do without on any corpus.
NEEDED = {
    "adapt": [TARGET, "strategies.adapt.every=3", "strategies.adapt.centred=true"],
    "adapt_bm25": [TARGET],
    **{
        name: [
            *(TARGET, f"strategies.{name}.candidates=48"),
            *(f"strategies.{name}.by.descent.{few}" for few in ("steps=4", "annotate_every=2", "lr=0.1")),
        ]
        for name in ("delt", "lqs", "pds")
    },
    "cluster_less": [
        *(TARGET, "strategies.cluster_less.by.sketch.dimensions=64", "strategies.cluster_less.candidates=40"),
        "strategies.cluster_less.ratio=0.5",
    ],
    "dwm": [TARGET, "strategies.dwm.width=16", "strategies.dwm.rows=8", "strategies.dwm.target_rows=4"],
    "dvemb": [TARGET, "strategies.dvemb.by.sketch.dimensions=64"],
    "dvemb_log": ["strategies.dvemb_log.by.sketch.dimensions=64"],
    "grab": ["strategies.grab.by.sketch.dimensions=64", "strategies.grab.passes=2"],
    "greats": [TARGET, "strategies.greats.candidates=20"],
    "holdout": ["strategies.holdout.fraction=0.3"],
    "in_run_shapley": [TARGET],
    "in_run_values": [TARGET],
    "influence_distillation": [
        *(TARGET, "strategies.influence_distillation.by.landmarks=32", "strategies.influence_distillation.ratio=0.5"),
        *(
            "strategies.influence_distillation.by.sketch.dimensions=64",
            "strategies.influence_distillation.candidates=64",
        ),
    ],
    "joint_update_aware": [TARGET, "strategies.joint_update_aware.every=3"],
    "learning_to_reweight": [TARGET],
    "lr_matched": ["strategies.lr_matched.multiplier=0.5"],
    "meta_weight_net": [TARGET, "strategies.meta_weight_net.target_rows=3"],
    "near": [TARGET],
    "rds": [TARGET],
    "rho_loss": ["strategies.rho_loss.candidates=24"],
    "scalebio": [TARGET, "strategies.scalebio.score_lr=0.3", "strategies.scalebio.report_every=2"],
    "shed": ["strategies.shed.clusters=12", "strategies.shed.blocks=3", "stages.subsets.count=3"],
    "shed_subset": ["strategies.shed_subset.clusters=32", "strategies.shed_subset.member=3"],
    "tsds": [TARGET],
    "less": [
        TARGET,
        "strategies.less.by.sketch.dimensions=64",
        "strategies.less.candidates=48",
        "strategies.less.ratio=0.5",
    ],
    "less_online": [TARGET, "strategies.less_online.by.sketch.dimensions=64", "strategies.less_online.candidates=40"],
    "nice": [
        *(
            TARGET,
            "strategies.nice.by.sketch.dimensions=64",
            "strategies.nice.candidates=48",
            "strategies.nice.ratio=0.5",
        ),
        *("strategies.nice.by.reward=rouge", "strategies.nice.by.fallback=reference", "strategies.nice.by.samples=2"),
        "strategies.nice.by.max_new_tokens=4",
    ],
    "rose": ["strategies.rose.by.sketch.dimensions=64", "strategies.rose.candidates=48", "strategies.rose.ratio=0.5"],
    "aioli": ["strategies.aioli.lp_rounds=1", "strategies.aioli.lp_steps=1", "strategies.aioli.update_steps=4"],
    "dsir": [TARGET, "strategies.dsir.by.laplace=true", "strategies.dsir.min_tokens=0"],
    "fixed": ["strategies.fixed.weights={code: 0.5, prose: 0.3, sums: 0.2}"],
}
# Decide often enough that a resume falls between decisions.
OFTEN = {
    "ask_llm": [
        *("strategies.ask_llm.candidates=40", "strategies.ask_llm.by.yes_words=[y]"),
        "strategies.ask_llm.by.no_words=[n]",
    ],
    "cluster_less": ["strategies.cluster_less.when.steps=3", "strategies.cluster_less.when.start=2"],
    "delta_loss": ["strategies.delta_loss.when.steps=3"],
    "less_online": ["strategies.less_online.when.steps=2", "strategies.less_online.when.start=2"],
    "dwm": ["strategies.dwm.meta_steps=2", "strategies.dwm.stages=4", "strategies.dwm.meta_lr=0.1"],
    "ado": ["strategies.ado.start=3", "strategies.ado.refit_every=2"],
    "curriculum": [
        *("strategies.curriculum.when.steps=3", "strategies.curriculum.by.max_rows=40"),
        "dataset.max_epochs_per_domain=null",
    ],
    "data_whisperer": [
        *("strategies.data_whisperer.by.max_new_tokens=8", "strategies.data_whisperer.by.shown=3"),
        "strategies.data_whisperer.by.asked=1",
    ],
    "length_curriculum": ["strategies.length_curriculum.when.steps=3"],
    "climb": ["rounds=2", "stages.swarm.count=[6,4]"],
    "loss_selection": ["strategies.loss_selection.when.steps=3"],
    "meta_weight_net": [
        "strategies.meta_weight_net.every=2",
        "strategies.meta_weight_net.meta_lr=0.1",
        "strategies.meta_weight_net.report_every=1",
    ],
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
    "adapt after a warm-up": [  # cut inside the warm-up
        *("method=adapt", TARGET, "strategies.adapt.warmup_steps=6", "strategies.adapt.every=3"),
        "strategies.adapt.tau=0.05",
    ],
    "folding+loss_weighting": ["method=[folding,loss_weighting]", "trainer.micro_batch_size=2"],
    "topk+odm+sorted+loss_weighting": [
        "method=[topk,odm,sorted,loss_weighting]",
        *("strategies.topk.ratio=0.6", "strategies.odm.draw_groups=4", "trainer.micro_batch_size=4"),
    ],
    "dwm that moves the model": [
        *("method=dwm", TARGET, "strategies.dwm.update_lm=true", "strategies.dwm.input=pooled_hidden"),
        *("strategies.dwm.width=16", "strategies.dwm.rows=8", "strategies.dwm.target_rows=4"),
        *("strategies.dwm.meta_steps=2", "strategies.dwm.stages=4", "strategies.dwm.meta_lr=0.1"),
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
    if method == "window_assignment":
        rows = make_pool(settings_of(corpus, home), progress=False).train.index.rows
        np.save(home / "windows.npy", np.random.default_rng(0).normal(size=(rows, 4)))
        out.append(f"strategies.window_assignment.by.path={home}/windows.npy")
    if method in ("data_whisperer", "length_curriculum"):  # questions and lengths, which packed text has none of
        records = [
            {"instruction": f"say {i % 5}", "output": f"{10 ** (i % 5)}", "task": "ab"[i % 2]} for i in range(60)
        ]
        records = [record | {"instruction": f"{record['instruction']} ({i})"} for i, record in enumerate(records)]
        (home / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        out += [f"dataset.path={home}/examples.jsonl", *EXAMPLES]
    if method == "clip":
        rows = make_pool(settings_of(corpus, home), progress=False).train.index.rows
        image, text = np.random.default_rng(0).normal(size=(2, rows, 4))
        np.savez(home / "pairs.npz", image=image, text=text)
        out += [f"strategies.clip.by.path={home}/pairs.npz", "strategies.clip.target=null"]
    if method == "rose":
        pairs = [{"prompt": f"{i} + 1 =", "chosen": str(i + 1), "rejected": "a row"} for i in range(4)]
        (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        out.append(f"strategies.rose.by.path={home}/pairs.jsonl")
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
