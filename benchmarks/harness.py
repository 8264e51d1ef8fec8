"""What the harness costs, measured in one process and reported as ratios.

    python benchmarks/harness.py [--model tiny] [--repeats 5] [--steps 8] [--methods odm,ado] [--json out.json]

Step times are CPU seconds of this process (`time.process_time`) with one torch thread, the median over the steps of a
run. A ratio is of two runs that follow each other, so that a busy machine slows both alike; the table shows its median
over the repeats, the least and the greatest. The own share is what the hooks of the strategy itself take of a step;
on a shared machine it is far below what ratios can tell. Latencies of whole commands are wall seconds, best of three.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytorch_lightning as pl
import torch
from bare import bare_step

from regimen.core.index import PoolIndex
from regimen.core.stream import Stream
from regimen.runs.attempt import Attempt
from regimen.runs.experiment import make_experiment, make_pool
from regimen.runs.handover import rehearsed, resolve
from regimen.runs.optimizers import make_optimizer
from regimen.runs.run import Run
from regimen.runs.summary import machine
from regimen.runs.train import quiet_libraries, train
from regimen.training.callbacks.checkpoint import SaveCheckpoints
from regimen.training.callbacks.strategies import StrategyCallback
from regimen.training.callbacks.weighting import WeightingCallback

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FILES = {path.stem: path.read_text() for path in sorted((ROOT / "conf" / "method").glob("*.yaml"))}
# A method whose stages give it a fixed mixture takes a step of `fixed`; its proxy has a file of its own.
METHODS = [m for m, text in FILES.items() if m != "natural" and not ("stages:\n" in text and "FixedMixture" in text)]
ORDERS = ("folding", "saw", "segment", "shuffle", "sorted", "stair", "zigzag")
GOALS = {
    "regimen / bare PyTorch loop": 1.03,
    **{f"{method} / natural": 1.02 for method in ("odm", "ado", "loss_weighting", *ORDERS)},
    "doremi_proxy / natural": 1.4,
}
DOMAINS = ("cpp", "docstrings", "markup", "prose", "python")
EVEN = "{" + ", ".join(f"{name}: 2.0" for name in DOMAINS) + "}"
EXTRA = {  # what a method needs here, and small measurements before training: they are not part of a step
    "ado": ["strategies.ado.start=2", "strategies.ado.refit_every=1000"],
    "aioli": ["strategies.aioli.lp_rounds=1", "strategies.aioli.lp_steps=1", "strategies.aioli.max_rows=2"],
    "fixed": ["strategies.fixed.weights={cpp: 0.2, docstrings: 0.2, markup: 0.2, prose: 0.2, python: 0.2}"],
    "sheared": [f"++strategies.sheared.reference={EVEN}", "strategies.sheared.max_rows=2"],
    "skillit": [
        "++strategies.skillit.graph={" + ", ".join(f"{name}: {{{name}: 1.0}}" for name in DOMAINS) + "}",
        "strategies.skillit.max_rows=2",
    ],
    "velocitune": [f"++strategies.velocitune.targets={EVEN}", "strategies.velocitune.max_rows=2"],
    "loss_selection": ["strategies.loss_selection.candidates=128", "strategies.loss_selection.count=64"],
    "topk": ["strategies.topk.candidates=128", "strategies.topk.ratio=0.5"],
}


class StepClock(pl.Callback):
    """CPU seconds of each optimizer step, the work of all callbacks after the previous step included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.process_time()
        if self._last:
            self.seconds.append(now - self._last)
        self._last = now


class OwnTime:
    """CPU seconds spent inside the hooks of a run's strategies, the decision before training left out."""

    def __init__(self, run: Run) -> None:
        self.seconds = 0.0
        for callback in run.trainer.callbacks:
            if isinstance(callback, StrategyCallback):
                callback.on_train_batch_end = self._timed(callback.on_train_batch_end)  # type: ignore[method-assign]
            if isinstance(callback, WeightingCallback):
                callback.weigh = self._timed(callback.weigh)  # type: ignore[method-assign]
                start = callback.on_train_batch_start
                callback.on_train_batch_start = self._timed(start)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*given: Any) -> Any:
            start = time.process_time()
            result = call(*given)
            self.seconds += time.process_time() - start
            return result

        return timed_call


def settings_of(options: argparse.Namespace, folder: Path, *overrides: str) -> dict[str, Any]:
    from tests.support.runs import compose_settings

    common = [f"model={options.model}", f"budget.steps={options.steps}", "trainer.global_batch_size=8"]
    common += ["dataset.seq_len=128", "evaluation.at=[1]", "trainer.progress=none", f"paths.outputs={folder}"]
    return compose_settings(*common, "trainer.save_every_minutes=null", *overrides)


def regimen_steps(settings: dict[str, Any], folder: Path) -> tuple[list[float], float]:
    """Step times of `regimen train`, without the evaluation and save at its end; and of these the strategies' own."""
    pool = make_pool(settings, progress=False)
    settings["strategies"] = resolve(settings["strategies"], rehearsed(pool.domains))
    run = Run(settings, folder, Attempt("begin", None, "benchmark"), pool, None, 0, [])
    clock = StepClock()
    run.evaluate.steps = set()
    kept = [c for c in run.trainer.callbacks if not isinstance(c, SaveCheckpoints)]
    run.trainer.callbacks[:] = [*kept, clock]
    own = OwnTime(run)
    run._open_folder()
    run.trainer.fit(run.module, run.context.loader)
    gc.collect()  # a trainer and its callbacks refer to each other
    return clock.seconds[1:], own.seconds / run.experiment.steps


