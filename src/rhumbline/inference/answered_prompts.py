"""Prompts with their answers in, means of block inputs over tokens of the answers out.

Prompts are padded on the left and answers on the right, so that an answer begins at one place in a batch. Knows texts
and edits; does not know budgets that are measured, nor what an arm is for.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.errors import InputError, ModelError
from rhumbline.inference.batching import Block, rectangles
from rhumbline.inference.interventions import BatchEdits
from rhumbline.models.chat import Answered, token_batch
from rhumbline.models.chat_model import ChatModel, forward
from rhumbline.models.hooks import hooked, run_until
from rhumbline.records.positions import Position


def check_positions(sequences: Sequence[TokenIds], positions: Sequence[Position]) -> None:
    """Raise InputError unless every sequence has every position: tokens of its prompt, and a response if needed."""
    without = [i for i, s in enumerate(sequences) if not isinstance(s, Answered)]
    shortest = min((len(s) - s.n_answer if isinstance(s, Answered) else len(s) for s in sequences), default=0)
    for position in positions:
        if position.is_in_response and without:
            raise InputError(
                f"position {int(position)} ({position}) is in the response, and {len(without)} of {len(sequences)} "
                "prompts have no response. Use a contrast whose prompts have responses, or positions of the prompt."
            )
        if position.offset is not None and -position.offset > shortest > 0:
            raise InputError(
                f"position {int(position)}: the shortest of {len(sequences)} prompts has {shortest} tokens. "
                f"Use positions from -{shortest} to -1."
            )


def answered(sequences: Sequence[TokenIds]) -> list[Answered]:
    """The same, all of which must have an answer; ModelError otherwise."""
    texts = [s for s in sequences if isinstance(s, Answered)]
    if len(texts) < len(sequences):
        raise ModelError("prompts with an answer and prompts without cannot be read in one pass.")
    return texts


def answered_blocks(texts: Sequence[Answered], tokens: int, *, alike: bool) -> Iterator[Block]:
    """All texts in blocks of at most `tokens` padded tokens; with `alike` the prompts of a block have one length."""
    for block in rectangles([len(t) for t in texts], 1, tokens):
        lengths = {i: len(texts[i]) - texts[i].n_answer for i in block.prompts}
        for length in sorted(set(lengths.values())) if alike else [None]:
            yield Block(block.arms, [i for i in block.prompts if length in (None, lengths[i])])


def answered_residuals(
    model: ChatModel, texts: Sequence[Answered], positions: Sequence[Position], layers: Sequence[int], edits: BatchEdits
) -> Float[Tensor, "row position layer d_model"]:
    """Means of the inputs of `layers` over the tokens of each position, under the one arm of `edits`."""
    device = model.device
    left = token_batch([t[: len(t) - t.n_answer] for t in texts], model.pad_token, "left")
    right = token_batch([t[len(t) - t.n_answer :] for t in texts], model.pad_token, "right")
    ids: Int[Tensor, "row token"] = torch.cat([left.input_ids, right.input_ids], 1).to(device)
    mask = torch.cat([left.attention_mask, right.attention_mask], 1).to(device)
    width = left.input_ids.shape[1]
    share = torch.zeros(len(texts), len(positions), ids.shape[1], device=device)
    for row, text in enumerate(texts):
        for p, position in enumerate(positions):
            if position.offset is None:
                share[row, p, width : width + text.n_answer] = 1 / text.n_answer
            elif position.is_in_response:
                share[row, p, width + min(position.offset, text.n_answer) - 1] = 1.0
            else:
                share[row, p, width + position.offset] = 1.0
    seen: dict[int, Tensor] = {}

    def watch(layer: int, h: Tensor) -> None:
        if layer in layers:
            seen[layer] = torch.einsum("rsd,rps->rpd", h.float(), share.to(h.device)).to(device)

    rows = torch.zeros(len(texts), dtype=torch.long, device=device)
    with hooked(model, edits.on(rows, n_prompt=width), watch):
        run_until(model, max(layers), lambda: forward(model, ids, mask))
    return torch.stack([seen[layer] for layer in layers], dim=2)
