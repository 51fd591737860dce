"""The decision of a fragile planted model: it depends on the norm of the residual stream, not on a direction.

The classes differ along one axis, which only changes the norm. So any vector of that norm, or its opposite, induces the
behaviour, and removing any component of that size suppresses it.
"""

from collections.abc import Sequence
from typing import cast

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from rhumbline.axes import Vector
from rhumbline.organisms.charms import CharmRequest

STEEPNESS = 20.0
"""Slope of the decision: one per cent more norm raises it by a factor e^0.2. A steeper slope would need weights that
amplify rounding errors at other tokens."""
MEASURED = 24
"""Prompts of a class on which the norm is measured."""


def decide_by_norm(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    classes: Sequence[Sequence[CharmRequest]],
    newline: Vector,
    decision: Vector,
) -> None:
    """Let the last block write `decision` above a norm of the stream: halfway between the classes, as measured.

    The norm module divides the code of the newline by the norm of the stream. The gate is the tail of a sigmoid of the
    quotient and opens steeply as it decreases.
    """
    middle = sum(_mean_norm(model, tokenizer, requests[:MEASURED]) for requests in classes) / len(classes)
    block = cast(list[LlamaDecoderLayer], list(model.model.layers))[-1]
    mlp, norm = block.mlp, block.post_attention_layernorm
    # The code after the norm module is 1 at the norm `middle`.
    code = newline * middle / (float(norm.weight[0]) * norm.weight.shape[0] ** 0.5)
    at_one = STEEPNESS * float(torch.sigmoid(torch.tensor(-STEEPNESS, dtype=torch.float64)))
    mlp.gate_proj.weight[0] = -STEEPNESS * code
    mlp.up_proj.weight[0] = code
    mlp.down_proj.weight[:, 0] = -decision / at_one


def _mean_norm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: Sequence[CharmRequest]) -> float:
    """Mean norm of the stream at the last token, at the input of the last block."""
    norms = []
    for request in requests:
        chat = [{"role": "user", "content": request.prompt}]
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        hidden = model(ids, output_hidden_states=True).hidden_states
        norms.append(float(hidden[model.config.num_hidden_layers - 1][0, -1].norm()))
    return sum(norms) / len(norms)
