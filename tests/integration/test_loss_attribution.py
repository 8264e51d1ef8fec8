"""On a batch that mixes domains a mixer sees each domain's own token losses, computed here again from the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from regimen.core.plan import Plan
from regimen.runs.experiment import make_experiment, make_pool
from regimen.runs.references import load_model
from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.runs import lines, run, settings_of

# One step at a rate that moves nothing: exp3's rewards are then loss / (10 pi) of the domains in that batch.
ODM = (
    *("method=odm", "strategies.odm.variant=exp3", "strategies.odm.warmup=0", "strategies.odm.draw=multinomial"),
    *("strategies.odm.draw_groups=1", "strategies.odm.initial=uniform", "budget.steps=1", "optimizer.lr=1e-30"),
)


@pytest.mark.parametrize("micro", [8, 2], ids=["whole", "accumulated"])
def test_a_mixer_sees_the_losses_of_each_domain(corpus: Path, home: Path, micro: int) -> None:
    folder = run(corpus, home, *ODM, f"trainer.micro_batch_size={micro}", f"run_dir={home}/odm{micro}")
    settings = settings_of(corpus, home, *ODM)
    pool = make_pool(settings, progress=False)
    stream = make_experiment(settings, pool).stream()
    decided = next(row for row in lines(folder / "record.jsonl") if row["kind"] == "mixer")["mixture"]
    stream.update(Plan(mixture=decided))
    ids = stream.next()
    domain, rows = pool.train.index.domain_of(ids), pool.train.read(ids)
    assert len(domain.unique()) > 1, "the batch mixes domains"
    model = load_model(folder, pool).eval()
    with torch.no_grad():
        logits = model(input_ids=rows.tokens[:, :-1], use_cache=False).logits
    losses = F.cross_entropy(logits.transpose(1, 2), rows.tokens[:, 1:], reduction="none").double()  # (B, L)
    saved = torch.load(checkpoints(folder)[-1], weights_only=True)["callbacks"]
    state = next(value["state"] for key, value in saved.items() if key == "mixer:odm")
    for k, reward in enumerate(state["rewards"].tolist()):
        mine = domain == k
        expected = float(losses[mine].mean()) / 10 / float(state["policy"][k]) if bool(mine.any()) else 0.0
        assert reward == pytest.approx(expected, rel=1e-5), pool.domains[k]
