"""Fine-tuning through the harness: the loss of a plain loop, exact resumption, and every kind of method on examples."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from regimen.core.errors import ConfigError
from regimen.data.pool import Pool
from regimen.runs import validate
from regimen.runs.experiment import make_pool
from regimen.runs.models import make_model
from regimen.training.callbacks.checkpoint import checkpoints
from regimen.training.loader import Batch, collate
from regimen.training.module import LanguageModule, Objective
from tests.contract.test_methods import assert_equal_weights, cut_after
from tests.support.runs import lines, run, settings_of, story

SFT = (
    *("dataset=sft_files", "objective=sft", "dataset.tokenizer.kind=bytes", "dataset.seq_len=256"),
    *("dataset.domain_field=task", "dataset.overlap.n=0", "optimizer.lr=3e-3"),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks with answers of 1 to 40 words."""
    rng = random.Random(0)
    words = ["every", "row", "has", "one", "example", "and", "answers", "differ"]
    path = tmp_path_factory.mktemp("corpus") / "examples.jsonl"
    with path.open("w") as file:
        for i in range(40):
            for task, longest in (("echo", 5), ("say", 40), ("sums", 1)):
                said = " ".join(rng.choice(words) for _ in range(rng.randint(1, longest)))
                record = {"id": f"{task}-{i}", "instruction": f"{task} {i}", "output": said, "task": task}
                file.write(json.dumps(record) + "\n")
    return path


def trained(corpus: Path, home: Path, *overrides: str) -> Path:
    return run(corpus, home, *SFT, *overrides)


def pool_of(settings: dict[str, Any]) -> Pool:
    return make_pool(settings, progress=False)


