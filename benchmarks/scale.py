"""Memory and time of the rows' bookkeeping at 10^6 to 10^8 rows: index, stream, orders, saved state.

    python benchmarks/scale.py [--rows 1e6,1e7,1e8] [--only sorted,stream] [--limit-gb 10] [--json out.json] [--table]

Every part is measured in a process of its own. Held: what the process keeps; peak: the most that it took on the way;
both as resident memory above what stood before, pages of mapped files included. Seconds are CPU seconds of one thread,
since a machine may be shared. A process that would take more than the limit is stopped, and the line says so. Orders
are those of a run that serves every row once, with 8 domains and no mixture; scores are float64 unless the line says
otherwise. `--table` formats a saved `--json` instead of measuring.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from regimen.core.index import PoolIndex
from regimen.core.plan import Plan
from regimen.core.stream import Stream

DOMAINS = tuple("abcdefgh")
BATCH = 256
ORDERS = {
    "shuffle": "regimen.ordering.shuffle.Shuffle",
    "sorted": "regimen.ordering.sorted.Sorted",
    "folding": "regimen.ordering.folding.Folding",
    "zigzag": "regimen.ordering.zigzag.Zigzag",
    "segment": "regimen.ordering.segment.Segment",
    "stair": "regimen.ordering.stair.Stair",
    "saw": "regimen.ordering.saw.Saw",
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}


class Line(NamedTuple):
    """One measurement. held, peak: bytes."""

    name: str
    rows: int
    seconds: float
    held: float
    peak: float


def resident(kind: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise ValueError(kind)


class Clock:
    """Measures blocks; each starts with the peak set back to what is resident."""

    def __init__(self, rows: int) -> None:
        self.rows, self.lines = rows, []

    @contextmanager
    def line(self, name: str) -> Iterator[None]:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = resident("VmRSS"), time.process_time()
        yield
        seconds, peak = time.process_time() - start, resident("VmHWM")
        gc.collect()
        held = resident("VmRSS") - before
        self.lines.append(Line(name, self.rows, seconds, held, peak - before))


def index_of(rows: int, *, ragged: bool = False) -> PoolIndex:
    """Eight domains of rows of 256 tokens, or of 1 to 256."""
    offsets = torch.arange(len(DOMAINS) + 1) * rows // len(DOMAINS)
    tokens: Any = 256
    if ragged:
        tokens = torch.randint(1, 257, (rows,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    return PoolIndex(domains=DOMAINS, offsets=offsets, target_tokens=tokens, fingerprint="scale")


def stream_of(index: PoolIndex) -> Stream:
    return Stream(index, seed=0, batch_size=BATCH, total_steps=index.rows // BATCH, max_epochs=4)


def mixture() -> dict[str, float]:
    return {name: (k + 1) / 36 for k, name in enumerate(DOMAINS)}


# ---- what is measured --------------------------------------------------------------------------------------------


def index(clock: Clock) -> None:
    with clock.line("index, rows of one length"):
        one = index_of(clock.rows)
        one.mean_tokens()
    tokens = index_of(clock.rows, ragged=True).target_tokens
    with clock.line("index, rows of many lengths"):
        many = PoolIndex(domains=DOMAINS, offsets=one.offsets, target_tokens=tokens.clone())
    with clock.line("its tokens by domain"):
        many.domain_tokens()
    ids = torch.randint(0, clock.rows, (BATCH,))
    with clock.line("domains and tokens of a batch"):
        many.domain_of(ids), many.tokens_of(ids)


def stream(clock: Clock) -> None:
    rows = index_of(clock.rows)
    with clock.line("stream, before the first batch"):
        s = stream_of(rows)
    with clock.line("first batch"):
        s.next()
    with clock.line("a later batch"):
        s.next()
    with clock.line("how often each row was served"):
        s.counts()
    state = s.state_dict()
    with clock.line("resume, to the first batch"):
        again = stream_of(rows)
        again.load_state_dict(state)
        again.next()


def mixed(clock: Clock) -> None:
    rows = index_of(clock.rows, ragged=True)
    s = stream_of(rows)
    with clock.line("a mixture begins, to its first batch (rows of many lengths)"):
        s.update(Plan(mixture=mixture()))
        s.next()
    with clock.line("a later batch under a mixture"):
        s.next()


def keep(clock: Clock) -> None:
    s = stream_of(index_of(clock.rows))
    with clock.line("a selector's rows come, half of all, to the first batch"):
        s.update(Plan(keep=torch.arange(0, clock.rows, 2)), rows=BATCH)
        s.next()


def order(name: str, clock: Clock) -> None:
    from importlib import import_module

    from regimen.core.strategy import Observation
    from regimen.signals.loss import Length

    name, _, dtype = name.partition(" ")
    module, _, kind = ORDERS[name].rpartition(".")
    by = {} if name == "shuffle" else {"by": Length()}
    orderer = getattr(import_module(module), kind)(**by)
    rows = index_of(clock.rows)
    s = stream_of(rows)
    ids = torch.arange(clock.rows)
    scores = torch.randint(0, 1 << 20, (clock.rows,), generator=torch.Generator().manual_seed(1))
    scores = scores.to(DTYPES[dtype or "float64"])
    seen = Observation(
        step=0, total_steps=s.total_steps, index=rows, ids=ids, domain=ids[:0], tokens=ids[:0],
        values={Length(): scores}, horizon=clock.rows, generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    title = f"{name} of {dtype} scores" if dtype else name
    with clock.line(f"{title}: keys"):
        keys = orderer.decide(orderer.init(rows), seen)
    if dtype:
        return
    with clock.line(f"{title}: ids in their order"):
        ordered = orderer.checked(keys, seen)
    del keys, seen, scores, ids
    with clock.line(f"{title}: to the first batch"):
        s.update(s.plan.with_(order=ordered))
        s.next()


def groups(clock: Clock) -> None:
    s = stream_of(index_of(clock.rows))
    with clock.line("the rows to be ordered"):
        s.groups()


def saving(clock: Clock) -> None:
    from regimen.training.tensors import externalise, internalise

    s = stream_of(index_of(clock.rows))
    s.update(s.plan.with_(order=torch.randperm(clock.rows)))
    s.next()
    with tempfile.TemporaryDirectory() as folder:
        with clock.line("a checkpoint with an order"):
            saved = externalise(s.state_dict(), Path(folder))
        with clock.line("the next checkpoint with the same order"):
            externalise(s.state_dict(), Path(folder))
        del s
        again = stream_of(index_of(clock.rows))
        with clock.line("resume with an order, to the first batch"):
            again.load_state_dict(internalise(saved, Path(folder)))
            again.next()


def pool(clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as name:
        manifest = rows_on_disk(Path(name), clock.rows)
        for ragged in (False, True):
            opened(clock, Path(name), manifest | {"row_tokens": {"train": None if ragged else 3}}, ragged=ragged)


def opened(clock: Clock, folder: Path, manifest: dict[str, Any], *, ragged: bool) -> None:
    from regimen.data.pool import RowTable

    how = "many lengths" if ragged else "one length"
    with clock.line(f"open a pool, rows of {how}"):
        table = RowTable(folder, "train", manifest)
    if ragged:
        return
    ids = torch.randint(0, clock.rows, (BATCH,), generator=torch.Generator().manual_seed(3))
    with clock.line("tokens of the first batch"):
        table.read(ids)
    with clock.line("tokens of a later batch"):
        table.read(ids.flip(0))


def rows_on_disk(folder: Path, rows: int) -> dict[str, Any]:
    """A pool's row files with rows of three tokens, written as `prepare` does; returns what the manifest tells."""
    from regimen.data.packing import as_lists
    from regimen.data.tables import TableWriter, rows_schema

    files = []
    for k, domain in enumerate(DOMAINS):
        own = rows * (k + 1) // len(DOMAINS) - rows * k // len(DOMAINS)
        writer = TableWriter(folder / domain / "train.arrow", rows_schema(4096))
        for first in range(0, own, 1 << 20):
            n = min(1 << 20, own - first)
            each = np.arange(n + 1)
            columns = {
                "tokens": as_lists(np.ones(3 * n, np.uint16), 3 * each),
                "document": as_lists(np.arange(n), each),
                "start": as_lists(np.zeros(n, np.int32), each),
                "offset": as_lists(np.zeros(n, np.int64), each),
            }
            writer.write(columns)
        writer.close()
        files.append({"path": domain, "domain": domain, "first_document": 0, "train_rows": own})
    tokenizer = {"pad_id": 0}
    return {"files": files, "domains": list(DOMAINS), "tokenizer": tokenizer, "fingerprint": "scale"}


