"""Which overrides reach a stage, the members of a set, references, and stages that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from regimen.core.errors import ConfigError
from regimen.runs import stages
from regimen.runs.handover import references, rehearsed, resolve

PROXY: dict[str, Any] = {"model": None, "steps": None, "tokens": None, "epochs": None, "flops": None, "runs": 4}
SET = {"overrides": ["method=swarm", "strategies.swarm.member={member}", "strategies.swarm.count={count}"], "count": 3}


def settings(*overrides: str, proxy: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    return {"overrides": list(overrides), "proxy": {**PROXY, **(proxy or {})}, "stages": given}


def test_what_reaches_a_stage() -> None:
    typed = [
        *("model=tiny", "model.config.hidden_size=16", "+model.config.attention_dropout=0.1", "budget.steps=8"),
        *("method=doremi", "strategies.doremi.draw=fixed_counts", "seed=3", "stages.proxy.overrides=[x]"),
        *("logger=wandb", "run_dir=out", "evaluation.at=[1]", "trainer=ddp", "dataset.path=x", "~optimizer.betas"),
    ]
    assert stages.reaching(settings(*typed), ["method=uniform"]) == [
        *("model=tiny", "model.config.hidden_size=16", "+model.config.attention_dropout=0.1", "budget.steps=8"),
        *("seed=3", "trainer=ddp", "dataset.path=x", "~optimizer.betas"),
    ]


def test_what_a_stage_sets_is_its_own() -> None:
    typed = ["model=tiny", "model.config.hidden_size=16", "budget.steps=8", "seed=3"]
    assert stages.reaching(settings(*typed), ["model=nano", "budget.steps=2"]) == ["seed=3"]


def test_the_proxy_replaces_model_and_budget() -> None:
    typed = ["model=tiny", "model.config.hidden_size=16", "budget.epochs=2", "seed=3"]
    given = settings(*typed, proxy={"model": "nano", "tokens": 1000})
    assert stages.reaching(given, ["method=uniform"]) == ["seed=3", "model=nano", "budget.tokens=1000"]
    assert stages.reaching(given, ["model=tiny", "budget.steps=2"]) == ["seed=3"]


def test_members_of_a_set() -> None:
    found = stages.members(settings("seed=1", swarm=SET), "swarm", round_number=1, domains=5)
    assert [m.number for m in found] == [0, 1, 2]
    assert found[2].overrides == ("seed=1", "method=swarm", "strategies.swarm.member=2", "strategies.swarm.count=3")


def test_one_member_per_domain_or_per_list() -> None:
    per_domain = settings(swarm={**SET, "count": "domains"})
    assert len(stages.members(per_domain, "swarm", round_number=1, domains=5)) == 5
    over = settings(runs={"overrides": ["a=1"], "over": [["method=x"], ["method=y", "b={member}"]]})
    assert [m.overrides for m in stages.members(over, "runs", round_number=1, domains=2)] == [
        ("a=1", "method=x"),
        ("a=1", "method=y", "b=0"),
    ]


def test_rounds_have_their_own_overrides_and_counts() -> None:
    given = settings(swarm={**SET, "count": [3, 2], "next": ["method=near", "round={round}"]})
    counts = [len(stages.members(given, "swarm", round_number=r, domains=1)) for r in (1, 2, 3)]
    assert counts == [3, 2, 2]
    assert stages.members(given, "swarm", round_number=3, domains=1)[0].overrides == ("method=near", "round=3")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": "method=x"}, "must be a run or a fit"),
        ({"a": {"count": 3}}, "must be a run or a fit"),
        ({"a": {"overrides": ["x=1"], "fit": {}}}, "must be a run or a fit"),
        ({"a": {"overrides": ["x=1"], "conut": 3}}, "did you mean 'count'"),
        ({"a": {"overrides": "method=x"}}, "list of overrides"),
        ({"a": {"overrides": ["x=1"], "count": 0}}, "counts runs"),
        ({"a": {"overrides": ["x=1"], "count": True}}, "counts runs"),
        ({"a": {"overrides": ["x=1"], "count": [1, "all"]}}, "counts runs"),
        ({"fit": {"fit": {}, "runs": "a"}, "a": {"overrides": ["x=1"]}}, "before it"),
        ({"fit": {"fit": {}, "runs": "b"}}, "before it"),
        ({"a": {"fit": {}, "runs": "a"}}, "before it"),
    ],
)
def test_stages_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        stages.check(given)


def test_references() -> None:
    tree = {"a": {"weights": {"stage": "proxy", "gives": "mixture"}, "b": [1, {"stage": "x", "gives": "model"}]}}
    assert references(tree) == [("proxy", "mixture"), ("x", "model")]
    found = resolve(tree, lambda stage, what: f"{stage}.{what}")
    assert found == {"a": {"weights": "proxy.mixture", "b": [1, "x.model"]}}
    assert resolve({"stage": "a", "gives": "mixture"}, rehearsed(("p", "q"))) == {"p": 0.5, "q": 0.5}
    assert references({"stage": 1, "gives": 2, "more": 3}) == []


def test_stages_that_nothing_refers_to_are_not_needed() -> None:
    given = settings(
        a={"overrides": ["x=1"]},
        b={"overrides": ["x=1"], "next": ["y={stage: a, gives: mixture}"]},
        swarm={"overrides": ["around={stage:law,gives:mixture}"]},
        law={"fit": {}, "runs": "swarm"},
        idle={"overrides": ["x={stage: b, gives: model}"]},
    )
    assert stages.needed({**given, "strategies": {}}) == []
    of_b = {**given, "strategies": {"m": {"weights": {"stage": "b", "gives": "mixture"}}}}
    assert stages.needed(of_b) == ["a", "b"]
    of_law = {**given, "strategies": {"m": {"weights": {"stage": "law", "gives": "mixture"}}}}
    assert stages.needed(of_law) == ["swarm", "law"]


def test_what_the_user_gives_replaces_a_reference() -> None:
    """Hydra merges a mapping into the reference that stands there."""
    merged = {"graph": {"stage": "graph", "gives": "graph", "web": {"web": 1.0}}}
    assert references(merged) == []
    assert resolve(merged, lambda stage, what: None) == {"graph": {"web": {"web": 1.0}}}
