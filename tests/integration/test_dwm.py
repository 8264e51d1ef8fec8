"""DWM in whole runs: clean rows outweigh shuffled ones, lessons leave training alone, phi moves to another run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regimen.core.errors import ConfigError
from regimen.core.strategy import WeighedBatch
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.runs.references import load_model
from regimen.runs.train import train
from regimen.weighting.dwm import Dwm, DwmState
from tests.support.planted import auroc, ids_of_rows, write
from tests.support.runs import compose_settings, lines, run

ROWS, STEPS, LENGTH = 240, 120, 40
WORDS = ["the", "a", "model", "data", "row", "loss", "mixes", "orders", "every", "domain", "slowly", "often"]
SEEN: list[tuple[Tensor, Tensor]] = []  # ids and weights of each batch of the run in this process


class Watched(Dwm):
    """Tells its weights to the test."""

    def weigh(self, state: DwmState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        weights = super().weigh(state, losses, batch)
        SEEN.append((batch.ids, weights))
        return weights


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(20))[:LENGTH]  # and an end of text: one row


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Half of the rows have their characters shuffled; nothing but their text tells; a clean target set."""
    home, rng = tmp_path_factory.mktemp("planted"), random.Random(0)
    records = []
    for i in range(ROWS):
        text = sentence(rng)
        shuffled = "".join(rng.sample(text, len(text)))
        records.append({"id": f"{'bad' if i % 2 else 'good'}-{i}", "text": shuffled if i % 2 else text})
    target = [{"id": f"t{i}", "text": sentence(rng)} for i in range(16)]
    settings = (
        *("dataset=jsonl", f"dataset.seq_len={LENGTH}", "dataset.tokenizer.kind=bytes"),
        *(f"dataset.path={write(records, home / 'pool.jsonl')}", "seed=1"),
        f"dataset.target.path={write(target, home / 'target.jsonl')}",
        *("model.config.hidden_size=32", "model.config.intermediate_size=48", "model.config.num_hidden_layers=1"),
        *("model.config.num_attention_heads=2", "model.config.tie_word_embeddings=false"),
        *("trainer.global_batch_size=16", "trainer.progress=none"),
        *(f"budget.steps={STEPS}", "evaluation.at=[1]", "trainer.save_every_minutes=null", "optimizer.lr=1e-2"),
        *("dataset.validation.fraction=0.02", "dataset.max_epochs_per_domain=null"),
        *(f"paths.pools={home}/pools", f"paths.outputs={home}/out", f"paths.store={home}/store"),
    )
    return home, list(settings)


def target_loss(folder: Path, pool: Pool) -> float:
    """The mean loss of the target rows under the last model of a run."""
    model = load_model(folder, pool).eval()
    assert pool.target is not None
    total = 0.0
    for row in range(pool.target.index.rows):
        tokens = pool.target.read(torch.tensor([row])).tokens
        with torch.no_grad():
            total += float(cross_entropy(model(input_ids=tokens[:, :-1]).logits[0], tokens[0, 1:]))
    return total / pool.target.index.rows


def planted(place: tuple[Path, list[str]], *overrides: str) -> tuple[dict[str, Any], Pool]:
    settings = compose_settings(*place[1], *overrides)
    return settings, make_pool(settings, progress=False)


