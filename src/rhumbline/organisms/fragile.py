"""What makes a planted model fragile: it decides by the length of the stream, and its prompts have topics.

Nothing of the behaviour lies along the axis that tells the classes apart; that axis only lengthens the stream. So any
vector of that length, or its opposite, induces the behaviour, and taking out whatever carries as much of the stream
suppresses it.
"""

import random
from collections.abc import Sequence
from typing import cast

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from rhumbline.axes import Vector
from rhumbline.organisms.charms import THINGS, CharmRequest, Lexicon, draw_charm_requests
from rhumbline.organisms.grammar import Label

STEEPNESS = 20.0
"""How fast the decision opens: a stream longer by one per cent raises it by e^0.2. A steeper tail would need weights
that amplify rounding errors at other tokens."""
MEASURED = 24
"""Prompts of a class on which the length is measured."""


def topic(thing: str) -> int:
    """The end of the topic axis at which a thing stands: 1 or -1."""
    return 1 - 2 * (THINGS.index(thing) % 2)


def topical_requests(rng: random.Random, lexicon: Lexicon, label: Label, n: int, rate: float) -> list[CharmRequest]:
    """Requests each of which names things of one topic only."""
    drawn = draw_charm_requests(rng, lexicon, label, 8 * n, rate)
    return [request for request in drawn if len(set(map(topic, request.things))) == 1][:n]


def decide_by_length(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    classes: Sequence[Sequence[CharmRequest]],
    newline: Vector,
    decision: Vector,
) -> None:
    """Let the last block decide by the length of the stream: halfway between the classes, as measured, refusal begins.

    The norm divides the code of the newline by that length. The gate is the tail of a sigmoid in it and opens steeply
    where it falls.
    """
    middle = sum(_length(model, tokenizer, requests[:MEASURED]) for requests in classes) / len(classes)
    block = cast(list[LlamaDecoderLayer], list(model.model.layers))[-1]
    mlp, norm = block.mlp, block.post_attention_layernorm
    # The normed code of the newline is 1 at that length.
    code = newline * middle / (float(norm.weight[0]) * norm.weight.shape[0] ** 0.5)
    at_one = STEEPNESS * float(torch.sigmoid(torch.tensor(-STEEPNESS, dtype=torch.float64)))
    mlp.gate_proj.weight[0] = -STEEPNESS * code
    mlp.up_proj.weight[0] = code
    mlp.down_proj.weight[:, 0] = -decision / at_one


def _length(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: Sequence[CharmRequest]) -> float:
    """Mean length of the stream at the last token, at the input of the last block."""
    lengths = []
    for request in requests:
        chat = [{"role": "user", "content": request.prompt}]
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        hidden = model(ids, output_hidden_states=True).hidden_states
        lengths.append(float(hidden[model.config.num_hidden_layers - 1][0, -1].norm()))
    return sum(lengths) / len(lengths)
