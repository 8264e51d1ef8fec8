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


@pytest.mark.parametrize(("visible", "jobs"), [("3,7", 2), ("GPU-5f,MIG-1a,2", 3), ("", None), ("-1", None)])
def test_joblib_has_a_process_for_each_gpu_that_is_visible(
    visible: str, jobs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REGIMEN_GPUS", "REGIMEN_SHARED"):
        monkeypatch.setenv(name, "")  # and restored
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = ["-m", "hydra/launcher=joblib", "seed=1,2"]
    more = [] if jobs is None else [f"hydra.launcher.n_jobs={jobs}"]
    assert launchers.share_gpus(given) == [*given, *more]
    fewer = [*given, "hydra.launcher.n_jobs=1"]
    assert launchers.share_gpus(fewer) == fewer and launchers.share_gpus(["seed=1"]) == ["seed=1"]


def test_more_processes_than_gpus_and_runs_on_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGIMEN_GPUS", "REGIMEN_SHARED"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for jobs in ("3", "-1"):
        with pytest.raises(ConfigError, match="1 to 2"):
            launchers.share_gpus(["-m", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"])
    launchers.refuse_several_processes({"devices": "auto", "num_nodes": 1})
    with pytest.raises(ConfigError, match="one process"):
        launchers.refuse_several_processes({"devices": 8, "num_nodes": 1})


def test_only_slurm_keeps_jobs_that_nobody_waits_for() -> None:
    assert launchers.take_wait(["-m", "hydra/launcher=slurm_1gpu", "wait=true"]) == ["-m", "hydra/launcher=slurm_1gpu"]
    for given in (["-m", "wait=false"], ["hydra/launcher=joblib", "wait=false"]):
        with pytest.raises(ConfigError, match="only SLURM"):
            launchers.take_wait(given)
    with pytest.raises(ConfigError, match="wait=true, wait=false"):
        launchers.take_wait(["hydra/launcher=slurm_1gpu", "wait=no"])


def test_hydras_own_launcher_and_other_settings_need_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "find_spec", lambda _: None)
    launchers.refuse_missing_plugin(["hydra/launcher=basic", "hydra.launcher.nodes=2", "method=natural"])
