import pytest
import torch

from families import random_model
from make_tokenizer import make_tokenizer
from rhumbline import models, proving
from rhumbline.cli import main

torch.set_num_threads(1)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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


@pytest.fixture
def call(capsys):
    """Run one command: exit code, standard output, and standard error on one line; no command may trace back."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, " ".join(captured.err.split())

    return run
