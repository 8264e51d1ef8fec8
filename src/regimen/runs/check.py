"""`regimen prepare` and `regimen check`: everything but the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.tree import Tree

from regimen.core.errors import ConfigError
from regimen.core.strategy import Mixer, advice
from regimen.data.pool import Pool
from regimen.runs import stages
from regimen.runs.compose import compose_plain
from regimen.runs.estimate import activation_bytes, gigabytes, hours, state
from regimen.runs.experiment import Experiment, make_experiment, make_pool, prepare_pool
from regimen.runs.handover import references, rehearsed, resolve
from regimen.runs.identity import run_name
from regimen.runs.optimizers import make_optimizer
from regimen.runs.ranks import processes
from regimen.runs.staging import rehearse
from regimen.training.module import Objective

_KIND_QUESTION = {
    "selector": "which rows may be drawn",
    "mixer": "the share of each domain",
    "orderer": "the sequence",
    "weighter": "how much each example counts",
}


def prepare(settings: Mapping[str, Any]) -> None:
    """Prepare the pool, or one shard of it, and say what it holds."""
    shard = settings["shard"]
    index, count = shard["index"], shard["count"]
    if count < 1 or not 0 <= index < count:
        raise ConfigError("no such shard", got=f"shard.index={index} shard.count={count}", allowed="0 <= index < count")
    if settings["dry_run"]:
        from regimen.runs.dry_run import dry_run

        dry_run(settings)
        return
    path = prepare_pool(settings, progress=True, shard=(index, count))
    if path is None:
        print(f"shard {index} of {count} is prepared; the pool is whole when all are")
        return
    pool = Pool.open(path)
    Console().print(_pool_tree(pool), _overlap_line(pool))
    if skipped := sum(pool.manifest["skipped"].values()):
        print(f"{skipped} bad record{'s' * (skipped != 1)} skipped: the manifest counts them by file")
    print(path)


def check(settings: Mapping[str, Any], folder: Path) -> None:
    """Build and validate all of a run but its trainer, and print what it would do and cost."""
    pool = make_pool(settings, progress=True)
    staged = _stages(settings, pool)
    given = settings["strategies"]
    settings = {**settings, "strategies": resolve(settings["strategies"], rehearsed(pool.domains))}
    experiment = make_experiment(settings, pool, meta=True, stage_flops=sum(flops for _, flops in staged))
    experiment.stream()  # refuses a budget beyond the repetition cap
    for p in experiment.strategies:
        p.strategy.init(pool.train.index)  # refuses a mixture that does not fit the domains
    Objective(**settings["objective"])
    make_optimizer(settings["optimizer"], experiment.steps)(torch.nn.Linear(1, 1))
    tree = Tree(f"[bold]{folder}[/bold]")
    tree.add(_pool_tree(pool))
    if staged:
        node = tree.add(f"stages, gone through {settings['rounds']} time{'s' * (settings['rounds'] != 1)} at most")
        for line, _ in staged:
            node.add(line)
    _add_plan(tree, experiment, given)
    _add_cost(tree, experiment)
    Console(width=110).print(tree)


def _stages(settings: Mapping[str, Any], pool: Pool) -> list[tuple[str, float]]:
    """A line and the FLOPs of each stage in all rounds, were the store empty; they are built with stand-ins."""
    if not settings["stages"]:
        return []
    rehearse(settings, pool)
    out = []
    for name in stages.needed(settings):
        spec = settings["stages"][name]
        if "fit" in spec:
            law = str(spec["fit"]["_target_"]).rpartition(".")[2]
            out.append((f"[bold]{name}[/bold]: fits {law} to {', '.join(stages.sources(spec))}", 0.0))
            continue
        rounds = range(1, settings["rounds"] + 1)
        runs = [m for r in rounds for m in stages.members(settings, name, round_number=r, domains=len(pool.domains))]
        one = compose_plain(runs[0].overrides, where=f"stages.{name}")
        one["strategies"] = resolve(one["strategies"], rehearsed(pool.domains))
        built = make_experiment(one, pool, meta=True)
        flops = built.flops(built.steps) * len(runs)
        many = f"{len(runs)} run{'s' * (len(runs) != 1)} of {built.steps:,} steps"
        out.append((f"[bold]{name}[/bold]: {many} ({run_name(one)}), FLOPs {flops:.3e}", flops))
    return out


def _overlap_line(pool: Pool) -> str:
    """How much of the validation text, and of other evaluation text, occurs in the training text."""
    overlap = pool.manifest["overlap"]
    if not overlap["settings"]["n"]:
        return "overlap of evaluation with training text: not measured (dataset.overlap.n=0)"
    shares = {**overlap["validation"], **overlap["against"]}
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"{overlap['settings']['n']}-grams of evaluation text that occur in training text: {told}"


def _pool_tree(pool: Pool) -> Tree:
    index = pool.train.index
    tokens = index.domain_tokens()
    what = "up to" if pool.train.examples else "of"
    kind = "" if pool.train.examples else " target"
    total = f"{float(tokens.sum()):,.0f}{' target' * pool.train.examples} tokens"
    tree = Tree(f"data {pool.name}: {index.rows:,} rows {what} {pool.seq_len}{kind} tokens, {total}")
    for k, name in enumerate(pool.domains):
        held_out = int(pool.validation.index.sizes[k])
        share = float(tokens[k] / tokens.sum())
        tree.add(f"{name}: {int(index.sizes[k]):,} rows, {share:.1%} of the tokens, {held_out} validation rows")
    if pool.train.examples:
        counts = [counts["train"] for counts in pool.manifest["counts"].values()]
        cut, lost = (sum(c[key] for c in counts) for key in ("cut", "without_target"))
        tree.add(f"{cut:,} examples cut to dataset.seq_len, {lost:,} left out: their prompt alone is longer")
    if pool.target is not None:
        sizes = zip(pool.target.index.domains, pool.target.index.sizes.tolist(), strict=True)
        tree.add("target set: " + ", ".join(f"{name} {rows} rows" for name, rows in sizes))
    return tree


def _add_plan(tree: Tree, experiment: Experiment, given: Mapping[str, Any]) -> None:
    """given: the strategies with their references to stages."""
    plan = tree.add("plan: keep, mix, order, weight")
    measured = experiment.measured_rows(experiment.steps)
    for p in experiment.strategies:
        node = plan.add(f"[bold]{p.name}[/bold] ({p.kind}: {_KIND_QUESTION[p.kind]})")
        node.add(str(p.strategy))
        for stage, what in references(given[p.name]):
            node.add(f"the {what} is what stage {stage} will give; the one above stands in for it")
        if p.trigger is not None:
            times = experiment.decisions(p)
            node.add(f"decides {times} time{'s' * (times != 1)}: {p.trigger}")
        if measured[p.name]:
            node.add(f"measures {measured[p.name]:,.0f} rows")
        for text in advice(p.strategy, experiment.pool.train.index):
            node.add(f"[yellow]{text}[/yellow]")
    if not any(isinstance(p.strategy, Mixer) for p in experiment.strategies):
        plan.add("no mixer: the pool is one shuffled sequence")


def _add_cost(tree: Tree, experiment: Experiment) -> None:
    steps, rows = experiment.steps, experiment.batch_rows
    flops = experiment.flops(steps)
    training = experiment.training_flops(steps)
    parameters = sum(p.numel() for p in experiment.model.parameters())
    cost = tree.add("cost")
    epochs = steps * rows / experiment.pool.train.index.rows
    cost.add(f"steps {steps:,} of {rows} rows, tokens {steps * experiment.batch_tokens:,.0f}, {epochs:.2f} epochs")
    trained = sum(p.numel() for p in experiment.model.parameters() if p.requires_grad)
    part = f", of which {trained:,} are trained" if trained < parameters else ""
    cost.add(f"model {parameters:,} parameters{part}")
    measuring = flops - training - experiment.stage_flops
    cost.add(f"FLOPs {flops:.3e}, of which measuring {measuring:.3e} ({measuring / flops:.1%})")
    if experiment.stage_flops:
        cost.add(f"stages {experiment.stage_flops:.3e} of these ({experiment.stage_flops / flops:.1%})")
    cost.add(f"time about {hours(experiment, flops)}")
    _add_memory(cost, experiment)


def _add_memory(tree: Tree, experiment: Experiment) -> None:
    """Of one process, by kind; and what it keeps in the memory of the CPU under an offloading strategy."""
    held, activations, trainer = state(experiment), activation_bytes(experiment), experiment.settings["trainer"]
    spread = f" of {processes(trainer)}, {trainer['strategy']}" if processes(trainer) > 1 else ""
    node = tree.add(f"memory about {gigabytes(held.device + activations)} per process{spread}")
    kinds = {**held._asdict(), "activations": activations}
    kept = kinds.pop("host")
    node.add(", ".join(f"{kind} {gigabytes(size)}" for kind, size in kinds.items() if size))
    if kept:
        node.add(f"and {gigabytes(kept)} in the memory of the CPU")
