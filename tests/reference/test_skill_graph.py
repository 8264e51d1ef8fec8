"""Skill-it's graph (arXiv 2307.14430) as Aioli learns it (arXiv 2411.05735): relative falls of losses, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regimen.core.errors import ConfigError
from regimen.mixing.laws.skill_graph import skill_graph
from tests.support.shared import shared

START = {"web": {"code": 4.0, "web": 5.0}, "code": {"code": 4.0, "web": 5.0}}
END = {"web": {"code": 3.0, "web": 2.5}, "code": {"code": 1.0, "web": 4.0}}


def test_relative_falls_by_hand():
    graph = skill_graph(START, END)
    assert graph.domains == graph.targets == ("code", "web")
    assert graph.matrix.tolist() == [[0.75, 0.2], [0.25, 0.5]]
    assert graph.parameters["web"] == {"code": 0.25, "web": 0.5}


def test_a_published_graph_comes_back_from_losses_that_mean_it():
    published = json.loads(shared("aioli/skillit_graphs.json").read_text())
    wanted = np.array(published["slimpj_arxiv_book_stackexchange_normalized_seed_0"])
    names = ("arxiv", "book", "stackexchange")
    start = {i: dict.fromkeys(names, 8.0) for i in names}
    end = {i: {j: 8.0 * (1 - wanted[a, b]) for b, j in enumerate(names)} for a, i in enumerate(names)}
    assert np.allclose(skill_graph(start, end).matrix, wanted)


def test_a_domain_may_harm_another():
    graph = skill_graph(START, {"web": {"code": 5.0, "web": 2.5}, "code": END["code"]})
    assert graph.matrix[1, 0] == -0.25


def test_bad_input():
    for start, end in (
        ({}, {}),
        ({"web": START["web"]}, END),
        (START, {**END, "web": {"code": 3.0}}),
        (START, {**END, "web": {"code": float("nan"), "web": 1.0}}),
        ({**START, "web": {"code": 0.0, "web": 5.0}}, END),
    ):
        with pytest.raises(ConfigError):
            skill_graph(start, end)
