"""Forward passes of one batch: last-position logits of every row, also from passes that resume at a middle layer.

A row is one prompt under one arm; rows are ordered by (arm, prompt). Prompts are packed behind their shared prefix if
the model's proof permits it, otherwise padded. Independent of budgets, memory and the meaning of arms.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rhumbline.axes import Logits, Residual, TokenIds
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import Arm
from rhumbline.inference.windows import TokenPlaces, index_in_text
from rhumbline.models.chat import ChatWithResponse, token_batch
from rhumbline.models.chat_model import ChatModel, forward
from rhumbline.models.exact_lengths import at_lengths
from rhumbline.models.hooks import hooked, resumed, run_until
from rhumbline.models.packing import Pack, PackedAttention, attention_of, pack, packed_forward

Side = Literal["left", "right"]
"""On which side prompts are padded."""
ReadLogits = Callable[[Logits], Tensor]
"""A number for each row of logits, such as the metric."""


class Padded(NamedTuple):
    """The rows of a batch, padded to one length."""

    ids: Int[Tensor, "row position"]
    mask: Int[Tensor, "row position"]
    """1 at a token, 0 at padding."""


def padded(model: ChatModel, texts: Sequence[TokenIds], n_arms: int = 1, side: Side = "left") -> Padded:
    """Every prompt once for each arm, on the device of the model."""
    batch = token_batch([*texts] * n_arms, model.pad_token, side)
    return Padded(batch.input_ids.to(model.device), batch.attention_mask.to(model.device))


def places(batch: Padded, n_response: Sequence[int] = ()) -> TokenPlaces:
    """The places of the tokens of texts that are padded on the left.

    `n_response`: the tokens of the completion at the end of each text, for one arm or for every row; by default none.
    """
    (rows, width), device = batch.mask.shape, batch.mask.device
    lengths = torch.tensor(n_response or [0], device=device)
    in_completion = torch.arange(width, device=device) - (width - lengths.repeat(rows // len(lengths)))[:, None]
    return TokenPlaces(index_in_text(batch.mask), None, in_completion, batch.ids)


def places_in(packed: Pack, n_response: Sequence[int]) -> TokenPlaces:
    """The places of the tokens of a pack, with the number of tokens of the completion at the end of each text."""
    # The shared tokens belong to prompts (`n_private`).
    own = packed.position_ids[packed.n_shared :]
    lengths = torch.tensor(packed.lengths, device=own.device)
    start = packed.n_shared + lengths - torch.tensor(n_response, device=own.device)
    in_completion = torch.cat([own.new_full((packed.n_shared,), -1), own - start.repeat_interleave(lengths)])
    return TokenPlaces(packed.position_ids[None], packed.last, in_completion[None], packed.ids[None])


def response_lengths(texts: Sequence[TokenIds]) -> list[int]:
    """The number of tokens of the response that each text ends with; 0 without a response."""
    return [text.n_response if isinstance(text, ChatWithResponse) else 0 for text in texts]


def n_private(texts: Sequence[TokenIds]) -> int:
    """The number of tokens at the end of every text that a pack must not share: those of responses, at least one."""
    return max([1, *response_lengths(texts)])


def n_generated(texts: Sequence[TokenIds]) -> int:
    """Tokens at the end of every text that count as generated: those of responses, which must be equally many."""
    counts = set(response_lengths(texts))
    if len(counts) > 1:
        raise ValueError(f"the texts of one pass have {sorted(counts)} response tokens; expected the same number.")
    return next(iter(counts), 0)


def _is_prompt(packed: Pack, n: int) -> Bool[Tensor, "1 token"] | None:
    """Which tokens of a pack are prompt, if the last `n` of every text are generated; None: all of them."""
    if n == 0:
        return None
    is_prompt = torch.ones(1, len(packed.ids), dtype=torch.bool, device=packed.ids.device)
    for last in packed.last.tolist():
        is_prompt[0, last - n + 1 : last + 1] = False
    return is_prompt


def last_logits(model: ChatModel, texts: Sequence[TokenIds], edits: BatchEdits, arms: Int[Tensor, " arm"]) -> Logits:
    """Next-token logits after each prompt under each of some arms of `edits`."""
    n = n_generated(texts)
    is_packed = at_lengths(model, map(len, texts)).proof.packing_is_exact
    packed = pack(texts, max(1, n), model.device) if is_packed else None
    if packed is not None and len(packed.ids) <= (model.proof.longest_pack or len(packed.ids)):
        with hooked(model, edits.on(arms, _is_prompt(packed, n), places_in(packed, [n] * len(texts)))):
            return packed_forward(model, packed, len(arms), attention_of(model, packed)).flatten(0, 1)
    batch = padded(model, texts, len(arms))
    with hooked(model, edits.on(arms.repeat_interleave(len(texts)), batch.ids.shape[1] - n, places(batch, [n]))):
        return forward(model, *batch)


class LayerReadings(NamedTuple):
    """Readings of some arms of one layer, on all prompts of a batch."""

    layer: int
    first: int
    """Index of the first of these arms among those of the layer."""
    values: Float[Tensor, "arm prompt"]
    """Float64, on the CPU."""


def resumed_readings(
    model: ChatModel,
    texts: Sequence[TokenIds],
    arms_at: Mapping[int, Sequence[Arm]],
    read: ReadLogits,
    tokens: int,
) -> Iterator[LayerReadings]:
    """`read` of the last logits under arms that change nothing before the input of their layer.

    Each pass resumes at its layer from the unedited stream, which is advanced from one layer to the next. A pass has at
    most `tokens` tokens, or one arm. Needs a model whose packing is exact.
    """
    n = n_generated(texts)
    packed = pack(texts, max(1, n), model.device)
    attention, is_prompt = attention_of(model, packed), _is_prompt(packed, n)
    together = max(1, tokens // len(packed.ids))
    stream: Residual | None = None
    at = 0
    for layer in sorted(arms_at):
        stream, at = _advanced(model, packed, attention, stream, at, layer), layer
        for first in range(0, len(arms_at[layer]), together):
            arms = arms_at[layer][first : first + together]
            rows = torch.arange(len(arms), device=model.device)
            edits = BatchEdits.of(arms, model).on(rows, is_prompt, places_in(packed, [n] * len(texts)))
            # The stream is inserted, then edited: hooks of one module run in the order of their registration.
            with resumed(model, layer, stream.expand(len(arms), -1, -1)), hooked(model, edits):
                logits = packed_forward(model, packed, len(arms), attention_of(model, packed))
            values = read(logits.flatten(0, 1)).double().cpu()
            yield LayerReadings(layer, first, values.view(len(arms), len(texts)))


def _advanced(
    model: ChatModel, packed: Pack, attention: PackedAttention, stream: Residual | None, at: int, layer: int
) -> Residual:
    """The unedited stream at the input of `layer`, from that at the input of `at`, or from the tokens if None."""

    def run() -> Tensor:
        return packed_forward(model, packed, 1, attention)

    if stream is None:
        return run_until(model, layer, run)
    if at == layer:
        return stream
    with resumed(model, at, stream):
        return run_until(model, layer, run)
