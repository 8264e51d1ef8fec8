"""The real Meter for `benchmarks/signals.py`, under the models and with rows like those of the DataFlex study.

Its setting: a Qwen2 of 11.8 million parameters (8 layers of width 256, vocabulary 4096), new or with adapters of rank 8
on all linear layers (450,560 parameters), rows of at most 128 tokens, batches of 8 rows. Examples are cut out of
Python's own help texts, which every machine has: `ragged` ones with answers of a few words or many, as fine-tuning data
has them, and `full` ones that are all cut at 128 tokens. A run of two steps goes before all measurements, so that
adapters are no longer zero and the optimizer has its moments.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from pydoc_data.topics import topics
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
PARAMETERS, ADAPTERS = 11_806_976, 450_560
YES, NO = " yes", " no"  # a token each
_EXAMPLES = {"full": 340, "ragged": 320}  # some are set aside
_LONGEST = 150  # words of an answer, more than a row has room for
_RUN = (
    *("dataset=sft_files", "objective=sft", "dataset.domain_field=kind", "dataset.seq_len=128", "dataset.overlap.n=0"),
    *("dataset.validation.max_rows=2", "trainer.global_batch_size=8", "trainer.progress=none", "evaluation.at=[1]"),
    *("budget.steps=2", "trainer.save_every_minutes=null", "method=natural", "model=tiny"),
    *("model.config.intermediate_size=1408", "model.config.num_key_value_heads=4"),
    f"dataset.target={{path: null, from: [full], rows_per_subtask: {TARGETS}, seed: 0}}",
)
LORA = ("model.lora.rank=8", "model.lora.alpha=16")


class Setting(NamedTuple):
    """A run that has made its steps. meter: of the rows of `pool.train`, under its model."""

    run: Run
    pool: Pool
    meter: RowMeter

    def ids(self, kind: str, count: int = CANDIDATES) -> Tensor:
        """`count` rows (n,) of a kind, spread over all of them."""
        index = self.pool.train.index
        found = (index.domain_of(torch.arange(index.rows)) == index.domains.index(kind)).nonzero()[:, 0]
        assert len(found) >= count, (kind, len(found))
        return found[torch.arange(count) * len(found) // count]

    def mean_length(self, kind: str) -> float:
        """Tokens that the model reads of a row."""
        return float(self.pool.train.index.inputs_of(self.ids(kind)).double().mean())


def make_setting(folder: Path, name: str, *overrides: str) -> Setting:
    """`folder` takes the examples, the pool and the runs."""
    from tests.support.runs import compose_settings

    examples = folder / "examples.jsonl"
    if not examples.is_file():
        _write_examples(examples)
    places = (f"dataset.path={examples}", f"paths.pools={folder}/pools", f"paths.outputs={folder}/outputs")
    settings: dict[str, Any] = compose_settings(*_RUN, *places, f"paths.store={folder}/store", *overrides)
    pool = make_pool(settings, progress=False)
    run = Run(settings, folder / name, Attempt("begin", None, "benchmark"), pool, None, 0, [])
    run._open_folder()
    run.trainer.fit(run.module, run.context.loader)
    trained = sum(p.numel() for p in run.module.model.parameters() if p.requires_grad)
    assert trained == (ADAPTERS if set(LORA) <= set(overrides) else PARAMETERS), trained
    assert run.context.board is not None
    meter = run.context.board.meter
    assert isinstance(meter, RowMeter)
    return Setting(run, pool, meter)


def _write_examples(path: Path) -> None:
    rng = random.Random(0)
    words = " ".join(topics.values()).split()

    def text(count: int) -> str:
        start = rng.randrange(len(words) - count)
        return " ".join(words[start : start + count])

    with path.open("w") as file:
        for kind, count in _EXAMPLES.items():
            for number in range(count):
                length = _LONGEST if kind == "full" else min(_LONGEST, round(rng.lognormvariate(3.2, 0.9)))
                answer = text(max(length // 2, 1)) + rng.choice((YES, NO)) + " " + text(max(length - length // 2, 1))
                record = {"id": f"{kind}-{number}", "instruction": text(rng.randint(4, 20)), "output": answer}
                file.write(json.dumps({**record, "kind": kind}) + "\n")
