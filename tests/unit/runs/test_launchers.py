"""Launcher presets compose on top of the plugin, and a plugin that is missing is named with its install line."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from regimen.cli import conf_dir
from regimen.core.errors import ConfigError
from regimen.runs import launchers

SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"


def launcher(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
    settings = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


@pytest.mark.parametrize(
    ("name", "nodes", "tasks"), [("slurm_1gpu", 1, 1), ("slurm_8gpu", 1, 8), ("slurm_multinode", 2, 8)]
)
def test_slurm_presets_give_each_process_a_gpu(name: str, nodes: int, tasks: int) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    settings = launcher(name)
    assert settings["_target_"] == SLURM
    assert (settings["nodes"], settings["tasks_per_node"], settings["gpus_per_node"]) == (nodes, tasks, tasks)
    assert (settings["cpus_per_task"], settings["timeout_min"]) == (8, 1440)  # handed down from slurm_1gpu


@pytest.mark.parametrize(
    ("name", "install"), [("slurm_multinode", "regimen[slurm]"), ("joblib", "regimen[sweep]"), ("ray", "ray-launcher")]
)
def test_a_missing_plugin_is_named(name: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "find_spec", lambda _: None)  # an environment without plugins
    with pytest.raises(ConfigError) as refused:
        launchers.refuse_missing_plugin(["-m", "seed=1,2", f"hydra/launcher={name}"])
    assert install in str(refused.value) and f"hydra/launcher={name}" in str(refused.value)


def test_hydras_own_launcher_and_other_settings_need_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "find_spec", lambda _: None)
    launchers.refuse_missing_plugin(["hydra/launcher=basic", "hydra.launcher.nodes=2", "method=natural"])
