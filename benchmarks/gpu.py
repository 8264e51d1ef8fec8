"""What training costs on a GPU: tokens per second and model FLOPs utilisation beside a bare PyTorch loop.

    python benchmarks/gpu.py [--shapes 160m,0.5b,1.5b] [--minutes 8] [--json out.json]
    python benchmarks/gpu.py --device cpu --shapes nano      # the same code where there is no GPU, in seconds

No network and no data: texts and vocabularies are made up, of random words. Installed from a folder of wheels, which a
machine of the same kind with a network makes; this checkout goes along for benchmarks and tests:

    make wheels                                                    # there; TORCH_INDEX=URL for another build of torch
    pip install --no-index --find-links wheels "regimen[dev]"      # here

The bare loop has the same model, rows, bfloat16 autocast, optimizer and clipping, and waits for nothing. A rate is that
of `--steps` steps after three that warm up, by the wall clock, the GPU waited for at both ends alone. Utilisation is 3
forward passes' model FLOPs per token (`regimen.training.cost`) over the peak of the data sheet; on a CPU over that of a
product timed in float32, which tells nothing but that the code runs. What does not fit the time or the memory is left
out, and the table says so. Options and the overhead of strategies are measured at the first shape.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_bench import SHAPES, Bench

from regimen.runs.estimate import peak_flops
from regimen.runs.summary import machine
from regimen.runs.train import quiet_libraries

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "fused attention and optimizer": (),
    "attention written out": ("model.attn_implementation=eager",),
    "optimizer not fused": ("optimizer.fused=false",),
    "compiled": ("model.compile=true",),
}
_ONE, _TOP = "strategies.odm.draw=multinomial", ("strategies.topk.candidates=64", "strategies.topk.ratio=0.5")
STRATEGIES: Mapping[str, tuple[str, ...]] = {  # one of each kind; what is measured once falls into the warming up
    "selector (topk)": ("method=topk", *_TOP),
    "mixer (odm)": ("method=odm", _ONE),
    "orderer (folding)": ("method=folding",),
    "weighter (loss_weighting)": ("method=loss_weighting",),
    "all four": ("method=[topk,odm,folding,loss_weighting]", *_TOP, _ONE),
}


def measures(benches: list[Bench], options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """What is measured, the most wanted first; a name has its shape before the colon."""
    first = benches[0]
    for b in benches:
        yield f"{b.name}: bare loop", b.bare
        yield f"{b.name}: regimen", b.regimen
    for name, given in STRATEGIES.items():
        yield f"{first.name}: {name}", lambda given=given: first.regimen(*given)
    for backend in ("hooks", "loop"):
        yield f"{first.name}: gradient sketches, {backend}", lambda backend=backend: first.sketches(backend)
    for name, given in OPTIONS.items():
        if given and (options.compile or name != "compiled"):
            yield f"{first.name}: regimen, {name}", lambda given=given: first.regimen(*given)
    for b in benches if options.compile else []:
        yield f"{b.name}: bare loop, compiled", lambda b=b: b.bare("model.compile=true")
        if b is not first:
            yield f"{b.name}: regimen, compiled", lambda b=b: b.regimen("model.compile=true")


@contextmanager
def cleared(device: str) -> Iterator[None]:
    """Nothing of a measurement stays for the next."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    torch.compiler.reset()
    gc.collect()  # a trainer and its callbacks refer to each other
    if device == "cuda":
        torch.cuda.empty_cache()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float] | str]:
    """By name: what was found, or why nothing was."""
    end, found = time.monotonic() + options.minutes * 60, {}
    given: dict[str, Any] = {"device": options.device, "timed": options.steps, "peak": peak_flops()}
    benches = [Bench(name, folder, **given) for name in options.shapes.split(",")]
    for name, call in measures(benches, options):
        if time.monotonic() > end:
            found[name] = "left out: the time was over"
            continue
        with cleared(options.device):
            try:
                found[name] = call()
            except torch.OutOfMemoryError:
                found[name] = "left out: it does not fit the memory"
        print(name, found[name], file=sys.stderr)
    return found


def overheads(found: Mapping[str, Any]) -> dict[str, float]:
    """Seconds over those of what it is compared with: the bare loop, or regimen without a strategy or an option."""
    out = {}
    for name, values in found.items():
        shape, _, what = name.partition(": ")
        other = {"regimen": "bare loop", "regimen, compiled": "bare loop, compiled"}.get(what, "regimen")
        base = found.get(f"{shape}: {other}")
        if what.startswith("gradient sketches"):
            base = found.get(f"{shape}: gradient sketches, loop")
        if isinstance(values, dict) and isinstance(base, dict) and base is not values and not what.startswith("bare"):
            unit = next(iter(values))
            out[f"{name} / {'sketches, loop' if 'sketches' in what else other}"] = base[unit] / values[unit]
    return out


def table(found: Mapping[str, Any]) -> str:
    device = machine()["gpu"] or machine()["cpu"]
    lines = [f"| measure ({device}) | per second | utilisation | GiB at most |", "|---|---|---|---|"]
    for name, values in found.items():
        if isinstance(values, str):
            lines.append(f"| {name} | {values} | | |")
            continue
        unit, rate = next(iter(values.items()))
        used = f"{values['utilisation']:.1%}" if "utilisation" in values else ""
        held = f"{values['GiB at most']:.1f}" if "GiB at most" in values else ""
        lines.append(f"| {name} | {rate:,.4g} {unit.split()[0]} | {used} | {held} |")
    lines += ["", "| seconds of | over those of | ratio |", "|---|---|---|"]
    for name, ratio in overheads(found).items():
        mine, _, theirs = name.rpartition(" / ")
        lines.append(f"| {mine} | {theirs} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", default="160m,0.5b,1.5b", help=f"of {', '.join(SHAPES)}, separated by commas")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no measurement is begun")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use; to see that the code runs: --device cpu --shapes nano")
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(table(found))
    if options.json:
        told = {"machine": machine(), "found": found, "ratios": overheads(found)}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
