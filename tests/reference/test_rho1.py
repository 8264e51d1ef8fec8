"""RHO-1 (arXiv 2404.07965): the kept tokens by hand, ties, and tokens that nobody can predict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regimen.core.errors import ConfigError, RunError
from regimen.signals.excess import TokenExcess
from regimen.weighting.rho1 import Rho1, highest
from tests.reference.observations import weighing


def weights_of(losses: Tensor, reference: Tensor, targets: Tensor, ratio: float) -> Tensor:
    weighter = Rho1(ratio=ratio, reference="x")
    excess = TokenExcess(reference="x").of_tokens(losses, reference, targets)
    batch = weighing([0] * len(losses), tokens=targets.sum(1), targets=targets, values={weighter.by: excess})
    return weighter.checked(weighter.weigh(None, losses, batch), losses)


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.rand(5, 7) * 4, torch.rand(5, 7) * 4, torch.rand(5, 7) < 0.7


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.6, 1.0])
def test_the_mean_over_the_highest_excesses(ratio: float) -> None:
    losses, reference, targets = ragged()
    weights = weights_of(losses, reference, targets, ratio)
    n = int(targets.sum())
    pairs = [(float(e), float(x)) for e, x in zip((losses - reference)[targets], losses[targets], strict=True)]
    kept = sorted(pairs, reverse=True)[: max(1, -(-int(ratio * 100) * n // 100))]
    expected = sum(x for _, x in kept) / len(kept)
    assert float((weights * losses)[targets].sum() / n) == pytest.approx(expected, rel=1e-6)
    assert bool((weights[~targets] == 0).all())


def test_all_tokens_are_cross_entropy_and_so_is_a_reference_that_is_the_model() -> None:
    losses, reference, targets = ragged()
    assert weights_of(losses, reference, targets, 1.0).tolist() == targets.float().tolist()
    excess = TokenExcess(reference="x").of_tokens(losses, losses, targets)
    assert bool((excess == 0).all())


def test_ties_keep_the_first_and_the_count_is_exact() -> None:
    assert highest(torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0]), 3).tolist() == [True, True, True, False, False]
    values = torch.randint(0, 4, (200,)).float()
    for count in (1, 57, 199, 200):
        kept = highest(values, count)
        assert int(kept.sum()) == count
        order = sorted(range(200), key=lambda i: (-float(values[i]), i))
        assert sorted(order[:count]) == kept.nonzero()[:, 0].tolist()


def test_a_permutation_of_rows_permutes_the_weights() -> None:
    losses, reference, targets = ragged(3)
    order = torch.randperm(5)
    moved = weights_of(losses[order], reference[order], targets[order], 0.4)
    assert torch.equal(moved, weights_of(losses, reference, targets, 0.4)[order])


def test_tokens_that_nobody_can_predict_are_left_out() -> None:
    """Even positions follow a fixed table from the token before, odd ones are random: the reference knows the table."""
    torch.manual_seed(0)
    vocabulary, table = 16, torch.randperm(16)
    tokens = torch.randint(0, vocabulary, (64, 33))
    tokens[:, 2::2] = table[tokens[:, 1:-1:2]]
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    predictable = (torch.arange(32) % 2 == 1).expand(64, 32)

    def bigrams(steps: int) -> Tensor:
        """Logits (V, 2, V) by token and parity, after steps of gradient descent on these rows."""
        logits = torch.zeros(vocabulary, 2, vocabulary, requires_grad=True)
        for _ in range(steps):
            loss = F.cross_entropy(logits[inputs, parity].flatten(0, 1), labels.flatten())
            (slope,) = torch.autograd.grad(loss, logits)
            logits = (logits - 20 * slope).detach().requires_grad_()
        return logits.detach()

    parity = predictable.long()
    model, reference = (
        F.cross_entropy(bigrams(steps)[inputs, parity].permute(0, 2, 1), labels, reduction="none") for steps in (2, 150)
    )
    weights = weights_of(model, reference, torch.ones(64, 32, dtype=torch.bool), 0.4)
    kept = weights > 0
    assert float(predictable[kept].float().mean()) > 0.9
    by_loss = highest(model.flatten(), int(kept.sum())).view_as(kept)  # what a high loss alone would keep
    assert float(predictable[by_loss].float().mean()) < 0.5


def test_refused() -> None:
    for ratio in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="ratio"):
            Rho1(ratio=ratio, reference="x")
    with pytest.raises(ConfigError, match="no reference model"):
        Rho1()
    losses, reference, targets = ragged()
    with pytest.raises(RunError, match="not a number"):
        weights_of(losses, reference * torch.nan, targets, 0.5)
