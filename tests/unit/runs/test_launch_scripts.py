"""The scripts and manifests of `launchers/`: fields, types, and settings that agree with each other and compose."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from regimen.cli import conf_dir
from tests.support.openapi import problems
from tests.support.runs import compose_settings

LAUNCHERS = Path(__file__).resolve().parents[3] / "launchers"
SCRIPTS = sorted(LAUNCHERS.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_is_executable_and_bash_can_read_it(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name.startswith("sbatch")], ids=lambda p: p.name)
def test_the_example_of_an_sbatch_script_fits_what_it_asks_for(script: Path) -> None:
    text = script.read_text()
    (example,) = re.findall(r"sbatch launchers/\S+ (.*)", text)
    trainer = compose_settings(*example.split())["trainer"]
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.MULTILINE))
    assert (trainer["devices"], trainer["num_nodes"]) == (int(asked["ntasks-per-node"]), int(asked["nodes"]))
    assert int(asked["gpus-per-node"]) == trainer["devices"]
    assert asked["signal"].startswith("USR1@") and "#SBATCH --requeue" in text, "it is saved and requeued at the limit"


def test_the_manifest_is_a_pytorchjob_whose_settings_agree() -> None:
    job: dict[str, Any] = yaml.safe_load((LAUNCHERS / "kubernetes" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert set(spec) == {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"}
    assert isinstance(spec["nprocPerNode"], str)
    assert spec["runPolicy"]["cleanPodPolicy"] in ("None", "Running", "All")
    assert isinstance(spec["runPolicy"]["backoffLimit"], int)
    replicas = spec["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        assert isinstance(replica["replicas"], int)
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch", "the operator looks for this name"
        assert all(isinstance(word, str) for word in [*container["command"], *container["args"]])
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert isinstance(pod["terminationGracePeriodSeconds"], int)
        trainer = compose_settings(*container["args"])["trainer"]
        assert trainer["devices"] == int(spec["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
        assert trainer["num_nodes"] == sum(r["replicas"] for r in replicas.values())


def test_the_readme_tells_of_each_way_what_to_type_what_it_needs_and_where_its_logs_are() -> None:
    text = (LAUNCHERS / "README.md").read_text()
    for preset in (conf_dir() / "hydra" / "launcher").glob("*.yaml"):
        assert f"hydra/launcher={preset.stem}" in text
    sections = re.split(r"^## ", text.partition("## Making room")[0], flags=re.MULTILINE)
    assert [s.splitlines()[0] for s in sections[1:]] == [
        *("sbatch without submitit", "torchrun", "joblib", "Ray", "Kubernetes"),
    ]
    for section in sections:
        assert section.count("**What it needs.**") == section.count("**Logs.**") == 1
        assert re.search(r"(regimen train|sbatch|torchrun.sh|kubectl create) ", section)


@pytest.fixture
def schema() -> tuple[Any, ...]:
    """The operator's own models of its API, and those of Kubernetes for what is in a pod."""
    training = pytest.importorskip("kubeflow.training", reason="pip install kubeflow-training, beside the project")
    return training, pytest.importorskip("kubernetes.client")


@pytest.mark.filterwarnings("ignore")  # generated code
def test_the_manifest_fits_the_schema_of_the_operator(schema: tuple[Any, ...]) -> None:
    job: dict[str, Any] = yaml.safe_load((LAUNCHERS / "kubernetes" / "pytorchjob.yaml").read_text())
    assert problems(job, "KubeflowOrgV1PyTorchJob", schema) == []
    job["spec"]["nprocPerNode"] = 8
    job["spec"]["runPolicy"]["backoff"] = 3
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    pod["containers"][0].pop("name")
    pod["terminationGracePeriodSeconds"] = "300"
    found = "\n".join(problems(job, "KubeflowOrgV1PyTorchJob", schema))
    for word in ("nprocPerNode: 8 is no str", "backoff: no such field", "`name`", "'300' is no int"):
        assert word in found, found
