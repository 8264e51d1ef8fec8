"""How fast signals that run a model are, and what they need.

    python benchmarks/signals.py [--repeats 5] [--only sketches] [--json F]

Two parts: `study`, at the setting of the DataFlex study (`signals_study.py`), and `sketches`, of gradients.

Sketches: rows of 256 tokens, a Llama of 10.5 million parameters, one thread. A round runs every measurement once, so
that a busy machine slows all alike; rows per CPU second (`time.process_time`) are the median over the rounds, and so is
a ratio of two of them in one round. The dense projection that LESS does on a GPU, from P to 8192 random signs per
number, is measured for 64 and scaled up, since its time is proportional to them; drawing the signs is left out. Memory
is that of a process of its own: the most that it holds during three calls, less what it held before, when it had the
model alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import signals_study
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from regimen.core.measuring import Sketch
from regimen.runs.summary import machine
from regimen.runs.train import quiet_libraries
from regimen.training.sketching import Sketcher, row_losses

LENGTH, VOCABULARY, CHUNK, DIMENSIONS = 256, 8192, 1024, 8192
MEASURED_DIMENSIONS = 64  # of the dense projection


class Bench(NamedTuple):
    """A model, and rows (b, L) to measure."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def cut(self, length: int) -> Bench:
        """The same with the first tokens of each row."""
        return self._replace(inputs=self.inputs[:, :length].clone(), targets=self.targets[:, :length].clone())

    def losses(self, rows: int) -> Tensor:
        given = self.inputs[:rows], self.targets[:rows], None
        return row_losses(self.model, *given, reduction="mean", chunk=CHUNK)


class Measure(NamedTuple):
    """prepare gives what is timed, for `rows` rows of `length` tokens. scale: of what is meant to what is timed."""

    rows: int
    prepare: Callable[[Bench, int], Callable[[], object]]
    scale: float = 1.0
    length: int = LENGTH


def make_bench(rows: int = 16) -> Bench:
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, tie_word_embeddings=False, **shape)
    tokens = torch.randint(0, VOCABULARY, (rows, LENGTH + 1))
    return Bench(LlamaForCausalLM(config).eval(), tokens[:, :-1].clone(), tokens[:, 1:].clone())


def forward(bench: Bench, rows: int) -> Callable[[], object]:
    return torch.no_grad()(lambda: bench.losses(rows))


def training(bench: Bench, rows: int) -> Callable[[], object]:
    """Forward and backward pass."""

    def step() -> None:
        bench.losses(rows).sum().backward()
        bench.model.zero_grad()

    return step


def whole_step(bench: Bench, rows: int) -> Callable[[], object]:
    """With AdamW and clipping: what training holds in memory."""
    optimizer = torch.optim.AdamW(bench.model.parameters())

    def step() -> None:
        bench.losses(rows).sum().backward()
        torch.nn.utils.clip_grad_norm_(bench.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def sketches(**settings: Any) -> Callable[[Bench, int], Callable[[], object]]:
    def prepare(bench: Bench, rows: int) -> Callable[[], object]:
        sketcher = Sketcher(bench.model, Sketch(dimensions=DIMENSIONS, **settings), chunk=CHUNK)
        return lambda: sketcher(bench.inputs[:rows], bench.targets[:rows], None)

    return prepare


def dense_projection(bench: Bench, rows: int) -> Callable[[], object]:
    """Of gradients (b, P) that are there already; the same signs (P / parts, k) serve every part of P."""
    parts = torch.randn(rows, sum(p.numel() for p in bench.model.parameters())).split(2**16, dim=1)
    signs = torch.randint(0, 2, (2**16, MEASURED_DIMENSIONS)).float().mul_(2).sub_(1)

    def project() -> None:
        for part in parts:
            part @ signs[: part.shape[1]]

    return project


SPEEDS: Mapping[str, Measure] = {
    "loss, 8 rows": Measure(8, forward),
    "training, forward and backward, 8 rows": Measure(8, training),
    "sketch by hooks, 1 row": Measure(1, sketches()),
    "sketch by hooks, 4 rows": Measure(4, sketches()),
    "sketch by hooks, 8 rows": Measure(8, sketches()),
    "sketch by the loop": Measure(4, sketches(backend="loop")),
    "sketch by hooks, 16 rows of 32 tokens": Measure(16, sketches(), length=32),
    "sketch by the loop, rows of 32 tokens": Measure(16, sketches(backend="loop"), length=32),
    "factored sketch, rank 16, 8 rows": Measure(8, sketches(kind="factored", rank=16)),
    "factored sketch, rank 64, 8 rows": Measure(8, sketches(kind="factored", rank=64)),
    "dense projection alone": Measure(4, dense_projection, DIMENSIONS / MEASURED_DIMENSIONS),
}
MEMORY: Mapping[str, Measure] = {
    "training step with AdamW, 8 rows": Measure(8, whole_step),
    "sketch by hooks, 8 rows": Measure(8, sketches()),
    "sketch by the loop, 8 rows": Measure(8, sketches(backend="loop")),
}
HOOKS, LOOP, DENSE = "sketch by hooks, 4 rows", "sketch by the loop", "dense projection alone"
STEP = "training step with AdamW, 8 rows"
# A ratio of speeds: the left one over the right ones, one after the other.
RATIOS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "sketch by hooks / by the loop, 4 rows": (HOOKS, (LOOP,), ">= 1"),
    "sketch by hooks, 8 rows / by the loop": ("sketch by hooks, 8 rows", (LOOP,), ""),
    "sketch by hooks / by the loop, rows of 32 tokens": (
        "sketch by hooks, 16 rows of 32 tokens",
        ("sketch by the loop, rows of 32 tokens",),
        ">= 1",
    ),
    "sketch by hooks / loop and dense projection": (HOOKS, (LOOP, DENSE), ">= 10"),
    "sketch by hooks / training, forward and backward": (HOOKS, ("training, forward and backward, 8 rows",), ""),
    "sketch by hooks / loss": (HOOKS, ("loss, 8 rows",), ""),
}


