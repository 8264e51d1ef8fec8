"""Signals at the setting of the DataFlex study, through the real Meter and in the way of that program: `signals.py`.

That program is not run here: its numbers, `THEIRS`, come from another CPU. Its way is: losses of one row at a time;
for LESS the gradient of one row at a time, and for every 16 of them a dense matrix of random signs drawn anew, from P
to 512 numbers, which is measured for 64 of the 512 and scaled up. A whole selection is made of what a row costs.
bfloat16 is measured where the CPU multiplies it; that program took float32.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from signals_meter import ADAPTERS, CANDIDATES, LORA, NO, TARGETS, YES, Setting, make_setting
from torch import Tensor
from torch.nn import functional as F

from regimen.core.measuring import Sketch
from regimen.core.observation import Observation
from regimen.core.signal import Signal
from regimen.selection.targeted import Targeted
from regimen.signals.ask_llm import AskLlm
from regimen.signals.embedding import Embedding
from regimen.signals.influence import Influence
from regimen.signals.loss import Loss

PROJECTED, DRAWN, TOGETHER = 512, 64, 16  # numbers of a sketch, those that are measured, rows of a projection
THEIRS = {"ms of a row": 38.0, "seconds of LESS": 92.0}
BF16 = "trainer.precision=bf16-mixed"
SELECTED = CANDIDATES + TARGETS  # rows that are differentiated


class Timed(NamedTuple):
    """What is timed: `call`, for `rows` rows. scale: of what is meant to what is timed."""

    rows: int
    call: Callable[[], object]
    scale: float = 1.0


def _measured(setting: Setting, signal: Signal, kind: str, rows: int) -> Timed:
    return Timed(rows, partial(signal.measure, setting.meter, setting.ids(kind, rows)))


def _one_at_a_time(setting: Setting, kind: str, rows: int) -> Timed:
    """Losses as that program takes them."""

    def losses() -> None:
        sweeper = setting.meter.sweeper
        model = sweeper.module.model.eval()
        with torch.no_grad():
            for row in setting.ids(kind, rows):
                batch = sweeper.batch(row[None])
                logits = model(input_ids=batch.inputs, use_cache=False).logits[0].float()  # (L, V)
                F.cross_entropy(logits, batch.targets[0])

    return Timed(rows, losses)


def _less(setting: Setting) -> Timed:
    """The rows of a pool that are kept for its target set, by the model in training."""
    by = Influence(sketch=Sketch(adam="outside", dimensions=PROJECTED))
    selector, index, ids = Targeted(by=by, aggregate="mean", ratio=0.5), setting.pool.train.index, setting.ids("full")

    def select() -> Tensor:
        setting.meter.forget()
        rows = {"ids": ids, "domain": index.domain_of(ids), "tokens": index.tokens_of(ids)}
        when = {"step": 2, "total_steps": 2, "horizon": 0, "generator": torch.Generator()}
        values = {by: by.measure(setting.meter, ids)}
        assert setting.pool.target is not None
        seen = Observation(index=index, **rows, **when, values=values, target=setting.pool.target.index)
        kept = selector.decide(None, seen)
        assert len(kept) == CANDIDATES // 2
        return kept

    return Timed(SELECTED, select)


def _gradients(setting: Setting, rows: int) -> Timed:
    """Of one row at a time, flattened; and Adam's direction, as for a candidate."""
    model, optimizer = setting.run.module.model, setting.run.trainer.optimizers[0]
    trained = [p for p in model.parameters() if p.requires_grad]
    states = [optimizer.state[p] for p in trained]
    first, second = (torch.cat([s[name].flatten() for s in states]) for name in ("exp_avg", "exp_avg_sq"))  # (P,)

    def differentiate() -> None:
        model.eval()
        for row in setting.ids("full", rows):
            batch = setting.meter.sweeper.batch(row[None])
            logits = model(input_ids=batch.inputs, use_cache=False).logits[0].float()  # (L, V)
            F.cross_entropy(logits, batch.targets[0]).backward()
            gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])  # (P,)
            (0.9 * first + 0.1 * gradient) / ((0.999 * second + 0.001 * gradient**2).sqrt() + 1e-8)
            model.zero_grad()

    return Timed(rows, differentiate)


def _projection() -> Timed:
    gradients = torch.randn(TOGETHER, ADAPTERS)

    def project() -> Tensor:
        return gradients @ torch.empty(ADAPTERS, DRAWN).bernoulli_(0.5).mul_(2).sub_(1)  # (16, 64)

    return Timed(TOGETHER, project, PROJECTED / DRAWN)


