"""Swarm: sets of mixtures that all members agree on; closed forms of single domains and moments of the Dirichlets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.mixing.laws.sampler import sample_mixtures
from regimen.mixing.swarm import SAMPLERS, SwarmMixture
from tests.reference.mixtures import shares_of
from tests.reference.observations import index_of

INDEX = index_of([50, 30, 20])
NEAR = {"a": 0.6, "b": 0.3, "c": 0.1}


def swarm(sampler: str, **fields) -> SwarmMixture:
    around = {"around": NEAR} if sampler == "near" else {}
    return SwarmMixture(**{"sampler": sampler, "count": 16, **around, **fields})


def members(sampler: str, *, count: int, index=INDEX, **fields) -> torch.Tensor:
    """The set (C, K) as its members' runs see it, one by one."""
    mixers = [swarm(sampler, count=count, member=member, **fields) for member in range(count)]
    return torch.stack([shares_of(mixer, index) for mixer in mixers])


def test_regmix_members_are_the_rows_of_its_sampler():
    expected = sample_mixtures(INDEX.natural().numpy(), 12, seed=7)
    assert np.allclose(members("regmix", count=12, seed=7).numpy(), expected, atol=1e-12)
    assert len(np.unique(expected, axis=0)) == 12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_set_is_the_same_for_every_run(sampler):
    mixer = swarm(sampler, member=2)
    first = shares_of(mixer, INDEX, seed=1)
    assert torch.equal(first, shares_of(mixer, INDEX, seed=2, step=9, horizon=5))
    assert torch.equal(first, shares_of(mixer, index_of([500, 300, 200], 7)))  # natural shares are all that matters


@pytest.mark.parametrize("sampler", ["regmix", "dirichlet", "near"])
def test_seeds_and_members_differ(sampler):
    one, other = members(sampler, count=6), members(sampler, count=6, seed=1)
    assert len(torch.unique(one, dim=0)) == 6
    assert not torch.equal(one, other)


def test_single_domains():
    assert torch.equal(members("one_hot", count=3), torch.eye(3, dtype=torch.float64))
    left_out = members("leave_one_out", count=3)
    expected = torch.tensor([[0, 0.6, 0.4], [5 / 7, 0, 2 / 7], [0.625, 0.375, 0]], dtype=torch.float64)
    assert torch.allclose(left_out, expected)
    assert torch.equal(members("one_hot", count=1), torch.eye(3, dtype=torch.float64)[:1])  # count does not matter


@pytest.mark.parametrize(("sampler", "centre"), [("dirichlet", [0.5, 0.3, 0.2]), ("near", [0.6, 0.3, 0.1])])
@pytest.mark.parametrize("concentration", [0.5, 10.0, 200.0])
def test_mean_and_variance(sampler, centre, concentration):
    count = 600
    drawn = members(sampler, count=count, concentration=concentration)  # (C, K)
    mean = torch.tensor(centre, dtype=torch.float64)
    variance = mean * (1 - mean) / (concentration + 1)
    assert bool(((drawn.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all())
    assert drawn.var(0).tolist() == pytest.approx(variance.tolist(), rel=0.3)


def test_near_closes_in_on_the_given_mixture():
    drawn = members("near", count=50, concentration=1e8)
    assert torch.allclose(drawn, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).expand(50, 3), atol=1e-3)


def test_near_names_domains_as_the_fixed_mixture_does():
    around = {"C": 0.25, "a": 0.75}
    drawn = members("near", count=20, around=around)
    assert drawn[:, 1].tolist() == [0] * 20
    assert drawn[:, 0].mean() > drawn[:, 2].mean()
    with pytest.raises(ConfigError, match="the pool does not have"):
        swarm("near", around={"a": 0.5, "web": 0.5}).init(INDEX)


@settings(max_examples=50)
@given(
    st.sampled_from(SAMPLERS),
    # Not so uneven that RegMix's limit of 15 times a natural share leaves it no mixture.
    st.lists(st.sampled_from([0, 0, 90, 300, 1000]), min_size=3, max_size=6).filter(lambda s: sum(map(bool, s)) > 1),
    st.sampled_from([0.0, 1e-3, 0.1]),
    st.sampled_from([0.01, 1.0, 100.0]),
)
def test_on_the_simplex_with_a_least_share(sampler, sizes, min_share, concentration):
    index = index_of(sizes)
    full = torch.tensor(sizes) > 0
    member = int(full.nonzero()[0])
    around = {"abcdef"[k]: 1 / int(full.sum()) for k in full.nonzero()[:, 0].tolist()} if sampler == "near" else None
    mixer = SwarmMixture(
        sampler=sampler, count=8, member=member, min_share=min_share, concentration=concentration, around=around
    )
    shares = shares_of(mixer, index)
    assert bool((shares[~full] == 0).all())
    assert bool((shares[full] >= min_share - 1e-12).all())
    assert float(shares.sum()) == pytest.approx(1)


def test_a_least_share_leaves_the_rest_to_the_sampler():
    assert shares_of(swarm("one_hot", member=1, min_share=0.1), INDEX).tolist() == pytest.approx([0.1, 0.8, 0.1])
    plain, raised = members("regmix", count=8), members("regmix", count=8, min_share=0.01)
    assert torch.allclose(raised, 0.01 + 0.97 * plain)


def test_members_of_empty_domains_are_refused_before_the_first_step():
    index = index_of([5, 0, 5])
    for sampler in ("one_hot", "leave_one_out"):
        with pytest.raises(ConfigError, match="domain 'b', which has no tokens"):
            swarm(sampler, member=1).init(index)
    with pytest.raises(ConfigError, match=r"without tokens[\s\S]*b"):
        swarm("near").init(index)
    with pytest.raises(ConfigError, match="or all"):
        swarm("leave_one_out", member=0).init(index_of([5, 0]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampler": "grid"}, "regmix, dirichlet, one_hot, leave_one_out, near"),
        ({"count": 0}, "count"),
        ({"member": 16}, "0 to 15"),
        ({"member": -1}, "0 to 15"),
        ({"seed": -1}, "seed"),
        ({"concentration": 0}, "concentration"),
        ({"concentration": float("nan")}, "concentration"),
        ({"min_share": -0.1}, "min_share"),
        ({"min_share": float("nan")}, "min_share"),
        ({"around": NEAR}, "set both"),
        ({"sampler": "near", "around": None}, "set both"),
        ({"sampler": "near", "around": {"a": 0.5, "b": 0.3}}, "sum 1"),
        ({"sampler": "near", "around": {"a": "half", "b": 0.5}}, "got:     half"),
    ],
)
def test_refused_settings(fields, words):
    with pytest.raises(ConfigError, match=words):
        swarm(**{"sampler": "regmix", **fields})


def test_refused_with_the_pool():
    with pytest.raises(ConfigError, match="0 to 2: sampler=one_hot"):
        swarm("one_hot", member=3).init(INDEX)
    with pytest.raises(ConfigError, match=r"at most 0\.3333"):
        swarm("dirichlet", min_share=0.34).init(INDEX)
