"""Options of model, precision and objective: each trains, and what should not change the result does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.runs import lines, run


@pytest.fixture(scope="module")
def plain(corpus: Path, home: Path) -> Path:
    return run(corpus, home, f"run_dir={home}/plain")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


def reached(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["evaluation"]["macro"]["loss"]


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (["model.gradient_checkpointing=true"], 1e-6),
        (["trainer.micro_batch_size=1"], 1e-5),
        (["trainer.sweep_batch_size=3"], 1e-6),
        (["objective.chunk=7"], 1e-6),
        (["objective.reduction=sample_mean"], 1e-5),  # packed rows have one length
        (["model.attn_implementation=eager"], 1e-5),
        (["trainer.precision=bf16-mixed"], 2e-2),
        (["trainer.deterministic=true"], 1e-6),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_it_changes_no_more_than_rounding(
    overrides: list[str], tolerance: float, corpus: Path, home: Path, plain: Path, tmp_path: Path
) -> None:
    other = run(corpus, home, *overrides, f"run_dir={tmp_path}/run")
    assert losses(other) == pytest.approx(losses(plain), abs=tolerance)
    assert reached(other) == pytest.approx(reached(plain), abs=tolerance)


def test_a_document_mask_changes_the_losses_and_not_the_rows(
    corpus: Path, home: Path, plain: Path, tmp_path: Path
) -> None:
    masked = run(corpus, home, "dataset.document_mask=true", f"run_dir={tmp_path}/run")
    batches = [[r["batch"] for r in lines(f / "metrics.jsonl") if r["split"] == "train"] for f in (plain, masked)]
    assert batches[0] == batches[1]
    assert losses(masked) != losses(plain)


def test_shuffle_and_natural_are_the_same_run(corpus: Path, home: Path, plain: Path, tmp_path: Path) -> None:
    """Equal seeds serve equal rows, so that methods differ by what they decide and by nothing else."""
    shuffled = run(corpus, home, "method=folding", "strategies.folding.folds=1", f"run_dir={tmp_path}/run")

    def rows(folder: Path) -> list[int]:
        saved = torch.load(checkpoints(folder)[-1], weights_only=True)
        return saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["stream"]["served_rows"].tolist()

    assert rows(shuffled) == rows(plain)


def test_a_pretrained_model_goes_on_from_its_weights(corpus: Path, home: Path, plain: Path, tmp_path: Path) -> None:
    from regimen.runs.export import export

    exported = export(plain, tmp_path / "exported")
    more = run(corpus, home, "model.pretrained=true", f"model.path={exported}", f"run_dir={tmp_path}/more")
    first = next(row for row in lines(more / "metrics.jsonl") if row["split"] == "eval")
    assert first["macro/loss"] == pytest.approx(reached(plain), abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_a_compiled_model_trains_alike(corpus: Path, home: Path, plain: Path, tmp_path: Path) -> None:
    compiled = run(corpus, home, "model.compile=true", f"run_dir={tmp_path}/run")
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-4)
