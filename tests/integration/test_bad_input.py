"""What a user can get wrong: one screen that says what was given, what is allowed, what to do; status 1; no litter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.cli import CommandLine
from tests.support.runs import replace_line

# ---- settings --------------------------------------------------------------------------------------------------

REFUSED = {
    "zero folds": (["method=folding", "strategies.folding.folds=0"], ["folds", "0", "1, 2, 3"]),
    "folds in words": (["method=folding", "strategies.folding.folds=three"], ["folds", "three"]),
    "unknown setting of a strategy": (
        ["method=folding", "+strategies.folding.fold=3"],
        ["strategies.folding.fold", "did you mean 'folds'", "jitter"],
    ),
    "a strategy that does not exist": (["+strategies.x._target_=regimen.nothing.X"], ["strategies.x", "cannot be imp"]),
    "a function for a strategy": (["+strategies.x._target_=os.getcwd"], ["strategies.x", "not a strategy", "Selector"]),
    "a strategy without settings": (["+strategies.x=null"], ["strategies.x", "~strategies.x"]),
    "a strategy without a signal": (
        ["method=folding", "strategies.folding.by=null"],
        ["needs a signal", "strategies.folding.by=${signal.loss}"],
    ),
    "a strategy without a trigger": (["method=folding", "strategies.folding.when=null"], ["when it decides", "Once"]),
    "a trigger that never fires": (["method=odm", "strategies.odm.when.steps=0"], ["when.steps", "1 or more"]),
    "two mixers": (["method=[uniform,odm]"], ["one mixer", "uniform and odm", "~strategies.odm"]),
    "unknown domain": (
        ["method=fixed", "strategies.fixed.weights={code: 0.5, proze: 0.3, sums: 0.2}"],
        ["proze", "did you mean 'prose'", "code, prose, sums"],
    ),
    "weights that do not sum": (
        ["method=fixed", "strategies.fixed.weights={code: 0.5, prose: 0.3, sums: 0.1}"],
        ["sum to 0.9", "strategies.fixed.normalise=true"],
    ),
    "a mixture of other domains": (["method=fixed", "mixture=doremi_1b_paper_table8"], ["ArXiv", "code, prose, sums"]),
    "groups of one domain": (
        ["method=odm", "strategies.odm.draw_groups=3"],
        ["strategies.odm.draw_groups=3", "1, 2, 4, 8", "draw=multinomial"],
    ),
    "a budget beyond the cap": (
        ["budget.steps=10000"],
        ["larger than the data", "80000 rows", "x 4 epochs", "at most", "dataset.max_epochs_per_domain=null"],
    ),
    "two budgets": (["budget.tokens=1000"], ["budget.steps=8, budget.tokens=1000", "null"]),
    "zero budget": (["budget.steps=0"], ["budget.steps=0", "above 0"]),
    "half a step": (["budget.steps=2.5"], ["budget.steps=2.5", "whole"]),
    "a budget below one step": (["budget.steps=null", "budget.flops=3"], ["budget.flops=3", "256 tokens", "FLOPs"]),
    "unknown budget": (["+budget.step=3"], ["budget.step", "did you mean 'steps'"]),
    "a ragged batch": (["trainer.micro_batch_size=3"], ["global_batch_size=8", "multiple of 3", "global_batch_size=9"]),
    "no rows in a micro-batch": (["trainer.micro_batch_size=0"], ["micro_batch_size=0", "1 or more", "null"]),
    "no rows in a batch": (["trainer.global_batch_size=0"], ["trainer.global_batch_size=0", "1 or more"]),
    "no steps between lines": (["trainer.log_every=0"], ["trainer.log_every=0", "1 or more"]),
    "negative clipping": (["trainer.gradient_clip_val=-1"], ["gradient_clip_val=-1", "above 0", "null"]),
    "unknown progress": (["trainer.progress=loud"], ["trainer.progress=loud", "auto, bar, lines, none"]),
    "unknown accelerator": (["trainer.accelerator=gpus"], ["trainer.accelerator=gpus", "cpu, gpu"]),
    "devices in words": (["trainer.devices=many"], ["trainer.devices=many", "auto"]),
    "unknown trainer setting": (["+trainer.fast=true"], ["trainer.fast", "+trainer.fast"]),
    "unknown precision": (["trainer.precision=12"], ["precision", "12", "bf16-mixed"]),
    "a seed in words": (["seed=abc"], ["seed=abc", "whole number"]),
    "a negative seed": (["seed=-1"], ["seed=-1", "from 0"]),
    "unknown architecture": (["model.architecture=qwem2"], ["qwem2", "did you mean 'qwen2'"]),
    "unknown field of the model": (["+model.config.hidden_sise=16"], ["hidden_sise", "did you mean 'hidden_size'"]),
    "a width in words": (["model.config.hidden_size=wide"], ["hidden_size", "wide", "int"]),
    "no layers": (["model.config.num_hidden_layers=0"], ["num_hidden_layers", "1 or more"]),
    "uneven heads": (["model.config.num_attention_heads=3"], ["num_attention_heads=3", "multiple"]),
    "uneven groups of heads": (["model.config.num_key_value_heads=3"], ["num_key_value_heads=3", "multiple"]),
    "unknown attention": (["model.attn_implementation=flash_attention_9"], ["flash_attention_9", "sdpa"]),
    "attention of GPUs": (["model.attn_implementation=flex_attention"], ["flex_attention", "cpu", "sdpa"]),
    "rows longer than the context": (
        ["model.config.max_position_embeddings=16"],
        ["dataset.seq_len=32", "max_position_embeddings=16"],
    ),
    "pretrained without weights": (["model.pretrained=true"], ["model.path=null", "model.pretrained=false"]),
    "unknown schedule": (["optimizer.schedule.kind=cosin"], ["kind=cosin", "cosine, linear, wsd, constant"]),
    "a schedule in words": (["optimizer.schedule.final=abc"], ["final=abc", "from 0 to 1"]),
    "a negative rate": (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    "an optimizer's unknown setting": (["+optimizer.momentum=0.9"], ["momentum", "AdamW"]),
    "unknown optimizer": (["optimizer._target_=torch.optim.Adamw"], ["torch.optim.Adamw", "torch.optim.AdamW"]),
    "evaluation after the end": (["evaluation.at=[2]"], ["evaluation.at=[2]", "from 0 to 1"]),
    "evaluation in words": (["evaluation.at=half"], ["evaluation.at=half", "from 0 to 1"]),
    "unknown reduction": (["objective.reduction=mean"], ["reduction=mean", "token_mean, sample_mean"]),
    "no epochs": (["dataset.max_epochs_per_domain=0"], ["max_epochs_per_domain=0", "1 or more", "null"]),
    "rows of no tokens": (["dataset.seq_len=0"], ["dataset.seq_len", "1 or more"]),
    "no corpus": (["dataset.path=/nowhere/at/all"], ["/nowhere/at/all", ".jsonl", "dataset.path"]),
    "a missing value": (["dataset.path=???"], ["dataset.path must be given", "dataset.path=..."]),
    "a reference to nothing": (["seed=${nothing}"], ["seed cannot be resolved", "nothing"]),
    "outputs below a file": (["paths.outputs=/proc/version/out"], ["cannot write", "Not a directory", "run_dir=DIR"]),
    "outputs in a place of the system": (["paths.outputs=/proc/none"], ["cannot write", "paths.outputs=DIR"]),
    "pools below a file": (["paths.pools=/proc/version/pools"], ["Not a directory", "paths.pools=DIR"]),
    "a resume of nothing": (["resume=/nowhere/at/all"], ["resume=/nowhere/at/all", "config.yaml"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_setting_is_refused_in_words(regimen: CommandLine, name: str) -> None:
    overrides, words = REFUSED[name]
    error = regimen.refused(*overrides)
    assert [word for word in words if word not in error] == [], error


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU, which `auto` finds")
def test_attention_of_gpus_where_auto_finds_none(regimen: CommandLine) -> None:
    error = regimen.refused("model.attn_implementation=flex_attention", "trainer.accelerator=auto")
    assert "trainer.accelerator=auto" in error and "model.attn_implementation=sdpa" in error
    auto = ("model.attn_implementation=flex_attention", "trainer.accelerator=auto")
    assert regimen.small("check", *auto).status == 0, "a GPU may be where it is trained"


CHECKED = (
    "two mixers",
    "unknown domain",
    "groups of one domain",
    "a budget beyond the cap",
    "a ragged batch",
    "attention of GPUs",
)


@pytest.mark.parametrize("name", CHECKED)
def test_check_refuses_what_train_refuses(regimen: CommandLine, name: str) -> None:
    overrides, words = REFUSED[name]
    error = regimen.refused(*overrides, command="check")
    assert [word for word in words if word not in error] == [], error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=foldin", ["no such method, did you mean 'folding'?", "method=foldin", "zigzag"]),
        ("method=[odm,foldin]", ["no such method, did you mean 'folding'?"]),
        ("model=nanno", ["no such model, did you mean 'nano'?"]),
        ("strategies.natural.drew=x", ["strategies.natural.drew", "drew"]),
        ("budget.stepz=3", ["budget.stepz", "stepz"]),
        ("method=natural,uniform", ["Ambiguous", "--multirun"]),
    ],
)
def test_hydra_refuses_a_misspelt_key_or_option(regimen: CommandLine, override: str, words: list[str]) -> None:
    error = regimen.refused(override)
    assert [word for word in words if word not in error] == [], error


# ---- text ------------------------------------------------------------------------------------------------------


def test_a_malformed_line_is_named(regimen: CommandLine, damaged: Path) -> None:
    replace_line(damaged / "prose.jsonl", 7, '{"text": oops}')
    error = regimen.refused(f"dataset.path={damaged}")
    assert f"{damaged}/prose.jsonl:7: not valid JSON" in error
    assert '{"text": oops}' in error and "on_bad_record=skip" in error


def test_a_missing_field_is_named(regimen: CommandLine, damaged: Path) -> None:
    replace_line(damaged / "code.jsonl", 3, '{"id": "c", "content": "def f(): pass"}')
    error = regimen.refused(f"dataset.path={damaged}")
    assert "code.jsonl:3: no text: field 'text' is missing" in error
    assert "['content', 'id']" in error and "dataset.text_field" in error


def test_an_empty_file_is_named(regimen: CommandLine, damaged: Path) -> None:
    (damaged / "sums.jsonl").write_text("")
    error = regimen.refused(f"dataset.path={damaged}")
    assert f"{damaged}/sums.jsonl: the file is empty" in error


def test_skipped_records_are_counted(regimen: CommandLine, damaged: Path) -> None:
    replace_line(damaged / "prose.jsonl", 7, '{"text": oops}')
    replace_line(damaged / "prose.jsonl", 9, '{"txt": "x"}')
    (damaged / "empty.jsonl").write_text("")
    done = regimen.small("prepare", f"dataset.path={damaged}", "on_bad_record=skip")
    assert done.status == 0, done.err
    assert "3 bad records skipped" in done.out
    manifest = json.loads((Path(done.out.splitlines()[-1]) / "manifest.json").read_text())
    assert manifest["skipped"] == {f"{damaged}/prose.jsonl": 2, f"{damaged}/empty.jsonl": 1}
    assert manifest["counts"]["prose"]["documents"] == 58


def test_a_corpus_without_one_usable_record_is_refused_even_when_skipping(regimen: CommandLine, damaged: Path) -> None:
    (damaged / "sums.jsonl").write_text("oops\n" * 4)
    error = regimen.refused(f"dataset.path={damaged}", "on_bad_record=skip")
    assert "sums.jsonl: not one of its records can be used" in error and "4 bad records" in error
