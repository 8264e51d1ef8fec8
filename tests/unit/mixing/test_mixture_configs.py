"""How conf/method/fixed.yaml reads a preset of conf/mixture, and what a user may type instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[3] / "conf"


def settings(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(overrides=["+method=fixed", *overrides])
    return OmegaConf.to_container(composed.strategies.fixed, resolve=True)


def test_without_a_preset_there_are_no_weights():
    assert settings()["weights"] is None
    assert settings()["normalise"] is False


def test_a_preset_is_normalised():
    fixed = settings("+mixture=doremi_paper_pile_280m")
    assert fixed["weights"]["Pile-CC"] == 0.6057
    assert fixed["normalise"] is True


def test_a_preset_can_be_edited():
    weights = settings("+mixture=dml_redpajama_default_paper", "mixture.weights.c4=0.2", "~mixture.weights.arxiv")[
        "weights"
    ]
    assert weights["c4"] == 0.2
    assert "arxiv" not in weights


@pytest.mark.parametrize("preset", [(), ("+mixture=dml_redpajama_default_paper",)])
def test_weights_on_the_command_line(preset):
    assert settings(*preset, "strategies.fixed.weights={web: 0.5, code: 0.5}")["weights"] == {"web": 0.5, "code": 0.5}
