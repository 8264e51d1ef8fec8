"""DoReMi's proxy in a plain loop: the same batches, losses, weights and gradients, without the harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regimen.core.plan import Plan
from regimen.runs.experiment import make_experiment, make_pool
from regimen.runs.references import load_model
from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.runs import run, settings_of

STEPS, RATE, ETA, SMOOTHING = 4, 0.5, 3.0, 0.01
SGD = (
    *("optimizer=sgd", f"optimizer.lr={RATE}", "optimizer.schedule.kind=constant", "optimizer.schedule.warmup=0"),
    *("trainer.gradient_clip_val=null", f"budget.steps={STEPS}"),
)
PROXY = (
    *("method=doremi_proxy", f"strategies.doremi_proxy.eta={ETA}", *SGD),
    f"strategies.doremi_proxy.smoothing={SMOOTHING}",
)


def token_losses(model: Any, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")  # (B, L)


def by_hand(settings: dict[str, Any], reference: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Weights of the proxy after STEPS steps and the mean of alpha, straight from algorithm 1."""
    pool = make_pool(settings, progress=False)
    torch.manual_seed(0)
    experiment = make_experiment(settings, pool)
    initial = torch.load(reference / "checkpoints" / "step-00000000.ckpt", weights_only=True)["state_dict"]
    model = experiment.model
    model.load_state_dict({key.removeprefix("model."): value for key, value in initial.items()})
    ref = load_model(reference, pool).eval()
    stream = experiment.stream()
    k = len(pool.domains)
    stream.update(Plan(mixture=dict.fromkeys(pool.domains, 1 / k)))
    alpha, score, total = torch.full((k,), 1 / k).double(), torch.zeros(k).double(), torch.zeros(k).double()
    for _ in range(STEPS):
        ids = stream.next()
        tokens, domain = pool.train.read(ids).tokens, pool.train.index.domain_of(ids)
        losses = token_losses(model, tokens)
        with torch.no_grad():
            excess = (losses - token_losses(ref, tokens)).double().clamp(min=0)
        for i in range(k):
            if bool((domain == i).any()):
                score[i] = excess[domain == i].mean()
        raised = alpha * torch.exp(ETA * score)
        alpha = (1 - SMOOTHING) * raised / raised.sum() + SMOOTHING / k
        total += alpha
        loss = sum(alpha[i] * losses[domain == i].mean() for i in range(k) if bool((domain == i).any()))
        model.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        with torch.no_grad():
            for p in model.parameters():
                p -= RATE * p.grad
    return model.state_dict(), total / STEPS


@pytest.mark.parametrize("micro", [8, 2], ids=["whole", "accumulated"])
def test_the_harness_does_what_algorithm_1_says(corpus: Path, home: Path, micro: int) -> None:
    # Rows of one length, so that a domain's mean over its tokens is its mean over rows.
    reference = run(corpus, home, "method=uniform", "trainer.keep_checkpoints=null", f"run_dir={home}/ref{micro}")
    start = run(corpus, home, *PROXY, f"strategies.doremi_proxy.reference={reference}", "budget.steps=1",
                "optimizer.lr=1e-30", f"run_dir={home}/start{micro}")  # fmt: skip
    (reference / "checkpoints" / "step-00000000.ckpt").write_bytes(checkpoints(start)[-1].read_bytes())
    proxy = run(corpus, home, *PROXY, f"strategies.doremi_proxy.reference={reference}",
                f"trainer.micro_batch_size={micro}", f"run_dir={home}/proxy{micro}")  # fmt: skip
    settings = settings_of(corpus, home, *PROXY, f"strategies.doremi_proxy.reference={reference}")
    expected, mean = by_hand(settings, reference)
    found = torch.load(checkpoints(proxy)[-1], weights_only=True)["state_dict"]
    for name, value in expected.items():
        assert torch.allclose(found[f"model.{name}"], value, atol=2e-6), name
    gives = json.loads((proxy / "summary.json").read_text())["gives"]["mixture"]
    assert list(gives.values()) == pytest.approx(mean.tolist(), abs=1e-6)
    assert max(gives.values()) - min(gives.values()) > 0.02, "the weights moved"
