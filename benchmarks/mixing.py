"""Mixing methods on real text: equal tokens, paired seeds, three objectives; a table with intervals, whatever it says.

    python benchmarks/mixing.py --corpus 'FOLDER/*.jsonl.gz' [--seeds 5] [--steps 120] [--workers 2] [--table FILE]

The corpus is JSON lines with the fields `text` and `domain`, among whose domains are those of OBJECTIVES. A model of
0.8M parameters is trained on each mixture; methods that rest on proxies train them with the same command, and what they
cost is in the table. Finished runs and stages are found again, so that the script goes on where it was stopped.
Seeds, budget, settings and metric are fixed here, before methods are compared.
Metric: bits per byte of the validation rows, averaged over the domains of the objective. Lower is better.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grids import against, regimen

from regimen.evaluation.statistics import mean_interval

OBJECTIVES: dict[str, tuple[str, ...]] = {"all domains": (), "one": ("code",), "pair": ("medical", "wikipedia")}
COMMON = [
    *("model=nano", "dataset=jsonl", "dataset.domain_field=domain", "dataset.seq_len=128"),
    *("dataset.tokenizer.vocab_size=2048", "dataset.validation.max_rows=24", "trainer.global_batch_size=16"),
    *("trainer.threads=1", "trainer.progress=none", "optimizer.lr=2e-3", "evaluation.at=[1]"),
    *("trainer.save_every_minutes=5", "trainer.keep_checkpoints=1"),
]
ANY = {  # do not know the objective
    "natural": [],
    "uniform": [],
    "temperature": [],
    "entropy_conditional": [],
    "odm": [],
    "ado": ["strategies.ado.refit_every=20"],
    "aioli": [
        *("strategies.aioli.lp_rounds=1", "strategies.aioli.update_steps=60"),
        *("strategies.aioli.max_rows=8", "strategies.aioli.eta=1.0"),
    ],
    "doremi": [],
}
AIMED = ("doge", "bimix", "regmix")
_DOGE = "strategies.doge_proxy.target"


def aimed(method: str, domains: tuple[str, ...], steps: int) -> list[str]:
    """Settings that aim a method at an objective."""
    names = ",".join(domains)
    if method == "doge":
        return [f"stages.proxy.overrides=['method=doge_proxy','{_DOGE}=[{names}]']"] if domains else []
    target = [f"stages.law.target=[{names}]"] if domains else []
    if method == "bimix":
        return [f"proxy.steps={steps // 2}", "stages.law.constraints.min_share=0.01", *target]
    return [f"proxy.steps={steps // 4}", "proxy.runs=24", *target]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    common = [*COMMON, f"dataset.path='{given.corpus}'", f"budget.steps={given.steps}"]
    regimen("prepare", *common)
    with ThreadPoolExecutor(given.workers) as workers:
        codes = list(workers.map(lambda seed: _seed(seed, common, given.steps), range(1, given.seeds + 1)))
    outputs = Path(os.environ.get("REGIMEN_OUTPUTS", "outputs"))
    lines = table(outputs, given.seeds)
    print("\n".join(lines))
    _report(outputs)
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return max(codes)


def _seed(seed: int, common: Sequence[str], steps: int) -> int:
    """All runs of a seed, one after the other: the store then never makes two of them wait for each other."""
    code = 0
    for method, settings in ANY.items():
        code |= regimen("train", f"method={method}", f"seed={seed}", "sweep=mixing-any", *common, *settings)
    for name, domains in OBJECTIVES.items():
        for method in AIMED:
            own = aimed(method, domains, steps)
            code |= regimen("train", f"method={method}", f"seed={seed}", f"sweep={_sweep(name)}", *common, *own)
    return code


def _report(outputs: Path) -> None:
    """The report page of each objective that is one metric; a pair of domains has its table alone."""
    for name, domains in OBJECTIVES.items():
        if len(domains) > 1:
            continue
        runs = f"runs={outputs}/mixing-any,{outputs}/{_sweep(name)}"
        metric = f"metric={domains[0] if domains else 'macro'}/bits_per_byte"
        regimen("report", runs, metric, "baseline=uniform", f"out={outputs}/report-{_sweep(name)}")


def _sweep(objective: str) -> str:
    """The folder of the runs that are aimed at an objective."""
    return f"mixing-{objective.replace(' ', '-')}"


def results(outputs: Path, sweep: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Summaries of finished runs by method and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((outputs / sweep).glob("*/summary.json")):
        told = json.loads(path.read_text())
        if told["status"] == "finished":
            found.setdefault(told["method"], {})[told["seed"]] = told
    return found


def table(outputs: Path, seeds: int) -> list[str]:
    """Markdown: a table per objective, methods from best to worst."""
    lines: list[str] = []
    for name, domains in OBJECTIVES.items():
        runs = {**results(outputs, "mixing-any"), **results(outputs, _sweep(name))}
        lines += ["", f"### Objective: {' and '.join(domains) or 'all domains (macro)'}", ""]
        lines += ["| method | bits per byte | against uniform | against natural | tokens | FLOPs | of which stages |"]
        lines += ["|---|---|---|---|---|---|---|"]
        scores = {m: [_score(by_seed[s], domains) for s in sorted(by_seed)] for m, by_seed in runs.items()}
        for method in sorted(scores, key=lambda m: sum(scores[m]) / len(scores[m])):
            if len(scores[method]) < seeds:
                lines.append(f"| {method} | {len(scores[method])} of {seeds} runs finished | | | | | |")
                continue
            lines.append(_row(method, scores, list(runs[method].values())))
    return lines


def _row(method: str, scores: dict[str, list[float]], told: list[dict[str, Any]]) -> str:
    interval = mean_interval(scores[method])
    cells = []
    for baseline in ("uniform", "natural"):
        if baseline == method or len(scores.get(baseline, [])) != len(scores[method]):
            cells.append("")
            continue
        cells.append(against(scores[method], scores[baseline]))
    flops = [sum(one["flops"][key] for one in told) / len(told) for key in ("total", "stages")]
    cells = [f"{interval.mean:.4f} +- {interval.half_width:.4f}", *cells, f"{told[0]['tokens']:,}"]
    return f"| {method} | " + " | ".join([*cells, f"{flops[0]:.2e}", f"{flops[1]:.2e}"]) + " |"


def _score(told: dict[str, Any], domains: tuple[str, ...]) -> float:
    by_domain = told["evaluation"]["domains"]
    chosen = domains or tuple(by_domain)
    return sum(by_domain[name]["bits_per_byte"] for name in chosen) / len(chosen)


if __name__ == "__main__":
    sys.exit(main())
