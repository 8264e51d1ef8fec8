"""The rules for settings fit the configuration files: every preset passes, no rule is for a setting that is gone."""

from __future__ import annotations

from typing import Any

import pytest

from regimen.cli import conf_dir
from regimen.core.errors import ConfigError
from regimen.runs import validate
from tests.support.runs import compose_settings

PRESETS = [
    f"{group}={path.stem}"
    for group in ("trainer", "model", "optimizer", "logger", "objective", "evaluation", "budget", "paths")
    for path in sorted((conf_dir() / group).glob("*.yaml"))
    if path.stem != "base"
]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes(preset: str) -> None:
    micro = ["trainer.global_batch_size=16"]
    validate.settings(compose_settings(preset, *micro))


@pytest.mark.parametrize("group", sorted(set(validate.GROUPS) - {"logger"}))
def test_the_rules_name_the_settings_of_the_files(group: str) -> None:
    found: Any = compose_settings("logger=[wandb,tensorboard]")
    for key in group.split("."):
        found = found[key]
    assert set(found) == set(validate.GROUPS[group])


def test_what_is_unknown_and_what_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown setting budget.step, did you mean 'steps'"):
        validate.settings(compose_settings("+budget.step=3"))
    with pytest.raises(ConfigError, match=r"optimizer.lr is out of range(.|\n)*optimizer.lr=null(.|\n)*above 0"):
        validate.settings(compose_settings("optimizer.lr=null"))