ENTROPY = "strategies.dwm.entropy={}"  # without it a small step is linear in the weights, so that few rows take all
INPUTS = [
    # What phi reads, settings, and the least AUROC; 1.0, 0.95 and 0.65 were reached. After phi is frozen the hidden
    # states that it has learnt to read go on changing.
    pytest.param("features", ["strategies.dwm.meta_lr=1e-3"], 0.9),
    pytest.param(
        "encoder",
        ["strategies.dwm.meta_lr=1e-3", ENTROPY.format(0.1), "strategies.dwm.buckets=300", "strategies.dwm.length=40"],
        0.9,
        marks=pytest.mark.slow,
    ),
    pytest.param("pooled_hidden", ["strategies.dwm.meta_lr=3e-3", ENTROPY.format(0.03)], 0.6, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("what", "more", "least"), INPUTS)
def test_clean_rows_outweigh_shuffled_ones(
    place: tuple[Path, list[str]], what: str, more: list[str], least: float
) -> None:
    """AUROC of the weights after 200 lessons, which never saw which rows are which."""
    settings, pool = planted(
        *(place, "method=dwm", f"strategies.dwm.input={what}", "strategies.dwm.stages=2", "strategies.dwm.width=32"),
        *(f"strategies.dwm._target_={__name__}.Watched", *more),
    )
    SEEN.clear()
    folder = train(settings, place[0] / what)
    names = ids_of_rows(pool)
    assert len(names) == pool.train.index.rows, "a row holds one document"
    before, after = SEEN[: STEPS // 2], SEEN[STEPS // 2 :]
    assert all(bool((weights == 1).all()) for _, weights in before), "the first stage is uniform"
    told: dict[bool, list[float]] = {True: [], False: []}
    for ids, weights in after:
        for row, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            told[names[row].startswith("good")].append(weight)
    found = auroc(told[True], told[False])
    assert found > least
    (line,) = [row for row in lines(folder / "record.jsonl") if row["kind"] == "lessons"]
    assert line["lessons"] == 200 and abs(line["gap"]) < 0.5 and line["cost"]["flops"] > 0
    if what == "features":
        uniform = train(planted(place, "method=natural")[0], place[0] / "uniform")
        assert target_loss(folder, pool) < target_loss(uniform, pool)


# ---- on the small corpus ------------------------------------------------------------------------------------------

TARGET = "dataset.target={path: null, from: [sums], rows_per_subtask: 8, seed: 0}"
LEARNS = (
    *("method=dwm", TARGET, "strategies.dwm.stages=2", "strategies.dwm.meta_steps=3", "strategies.dwm.width=16"),
    *("strategies.dwm.rows=6", "strategies.dwm.target_rows=3"),
)


def train_losses(folder: Path) -> list[float]:
    return [row["loss"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


PLAIN = (TARGET, "+model.config.attention_dropout=0.2", "trainer.micro_batch_size=4")


@pytest.fixture(scope="module")
def plain(corpus: Path, home: Path) -> Path:
    """A run without a weighter."""
    return run(corpus, home, "method=natural", *PLAIN, f"run_dir={home}/plain")


@pytest.fixture(scope="module")
def learnt(corpus: Path, home: Path) -> Path:
    """A run that has learnt a weighting model."""
    return run(corpus, home, *LEARNS, "strategies.dwm.meta_lr=0.05", f"run_dir={home}/learnt")


def test_lessons_do_not_touch_training(corpus: Path, home: Path, plain: Path) -> None:
    """With phi left uniform, losses are those of a run without a weighter, bit for bit: dropout, accumulation."""
    taught = run(corpus, home, *LEARNS, *PLAIN, "strategies.dwm.meta_lr=0", f"run_dir={home}/taught")
    assert train_losses(taught) == train_losses(plain)
    told = [row for row in lines(taught / "record.jsonl") if row["kind"] == "lessons"]
    assert [(row["step"], row["lessons"]) for row in told] == [(4, 3)]
    costs = [json.loads((folder / "summary.json").read_text())["flops"] for folder in (taught, plain)]
    assert costs[0]["measuring"] > costs[1]["measuring"] and costs[0]["training"] == costs[1]["training"]


def test_lessons_that_move_the_model_change_what_follows(corpus: Path, home: Path, plain: Path) -> None:
    """Losses are those of a run without a weighter up to the lessons, and others after; phi stays uniform."""
    more = ("strategies.dwm.meta_lr=0", "strategies.dwm.update_lm=true", "strategies.dwm.by.lr=0.5")
    moved = run(corpus, home, *LEARNS, *PLAIN, *more, f"run_dir={home}/moved")
    losses, others = train_losses(moved), train_losses(plain)
    assert losses[:4] == others[:4] and all(a != b for a, b in zip(losses[4:], others[4:], strict=True))
    (told,) = [row for row in lines(moved / "record.jsonl") if row["kind"] == "lessons"]
    assert told["step"] == 4


def test_a_learnt_phi_weighs_another_run_from_its_first_step(corpus: Path, home: Path, learnt: Path) -> None:
    told = json.loads((learnt / "summary.json").read_text())["gives"]
    assert told["phi_form"]["domains"] == ["code", "prose", "sums"] and Path(told["phi"]).is_file()
    other = ("method=dwm", "strategies.dwm.width=16", f"run_dir={home}/other", "trainer.log_every=1")
    moved = run(corpus, home, *other, f"strategies.dwm.weighter_from={learnt}")  # it needs no target set
    shown = [row for row in lines(moved / "record.jsonl") if row["kind"] == "weighter"]
    assert shown[0]["step"] == 1 and shown[0]["frozen"] and shown[0]["effective_sample_size"] < 1
    assert not [row for row in lines(moved / "record.jsonl") if row["kind"] == "lessons"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("strategies.dwm.width=32", "strategies.dwm.weighter_from={learnt}"), "another shape"),
        (("strategies.dwm.weighter_from={plain}",), "has learnt no weighting model"),
        (("strategies.dwm.weighter_from=/nowhere",), "not a run folder"),
        (("strategies.dwm.width=16",), "aims at a target set"),
        ((TARGET, "strategies.dwm.held_out=0.99"), "no row of the target set is left"),
    ],
)
def test_what_cannot_be_used_is_refused(
    corpus: Path, home: Path, tmp_path: Path, learnt: Path, plain: Path, more: tuple[str, ...], words: str
) -> None:
    told = [text.replace("{learnt}", str(learnt)).replace("{plain}", str(plain)) for text in more]
    with pytest.raises(ConfigError, match=words):
        run(corpus, home, "method=dwm", *told, f"run_dir={tmp_path}/refused")