def seconds_per_row(repeats: int) -> dict[str, list[float]]:
    """CPU seconds by measurement, one per round."""
    bench = make_bench()
    calls = {name: measure.prepare(bench.cut(measure.length), measure.rows) for name, measure in SPEEDS.items()}
    found: dict[str, list[float]] = {name: [] for name in SPEEDS}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if repeat:  # the first round warms up
                found[name].append((time.process_time() - start) * SPEEDS[name].scale / SPEEDS[name].rows)
        print(f"round {repeat} of {repeats}", file=sys.stderr)
    return found


def ratios_of(found: Mapping[str, list[float]]) -> dict[str, list[float]]:
    out = {}
    for name, (mine, theirs, _) in RATIOS.items():
        other = [sum(both) for both in zip(*(found[t] for t in theirs), strict=True)]
        out[name] = sorted(o / m for o, m in zip(other, found[mine], strict=True))
    return out


def resident(name: str) -> int:
    """Bytes that a measurement needs beyond the model, in this process."""
    bench = make_bench()
    before = _status("VmRSS")
    call = MEMORY[name].prepare(bench, MEMORY[name].rows)
    for _ in range(3):
        call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def memory() -> dict[str, int]:
    """By measurement, each in a process of its own."""
    command = [sys.executable, __file__, "--resident"]
    return {
        name: int(subprocess.run([*command, name], capture_output=True, text=True, check=True).stdout)
        for name in MEMORY
    }


def sketch_rows(found: Mapping[str, list[float]], needed: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Rows of measure, value and goal."""
    rows = []
    for name, seconds in found.items():
        times = [1 / s for s in seconds]
        spread = f"{statistics.median(times):.3g} ({min(times):.3g} to {max(times):.3g})"
        rows.append((f"{name}, rows per CPU second", spread, ""))
    for name, values in ratios_of(found).items():
        spread = f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"
        rows.append((f"{name}, speeds", spread, RATIOS[name][2]))
    for name, size in needed.items():
        goal = "<= 1.3" if name.startswith("sketch by hooks") else ""
        value = f"{size / 2**20:.0f}, {size / needed[STEP]:.2f} of a step"
        rows.append((f"{name}, MiB beyond the model", value, goal))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("sketches", "study"))
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    logging.set_verbosity_error()
    if options.resident:
        print(resident(options.resident))
        return
    told: dict[str, Any] = {"machine": machine()}
    rows: list[tuple[str, str, str]] = []
    if options.only != "study":
        told |= {"seconds": seconds_per_row(options.repeats), "bytes": memory()}
        rows += sketch_rows(told["seconds"], told["bytes"])
    if options.only != "sketches":
        with tempfile.TemporaryDirectory() as folder:
            study = signals_study.make_study(Path(folder))
            told["study"] = signals_study.seconds_of(study, options.repeats)
        rows += signals_study.table(told["study"], study.lengths)
    print(f"| measure ({machine()['cpu']}, 1 thread) | value | goal |\n|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
