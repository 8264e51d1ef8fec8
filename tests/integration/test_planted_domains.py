"""Weighters that learn for a target set, in whole runs on two domains of sentences and one of shuffled characters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from regimen.runs.train import train
from tests.integration.test_dwm import LENGTH, sentence
from tests.support.planted import write
from tests.support.runs import compose_settings, lines

STEPS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Settings of a run on 300 rows, a third of them noise; the target set is of clean sentences."""
    home, rng = tmp_path_factory.mktemp("domains"), random.Random(0)
    records = []
    for i in range(300):
        text = sentence(rng)
        if i % 3 == 2:
            text = "".join(rng.sample(text, len(text)))
        records.append({"id": f"{i}", "text": text, "kind": ("first", "second", "noise")[i % 3]})
    target = [{"id": f"t{i}", "text": sentence(rng), "kind": "first"} for i in range(16)]
    settings = (
        *("dataset=jsonl", f"dataset.seq_len={LENGTH}", "dataset.tokenizer.kind=bytes", "dataset.domain_field=kind"),
        *(f"dataset.path={write(records, home / 'pool.jsonl')}", "seed=1"),
        f"dataset.target.path={write(target, home / 'target.jsonl')}",
        *("model.config.hidden_size=32", "model.config.intermediate_size=48", "model.config.num_hidden_layers=1"),
        *("model.config.num_attention_heads=2", "model.config.tie_word_embeddings=false"),
        *("trainer.global_batch_size=24", "trainer.progress=none", "trainer.log_every=10"),
        *(f"budget.steps={STEPS}", "evaluation.at=[1]", "trainer.save_every_minutes=null", "optimizer.lr=1e-2"),
        *("dataset.validation.fraction=0.02", "dataset.max_epochs_per_domain=null"),
        *(f"paths.pools={home}/pools", f"paths.outputs={home}/out", f"paths.store={home}/store"),
    )
    return home, list(settings)


def trained(place: tuple[Path, list[str]], method: str, *more: str) -> Path:
    return train(compose_settings(*place[1], f"method={method}", *more), place[0] / method)


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in lines(folder / "record.jsonl") if row["kind"] == kind]


def test_scalebio_takes_the_share_of_noise_away(place: tuple[Path, list[str]]) -> None:
    """0.025 was reached, from a third."""
    folder = trained(place, "scalebio", "strategies.scalebio.score_lr=0.05", "strategies.scalebio.report_every=20")
    shares = json.loads((folder / "summary.json").read_text())["gives"]["mixture"]
    assert shares["noise"] < 0.1 and min(shares["first"], shares["second"]) > 0.2
    assert [row["step"] for row in told(folder, "lessons")] == list(range(0, STEPS, 20))


@pytest.mark.slow
def test_meta_weight_net_learns_that_high_losses_are_noise(place: tuple[Path, list[str]]) -> None:
    """Weights of 0.0085 and 0.15 were reached."""
    more = ("strategies.meta_weight_net.meta_lr=3e-3", "strategies.meta_weight_net.by.lr=1.0")
    folder = trained(place, "meta_weight_net", *more)
    weights = told(folder, "weighter")[-1]["weight_of_loss"]
    assert weights["4"] < 0.2 * weights["0"]