def bare_steps(settings: dict[str, Any]) -> list[float]:
    """The same model, batches, optimizer and clipping in a plain loop."""
    torch.manual_seed(0)
    pool = make_pool(settings, progress=False)
    experiment = make_experiment(settings, pool)
    model, stream = experiment.model.train(), experiment.stream()
    optimizer, schedule = make_optimizer(settings["optimizer"], experiment.steps)(model)
    seconds, last = [], 0.0
    for _ in range(experiment.steps):
        tokens = pool.train.read(stream.next()).tokens
        bare_step(model, tokens, optimizer, schedule).item()
        now = time.process_time()
        if last:
            seconds.append(now - last)
        last = now
    return seconds[1:]


def step_ratios(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Median step times in pairs: natural right after the bare loop, each method right after natural."""
    shares: dict[str, list[float]] = {}

    def step(method: str) -> float:
        settings = settings_of(options, folder, f"method={method}", *EXTRA.get(method, []))
        with tempfile.TemporaryDirectory(dir=folder) as name:
            seconds, own = regimen_steps(settings, Path(name))
        shares.setdefault(f"{method} / natural", []).append(own / statistics.median(seconds))
        return statistics.median(seconds)

    reference = train(settings_of(options, folder, "method=natural", "budget.steps=1"), folder / "reference")
    EXTRA["doremi_proxy"] = [f"strategies.doremi_proxy.reference={reference}"]
    ratios: dict[str, list[float]] = {}
    naturals = []
    for repeat in range(options.repeats):
        bare, natural = statistics.median(bare_steps(settings_of(options, folder))), step("natural")
        naturals.append(natural)
        ratios.setdefault("regimen / bare PyTorch loop", []).append(natural / bare)
        for method in options.methods.split(",") if options.methods else METHODS:
            ratios.setdefault(f"{method} / natural", []).append(step(method) / step("natural"))
        print(f"repeat {repeat + 1} of {options.repeats}", file=sys.stderr)
    own = {name: statistics.median(values) for name, values in shares.items()}
    ordered = {name: sorted(values) for name, values in ratios.items()}
    return {"ratios": ordered, "own": own, "step": statistics.median(naturals)}


def loader_times(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds to index a million rows, and for one global batch of ids and of tokens."""
    index = PoolIndex(domains=("a", "b"), offsets=torch.tensor([0, 400_000, 1_000_000]), target_tokens=128)
    start = time.process_time()
    big = Stream(index, seed=0, batch_size=8, total_steps=100_000)
    big.next()
    indexed = time.process_time() - start
    big.update(big.plan.with_(mixture={"a": 0.3, "b": 0.7}))
    ids = timed(big.next, 2000)
    pool = make_pool(settings_of(options, folder), progress=False)
    stream = Stream(pool.train.index, seed=0, batch_size=8, total_steps=10_000, max_epochs=None)
    tokens = timed(lambda: pool.train.read(stream.next()), 2000)
    return {"index 1e6 rows": indexed, "ids of a mixed batch": ids, "tokens of a batch": tokens}


def timed(call: Callable[[], Any], n: int) -> float:
    call()
    start = time.process_time()
    for _ in range(n):
        call()
    return (time.process_time() - start) / n


def latencies(folder: Path) -> dict[str, float]:
    """Wall seconds of `regimen --help`, and from the command to the first step of a nano run."""
    command = [sys.executable, "-m", "regimen"]
    help_seconds, first_step = [], []
    for attempt in range(3):
        start = time.perf_counter()
        subprocess.run([*command, "--help"], check=True, capture_output=True)
        help_seconds.append(time.perf_counter() - start)
        target = folder / f"latency-{attempt}"
        start = time.perf_counter()
        wanted = [f"run_dir={target}", "budget.steps=2", "evaluation.at=[1]", "trainer.progress=none"]
        process = subprocess.Popen([*command, "train", *wanted], stderr=subprocess.PIPE)
        while '"split": "train"' not in _text(target / "metrics.jsonl"):
            if process.poll() not in (None, 0):
                raise SystemExit(process.stderr.read().decode() if process.stderr else "the command failed")
            time.sleep(0.01)
        first_step.append(time.perf_counter() - start)
        process.wait()
    return {"regimen --help": min(help_seconds), "command to first step": min(first_step)}


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--methods", help="separated by commas; default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pool(settings_of(options, folder), progress=True)
        times = step_ratios(options, folder)
        loader, waits = loader_times(options, folder), latencies(folder)
    natural, ratios = times["step"], times["ratios"]
    batch = loader["tokens of a batch"]
    rows = [
        (
            name,
            f"{statistics.median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})",
            f"{times['own'][name]:.2%}" if name in times["own"] else "",
            f"<= {GOALS[name]}" if name in GOALS else "",
        )
        for name, values in ratios.items()
    ]
    rows += [
        ("loader, part of a step", f"{batch / natural:.5f}", "", "< 0.01"),
        ("index a million rows", f"{loader['index 1e6 rows']:.3f} s", "", "< 1 s"),
        ("ids of a mixed batch of 8", f"{loader['ids of a mixed batch'] * 1e3:.3f} ms", "", ""),
        ("command to first step", f"{waits['command to first step']:.1f} s", "", "< 8 s"),
        ("regimen --help", f"{waits['regimen --help']:.2f} s", "", "about 1 s"),
        (f"CPU seconds per step, {options.model}, 8 x 128 tokens", f"{natural:.3f}", "", ""),
    ]
    print(f"| measure ({machine()['cpu']}, 1 thread) | value | own share of a step | goal |\n|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if options.json:
        told = {"machine": machine(), "steps": times, "loader": loader, "latency": waits}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
