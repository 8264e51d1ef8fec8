"""Mixture schedule: which mixture is in force at each step, and how names find their domains."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.mixing.mixture_schedule import MixtureSchedule
from tests.reference.observations import index_of, seeing

INDEX = index_of([6, 3, 1])
FIRST, LAST = {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 0.1, "b": 0.1, "c": 0.8}
ANNEAL = [{"until": 0.8, "weights": FIRST}, {"until": 1, "weights": LAST}]


def shares_at(mixer: MixtureSchedule, step: int, *, total: int = 10, index=INDEX) -> list[float]:
    seen = seeing(index=index, step=step, total_steps=total)
    return mixer.checked(mixer.decide(mixer.init(index), seen), seen).tolist()


def test_each_stage_has_its_mixture():
    mixer = MixtureSchedule(stages=ANNEAL)
    for step in range(10):
        assert shares_at(mixer, step) == pytest.approx(list((FIRST if step < 8 else LAST).values()))


def test_linear_keeps_the_first_and_reaches_the_others_where_they_end():
    stages = [{"until": 0.2, "weights": FIRST}, {"until": 0.6, "weights": LAST}, {"until": 1, "weights": "uniform"}]
    mixer = MixtureSchedule(stages=stages, interpolate="linear")
    assert shares_at(mixer, 0) == shares_at(mixer, 2) == pytest.approx([0.7, 0.2, 0.1])
    assert shares_at(mixer, 4) == pytest.approx([0.4, 0.15, 0.45])
    assert shares_at(mixer, 6) == pytest.approx([0.1, 0.1, 0.8])
    assert shares_at(mixer, 9) == pytest.approx([0.1 * 0.25 + 0.25, 0.1 * 0.25 + 0.25, 0.8 * 0.25 + 0.25])


def test_natural_and_uniform():
    mixer = MixtureSchedule(stages=[{"until": 0.5, "weights": "natural"}, {"until": 1.0, "weights": "uniform"}])
    assert shares_at(mixer, 4) == pytest.approx([0.6, 0.3, 0.1])
    assert shares_at(mixer, 5) == pytest.approx([1 / 3] * 3)
    assert shares_at(mixer, 5, index=index_of([6, 0, 4])) == pytest.approx([0.5, 0, 0.5])
    assert shares_at(mixer, 5, index=index_of([6])) == [1]


@given(st.integers(1, 500), st.lists(st.integers(1, 99), max_size=5, unique=True), st.sampled_from(["none", "linear"]))
def test_every_step_of_every_run_has_a_mixture(total, ends, interpolate):
    untils = [*sorted(end / 100 for end in ends), 1]
    stages = [{"until": u, "weights": (FIRST, LAST)[i % 2]} for i, u in enumerate(untils)]
    mixer = MixtureSchedule(stages=stages, interpolate=interpolate)
    counted = [0] * len(untils)
    for step in range(total):
        shares = shares_at(mixer, step, total=total)
        assert min(shares) >= 0.1 - 1e-12
        counted[next(i for i, u in enumerate(untils) if step < round(u * total))] += 1
        if interpolate == "none":
            place = next(i for i, u in enumerate(untils) if step < round(u * total))
            assert shares == pytest.approx(list((FIRST, LAST)[place % 2].values()))
    assert sum(counted) == total


def test_permuted_domains_get_permuted_shares():
    stages = [{"until": 1, "weights": {"c": 0.1, "a": 0.7, "b": 0.2}}]
    assert shares_at(MixtureSchedule(stages=stages), 0) == pytest.approx([0.7, 0.2, 0.1])


def test_names_sums_and_unnamed_domains_are_those_of_the_fixed_mixture():
    index = dataclasses.replace(INDEX, domains=("code", "pile_cc", "web"))
    stages = [{"until": 1, "weights": {"Pile-CC": 3, "Code": 1}}]
    mixer = MixtureSchedule(stages=stages, normalise=True, others="zero")
    assert shares_at(mixer, 0, index=index) == pytest.approx([0.25, 0.75, 0])
    with pytest.raises(ConfigError, match=r"strategies\.mixture_schedule\.others=zero"):
        MixtureSchedule(stages=stages, normalise=True).init(index)
    with pytest.raises(ConfigError, match=r"strategies\.mixture_schedule\.normalise=true"):
        MixtureSchedule(stages=stages)
    with pytest.raises(ConfigError, match="does not have"):
        MixtureSchedule(stages=ANNEAL).init(index)


def test_a_copy_is_the_same():
    assert dataclasses.replace(MixtureSchedule(stages=ANNEAL), interpolate="linear").stages[0].weights == FIRST


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "list of stages"),
        ({"stages": []}, "list of stages"),
        ({"stages": {"until": 1}}, "list of stages"),
        ({"stages": [{"until": 1}]}, "until and weights"),
        ({"stages": [0.5]}, "until and weights"),
        ({"stages": [{"until": 1, "weights": "best"}]}, "natural, uniform"),
        ({"stages": [{"until": 1, "weights": 3}]}, "natural, uniform"),
        ({"stages": [{"until": "end", "weights": "natural"}]}, "until is a part"),
        ({"stages": [{"until": 1.2, "weights": "natural"}]}, "until is a part"),
        ({"stages": [{"until": 0.9, "weights": "natural"}]}, "the last one 1"),
        ({"stages": [ANNEAL[0], ANNEAL[0], ANNEAL[1]]}, "each above the one before"),
        ({"stages": [{"until": 1, "weights": {"a": -1, "b": 2}}]}, "weight of 'a'"),
        ({"stages": ANNEAL, "interpolate": "cosine"}, "none, linear"),
        ({"stages": ANNEAL, "others": "drop"}, "refuse, zero"),
        ({"stages": ANNEAL, "draw": "dice"}, "multinomial"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        MixtureSchedule(**settings)
