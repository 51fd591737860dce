"""Fixtures that several packages share: a tokenizer, tiny random models, and one finished run."""

import os
from pathlib import Path

# Before torch is imported, and for every process that a test starts: sums depend on the number of threads.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# Servers of the tests are on this machine.
os.environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1")

import pytest
import torch

from families import random_model
from make_judge import make_classifier
from make_tokenizer import CHATML, make_tokenizer
from rhumbline import load, preset, read_contrast, run
from rhumbline.cli import main
from rhumbline.models import chat_model as models
from rhumbline.models import proving
from rhumbline.organisms import materialise
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.files import read_rows

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"])


@pytest.fixture(scope="session")
def family_model(tokenizer):
    """A proved tiny random model of a family, built once per session."""
    built = {}

    def get(family: str, dtype: torch.dtype = torch.float32) -> models.ChatModel:
        if (family, dtype) not in built:
            model = random_model(family, dtype=dtype, vocab_size=len(tokenizer))
            built[family, dtype] = proving.prove(model, tokenizer, family)
        return built[family, dtype]

    return get


TEXTS = preset("arditi2024", seeds=(0,), sizes=Sizes(16, 8, 12), max_new_tokens=12, save_completions=True)
"""The protocol of `texts_run`."""


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory) -> Path:
    """The planted organism."""
    return materialise("planted", tmp_path_factory.mktemp("organisms"))


@pytest.fixture(scope="session")
def texts_run(planted_folder, tmp_path_factory) -> Path:
    """A finished run of it that kept its texts; tests that write in it work on copies."""
    out = tmp_path_factory.mktemp("runs") / "texts"
    contrast = read_contrast(planted_folder / "contrast.jsonl")
    run(load(str(planted_folder), device="cpu"), contrast, out, TEXTS, page=False)
    return out


@pytest.fixture(scope="session")
def classifier(planted_folder, texts_run, tmp_path_factory) -> Path:
    """A judge that copies a rule: does the answer say "cannot"?"""
    rows = [r for r in read_rows(texts_run / "seed-0" / "outcomes.jsonl") if r["arm"].startswith("null")]
    refused = ["cannot" in r["completion"] for r in rows]
    return make_classifier(tmp_path_factory.mktemp("judge"), planted_folder, rows, refused)


@pytest.fixture
def call(capsys):
    """Run one command: exit code, standard output, and standard error on one line; no command may trace back."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, " ".join(captured.err.split())

    return run
