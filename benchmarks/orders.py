"""Orders crossed with learning-rate schedules on real text: paired seeds, held-out bits per byte, whatever they say.

    python benchmarks/orders.py --corpus 'FOLDER/*.jsonl.gz' [--seeds 5] [--steps 120] [--workers 2] [--table FILE]

The corpus is JSON lines with the fields `text` and `domain`. A model of 0.8M parameters is trained once per order,
schedule and seed; with one seed all orders train on the same rows, but for `curriculum`, which draws its own. The score
is the perplexity of a row under trigrams of the pool, low first: it needs no model and is fixed here, as are budget,
settings and metric. Finished cells are found again, so that the script goes on where it was stopped.
Metric: bits per byte of the validation rows, averaged over domains. Lower is better. `*`: the 95% interval of the
paired difference from `shuffle` under the same schedule excludes 0; intervals are not adjusted for their number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grids import against, regimen

from regimen.evaluation.statistics import mean_interval

SCORE = "{_target_: regimen.signals.kneser_ney.NgramPerplexity, max_rows: 4000}"
ORDERS: dict[str, tuple[str, list[str]]] = {  # a name in the table: its method, and settings
    "shuffle": ("shuffle", []),
    "ascending": ("sorted", []),
    "descending": ("sorted", ["strategies.sorted.descending=true"]),
    "warm-up": ("sorted", ["strategies.sorted.share=0.2"]),
    "folding": ("folding", []),
    "zigzag": ("zigzag", []),
    "segment": ("segment", []),
    "stair": ("stair", []),
    "saw": ("saw", []),
    "curriculum": ("curriculum", ["dataset.max_epochs_per_domain=null"]),
}
SCHEDULES = {
    "cosine": ["optimizer.schedule.kind=cosine"],
    "wsd": ["optimizer.schedule.kind=wsd"],
    "constant": ["optimizer.schedule.kind=constant"],
    "constant, averaged": ["optimizer.schedule.kind=constant", "optimizer.average.kind=mean"],
}
COMMON = [
    *("model=nano", "dataset=jsonl", "dataset.domain_field=domain", "dataset.seq_len=128"),
    *("dataset.tokenizer.vocab_size=2048", "dataset.validation.max_rows=24", "trainer.global_batch_size=16"),
    *("trainer.threads=1", "trainer.progress=none", "optimizer.lr=2e-3", "evaluation.at=[1]"),
    *("evaluation.decile_rows=4", "trainer.save_every_minutes=null", "trainer.keep_checkpoints=1"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    orders = given.orders.split(",")
    common = [*COMMON, f"dataset.path='{given.corpus}'", f"budget.steps={given.steps}"]
    regimen("prepare", *common)
    root = Path(os.environ.get("REGIMEN_OUTPUTS", "outputs")) / f"orders-{given.steps}"
    cells = [(s, o, d) for s in range(1, given.seeds + 1) for o in orders for d in SCHEDULES]
    with ThreadPoolExecutor(given.workers) as workers:
        codes = list(workers.map(lambda cell: _train(root, common, *cell), cells))
    lines = table(root, orders, given.seeds)
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return max(codes)


def _folder(root: Path, seed: int, order: str, schedule: str) -> Path:
    return root / f"{order}-{schedule.replace(', ', '-')}-seed{seed}"


def _train(root: Path, common: Sequence[str], seed: int, order: str, schedule: str) -> int:
    """One cell; a finished one is skipped by `regimen train` itself."""
    method, own = ORDERS[order]
    name = f"strategies.{method}.by"
    by = [] if method == "shuffle" else [f"~{name}", f"+{name}={SCORE}"]
    folder = _folder(root, seed, order, schedule)
    told = [f"method={method}", f"seed={seed}", f"run_dir='{folder}'", *by, *own, *SCHEDULES[schedule]]
    return regimen("train", *common, *told)


def _score(folder: Path) -> float | None:
    path = folder / "summary.json"
    told = json.loads(path.read_text()) if path.is_file() else {"status": "absent"}
    return told["evaluation"]["macro"]["bits_per_byte"] if told["status"] == "finished" else None


def table(root: Path, orders: Sequence[str], seeds: int) -> list[str]:
    """Markdown: a table per schedule, orders from best to worst by their mean."""
    lines: list[str] = []
    for schedule in SCHEDULES:
        lines += ["", f"### {schedule}", "", "| order | bits per byte | against shuffle |", "|---|---|---|"]
        found = {o: [_score(_folder(root, s, o, schedule)) for s in range(1, seeds + 1)] for o in orders}
        whole = {o: [v for v in values if v is not None] for o, values in found.items() if None not in values}
        for order in sorted(whole, key=lambda o: sum(whole[o])):
            lines.append(_row(order, whole))
        lines += [f"| {o} | {sum(v is not None for v in found[o])} of {seeds} | |" for o in orders if o not in whole]
    return lines


def _row(order: str, whole: dict[str, list[float]]) -> str:
    interval, told = mean_interval(whole[order]), ""
    if order != "shuffle" and "shuffle" in whole:
        told = against(whole[order], whole["shuffle"])
    return f"| {order} | {interval.mean:.4f} +- {interval.half_width:.4f} | {told} |"


if __name__ == "__main__":
    sys.exit(main())
