"""Random Qwen2-shaped models and prompts of the sizes in docs/benchmarks.md."""

import random
from dataclasses import dataclass

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rhumbline.models.chat_model import ChatModel
from rhumbline.models.proving import prove


@dataclass(frozen=True)
class Shape:
    n_layers: int
    d_model: int
    vocab: int
    heads: int
    mlp: int | None = None
    """Width of the MLP; None: about 8/3 of the width of the stream."""


SHAPES = {"m8": Shape(8, 256, 32_000, 4), "m24": Shape(24, 512, 32_000, 8), "mv": Shape(8, 512, 152_000, 8)}
SYSTEM, NO_SYSTEM = 26, 3
"""Tokens of the shared chat prefix, with a system prompt and without."""
SUFFIX = 5


class NoText:
    """The parts of a tokenizer that are needed if prompts are drawn as token ids."""

    pad_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict:
        return {"input_ids": [3 + ord(c) for c in text]}


def random_model(shape: Shape, seed: int = 0) -> ChatModel:
    config = Qwen2Config(
        hidden_size=shape.d_model, intermediate_size=shape.mlp or 4 * shape.d_model // 64 * 64 * 2 // 3 // 32 * 32,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        vocab_size=shape.vocab, max_position_embeddings=2048, tie_word_embeddings=False, initializer_range=0.06,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    return prove(model, NoText(), f"random {shape}")


def prompts(n: int, prefix: int, vocab: int, seed: int) -> list[list[int]]:
    """`n` chats: a shared prefix, 8 to 40 tokens of instruction, five shared post-instruction tokens."""
    shared = random.Random(0)
    head = [shared.randrange(3, vocab) for _ in range(prefix)]
    tail = [shared.randrange(3, vocab) for _ in range(SUFFIX)]
    rng = random.Random(seed)
    return [head + [rng.randrange(3, vocab) for _ in range(rng.randint(8, 40))] + tail for _ in range(n)]
