import pytest
import torch

from families import random_model
from make_tokenizer import make_tokenizer
from rhumbline import models, proving

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