PARTS: dict[str, Callable[[Clock], None]] = {
    "index": index, "pool": pool, "stream": stream, "mixed": mixed, "keep": keep, "groups": groups, "saving": saving,
}  # fmt: skip
NAMES = [*PARTS, *ORDERS, *(f"{name} {dtype}" for name in ("sorted", "folding") for dtype in DTYPES)]


def measure(name: str, rows: int) -> list[Line]:
    clock = Clock(rows)
    torch.set_num_threads(1)
    if name in PARTS:
        PARTS[name](clock)
    else:
        order(name, clock)
    return clock.lines


def in_a_process(name: str, rows: int, limit: float) -> list[Line]:
    """The lines of one part, or one that says why there are none."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9),) * 2)

    command = [sys.executable, __file__, "--part", name, "--rows", str(rows)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}  # what is freed goes back to the system at once
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, env=environment)
    if done.returncode:
        print(f"{name}, {rows:,} rows: {done.stderr.strip().splitlines()[-1][:200]}", file=sys.stderr)
        return [Line(f"{name}: over {limit:g} GB", rows, float("nan"), float("nan"), float("nan"))]
    return [Line(*line) for line in json.loads(done.stdout)]


def table(lines: list[Line]) -> str:
    """One row per measurement and a pair of columns per number of rows."""
    sizes = sorted({line.rows for line in lines})
    found = {(line.name, line.rows): line for line in lines}
    counts = [f"{size:.0e} rows: time, held, peak".replace("e+0", "e") for size in sizes]
    head = ["", *counts, "bytes a row: held, peak"]
    out = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in dict.fromkeys(line.name for line in lines):
        cells, last = [], None
        for size in sizes:
            line = found.get((name, size))
            last = line or last
            cells.append("" if line is None else f"{line.seconds:.2g} s, {words(line.held)}, {words(line.peak)}")
        assert last is not None
        each = f"{last.held / last.rows:.1f}, {last.peak / last.rows:.1f}"
        out.append(f"| {name} | {' | '.join(cells)} | {each} |")
    return "\n".join(out)


def words(size: float) -> str:
    size = max(size, 0.0)
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1e6,1e7,1e8")
    parser.add_argument("--only", help=f"parts separated by commas: {', '.join(NAMES)}")
    parser.add_argument("--limit-gb", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(float(size)) for size in options.rows.split(",")]
    if options.part:
        print(json.dumps(measure(options.part, sizes[0])))
        return
    if options.table:
        print(table([Line(*line) for line in json.loads(options.json.read_text())]))
        return
    lines: list[Line] = []
    for size in sizes:
        for name in options.only.split(",") if options.only else NAMES:
            lines += in_a_process(name, size, options.limit_gb)
            print(f"{name}, {size:,} rows", file=sys.stderr)
            if options.json:
                options.json.write_text(json.dumps(lines))
    print(table(lines))


if __name__ == "__main__":
    main()
