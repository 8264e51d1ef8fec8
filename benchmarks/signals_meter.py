"""The real Meter for `benchmarks/signals.py`, under the model and the rows of the DataFlex study.

Its setting: a Qwen2 of 11.8 million parameters (8 layers of width 256, vocabulary 4096), new or with adapters of rank 8
on all linear layers (450,560 parameters), rows of at most 128 tokens, batches of 8 rows. The text is made up, for there
is no corpus to download: words of random syllables, in examples of two kinds. `ragged`: answers of about 30 words, some
far longer, as in fine-tuning data; `full`: answers so long that every row is cut at 128 tokens. A run of two steps goes
before all measurements, so that adapters are no longer zero and the optimizer has its moments.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regimen.data.pool import Pool
from regimen.runs.attempt import Attempt
from regimen.runs.experiment import make_pool
from regimen.runs.run import Run
from regimen.training.meter import RowMeter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CANDIDATES, TARGETS = 256, 48
RAGGED, FULL = 320, 340  # examples; some are set aside
PARAMETERS, ADAPTERS = 11_806_976, 450_560
_KINDS = ("full", "ragged")
_MODEL = ("model=tiny", "model.config.intermediate_size=1408", "model.config.num_key_value_heads=4")
_RUN = (
    *("dataset=sft_files", "objective=sft", "dataset.domain_field=kind", "dataset.seq_len=128", "dataset.overlap.n=0"),
    *("dataset.validation.max_rows=2", "trainer.global_batch_size=8", "trainer.progress=none", "evaluation.at=[1]"),
    *("budget.steps=2", "trainer.save_every_minutes=null", "method=natural", *_MODEL),
    f"dataset.target={{path: null, from: [full], rows_per_subtask: {TARGETS}, seed: 0}}",
)
_ADAPTERS = ("model.lora.rank=8", "model.lora.alpha=16")


class Setting(NamedTuple):
    """meter: of the rows of `pool.train`, under the model of `run`. optimizer: that of the run, with its moments."""

    run: Run
    pool: Pool
    meter: RowMeter

    def ids(self, kind: str, count: int = CANDIDATES) -> Tensor:
        """The first `count` rows of a kind."""
        index = self.pool.train.index
        domain = index.domain_of(torch.arange(index.rows))
        return (domain == index.domains.index(kind)).nonzero()[:count, 0]


def make_settings(folder: Path) -> tuple[Setting, Setting]:
    """Under a whole model, and under one with adapters; `folder` takes the pool and the runs."""
    _write_examples(folder / "examples.jsonl")
    whole, adapted = _setting(folder, "whole"), _setting(folder, "adapted", *_ADAPTERS)
    sizes = [sum(p.numel() for p in s.run.module.model.parameters() if p.requires_grad) for s in (whole, adapted)]
    assert sizes == [PARAMETERS, ADAPTERS], sizes
    return whole, adapted


def _setting(folder: Path, name: str, *overrides: str) -> Setting:
    from tests.support.runs import compose_settings

    places = (f"dataset.path={folder}/examples.jsonl", f"paths.pools={folder}/pools", f"paths.outputs={folder}/outputs")
    settings: dict[str, Any] = compose_settings(*_RUN, *places, f"paths.store={folder}/store", *overrides)
    pool = make_pool(settings, progress=False)
    run = Run(settings, folder / name, Attempt("begin", None, "benchmark"), pool, None, 0, [])
    run._open_folder()
    run.trainer.fit(run.module, run.context.loader)
    meter = run.context.board.meter
    assert isinstance(meter, RowMeter)
    return Setting(run, pool, meter)


def _write_examples(path: Path) -> None:
    rng = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "on")]
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 3)))) for _ in range(6000)] + ["yes", "no"] * 40

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    with path.open("w") as file:
        for kind, count in (("full", FULL), ("ragged", RAGGED)):
            for number in range(count):
                length = 150 if kind == "full" else max(1, min(150, round(rng.lognormvariate(3.4, 0.9))))
                record = {"id": f"{kind}-{number}", "instruction": text(rng.randint(4, 20)), "output": text(length)}
                file.write(json.dumps({**record, "kind": kind}) + "\n")
