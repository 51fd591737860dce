"""Greedy decoding: prompts are read once, then every row takes one token after the other; finished rows leave.

A decoder holds one batch of rows. The packed one reads its prompts in packs and keeps keys and values in lines of the
full length (packing.py); the padded one uses transformers' own cache, or none where the model has none that can be
trusted. Promises the same tokens either way; knows neither prompts nor arms by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from rhumbline.axes import Logits
from rhumbline.interventions import BatchEdits
from rhumbline.models import ChatModel, can_drop_rows, forward, hooked
from rhumbline.packing import Kept, KeptAttention, Pack, PackedAttention, own_implementation, packed, packed_forward

DECIDED_EVERY = 8
"""Steps between two looks at whether a row's class is decided."""


class Piece(NamedTuple):
    """Some rows of a batch that are read together."""

    pack: Pack
    arms: Int[Tensor, " arm"]
    rows: Int[Tensor, "arm prompt"]
    """Where they stand in the batch."""


@dataclass
class PackedDecoder:
    """Reads pack after pack, then takes one token per row; keys and values stay in lines of the full length."""

    model: ChatModel
    edits: BatchEdits
    arm: Int[Tensor, " row"]
    pieces: Sequence[Piece]
    kept: Kept

    def read(self) -> Logits:
        """Logits after the prompts."""
        plain, found = own_implementation(self.model), None
        for pack, arms, rows in self.pieces:
            attention = PackedAttention(pack, plain, self.kept, rows)
            with hooked(self.model, self.edits.on(arms)):
                logits = packed_forward(self.model, pack, len(arms), attention)
            if found is None:
                found = logits.new_zeros(len(self.arm), logits.shape[-1])
            found[rows.flatten()] = logits.flatten(0, 1)
        assert found is not None
        self.hooks = self.edits.on(self.arm, n_prompt=0)
        self.plain = plain
        return found

    def next(self, token: Int[Tensor, " row"]) -> Logits:
        """Logits after one more token of each row."""
        with hooked(self.model, self.hooks), packed(self.model, KeptAttention(self.kept, self.plain)):
            logits = self.model.model(
                input_ids=token[:, None], position_ids=self.kept.length[:, None], use_cache=False, logits_to_keep=1
            ).logits[:, -1]
        self.kept.advance()
        return logits

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows alone."""
        self.kept.keep(rows)
        self.arm = self.arm[rows]
        self.hooks = self.edits.on(self.arm, n_prompt=0)

    @property
    def bytes_per_token(self) -> float:
        """What keys and values of one token of one row take."""
        return self.kept.n_bytes / (len(self.kept.length) * self.kept.room)

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
    def bytes_per_token(self) -> float:
        """What transformers' cache holds of one token of one row; 0 where there is none."""
        states = [x for layer in getattr(self.cache, "layers", ()) for x in vars(layer).values()]
        return sum(x.numel() * x.element_size() for x in states if isinstance(x, Tensor)) / self.mask.numel()

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
