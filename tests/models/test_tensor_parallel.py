"""Tensor parallelism: two gloo ranks on the processor give what one process gives, from hooks to run directories."""

import json
import os
import subprocess
import sys

import pytest

from paths import HELPERS, ROOT
from rhumbline.cli import main
from rhumbline.errors import InputError, ModelError
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.loading import load
from rhumbline.organisms import materialise

FAMILIES = ["llama", "qwen2", "gemma2", "qwen3_moe", "mixtral"]
CONFIG = """
max_new_tokens = 8
seeds = [0]
sizes = {train = 12, val = 6, test = 8}
nulls = {draws = 1, wide = 19, prompts = 4, procedure_prompts = 2, procedure = 19, families = ["isotropic"]}
rule = "blog2026"
dose = {strengths = [0, 1], coefficients = [0, 1], draws = 1, prompts = 4}
stability = {refits = 2, sites = 2, prompts = 4}
"""


def torchrun(*arguments, n: int = 2) -> subprocess.CompletedProcess:
    # A free port each: tests run beside each other.
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", *map(str, arguments)]  # fmt: skip
    path = os.pathsep.join([str(HELPERS), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


@pytest.mark.parametrize("families", [FAMILIES[-1:], pytest.param(FAMILIES[:-1], marks=pytest.mark.slow)])
def test_parts_equal_the_whole(families):
    done = torchrun(HELPERS / "tensor_parallel.py", *families)
    assert done.returncode == 0, done.stderr[-3000:]
    for family in families:
        assert all(f"rank {r}: {family} equal" in done.stdout for r in (0, 1))


@pytest.mark.slow
def test_a_run_in_parts_is_the_run_of_one_process(tmp_path):
    organism = materialise("planted", tmp_path)
    (tmp_path / "exp.toml").write_text(CONFIG)
    contrast = organism / "contrast.jsonl"
    common = ["run", organism, "--contrast", contrast, "--config", tmp_path / "exp.toml", "--json", "--out"]
    done = torchrun("-m", "rhumbline.cli", *common, tmp_path / "parts", "--tensor-parallel")
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads(done.stdout)  # one rank speaks
    assert main([*map(str, common), str(tmp_path / "whole"), "--device", "cpu"]) == 0
    whole = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert parts["protocol_sha256"] == whole["protocol_sha256"]
    assert parts["verdict"] == whole["verdict"]
    assert parts["environment"]["engine"] == "torchrun, 2 ranks"
    for name in ("selected", "tied"):
        for a, b in zip(_cells(parts, name), _cells(whole, name), strict=True):
            assert {k: a[k] for k in ("position", "layer")} == {k: b[k] for k in ("position", "layer")}
    rates = [[a["rate"] for a in found["seeds"][0]["arms"]] for found in (parts, whole)]
    assert rates[0] == rates[1] != []
    # A directory that one process began goes on in parts: both know it by the same protocol.
    (tmp_path / "whole" / "results.json").unlink()
    (tmp_path / "whole" / "seed-0" / "outcomes.jsonl").unlink()
    done = torchrun("-m", "rhumbline.cli", *common, tmp_path / "whole", "--tensor-parallel")
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(["verify", str(tmp_path / "whole")]) == 0


def _cells(results: dict, name: str) -> list[dict]:
    found = results["seeds"][0][name]
    return found if isinstance(found, list) else [found]


def test_without_torchrun_the_command_is_told():
    with pytest.raises(InputError, match="torchrun --nproc-per-node N"):
        ranks.join()
    assert (ranks.world_size(), ranks.rank(), ranks.minimum(7)) == (1, 0, 7)


def test_a_family_without_a_plan_is_refused(tmp_path, tokenizer):
    from families import random_model

    random_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no tensor-parallel plan for gpt2; use --device auto"):
        load(str(tmp_path), tensor_parallel=True)


def test_one_process_writes_where_it_is_told(tmp_path):
    with ranks.output_directory(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"
