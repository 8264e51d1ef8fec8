"""Co-state scores through the meter: as autograd gives them on the live model, which is left alone; two processes."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regimen.core.descent import Descent
from regimen.core.errors import ConfigError
from regimen.core.measuring import Example
from regimen.signals.co_state import CoState, standardised
from regimen.training.descending import drawn
from regimen.training.meter import RowMeter
from tests.integration.test_meter import IDS
from tests.integration.test_meter import corpus as corpus
from tests.integration.test_meter import finished as finished
from tests.integration.test_meter import home as home
from tests.integration.test_meter import meter as meter
from tests.integration.test_meter import pool as pool
from tests.integration.test_planted_truth import Place
from tests.support.planted import Record, auroc, ids_of_rows, write
from tests.support.runs import SMALL, write_corpus

SHORT = Descent(steps=3, lr=0.1, batch_rows=4, annotate_every=2)


def mean_loss(model: nn.Module, examples: list[Example]) -> Tensor:
    """The mean over rows of the mean loss of their tokens, row by row."""
    out = []
    for row in examples:
        logits = model(input_ids=row.tokens[None, :-1]).logits[0]
        out.append(cross_entropy(logits, row.tokens[1:], reduction="none")[row.learnt[1:]].mean())
    return torch.stack(out).mean()


def by_hand(meter: RowMeter, ids: Tensor, descent: Descent) -> tuple[Tensor, Tensor]:
    """PDS and LQS of rows without curvature: then the co-state is a plain sum of target gradients."""
    models = [copy.deepcopy(meter.sweeper.module.model).eval()]
    for batch in drawn(meter.index.rows, descent):
        model = copy.deepcopy(models[-1])
        mean_loss(model, meter.examples(batch)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= descent.lr * p.grad
                p.grad = None
        models.append(model)

    def slopes(model: nn.Module, examples: list[Example]) -> Tensor:
        found = torch.autograd.grad(mean_loss(model, examples), list(model.parameters()))
        return torch.cat([g.flatten() for g in found]).double()

    whole = torch.arange(meter.target.index.rows)
    aims = [slopes(model, meter.target.examples(whole)) for model in models]
    pds, lqs = torch.zeros(len(ids)).double(), torch.zeros(len(ids)).double()
    for place, row in enumerate(ids.tolist()):
        g = [slopes(model, meter.examples(torch.tensor([row]))) for model in models]
        for t in descent.times:
            dot = sum(aims[t + 1 :]) @ g[t]
            pds[place] += dot
            lqs[place] += dot / g[min(t + descent.annotate_every, descent.steps)].norm()
    return pds, lqs


def test_scores_are_those_of_plain_autograd(meter: RowMeter) -> None:
    descent = Descent(steps=3, lr=0.1, batch_rows=4, annotate_every=2, hessian="none")
    before = copy.deepcopy(meter.sweeper.module.state_dict())
    state = torch.get_rng_state()
    for kind, wanted in zip(("pds", "lqs"), by_hand(meter, IDS, descent), strict=True):
        found = CoState(kind=kind, descent=descent).measure(meter, IDS)
        assert found.dtype == torch.float64
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    module = meter.sweeper.module
    assert module.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("backend", ["jvp", "finite_difference", "loop"])
def test_backends_and_parts_agree(meter: RowMeter, backend: str) -> None:
    reference = CoState(descent=SHORT).measure(meter, IDS)
    twice = torch.cat([IDS.flip(0), IDS[:1]])
    found = CoState(descent=Descent(**{**vars(SHORT), "backend": backend})).measure(meter, twice)
    near = 3e-2 if backend == "finite_difference" else 1e-3
    assert torch.allclose(found[:-1].flip(0), reference, rtol=near, atol=near * float(reference.abs().max()))
    assert float(found[-1]) == pytest.approx(float(found[-2]), rel=1e-4)


def test_curvature_by_differences_is_near_the_exact_one(meter: RowMeter) -> None:
    exact, near, without = (
        CoState(kind="pds", descent=Descent(**{**vars(SHORT), "hessian": how})).measure(meter, IDS)
        for how in ("exact", "finite_difference", "none")
    )
    assert float((near - exact).norm()) < 0.1 * float((without - exact).norm())


def test_the_descent_is_charged(meter: RowMeter) -> None:
    clock = meter.sweeper.clock
    CoState(kind="pds", descent=SHORT).measure(meter, IDS)
    flops = clock.charges["measuring"].flops

    def passes(of: RowMeter, ids: Tensor) -> float:
        from regimen.training.cost import rows_flops

        return rows_flops(meter.sweeper.module.forward_flops, of.index.inputs_of(ids))

    steps = drawn(meter.index.rows, SHORT).flatten()
    aim = passes(meter.target, torch.arange(meter.target.index.rows))
    # Every step twice forward and backward, and its curvature for two more; four target gradients; two times of rows.
    assert flops == pytest.approx(12 * passes(meter, steps) + 4 * 3 * aim + 2 * 3 * passes(meter, IDS))


def test_a_finished_run_gives_its_checkpoints(meter: RowMeter, finished: Path) -> None:
    found = CoState(run=str(finished), descent=SHORT).measure(meter, IDS)
    paths = [checkpoint.path for checkpoint in meter.checkpoints(str(finished))]
    assert len(paths) == 2
    each = [CoState(descent=SHORT).measure(meter.under(path), IDS) for path in paths]
    assert torch.allclose(found, (standardised(each[0]) + standardised(each[1])) / 2)


def test_a_descent_too_fast_is_refused(meter: RowMeter) -> None:
    with pytest.raises(ConfigError, match=r"lower lr"):
        CoState(descent=Descent(steps=4, lr=1e30, batch_rows=4, hessian="none")).measure(meter, IDS)


def test_a_walk_back_is_found_under_its_own_key_alone(meter: RowMeter, tmp_path: Path) -> None:
    """What was kept of one descent, of one set of rows, under one model is of no use to another."""
    clock, wanted = meter.sweeper.clock, CoState(descent=SHORT).measure(meter, IDS)
    others = [
        (CoState(descent=Descent(**{**vars(SHORT), "seed": 1})), IDS),
        (CoState(descent=SHORT), IDS.flip(0)),
        (CoState(kind="pds", descent=SHORT), IDS),  # needs no lengths
    ]
    before = [signal.measure(meter, ids) for signal, ids in others]
    with meter.halfway.at(tmp_path):
        assert torch.equal(CoState(descent=SHORT).measure(meter, IDS), wanted)
        assert len(list(tmp_path.glob("descent-*.pt"))) == 1
        flops = clock.charges["measuring"].flops
        again = CoState(descent=SHORT).measure(meter, IDS)  # all of it was kept
        assert torch.equal(again, wanted) and len(list(tmp_path.iterdir())) == 1
        assert clock.charges["measuring"].flops > flops, "and is charged"
        for (signal, ids), found in zip(others, before, strict=True):
            assert torch.equal(signal.measure(meter, ids), found)
        assert len(list(tmp_path.iterdir())) == 4


# ---- planted noise ------------------------------------------------------------------------------------------------


def counting(rows: int, *, seed: int, noisy: int) -> list[Record]:
    """Questions that are answered by counting; of the first ones the letters of the answer are shuffled."""
    rng, out = random.Random(seed), []
    for i in range(rows):
        start, step = rng.randrange(60), rng.randrange(1, 4)
        letters = list(" ".join(str(start + step * k) for k in range(10)))
        if i < noisy:
            rng.shuffle(letters)
        name = f"{'noisy' if i < noisy else 'clean'}-{seed}-{i}"
        asked = f"from {start} by {step}"
        out.append({"id": name, "instruction": asked, "input": "", "output": "".join(letters), "task": "count"})
    rng.shuffle(out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lqs", "pds"])
def test_noise_has_low_scores(tmp_path: Path, kind: str) -> None:
    """A third of the rows are shuffled. AUROC 0.97 (LQS), 0.95 (PDS); the loss has 0.998, a trigram model's 0.82."""
    place = Place(
        tmp_path,
        *(f"dataset.path={write(counting(120, seed=0, noisy=40), tmp_path / 'pool.jsonl')}", "dataset.seq_len=256"),
        *("dataset.tokenizer.kind=bytes", "optimizer.lr=5e-3"),
        f"dataset.target.path={write(counting(16, seed=1, noisy=0), tmp_path / 'target.jsonl')}",
    )
    warm = place.train("warm", "method=natural", "budget.epochs=16")
    descent = [f"strategies.lqs.by.descent.{x}" for x in ("steps=20", "annotate_every=10", "lr=0.02", "batch_rows=8")]
    table = place.score(kind, "method=lqs", f"strategies.lqs.by.kind={kind}", f"strategies.lqs.by.run={warm}", *descent)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for name, score in zip(ids_of_rows(place.pool()), table["score"], strict=True):
        scores[name.startswith("clean")].append(score)
    assert len(scores[False]) > 20
    assert auroc(scores[True], scores[False]) > 0.9


