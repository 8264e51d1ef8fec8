"""RDS+ (arXiv 2503.01807): position weights under right padding, and the method file against a plain loop."""

from __future__ import annotations

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.signals.pooling import pool_states
from tests.reference.test_near import built, chosen, states
from tests.support.languages import tiny
from tests.support.vector_meter import meter_of

POOLINGS = ("mean", "position_weighted", "last")
LENGTHS = [4, 1, 7, 3]


def by_hand(tokens: torch.Tensor, pooling: str) -> torch.Tensor:
    """The pooled vector (w,) of the states (T, w) of one row."""
    t = len(tokens)
    if pooling == "last":
        return tokens[-1]
    weights = [place / (t * (t + 1) / 2) if pooling == "position_weighted" else 1 / t for place in range(1, t + 1)]
    return sum(weight * state for weight, state in zip(weights, tokens, strict=True))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_padded_batch_is_its_rows_one_by_one(pooling):
    """Whatever stands in the padding, infinities too."""
    rows = [torch.randn(length, 3, generator=generator(length)) for length in LENGTHS]
    batch = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, 9 - len(row)), value=torch.inf) for row in rows])
    found = pool_states(batch, torch.tensor(LENGTHS), pooling)
    assert torch.allclose(found, torch.stack([by_hand(row, pooling) for row in rows]), atol=1e-6)
    for i, row in enumerate(rows):
        alone = pool_states(row[None], torch.tensor([len(row)]), pooling)
        assert torch.allclose(found[i], alone[0], atol=1e-6)


def test_weights_are_t_over_the_sum():
    """One-hot states show the weights themselves."""
    found = pool_states(torch.eye(4)[None].repeat(2, 1, 1), torch.tensor([4, 2]), "position_weighted")
    assert torch.allclose(found, torch.tensor([[0.1, 0.2, 0.3, 0.4], [1 / 3, 2 / 3, 0.0, 0.0]]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_is_summed_in_single(pooling):
    tokens = torch.full((1, 5000, 2), 1.5, dtype=torch.bfloat16)
    found = pool_states(tokens, torch.tensor([5000]), pooling)
    assert found.dtype == torch.float32 and torch.allclose(found, torch.full((1, 2), 1.5), rtol=1e-4)


def test_a_row_without_tokens_is_zero_and_an_unknown_pooling_is_refused():
    for pooling in POOLINGS:
        assert torch.equal(pool_states(torch.ones(1, 3, 2), torch.tensor([0]), pooling), torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="position_weighted"):
        pool_states(torch.ones(1, 3, 2), torch.tensor([3]), "max")


def test_target_rows_take_the_most_alike_in_turn():
    rows, target = states(40, 11), states(3, 12)
    meter = meter_of(rows, rows, target_states=target)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], target[None], dim=2)
    taken: list[int] = []
    while len(taken) < 17:
        wanted = cosine[:, len(taken) % 3]
        taken.append(max((i for i in range(40) if i not in taken), key=lambda i: (float(wanted[i]), -i)))
    assert chosen(built("rds"), meter, 17) == taken
    assert {what for what, _ in meter.asked + meter.target.asked} == {"-1 position_weighted"}


def test_target_rows_that_are_in_the_pool_come_first():
    rows = states(30, 13)
    assert chosen(built("rds"), meter_of(rows, rows, target_states=rows[[9, 28, 0]]), 3) == [9, 28, 0]


def test_a_row_that_two_want_costs_no_turn():
    """Unlike NEAR, whose second target row loses its turn."""
    rows = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 9.0], [-1.0, -1.0]])
    target = torch.tensor([[1.1, 1.0], [1.0, 1.1]])
    meter = meter_of(rows, rows, target_states=target)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], target[None], dim=2)
    second = max((1, 2), key=lambda i: float(cosine[i, 1]))
    assert chosen(built("rds"), meter, 2) == [0, second]


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_padding_on_either_side_changes_nothing(architecture):
    """Of a real model: states of rows that are padded on the left, with a mask and positions, moved to the left."""
    model = tiny(architecture).eval().base_model
    rows = [torch.randint(3, 250, (length,), generator=generator(length)) for length in LENGTHS]
    width, lengths = max(LENGTHS) + 2, torch.tensor(LENGTHS)
    left = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=1) for row in rows])
    right = torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=1) for row in rows])
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    with torch.no_grad():
        places = (mask.cumsum(1) - 1).clamp(min=0)
        before = model(input_ids=left, attention_mask=mask, position_ids=places).last_hidden_state
        after = model(input_ids=right).last_hidden_state  # as rows are read: a causal model never sees what follows
        single = [model(input_ids=row[None]).last_hidden_state for row in rows]
    moved = torch.stack([row.roll(length - width, 0) for row, length in zip(before, LENGTHS, strict=True)])
    for pooling in POOLINGS:
        found = pool_states(after, lengths, pooling)
        alone = torch.cat([pool_states(s, torch.tensor([s.shape[1]]), pooling) for s in single])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(pool_states(moved, lengths, pooling), alone, atol=1e-5, rtol=1e-4)
