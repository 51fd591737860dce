"""One prompt under several arms at once, token by token, with the projection of every token on a direction.

The tokens are those of `Runner.generate`. Independent of the purpose of an arm.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rhumbline.axes import Residual, TokenIds
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.decoding import PaddedDecoder
from rhumbline.inference.interventions import Arm, Direction
from rhumbline.inference.passes import padded
from rhumbline.models.chat_model import ChatModel, new_cache
from rhumbline.models.exact_lengths import at_lengths


class PromptRead(NamedTuple):
    """The prompt was read."""

    projections: tuple[tuple[float, ...], ...]
    """By arm and token, in units of the residual stream."""


class NewToken(NamedTuple):
    """One arm has a new token."""

    arm: int
    token: int
    projection: float


class Ended(NamedTuple):
    """The completion of one arm has ended."""

    arm: int
    at_stop: bool
    """Whether a stop token ended it; otherwise its length did."""


def stream(
    model: ChatModel,
    ids: TokenIds,
    arms: Sequence[Arm],
    watched: Direction,
    *,
    max_new_tokens: int,
    stop: Collection[int],
) -> Iterator[PromptRead | NewToken | Ended]:
    """Greedy completions of one prompt under all arms, in steps. No hook is on the model between two steps.

    A projection is read at the input of the block of `watched`, after the edits at that input.
    """
    read: list[Tensor] = []

    def watch(layer: int, h: Residual) -> None:
        if layer == watched.layer:
            read[:] = [h.float() @ watched.vector.to(h.device)]

    rows = torch.arange(len(arms), device=model.device)
    batch = padded(model, [ids], len(arms))
    cache = new_cache(at_lengths(model, [len(ids) + max_new_tokens]))
    decoder = PaddedDecoder(model, BatchEdits.of(arms, model), rows, batch.ids, batch.mask, cache, watch=watch)
    # Not around a yield: the mode would be that of the caller too.
    with torch.inference_mode():
        logits = decoder.prefill().logits
    yield PromptRead(tuple(map(tuple, read[0].tolist())))
    alive = torch.ones(len(arms), dtype=torch.bool, device=model.device)
    for _ in range(max_new_tokens):
        token = logits.argmax(-1)
        for arm in alive.nonzero()[:, 0].tolist():
            if int(token[arm]) in stop:
                alive[arm] = False
                yield Ended(arm, True)
        if not bool(alive.any()):
            return
        with torch.inference_mode():
            logits = decoder.next(token, alive)
        for arm in alive.nonzero()[:, 0].tolist():
            yield NewToken(arm, int(token[arm]), float(read[0][arm, -1]))
    for arm in alive.nonzero()[:, 0].tolist():
        yield Ended(arm, False)