# ---- two processes ------------------------------------------------------------------------------------------------

RUN = (
    *("method=lqs", "strategies.lqs.by.descent.steps=2", "strategies.lqs.by.descent.annotate_every=1"),
    *("strategies.lqs.by.descent.lr=0.1", "strategies.lqs.ratio=0.37", "budget.steps=2", "evaluation.at=[]"),
    "dataset.target={path: null, from: [sums], rows_per_subtask: 3, seed: 0}",
)


def scored(home: Path, name: str, *overrides: str) -> dict:
    """What a run in processes of its own decided."""
    fixed = (f"dataset.path={home}/corpus", f"paths.pools={home}/pools", f"run_dir={home}/{name}")
    store = f"paths.store={home}/store-{name}"  # nothing is shared
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, store, *RUN, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    (array,) = (home / f"store-{name}").rglob("values.npy")
    told = [json.loads(line) for line in (home / name / "record.jsonl").read_text().splitlines()]
    return {"values": array, "record": told}


SCORER = [f"strategies.lqs.by.scorer.{x}" for x in ("model=own", "rows=30", "epochs=2", "batch_rows=4", "lr=1e-2")]


@pytest.mark.processes
@pytest.mark.parametrize(("more", "near"), [([], 1e-5), (SCORER, 1e-3)], ids=["measured", "learnt"])
def test_two_processes_score_as_one(tmp_path: Path, more: list[str], near: float) -> None:
    """V9: every row has the score that it has in one process, with a number of rows that two do not divide."""
    import numpy as np

    write_corpus(tmp_path / "corpus", documents=7)
    one = scored(tmp_path, "one", *more)
    two = scored(tmp_path, "two", "trainer=ddp", "trainer.accelerator=cpu", *more)
    a, b = (np.load(found["values"]) for found in (one, two))
    assert len(a) % 2 == 1 and len(a) == len(b)
    assert one["record"][0]["kind"] == "selector"
    assert np.allclose(a, b, rtol=1e-4, atol=near * np.abs(a).max())
