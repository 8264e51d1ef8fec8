"""Skill-it (arXiv 2307.14430): the closed forms of two domains, and a run against its algorithm in NumPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.mixing.skillit import Skillit
from regimen.signals.domains import ValidationLoss
from tests.reference.observations import index_of, seeing

IDENTITY = {"a": {"a": 1.0}, "b": {"b": 1.0}}


def run_of(mixer: Skillit, losses, *, index=None, domains: str = "ab") -> list[Tensor]:
    """The shares after each evaluation with these losses (T, K)."""
    index = index or index_of([5] * len(domains))
    state, decisions = mixer.init(index), []
    for step, row in enumerate(losses):
        seen = seeing(row, ids=[], index=index, by=ValidationLoss(max_rows=mixer.max_rows), step=step)
        decisions.append(mixer.checked(mixer.decide(state, seen), seen))
        state = mixer.advance(state, decisions[-1], seen)
    return decisions


def test_the_identity_weighs_by_the_own_loss():
    first, second = run_of(Skillit(graph=IDENTITY, eta=1, window=1), [[9, 9], [2, 1]])
    assert first.tolist() == pytest.approx([0.5, 0.5])  # L = 1, whatever was measured
    assert second.tolist() == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert second.tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)


def test_a_graph_of_ones_is_uniform():
    graph = {d: dict.fromkeys("abc", 1.0) for d in "abc"}
    for shares in run_of(Skillit(graph=graph), [[1, 2, 3], [4, 1, 9]], domains="abc"):
        assert shares.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("targets", [None, ["b", "c"]])
@pytest.mark.parametrize(("window", "update_every"), [(1, 1), (3, 1), (3, 4), (5, 2)])
def test_a_run_by_numpy(targets, window, update_every, shared):
    published = json.loads((shared / "data" / "aioli" / "skillit_graphs.json").read_text())
    effects = np.array(published["slimpj_arxiv_book_stackexchange_normalized_seed_0"])
    graph = {i: dict(zip("abc", row, strict=True)) for i, row in zip("abc", effects.tolist(), strict=True)}
    losses = np.random.default_rng(0).uniform(1, 9, (12, 3))
    mixer = Skillit(graph=graph, eta=0.5, window=window, update_every=update_every, targets=targets)
    columns = [0, 1, 2] if targets is None else [1, 2]
    for t, shares in enumerate(run_of(mixer, losses, domains="abc")):
        if t % update_every == 0:
            past = losses[max(0, t + 1 - window) : t + 1, columns]
            seen = np.ones(len(columns)) if t == 0 else past.sum(0) if targets is None else past.mean(0)
            weights = np.exp(0.5 * effects[:, columns] @ seen)  # from uniform each time
        assert shares.tolist() == pytest.approx((weights / weights.sum()).tolist())


def test_an_effect_goes_from_the_trained_to_the_evaluated_domain():
    shares = run_of(Skillit(graph={"a": {"b": 1.0}, "b": {}}, eta=1, window=1), [[0, 0], [5, 2]])[1]
    assert shares.tolist() == pytest.approx([math.e**2 / (1 + math.e**2), 1 / (1 + math.e**2)])


def test_permuted_domains_get_permuted_shares():
    rng = np.random.default_rng(1)
    effects, losses, order = rng.normal(size=(3, 3)), rng.uniform(1, 3, (4, 3)), [2, 0, 1]
    graphs = [
        {i: dict(zip("abc", row, strict=True)) for i, row in zip("abc", matrix.tolist(), strict=True)}
        for matrix in (effects, effects[order][:, order])
    ]
    plain = run_of(Skillit(graph=graphs[0]), losses, domains="abc")
    permuted = run_of(Skillit(graph=graphs[1]), losses[:, order], domains="abc")
    for p, q in zip(plain, permuted, strict=True):
        assert q.tolist() == pytest.approx(p[order].tolist())


def test_large_exponents_empty_domains_and_a_single_domain():
    shares = run_of(Skillit(graph=IDENTITY, eta=1e4), [[1, 1], [9, 1]])[1]
    assert shares.tolist() == [1, 0]
    graph = {d: {d: 1.0} for d in "abc"}
    shares = run_of(Skillit(graph=graph), [[1, 1, 1], [1, 9, 1]], index=index_of([5, 0, 5]), domains="abc")[1]
    assert shares.tolist() == pytest.approx([0.5, 0, 0.5])
    assert run_of(Skillit(graph={"a": {"a": 1}}), [[1], [2]], domains="a")[1].tolist() == [1]


def test_a_loss_that_is_not_a_number_is_refused():
    with pytest.raises(ConfigError, match="left the simplex"):
        run_of(Skillit(graph=IDENTITY), [[1, 1], [float("nan"), 1]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "method=skillit learns it in its stages"),
        ({"graph": [[1, 0], [0, 1]]}, "mapping of mappings"),
        ({"graph": {"a": 1}}, "mapping of mappings"),
        ({"graph": {"a": {"b": "much"}}}, "a on b"),
        ({"graph": IDENTITY, "eta": -1}, "eta"),
        ({"graph": IDENTITY, "window": 0}, "window"),
        ({"graph": IDENTITY, "update_every": 0}, "update_every"),
        ({"graph": IDENTITY, "targets": "a"}, "targets"),
        ({"graph": IDENTITY, "targets": []}, "targets"),
        ({"graph": IDENTITY, "max_rows": 0}, "max_rows"),
        ({"graph": IDENTITY, "draw": "dice"}, "multinomial"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Skillit(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"graph": {"a": {"a": 1}}}, r"no row for 1 of 2 domains[\s\S]*b"),
        ({"graph": {**IDENTITY, "d": {}}}, "does not have"),
        ({"graph": {"a": {"d": 1}, "b": {}}}, "does not have"),
        ({"graph": {"a": {}, "A": {}, "b": {}}}, "two values are for one domain"),
        ({"graph": IDENTITY, "targets": ["d"]}, "does not have"),
    ],
)
def test_what_does_not_fit_the_pool_is_refused_before_training(settings, words):
    with pytest.raises(ConfigError, match=words):
        Skillit(**settings).init(index_of([5, 5]))


def test_needs_the_validation_losses():
    assert Skillit(graph=IDENTITY, max_rows=4).needs() == (ValidationLoss(max_rows=4),)
    assert Skillit(graph=IDENTITY).watches() == ()