def _has_bfloat16() -> bool:
    return any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))


class Study(NamedTuple):
    """What is timed, by name, and the mean length of rows by kind."""

    timed: Mapping[str, Timed]
    lengths: Mapping[str, float]


RAGGED, FULL, LESS = "loss, ragged rows", "loss, rows of 128 tokens", "LESS, 256 candidates and 48 targets"
ALONE, ONE, PROJECTION = ", one row at a time", "gradient of one row, for LESS", "dense projection, signs drawn anew"
EMBEDDING, JUDGED = "embedding, ragged rows", "yes or no of Ask-LLM, ragged rows"


def make_study(folder: Path) -> Study:
    whole, adapted = make_setting(folder, "whole"), make_setting(folder, "adapted", *LORA)
    loss = Loss()
    timed = {
        RAGGED: _measured(whole, loss, "ragged", 256),
        RAGGED + ALONE: _one_at_a_time(whole, "ragged", 128),
        FULL: _measured(whole, loss, "full", 64),
        FULL + ALONE: _one_at_a_time(whole, "full", 64),
        LESS: _less(adapted),
        ONE: _gradients(adapted, 16),
        PROJECTION: _projection(),
        EMBEDDING: _measured(whole, Embedding(), "ragged", 256),
        JUDGED: _measured(whole, AskLlm(yes_words=[YES], no_words=[NO]), "ragged", 64),
    }
    if _has_bfloat16():
        half, half_adapted = make_setting(folder, "half", BF16), make_setting(folder, "half-adapted", BF16, *LORA)
        timed |= {
            f"{RAGGED}, bfloat16": _measured(half, loss, "ragged", 256),
            f"{FULL}, bfloat16": _measured(half, loss, "full", 64),
            f"{LESS}, bfloat16": _less(half_adapted),
        }
    return Study(timed, {kind: whole.mean_length(kind) for kind in ("ragged", "full")})


def seconds_of(study: Study, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of a row by what is timed, one per round."""
    found: dict[str, list[float]] = {name: [] for name in study.timed}
    for repeat in range(repeats):  # none to warm up: the runs have trained and evaluated
        for name, (rows, call, scale) in study.timed.items():
            start = time.process_time()
            call()
            found[name].append((time.process_time() - start) * scale / rows)
        print(f"study: round {repeat + 1} of {repeats}", file=sys.stderr)
    return found


def table(found: Mapping[str, list[float]], lengths: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Rows of measure, value and goal."""
    rows = []
    for name in (n for n in found if n.startswith((RAGGED, FULL))):
        goal = "" if name.endswith((ALONE, "bfloat16")) else f"<= {THEIRS['ms of a row'] / 2.5:.1f}, theirs 38"
        length = f"mean length {lengths['ragged']:.0f}" if name.startswith(RAGGED) else ""
        rows.append((", ".join(filter(None, (name, length, "CPU ms of a row"))), _spread(found[name], 1e3), goal))
    for kind in (RAGGED, FULL):
        for precision in ("", ", bfloat16"):
            if kind + precision in found:
                ratios = [a / b for a, b in zip(found[kind + ALONE], found[kind + precision], strict=True)]
                rows.append((f"{kind}{precision}, speed / one row at a time", _spread(ratios), ""))
    theirs = [SELECTED * (one + projected) for one, projected in zip(found[ONE], found[PROJECTION], strict=True)]
    rows += [(f"{name}, CPU ms of a row", _spread(found[name], 1e3), "") for name in (ONE, PROJECTION)]
    rows.append((f"{LESS} in their way, CPU seconds", _spread(theirs), "theirs 92"))
    for name in (n for n in found if n.startswith(LESS)):
        mine, plain = [SELECTED * seconds for seconds in found[name]], name == LESS
        fifth = THEIRS["seconds of LESS"] / 5
        rows.append((f"{name}, CPU seconds", _spread(mine), f"<= {fifth:.1f}, theirs 92" if plain else ""))
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        rows.append((f"{name}, CPU seconds / in their way", _spread(ratios), "<= 0.2" if plain else ""))
    for name in (EMBEDDING, JUDGED):
        rows.append((f"{name}, rows per CPU second", _spread([1 / s for s in found[name]]), ""))
    return rows


def _spread(values: list[float], scale: float = 1.0) -> str:
    low, middle, high = (scale * v for v in (min(values), statistics.median(values), max(values)))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"
