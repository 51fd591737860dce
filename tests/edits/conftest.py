"""Checkpoints of tiny random models, and a direction for them."""

import pytest
import torch
from safetensors.torch import save_file

from families import random_model


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    """The directory of a random model of a family, in several files if `shard_size` is given."""

    def make(family="llama", dtype=torch.bfloat16, shard_size="1GB", **overrides):
        folder = tmp_path / f"{family}-base"
        model = random_model(family, vocab_size=len(tokenizer), dtype=dtype, gains=True, **overrides)
        model.save_pretrained(folder, max_shard_size=shard_size)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def direction_file(tmp_path):
    """A file with one random direction of width 32."""
    path = tmp_path / "direction.safetensors"
    save_file({"direction": torch.randn(32, generator=torch.Generator().manual_seed(3))}, path)
    return path
