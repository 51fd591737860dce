"""The recipes of docs/guide/scale.md, as far as they can be checked without a cluster."""

import re
import subprocess
import tomllib

import pytest
import yaml

import paths
from rhumbline.cli import parser
from rhumbline.jobs.sweeps import read_sweep

GUIDE = (paths.GUIDE / "scale.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_the_sweep_file_is_valid(tmp_path):
    (text,) = blocks("toml")
    assert "seeds" in tomllib.loads(text)
    (tmp_path / "sweep.toml").write_text(text)
    assert len(read_sweep(tmp_path / "sweep.toml").cells()) == 9


def test_the_slurm_script_is_valid_bash(tmp_path):
    (text,) = blocks("bash")
    script = tmp_path / "job.sh"
    script.write_text(text)
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    script.write_text(text + "if\n")
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=False).returncode != 0
    directives = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time"} <= directives.keys()
    assert "RAY_AUTH_MODE=token" in text


def test_the_ray_job_has_the_fields_of_kuberay():
    (text,) = blocks("yaml")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert "rayStartParams" in group
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"]
        assert container["image"]
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert mounted <= {v["name"] for v in pod["volumes"]}
        variables = {v["name"]: v for v in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    for worker in cluster["workerGroupSpecs"]:
        assert worker["groupName"]
        assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
        assert "nvidia.com/gpu" in worker["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("source", ["bash", "yaml"])
def test_the_commands_in_the_recipes_exist(source):
    (text,) = blocks(source)
    (line,) = re.findall(r"(?:entrypoint: |^)rhumbline (sweep .*?)(?: &)?$", text, re.MULTILINE)
    options = parser().parse_args(line.replace('"', "").split())
    assert options.engine == "ray"
    assert options.gpus_per_replica == 1
