"""`regimen check`, `prepare` and `report`; budgets in all units; what check foretells and what a run then costs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from regimen.runs.estimate import gigabytes
from tests.support.cli import CommandLine


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, (pattern, text)
    return float(found[1].replace(",", ""))


def test_check_prints_the_plan_and_its_cost_and_trains_nothing(regimen: CommandLine) -> None:
    before = regimen.runs()
    done = regimen.small("check", "method=[loss_selection,odm]")
    assert done.status == 0, done.err
    plan = ("code:", "loss_selection", "which rows may be drawn", "odm", "decides 8 times", "measures")
    for word in (*plan, "parameters", "FLOPs", "time about", "memory about"):
        assert word in done.out
    assert number(r"steps ([\d,]+) of", done.out) == 8
    assert number(r"tokens ([\d,]+), ", done.out) == 2048
    assert number(r"measuring (\S+) ", done.out) > 0
    assert regimen.runs() == before


def test_check_tells_the_memory_of_a_rank(regimen: CommandLine) -> None:
    """6,400 parameters of 4 bytes and two moments each on one process; spread over 4, and what the CPU keeps."""
    one = regimen.small("check").out
    assert "per process\n" in one and "parameters 0.03 MB, gradients 0.03 MB, optimizer 0.05 MB" in one
    cpu = ("trainer.accelerator=cpu", "trainer.devices=4")
    four = regimen.small("check", "trainer=fsdp", *cpu).out
    assert "per process of 4, fsdp" in four and "parameters 0.01 MB" in four and "gathered" in four
    kept = regimen.small("check", "trainer=deepspeed_zero3_offload", *cpu).out
    assert "in the memory of the CPU" in kept and "optimizer" not in kept.partition("memory about")[2]


def test_budgets_agree(regimen: CommandLine) -> None:
    """One run, four ways to say how long it is; the FLOPs hold measuring too."""
    common = ("check", "budget.steps=null", "method=loss_selection")
    by_steps = regimen.small(*common, "budget.steps=50").out
    flops, epochs = number(r"FLOPs (\S+), of", by_steps), number(r"([\d.]+) epochs", by_steps)
    assert number(r"measuring (\S+) ", by_steps) > 0.1 * flops
    rows = number(r"jsonl: ([\d,]+) rows", by_steps)
    assert epochs == pytest.approx(50 * 8 / rows, abs=0.005)
    budgets = ("tokens=12800", f"epochs={50 * 8 / rows}", f"flops={flops * 1.001}")
    for budget in budgets:
        assert number(r"steps ([\d,]+) of", regimen.small(*common, f"budget.{budget}").out) == 50, budget


def test_check_counts_the_model_that_a_strategy_keeps(regimen: CommandLine, tmp_path: Path) -> None:
    """ScaleBiO's second model and its moments: as many bytes as the checkpoint of a real run holds of them."""
    scalebio = ("method=scalebio", "dataset.target.from=[code]", "strategies.scalebio.target_rows=2")
    told = regimen.small("check", *scalebio).out
    assert regimen.small("train", *scalebio, "budget.steps=2", f"run_dir={tmp_path}/run").status == 0
    saved = torch.load(next((tmp_path / "run").rglob("*.ckpt")), weights_only=True)
    state = next(found for found in dictionaries(saved["callbacks"]) if "w" in found)
    size = sum(t.numel() * t.element_size() for name in ("w", "first", "second") for t in state[name].values())
    assert size == 3 * 4 * 6_400
    held = re.search(r"strategies ([^,\n]+)", told)
    assert held and held[1].strip() == gigabytes(size)
    assert "strategies" not in regimen.small("check").out.partition("memory about")[2]


def dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """All that are in `value`, at any depth."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from dictionaries(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from dictionaries(inner)


MEASURED = {
    "a selector that looks again": ("method=loss_selection", "strategies.loss_selection.when.steps=3"),
    "a selector of a few candidates": ("method=topk", "strategies.topk.candidates=100"),
    "an orderer": ("method=folding",),
    "an orderer of a selection": ("method=[topk,sorted]", "strategies.topk.ratio=0.05"),
    "an orderer of domains": ("method=[uniform,zigzag]",),
    "a weighter of the whole batch": ("method=loss_weighting", "trainer.micro_batch_size=2"),
    "a selector that aims, of adapters": (
        *("method=less", "++strategies.less.by.run=null", "strategies.less.when.at=4", "dataset.target.from=[code]"),
        *("strategies.less.ratio=0.5", "strategies.less.by.sketch.dimensions=64", "model.lora.rank=1"),
    ),
    "a weighter of the gradients of adapters": (
        *("method=dvemb_log", "strategies.dvemb_log.by.sketch.dimensions=64", "model.lora.rank=1"),
        *("strategies.dvemb_log.warmup_steps=2", "strategies.dvemb_log.curvature=ggn"),
    ),
    "a selector that weighs the target against the pool": (
        *("method=less", "++strategies.less.by.run=null", "strategies.less.when.at=4", "dataset.target.from=[code]"),
        *("strategies.less.ratio=0.5", "strategies.less.by.sketch.dimensions=64", "strategies.less.by.contrast=48"),
    ),
    "a mixer by the gradients of adapters": ("method=doge_proxy", "model.lora.rank=1"),
    "labels that the model draws": (
        *("method=dvemb_log", "strategies.dvemb_log.curvature=ggn", "strategies.dvemb_log.by.sketch.dimensions=64"),
    ),
    "a selector that aims": (
        *("method=less", "++strategies.less.by.run=null", "strategies.less.when.at=4", "dataset.target.from=[code]"),
        *("strategies.less.ratio=0.5", "strategies.less.by.sketch.dimensions=64"),
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_flops_of_a_run_are_those_that_check_foretold(regimen: CommandLine, tmp_path: Path, name: str) -> None:
    overrides = (*MEASURED[name], f"run_dir={tmp_path}/run")
    told = regimen.small("check", *overrides).out
    assert regimen.small("train", *overrides).status == 0
    spent = json.loads((tmp_path / "run" / "summary.json").read_text())["flops"]
    assert spent["total"] == pytest.approx(number(r"FLOPs (\S+), of", told), rel=1e-3)
    assert spent["measuring"] == pytest.approx(number(r"measuring (\S+) ", told), rel=1e-3)
    assert spent["measuring"] > 0


def test_check_foretells_what_writing_answers_costs(regimen: CommandLine, tmp_path: Path) -> None:
    """As if no answer ended early, which those of a new model hardly do."""
    nice = (
        *("method=nice", "++strategies.nice.by.run=null", "strategies.nice.when.at=4", "dataset.target.from=[code]"),
        *("strategies.nice.by.reward=rouge", "strategies.nice.by.samples=20", "strategies.nice.by.max_new_tokens=20"),
        *("strategies.nice.ratio=0.5", "strategies.nice.by.sketch.dimensions=64", "dataset.target.rows_per_subtask=8"),
        *("strategies.nice.by.sketch.adam=none", f"run_dir={tmp_path}/run"),
    )
    told = regimen.small("check", *nice).out
    assert regimen.small("train", *nice).status == 0
    spent = json.loads((tmp_path / "run" / "summary.json").read_text())["flops"]["measuring"]
    foretold = number(r"measuring (\S+) ", told)
    rows = 3 * number(r"jsonl: ([\d,]+) rows", told)  # a forward and a backward pass over each
    share = float(re.search(r"measures ([\d,]+) rows", told)[1].replace(",", "")) / rows
    assert spent == pytest.approx(foretold, rel=0.05) and share > 1.1


def test_shards_make_one_pool(regimen: CommandLine, tmp_path: Path) -> None:
    sharded = ("shard.count=2", f"paths.pools={tmp_path}/pools")
    first = regimen.small("prepare", *sharded, "shard.index=0")
    assert first.status == 0 and "shard 0 of 2 is prepared" in first.out
    second = regimen.small("prepare", *sharded, "shard.index=1")
    assert second.status == 0 and "rows of 32 target tokens" in second.out
    pool = Path(second.out.splitlines()[-1])
    assert json.loads((pool / "manifest.json").read_text())["shard_count"] == 2
    assert regimen.small("prepare", *sharded, "shard.index=2").status == 1
    assert regimen.small("train", f"paths.pools={tmp_path}/pools", f"run_dir={tmp_path}/run").status == 0
    assert len(list(tmp_path.glob("pools/*/manifest.json"))) == 1, "training uses the pool of the shards"


def test_a_grid_of_shards_leaves_the_outputs_alone(regimen: CommandLine, home: Path, tmp_path: Path) -> None:
    before = set((home / "outputs").glob("[!.]*"))
    sharded = ("shard.count=2", "shard.index=range(2)", f"paths.pools={tmp_path}/pools")
    done = regimen.small("prepare", *sharded, flags=("-m",))
    assert done.status == 0, done.err
    assert len(list(tmp_path.glob("pools/*/manifest.json"))) == 1
    assert set((home / "outputs").glob("[!.]*")) == before


def test_a_report_of_real_runs(regimen: CommandLine, home: Path, tmp_path: Path) -> None:
    grid = ("method=natural,odm", "seed=1,2", "sweep=reported", "budget.steps=4")
    assert regimen.small("train", *grid, flags=("-m",)).status == 0
    done = regimen("report", f"runs={home}/outputs/reported", f"out={tmp_path}/report")
    assert done.status == 0, done.err
    page = Path(done.out.strip())
    assert page.name == "report.html" and page.parent == tmp_path / "report"
    text = (tmp_path / "report" / "report.md").read_text()
    assert "natural" in text and "odm" in text and "code" in text
    assert page.read_text().count("<svg") >= 2
    missing = regimen("report", f"runs={home}/outputs/no-such")
    assert missing.status == 1 and "no-such" in missing.err and "Traceback" not in missing.err


def test_a_dry_run_says_what_preparing_will_take_and_writes_nothing(
    regimen: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    places = (f"paths.pools={tmp_path}/pools", f"paths.store={tmp_path}/store", f"paths.outputs={tmp_path}/outputs")
    done = regimen.small("prepare", *places, "dry_run=true")
    assert done.status == 0, done.err
    assert list(tmp_path.iterdir()) == []
    made = regimen.small("prepare", *places)
    assert number(r"training rows ([\d,]+) of", done.out) == number(r"jsonl: ([\d,]+) rows", made.out)
    assert number(r"documents ([\d,]+), ", done.out) == 180
    assert "score by" not in done.out


def test_a_dry_run_of_a_billion_rows_on_shards_with_a_score(regimen: CommandLine) -> None:
    wanted = ("dry_run=true", "forecast.rows=1e9", "shard.count=64", "score.by=${signal.loss}")
    done = regimen.small("prepare", *wanted)
    assert done.status == 0, done.err
    assert "training rows 1,000,000,000 of 32 target tokens, 33,000,000,000 tokens" in done.out
    assert "64 shards by content" in done.out and "dataset.shard_by=file" in done.out
    # 33 tokens of 2 bytes and the ends of four lists in a row; a span of 20 bytes for it, and one more per document
    documents = number(r"documents ([\d,]+), ", done.out)
    rows = 1e9 * (33 * 2 + 16 + 20) + 20 * 0.9 * documents * (1 - 1 / 33)
    assert number(r"rows ([\d.]+) GB, doc", done.out) == pytest.approx(rows / 1e9, abs=0.06)
    assert "in each rank of a training: 5.0 GB" in done.out and "with an order 17.0 GB" in done.out
    assert "score by Loss" in done.out and "model=nano" in done.out
    each = regimen.small("prepare", *wanted, "dataset.shard_by=file").out
    memory = [number(r"while it reads ([\d.]+) [MG]B", out) for out in (done.out, each)]
    assert memory[0] > 10 and "while it reads" in each and memory[1] == pytest.approx(memory[0] * 1000 / 64, rel=0.5)


def test_a_dry_run_is_for_preparing(regimen: CommandLine) -> None:
    assert "regimen check" in regimen.refused("dry_run=true")
    both = regimen.refused("dry_run=true", "forecast.rows=10", "forecast.documents=10", command="prepare")
    assert "follow from each other" in both
    assert "forecast.row" in regimen.refused("+forecast.row=1", command="prepare")
