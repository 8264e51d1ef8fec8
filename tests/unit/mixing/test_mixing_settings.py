"""Settings of mixers that cannot work are refused when they are built, with what is allowed."""

from __future__ import annotations

import pytest

from regimen.core.errors import ConfigError
from regimen.mixing.fixed import FixedMixture
from regimen.mixing.natural import Natural
from regimen.mixing.odm import Odm
from regimen.mixing.random_mixture import RandomMixture
from regimen.mixing.temperature import Temperature
from regimen.mixing.uniform import Uniform
from regimen.mixing.unimax import UniMax

NAN, INF = float("nan"), float("inf")
HALVES = {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("mixer", "settings", "words"),
    [
        (RandomMixture, {"concentration": 0}, "concentration"),
        (RandomMixture, {"concentration": NAN}, "concentration"),
        (RandomMixture, {"concentration": INF}, "concentration"),
        (Temperature, {"tau": 0}, "tau"),
        (Temperature, {"tau": -1}, "tau"),
        (Temperature, {"tau": NAN}, "tau"),
        (UniMax, {"epochs": 0}, "epochs"),
        (UniMax, {"epochs": NAN}, "epochs"),
        (FixedMixture, {}, r"mixture=NAME"),
        (FixedMixture, {"weights": {}}, "sum to 0"),
        (FixedMixture, {"weights": {"a": -0.1, "b": 1.1}}, "weight of 'a'"),
        (FixedMixture, {"weights": {"a": NAN, "b": 1}}, "weight of 'a'"),
        (FixedMixture, {"weights": {"a": INF, "b": 1}}, "weight of 'a'"),
        (FixedMixture, {"weights": {"a": "half", "b": 0.5}}, "got:     half"),
        (FixedMixture, {"weights": {"a": None, "b": 1}}, "weight of 'a'"),
        (FixedMixture, {"weights": {"a": 0, "b": 0}, "normalise": True}, "sum to 0"),
        (FixedMixture, {"weights": {"a": 0.5, "b": 0.498}}, "normalise=true"),
        (FixedMixture, {"weights": HALVES, "others": "drop"}, "refuse, zero"),
        (Odm, {"variant": "exp4"}, "paper, repo_linear_ppl, exp3"),
        (Odm, {"smoothing": 1.0}, "smoothing"),
        (Odm, {"smoothing": NAN}, "smoothing"),
        (Odm, {"warmup": 1.0}, "warmup"),
        (Odm, {"warmup": -0.1}, "warmup"),
        (Odm, {"initial": "pile"}, "natural, uniform"),
    ],
)
def test_refused(mixer, settings, words):
    with pytest.raises(ConfigError, match=words):
        mixer(**settings)


@pytest.mark.parametrize("mixer", [Natural, Uniform, RandomMixture, Temperature, UniMax, FixedMixture, Odm])
def test_every_mixer_checks_how_domains_are_drawn(mixer):
    settings = {"weights": HALVES} if mixer is FixedMixture else {}
    with pytest.raises(ConfigError, match="multinomial, fixed_counts, one_domain"):
        mixer(**settings, draw="dice")
    with pytest.raises(ConfigError, match="draw_groups"):
        mixer(**settings, draw_groups=0)
