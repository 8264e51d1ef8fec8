"""Fixed mixture: the published numbers of conf/mixture, and how names find their domains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from regimen.core.errors import ConfigError
from regimen.mixing.fixed import FixedMixture
from tests.reference.mixtures import shares_of
from tests.reference.observations import index_of

PRESETS = sorted(
    path for path in (Path(__file__).resolve().parents[2] / "conf" / "mixture").glob("*.yaml") if path.stem != "none"
)


def named(*domains: str):
    return dataclasses.replace(index_of([1] * len(domains)), domains=tuple(sorted(domains)))


def test_shares_by_name_whatever_the_order():
    mixer = FixedMixture(weights={"c": 0.5, "a": 0.2, "b": 0.3})
    assert shares_of(mixer, index_of([9, 1, 5])).tolist() == pytest.approx([0.2, 0.3, 0.5])


def test_names_match_by_their_letters_and_digits():
    index = named("pile_cc", "wikipedia_en")
    mixer = FixedMixture(weights={"Wikipedia (en)": 0.3, "Pile-CC": 0.7})
    assert shares_of(mixer, index).tolist() == pytest.approx([0.7, 0.3])


def test_an_exact_name_goes_before_a_similar_one():
    index = named("C-4", "c4")
    assert shares_of(FixedMixture(weights={"c4": 0.75, "C-4": 0.25}), index).tolist() == pytest.approx([0.25, 0.75])
    with pytest.raises(ConfigError, match="could mean several domains"):
        FixedMixture(weights={"C4": 0.75, "C-4": 0.25}).init(index)


def test_two_names_for_one_domain():
    with pytest.raises(ConfigError, match="'code' and 'Code' for 'code'"):
        FixedMixture(weights={"code": 0.5, "Code": 0.5}).init(named("code", "web"))


def test_an_unknown_domain_is_named_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"did you mean 'books'.*\n.*bocks.*\n.*books, code, web"):
        FixedMixture(weights={"bocks": 0.5, "web": 0.5}, others="zero").init(named("books", "code", "web"))


def test_domains_without_a_weight():
    weights = {"web": 1.0}
    with pytest.raises(ConfigError, match=r"does not name 2 of 3 domains.*\n.*books, code"):
        FixedMixture(weights=weights).init(named("books", "code", "web"))
    zero = FixedMixture(weights=weights, others="zero")
    assert shares_of(zero, named("books", "code", "web")).tolist() == [0, 0, 1]


def test_sums():
    assert shares_of(FixedMixture(weights={"a": 3, "b": 1}, normalise=True), index_of([1, 1])).tolist() == [0.75, 0.25]
    close = shares_of(FixedMixture(weights={"a": 0.7, "b": 0.3005}), index_of([1, 1]))
    assert float(close.sum()) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ConfigError, match=r"sum to 1\.1"):
        FixedMixture(weights={"a": 0.8, "b": 0.3})


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_name_their_source_and_fit_their_own_domains(path):
    text = path.read_text()
    preset = yaml.safe_load(text)
    assert text.startswith("# ")
    assert preset.keys() == {"normalise", "weights"}
    mixer = FixedMixture(**preset)
    shares = shares_of(mixer, named(*preset["weights"]))
    expected = torch.tensor([preset["weights"][name] for name in sorted(preset["weights"])], dtype=torch.float64)
    assert torch.allclose(shares, expected / expected.sum(), atol=1e-12)


def test_presets_hold_the_published_numbers(shared):
    published = json.loads((shared / "data" / "weights" / "domain_weight_presets.json").read_text())
    assert len(PRESETS) == len(published["presets"]) == 30
    ours = {path.stem: yaml.safe_load(path.read_text())["weights"] for path in PRESETS}
    for name, weights in published["presets"].items():
        clean = name.split("__")[0].removesuffix("_unnormalised").lower()
        assert ours[clean] == weights
        assert sum(ours[clean].values()) == pytest.approx(published["sums"][name], abs=1e-5)
