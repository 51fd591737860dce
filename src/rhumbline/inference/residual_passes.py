"""Block inputs of one batch at positions of the prompts or of their responses.

Prompts are packed or padded on the left. With responses, prompts are padded on the left and responses on the right, so
that all responses start in the same column. Positions are checked here; independent of budgets and memory.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import Logits, TokenIds
from rhumbline.errors import InputError, ModelError
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batching import Batch, rectangles
from rhumbline.inference.passes import ReadLogits, Side, padded, places, places_in
from rhumbline.inference.windows import TokenPlaces, index_in_text
from rhumbline.models.chat import ChatWithResponse, token_batch
from rhumbline.models.chat_model import ChatModel, forward
from rhumbline.models.exact_lengths import at_lengths
from rhumbline.models.hooks import hooked, run_until
from rhumbline.models.packing import attention_of, pack, packed_forward
from rhumbline.records.positions import Position


class ResidualRead(NamedTuple):
    """What a forward pass reads: block inputs of `layers` at `positions`, under the one arm of `edits`."""

    positions: Sequence[Position]
    layers: Sequence[int]
    edits: BatchEdits
    read: ReadLogits | None = None
    """Applied to the last logits of the same pass; None: the pass stops at the input of the last of `layers`."""
    padding: Side | None = None
    """Side of the padding; None: prompts are packed if the model permits it, otherwise padded on the left."""


def check_positions(sequences: Sequence[TokenIds], positions: Sequence[Position]) -> None:
    """Raise InputError unless every sequence has every position: a response, or enough tokens of the prompt."""
    n_without = sum(not isinstance(s, ChatWithResponse) for s in sequences)
    shortest = min((s.n_prompt if isinstance(s, ChatWithResponse) else len(s) for s in sequences), default=0)
    for position in positions:
        if position.is_in_response and n_without:
            raise InputError(
                f"position {int(position)} ({position}) is in the response, and {n_without} of {len(sequences)} "
                "prompts have no response. Use a contrast whose prompts have responses, or positions of the prompt."
            )
        if position.offset is not None and -position.offset > shortest > 0:
            raise InputError(
                f"position {int(position)}: the shortest of {len(sequences)} prompts has {shortest} tokens. "
                f"Use positions from -{shortest} to -1."
            )


# -- prompts ----------------------------------------------------------------------------------------------------------


class _PromptPass(NamedTuple):
    """A forward pass over prompts, and the index of every position in its batch."""

    n_rows: int
    row: Int[Tensor, "prompt one"]
    token: Int[Tensor, "prompt position"]
    places: TokenPlaces
    run: Callable[[], Logits]


def prompt_residuals(
    model: ChatModel, texts: Sequence[TokenIds], what: ResidualRead
) -> tuple[Float[Tensor, "row position layer d_model"], Tensor | None]:
    """Block inputs at positions of each prompt, and the reading of its last logits."""
    device = model.device
    batch = _prompt_pass(model, texts, torch.tensor([int(p) for p in what.positions], device=device), what.padding)
    inputs: dict[int, Tensor] = {}

    def watch(layer: int, h: Tensor) -> None:
        if layer in what.layers:
            inputs[layer] = h[batch.row.to(h.device), batch.token.to(h.device)].to(device)

    rows = torch.zeros(batch.n_rows, dtype=torch.long, device=device)
    with hooked(model, what.edits.on(rows, places=batch.places), watch):
        logits = run_until(model, max(what.layers), batch.run) if what.read is None else batch.run()
    h = torch.stack([inputs[layer] for layer in what.layers], dim=2)
    return h, None if what.read is None else what.read(logits)


def _prompt_pass(
    model: ChatModel, texts: Sequence[TokenIds], positions: Int[Tensor, " position"], side: Side | None
) -> _PromptPass:
    """The pass of some prompts under one arm; `positions` are negative."""
    if side is None and at_lengths(model, map(len, texts)).proof.packing_is_exact:
        packed = pack(texts, max(1, -int(positions.min())), model.device)
        row = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        attention = attention_of(model, packed)
        at = packed.last[:, None] + 1 + positions
        where = places_in(packed, [0] * len(texts))
        return _PromptPass(1, row, at, where, lambda: packed_forward(model, packed, 1, attention)[0])
    ids, mask = batch = padded(model, texts, side=side or "left")
    where = places(batch)
    row = torch.arange(len(ids), device=model.device)[:, None]
    if side != "right":
        return _PromptPass(len(ids), row, mask.shape[1] + positions[None], where, lambda: forward(model, ids, mask))
    length = mask.sum(1, keepdim=True)
    return _PromptPass(
        len(ids), row, length + positions, where, lambda: forward(model, ids, mask, keep=0)[row[:, 0], length[:, 0] - 1]
    )


# -- prompts with responses -------------------------------------------------------------------------------------------


def with_responses(sequences: Sequence[TokenIds]) -> list[ChatWithResponse]:
    """The same sequences, if all of them have a response. Raises ModelError otherwise."""
    texts = [s for s in sequences if isinstance(s, ChatWithResponse)]
    if len(texts) < len(sequences):
        raise ModelError(
            f"{len(sequences) - len(texts)} of {len(sequences)} prompts have no response; one pass reads prompts that "
            "all have one. Encode all of them with Chat.encode_text, or none."
        )
    return texts


def response_batches(
    texts: Sequence[ChatWithResponse], tokens: int, *, same_length: bool, longest: int | None = None
) -> Iterator[Batch]:
    """All texts in batches of at most `tokens` padded tokens; with `same_length`, of prompts of one length.

    Texts are alone if they can have more than `longest` tokens, padding included.
    """
    width = max((t.n_prompt for t in texts), default=0) + max((t.n_response for t in texts), default=0)
    most = 0 if longest is not None and width > longest else None
    for batch in rectangles([len(t) for t in texts], 1, tokens, longest=most):
        lengths = {i: texts[i].n_prompt for i in batch.prompts}
        for length in sorted(set(lengths.values())) if same_length else [None]:
            yield Batch(batch.arms, [i for i in batch.prompts if length in (None, lengths[i])])


def response_residuals(
    model: ChatModel, texts: Sequence[ChatWithResponse], what: ResidualRead
) -> Float[Tensor, "row position layer d_model"]:
    """Mean block inputs over the tokens of each position. Of a shorter response the last token is read."""
    device = model.device
    left = token_batch([t[: t.n_prompt] for t in texts], model.pad_token, "left")
    right = token_batch([t[t.n_prompt :] for t in texts], model.pad_token, "right")
    ids: Int[Tensor, "row token"] = torch.cat([left.input_ids, right.input_ids], 1).to(device)
    mask = torch.cat([left.attention_mask, right.attention_mask], 1).to(device)
    width = left.input_ids.shape[1]
    share = torch.stack([_token_shares(t.n_response, width, ids.shape[1], what.positions) for t in texts]).to(device)
    inputs: dict[int, Tensor] = {}

    def watch(layer: int, h: Tensor) -> None:
        if layer in what.layers:
            inputs[layer] = torch.einsum("rsd,rps->rpd", h.float(), share.to(h.device)).to(device)

    rows = torch.zeros(len(texts), dtype=torch.long, device=device)
    in_answer = (torch.arange(ids.shape[1], device=device) - width).expand(len(texts), -1)
    where = TokenPlaces(index_in_text(mask), None, in_answer, ids)
    with hooked(model, what.edits.on(rows, width, where), watch):
        run_until(model, max(what.layers), lambda: forward(model, ids, mask))
    return torch.stack([inputs[layer] for layer in what.layers], dim=2)


def _token_shares(
    n_response: int, width: int, n_tokens: int, positions: Sequence[Position]
) -> Float[Tensor, "position token"]:
    """Weight of every token in the mean of each position; the response starts at token `width`."""
    share = torch.zeros(len(positions), n_tokens)
    for p, position in enumerate(positions):
        if position.offset is None:
            share[p, width : width + n_response] = 1 / n_response
        elif position.is_in_response:
            share[p, width + min(position.offset, n_response) - 1] = 1.0
        else:
            share[p, width + position.offset] = 1.0
    return share
