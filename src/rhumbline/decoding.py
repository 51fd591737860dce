"""Greedy decoding: prompts are read once, then every row takes one token after the other; finished rows leave.

A decoder holds one batch of rows. The packed one keeps keys and values in buffers of the full length (packing.py); the
padded one uses transformers' own cache, or none where the model has none that can be trusted. Promises the same tokens
either way; knows neither prompts nor arms by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rhumbline.axes import Logits
from rhumbline.interventions import BatchEdits
from rhumbline.models import ChatModel, can_drop_rows, forward, hooked
from rhumbline.packing import Pack, PackedAttention, packed, packed_forward

DECIDED_EVERY = 8
"""Steps between two looks at whether a row's class is decided."""


@dataclass
class PackedDecoder:
    """Reads a pack once, then takes one token per row; keys and values stay in buffers of the full length."""

    model: ChatModel
    edits: BatchEdits
    arms: Int[Tensor, " arm"]
    arm: Int[Tensor, " row"]
    pack: Pack
    attention: PackedAttention

    @property
    def room(self) -> int:
        """Tokens of a row that are not there yet and already have their place in the cache."""
        return self.attention.room

    def read(self) -> Logits:
        """Logits after the prompts."""
        n_arms = len(self.arms)
        with hooked(self.model, self.edits.on(self.arms)):
            logits = packed_forward(self.model, self.pack, n_arms, self.attention).flatten(0, 1)
        self.attention.begin_decoding(n_arms)
        self.length = (self.pack.n_shared + torch.tensor(self.pack.lengths, device=self.arm.device)).repeat(n_arms)
        self.hooks = self.edits.on(self.arm, n_prompt=0)
        return logits

    def next(self, token: Int[Tensor, " row"]) -> Logits:
        """Logits after one more token of each row."""
        self.attention.next_token()
        with hooked(self.model, self.hooks), packed(self.model, self.attention):
            logits = self.model.model(
                input_ids=token[:, None], position_ids=self.length[:, None], use_cache=False, logits_to_keep=1
            ).logits[:, -1]
        self.length = self.length + 1
        return logits

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows alone."""
        self.attention.keep_rows(rows)
        self.arm, self.length = self.arm[rows], self.length[rows]
        self.hooks = self.edits.on(self.arm, n_prompt=0)

    can_drop = True


@dataclass
class PaddedDecoder:
    """Reads padded prompts, then takes one token per row with transformers' own cache, or without one."""

    model: ChatModel
    edits: BatchEdits
    arm: Int[Tensor, " row"]
    ids: Int[Tensor, "row position"]
    mask: Int[Tensor, "row position"]
    cache: Any

    room = 0
    """transformers' cache grows as tokens come."""

    def read(self) -> Logits:
        """Logits after the prompts."""
        self.n_prompt = self.ids.shape[1]
        with hooked(self.model, self.edits.on(self.arm)):
            return forward(self.model, self.ids, self.mask, self.cache)

    def next(self, token: Int[Tensor, " row"]) -> Logits:
        """Logits after one more token of each row."""
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        new = self.ids if self.cache is None else self.ids[:, -1:]
        with hooked(self.model, self.edits.on(self.arm, n_prompt=self.n_prompt if self.cache is None else 0)):
            return forward(self.model, new, self.mask, self.cache)

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows alone."""
        self.arm, self.ids, self.mask = self.arm[rows], self.ids[rows], self.mask[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    @property
    def can_drop(self) -> bool:
        """Whether rows can leave."""
        return self.cache is None or can_drop_rows(self.cache)


def decode(
    decoder: PackedDecoder | PaddedDecoder,
    model: ChatModel,
    max_new_tokens: int,
    read: Callable[[Logits], Tensor] | None,
    decided: Callable[[int, list[int]], bool] | None,
) -> tuple[list[list[int]], Tensor | None]:
    """Greedy completions of a decoder's rows (the stop token left out), and `read` of their first logits.

    `decided(arm, tokens)` may end a row early; it is asked every `DECIDED_EVERY` steps.
    """
    logits = decoder.read()
    first = read(logits) if read is not None else None
    device = logits.device
    stop = torch.tensor(sorted(model.stop_tokens()), device=device, dtype=torch.long)
    # One line of the batch is one row until it is done; `row` says which, since finished lines leave.
    row = torch.arange(len(logits), device=device)
    done = torch.zeros(len(logits), dtype=torch.bool, device=device)
    written = torch.full((len(logits), max_new_tokens), -1, dtype=torch.long, device=device)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        done = done | torch.isin(token, stop)
        written[row[~done], step] = token[~done]
        if decided is not None and step % DECIDED_EVERY == DECIDED_EVERY - 1:
            lines = zip(done.tolist(), decoder.arm.tolist(), written[row, : step + 1].tolist(), strict=True)
            settled = [was or decided(arm, tokens) for was, arm, tokens in lines]
            done = torch.tensor(settled, device=device)
        n_done = int(done.sum())
        if step + 1 == max_new_tokens or n_done == len(done):
            break
        if n_done >= max(1, len(done) // 4) and decoder.can_drop:
            # Not at every finished line: each time all that is cached is copied.
            left = (~done).nonzero()[:, 0]
            row, done, token = row[left], done[left], token[left]
            decoder.keep(left)
        logits = decoder.next(token)
    return [[t for t in line if t >= 0] for line in written.tolist()], first
