"""Rows measured through the meter: as one at a time, under any model, in a pool or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regimen.core.errors import ConfigError
from regimen.core.measuring import POOLINGS, Example, Sketch
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.runs.models import make_model
from regimen.runs.references import RunModels, load_model
from regimen.training.callbacks.checkpoint import checkpoints
from regimen.training.cost import CostClock
from regimen.training.meter import RowMeter
from regimen.training.module import LanguageModule, Objective
from regimen.training.sweep import Sweeper
from tests.integration.test_sft import SFT
from tests.integration.test_sft import corpus as corpus  # three tasks with answers of 1 to 40 words
from tests.support.runs import lines, run, settings_of

TARGET = "dataset.target={path: null, from: [say, sums], rows_per_subtask: 3, seed: 0}"
RUN = (*SFT, TARGET, "trainer.micro_batch_size=4")
SAVED = ("trainer.save_at=[0.5,1]", "optimizer.schedule.warmup=0.5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def pool(corpus: Path, home: Path) -> Pool:
    return make_pool(settings_of(corpus, home, *RUN), progress=False)


@pytest.fixture(scope="module")
def finished(corpus: Path, home: Path) -> Path:
    return run(corpus, home, *RUN, *SAVED)


def meter_of(pool: Pool, settings: dict, *, rows: int = 5) -> RowMeter:
    torch.manual_seed(0)
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    module = LanguageModule(make_model(settings["model"], pool), Objective(kind="sft"), lambda m: (None, None))
    sweeper = Sweeper(
        trainer,
        module,
        pool.train,
        clock=CostClock(),
        purpose="measuring",
        batch_size=rows,
        gradient_rows=rows,
        token_bytes=pool.token_bytes,
        tokenizer=pool.tokenizer_path,
        document_mask=False,
    )
    return RowMeter(sweeper, pool, RunModels(pool, trainer, module), table=pool.train)


@pytest.fixture
def meter(pool: Pool, corpus: Path, home: Path) -> RowMeter:
    return meter_of(pool, settings_of(corpus, home, *RUN))


IDS = torch.tensor([7, 0, 33, 80, 12, 5, 64])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_states_of_a_batch_are_those_of_one_row(meter: RowMeter, pooling: str, layer: int) -> None:
    together = meter.states(IDS, layer=layer, pooling=pooling)
    assert len(set(meter.index.inputs_of(IDS).tolist())) > 3, "rows of many lengths"
    for row, state in zip(IDS, together, strict=True):
        tokens = meter.table.read(row[None]).tokens[:, :-1]
        with torch.no_grad():
            model = meter.sweeper.module.model.eval()
            out = model.base_model(input_ids=tokens, output_hidden_states=True)
        states = out.last_hidden_state[0] if layer == -1 else out.hidden_states[layer][0]  # (T, width)
        place = torch.arange(1, len(states) + 1).float()
        weight = {"mean": torch.ones_like(place), "position_weighted": place, "last": (place == len(states)).float()}
        expected = (states * (weight[pooling] / weight[pooling].sum())[:, None]).sum(0)
        assert torch.allclose(state, expected, atol=1e-5)


def gradient(model: torch.nn.Module, example: Example) -> Tensor:
    """(P,) of the mean loss of one example, by autograd."""
    logits = model(input_ids=example.tokens[None, :-1]).logits[0]  # (T, V)
    losses = cross_entropy(logits, example.tokens[1:], reduction="none")[example.learnt[1:]]
    parts = torch.autograd.grad(losses.mean(), [p for p in model.parameters() if p.requires_grad])
    return torch.cat([part.flatten() for part in parts])


def test_sketches_are_gradients_of_the_rows(meter: RowMeter) -> None:
    model = meter.sweeper.module.model
    whole = meter.sketches(IDS, Sketch(kind="whole"))
    model.eval()
    for row, example in zip(whole, meter.examples(IDS), strict=True):
        assert torch.allclose(row, gradient(model, example), atol=1e-5)
    assert all(p.grad is None for p in model.parameters())
    short = meter.sketches(IDS, Sketch(dimensions=64))
    assert short.shape == (7, 64)
    assert torch.equal(short, meter.sketches(IDS, Sketch(dimensions=64)))
    by_loop = meter.sketches(IDS, Sketch(dimensions=64, backend="loop"))
    assert torch.allclose(short, by_loop, atol=1e-5)


def test_rows_of_no_pool_are_measured_as_those_of_one(meter: RowMeter) -> None:
    outside = meter.of(meter.examples(IDS))
    places = torch.arange(len(IDS))
    for inside, found in zip(meter.losses(IDS), outside.losses(places), strict=True):
        assert torch.allclose(inside, found, atol=1e-6)
    sketch = Sketch(dimensions=32)
    assert torch.allclose(meter.sketches(IDS, sketch), outside.sketches(places, sketch), atol=1e-6)
    with pytest.raises(AssertionError, match="no documents"):
        outside.documents(places)


def test_the_text_and_the_documents_of_rows(meter: RowMeter, pool: Pool) -> None:
    text = meter.texts(IDS[:1])[0]
    assert "### Response" in text
    parts = meter.documents(IDS)
    assert parts.row.tolist() == list(range(7)), "a row is one example"
    assert {name.partition("-")[0] for name in parts.document} <= {"echo", "say", "sums"}
    assert torch.equal(parts.tokens, torch.tensor([len(e.tokens) for e in meter.examples(IDS)]))


def test_the_target_set(meter: RowMeter) -> None:
    target = meter.target
    assert target.index.domains == ("say", "sums") and target.index.rows == 6
    ids = torch.arange(6)
    first = target.sketches(ids, Sketch(dimensions=16))
    assert target.sketches(ids, Sketch(dimensions=16)) is first, "measured once for all parts of the pool"
    with torch.no_grad():
        next(meter.sweeper.module.model.parameters()).mul_(1.5)
    meter.forget()
    assert not torch.equal(target.sketches(ids, Sketch(dimensions=16)), first)


def test_without_a_target_set_the_way_out_is_named(corpus: Path, home: Path) -> None:
    settings = settings_of(corpus, home, *SFT)
    with pytest.raises(ConfigError, match=r"dataset.target.path=FILE(.|\n)*dataset.target.from"):
        _ = meter_of(make_pool(settings, progress=False), settings).target


def test_under_a_finished_run(meter: RowMeter, finished: Path, pool: Pool) -> None:
    """The last validation losses of the run are those of its model."""
    other = meter.under(str(finished))
    model = load_model(finished, pool).eval()
    expected = gradient(model, meter.examples(IDS[:1])[0])
    assert torch.allclose(other.sketches(IDS[:1], Sketch(kind="whole"))[0], expected, atol=1e-5)
    assert not torch.allclose(other.losses(IDS)[0], meter.losses(IDS)[0])
    assert other.target.path == str(finished)


def test_checkpoints_weigh_as_the_learning_rate_before_them(meter: RowMeter, finished: Path) -> None:
    found = meter.checkpoints(str(finished))
    rates = [row["lr"] for row in lines(finished / "metrics.jsonl") if row["split"] == "train"]
    means = [sum(rates[:4]) / 4, sum(rates[4:]) / 4]
    assert [Path(c.path).name for c in found] == ["step-00000004.ckpt", "step-00000008.ckpt"]
    assert [c.weight for c in found] == pytest.approx([mean / sum(means) for mean in means])
    first, last = (meter.under(c.path).losses(IDS)[0] for c in found)
    assert not torch.allclose(first, last)
    assert torch.equal(last, meter.under(str(finished)).losses(IDS)[0])


def test_adam_directions_come_from_the_moments_that_were_saved(meter: RowMeter, finished: Path) -> None:
    other = meter.under(meter.checkpoints(str(finished))[0].path)
    model = other.sweeper.module.model
    saved = torch.load(checkpoints(finished)[0], weights_only=True)["optimizer_states"][0]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    names = {id(p): n for n, p in model.named_parameters()}
    order = [names[id(p)] for p in [*matrices, *(p for p in model.parameters() if p.ndim < 2)]]
    beta1, beta2 = saved["param_groups"][0]["betas"]
    plain = other.sketches(IDS[:2], Sketch(kind="whole"))
    adam = other.sketches(IDS[:2], Sketch(kind="whole", adam="outside"))
    first = {name: saved["state"][k]["exp_avg"] for k, name in enumerate(order)}
    second = {name: saved["state"][k]["exp_avg_sq"] for k, name in enumerate(order)}
    m, v = (torch.cat([state[n].flatten() for n, _ in model.named_parameters()]) for state in (first, second))
    expected = (beta1 * m + (1 - beta1) * plain) / ((beta2 * v + (1 - beta2) * plain**2).sqrt() + 1e-8)
    assert torch.allclose(adam, expected, atol=1e-4)


def test_moments_that_are_not_there(meter: RowMeter) -> None:
    meter.models.trainer.strategy._optimizers = [torch.optim.AdamW(meter.sweeper.module.model.parameters())]
    with pytest.raises(ConfigError, match="moments"):
        meter.sketches(IDS, Sketch(adam="inside"))


def test_lost_checkpoints_are_told(meter: RowMeter, corpus: Path, home: Path, tmp_path: Path) -> None:
    folder = run(corpus, home, *RUN, *SAVED, f"run_dir={tmp_path}/run")
    checkpoints(folder)[0].unlink()
    with pytest.raises(ConfigError, match=r"has lost checkpoints(.|\n)*steps \[8\](.|\n)*steps \[4, 8\]"):
        meter.checkpoints(str(folder))


def test_kept_checkpoints_survive_the_limit(finished: Path) -> None:
    settings = json.loads((finished / "summary.json").read_text())
    assert settings["status"] == "finished"
    assert [path.name for path in checkpoints(finished)] == ["step-00000004.ckpt", "step-00000008.ckpt"]


def test_an_unknown_layer(meter: RowMeter) -> None:
    with pytest.raises(ConfigError, match="-2 to 1"):
        meter.states(IDS, layer=2, pooling="mean")