def plain_losses(
    settings: dict[str, Any], pool: Pool, steps: int, reduction: str
) -> tuple[torch.nn.Module, list[float]]:
    """Weights and mean token loss of each batch of a loop that reads one row at a time, without padding."""
    from regimen.core.stream import Stream

    stream = Stream(pool.train.index, seed=0, batch_size=8, total_steps=steps, max_epochs=4)
    torch.manual_seed(settings["seed"])
    model = make_model(settings["model"], pool)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = []
    for _ in range(steps):
        rows = [pool.train.read(ids[None]) for ids in stream.next()]
        sums, counts = [], []
        for row in rows:
            assert row.targets is not None
            logits = model(input_ids=row.tokens[:, :-1]).logits[0]  # (L, V)
            each = cross_entropy(logits, row.tokens[0, 1:], reduction="none")
            sums.append((each * row.targets[0, 1:]).sum())
            counts.append(int(row.targets[0, 1:].sum()))
        loss = torch.stack(sums).sum() / sum(counts)
        told.append(float(loss.detach()))
        if reduction == "sample_mean":
            loss = torch.stack([s / n for s, n in zip(sums, counts, strict=True)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, told


@pytest.mark.parametrize("reduction", ["token_mean", "sample_mean"])
def test_losses_are_those_of_a_plain_loop(reduction: str, corpus: Path, tmp_path: Path) -> None:
    """With micro-batches of three sizes: padding and accumulation change nothing."""
    sgd = ("optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "optimizer.schedule.kind=constant")
    common = (*sgd, "optimizer.schedule.warmup=0", "trainer.gradient_clip_val=null", f"objective.reduction={reduction}")
    settings = settings_of(corpus, tmp_path, *SFT, *common)
    pool = pool_of(settings)
    model, told = plain_losses(settings, pool, 8, reduction)
    for micro in (8, 4, 2):
        folder = trained(corpus, tmp_path, *common, f"trainer.micro_batch_size={micro}", f"run_dir={tmp_path}/{micro}")
        losses = [row["loss"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]
        assert losses == pytest.approx(told, abs=1e-6)
        weights = torch.load(checkpoints(folder)[-1], weights_only=True)["state_dict"]
        for name, value in model.state_dict().items():
            assert torch.allclose(weights[f"model.{name}"], value, atol=1e-5), name


def test_a_row_has_its_loss_whatever_it_is_padded_to(corpus: Path, tmp_path: Path) -> None:
    settings = settings_of(corpus, tmp_path, *SFT)
    pool = pool_of(settings)
    module = LanguageModule(make_model(settings["model"], pool).eval(), Objective(kind="sft"), lambda m: None)

    def losses(ids: torch.Tensor, document_mask: bool) -> torch.Tensor:
        rows = collate(pool.train, ids, document_mask=document_mask)
        batch = Batch(**rows, step=0, micro=0, global_rows=len(ids), global_tokens=1)
        with torch.no_grad():
            return module.token_losses(batch).sum(1)

    for document_mask in (False, True):
        ids = torch.arange(pool.train.index.rows)
        assert len(set(pool.train.index.inputs_of(ids).tolist())) > 20
        alone = torch.cat([losses(row[None], document_mask) for row in ids])
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
        together = torch.cat([losses(part, document_mask) for part in order.split(8)])
        assert torch.allclose(together, alone[order], atol=1e-5, rtol=1e-6)


METHODS = {
    "natural": (),
    "loss_selection": ("strategies.loss_selection.when.steps=3",),
    "odm": ("strategies.odm.draw_groups=4",),
    "folding": (),
    "loss_weighting": (),
    "pike": ("strategies.pike.when.steps=3", "strategies.pike.rows_per_domain=2"),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_resume_bit_for_bit_on_examples(method: str, corpus: Path, tmp_path: Path) -> None:
    common = (f"method={method}", *METHODS[method], "trainer.micro_batch_size=2", "trainer.keep_checkpoints=null")
    common = (*common, "+model.config.attention_dropout=0.1", "trainer.save_every_steps=1")
    whole = trained(corpus, tmp_path, *common, f"run_dir={tmp_path}/whole")
    cut = cut_after(whole, tmp_path / "cut", step=5)
    resumed = trained(corpus, tmp_path, *common, f"run_dir={cut}")
    assert json.loads((resumed / "attempt.json").read_text())["action"] == "resume"
    assert story(resumed) == story(whole)
    assert_equal_weights(checkpoints(resumed)[-1], checkpoints(whole)[-1])
    losses = [row["loss"] for row in lines(whole / "metrics.jsonl") if row["split"] == "train"]
    assert losses[-1] < losses[0]


def test_tokens_count_answers_and_flops_count_prompts_too(corpus: Path, tmp_path: Path) -> None:
    folder = trained(corpus, tmp_path, f"run_dir={tmp_path}/run", "trainer.micro_batch_size=2")
    settings = settings_of(corpus, tmp_path, *SFT)
    pool = pool_of(settings)
    index = pool.train.index
    told = json.loads((folder / "summary.json").read_text())
    from regimen.core.stream import Stream

    stream = Stream(index, seed=0, batch_size=8, total_steps=8, max_epochs=4)
    ids = torch.cat([stream.next() for _ in range(8)])
    module = LanguageModule(make_model(settings["model"], pool), Objective(kind="sft"), lambda m: None)
    lengths = [len(pool.train.read(row[None]).tokens[0]) - 1 for row in ids]
    assert told["tokens"] == int(index.tokens_of(ids).sum()) < sum(lengths) / 3
    assert told["flops"]["training"] == pytest.approx(3 * sum(n * module.forward_flops(n) for n in lengths))
    scores = told["evaluation"]["domains"]
    assert {name: score["tokens"] for name, score in scores.items()} == {
        name: int(pool.validation.index.domain_tokens()[k]) for k, name in enumerate(pool.domains)
    }


def test_a_target_set_is_not_trained_on(corpus: Path, tmp_path: Path) -> None:
    target = "dataset.target={path: null, from: [say], rows_per_subtask: 4, seed: 0}"
    folder = trained(corpus, tmp_path, target, f"run_dir={tmp_path}/run")
    pool = pool_of(settings_of(corpus, tmp_path, *SFT, target))
    assert pool.target is not None and pool.target.index.rows == 4
    assert json.loads((folder / "summary.json").read_text())["fingerprints"]["pool"] == pool.fingerprint


def test_objectives_are_for_their_rows(corpus: Path, tmp_path: Path) -> None:
    packed = settings_of(corpus, tmp_path, "objective=sft")
    with pytest.raises(ConfigError, match=r"packed text has none(.|\n)*dataset=sft_files dataset.path"):
        validate.rows(packed)
    examples = settings_of(corpus, tmp_path, *SFT, "objective=causal_lm")
    with pytest.raises(ConfigError, match=r"whose prompts are left out(.|\n)*add objective=sft"):
        validate.rows(examples)
    validate.rows(settings_of(corpus, tmp_path, *SFT))
    validate.rows(settings_of(corpus, tmp_path))
