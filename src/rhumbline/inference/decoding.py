"""Greedy decoding: prompts are read once, then every row takes one token after the other; finished rows leave, and rows
that wait take their places.

A decoder holds one batch of rows. The packed one reads its prompts in packs and keeps keys and values in lines of the
full length (packing.py); the padded one uses transformers' own cache, or none where the model has none that can be
trusted. Promises the same tokens either way; knows neither prompts nor arms by name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rhumbline.axes import Logits, TokenIds
from rhumbline.inference.batching import Block
from rhumbline.inference.interventions import BatchEdits
from rhumbline.models.chat_model import ChatModel, can_drop_rows, forward
from rhumbline.models.hooks import hooked
from rhumbline.models.packing import (
    Kept,
    KeptAttention,
    Pack,
    PackedAttention,
    own_implementation,
    packed,
    packed_forward,
)

DECIDED_EVERY = 8
"""Steps between two looks at whether a row's class is decided."""


class Begun(NamedTuple):
    """Rows whose prompts were read."""

    line: Int[Tensor, " row"]
    """Which line of the batch each of them takes."""
    row: Int[Tensor, " row"]
    """Which row of the block it is."""
    logits: Logits


@dataclass
class PackedDecoder:
    """Reads pack after pack, then takes one token per line; keys and values stay in lines of the full length.

    A block may have more rows than there are lines: the others wait until lines are free.
    """

    model: ChatModel
    edits: BatchEdits
    arms: Int[Tensor, " arm"]
    texts: Sequence[TokenIds]
    """The prompts of the block."""
    n_lines: int
    """Rows that are decoded together, at least one for each arm."""
    new: int
    """Tokens that a row may write."""
    packs: Callable[[Sequence[TokenIds], int], Iterator[tuple[Pack, Block]]]
    """Prompts and a number of arms to packs and what they are of, within the budget of a forward pass."""

    can_drop = True

    def __post_init__(self):
        # The longest first, so that whoever comes later fits its line.
        self.waiting = sorted(range(len(self.texts)), key=lambda i: -len(self.texts[i]))
        self.n_rows = len(self.arms) * len(self.texts)
        self.plain = own_implementation(self.model)

    def read(self) -> Begun:
        """Begin with as many rows as there are lines."""
        longest = len(self.texts[self.waiting[0]])
        n = min(self.n_lines, self.n_rows) // len(self.arms) * len(self.arms)
        self.kept = Kept(torch.zeros(n, dtype=torch.long, device=self.arms.device), longest, longest + self.new)
        self.arm = torch.zeros(n, dtype=torch.long, device=self.arms.device)
        return self._begin(torch.arange(n, device=self.arms.device))

    def refill(self, free: Int[Tensor, " line"]) -> Begun | None:
        """Begin waiting rows in lines that are free; None where not all arms of a prompt find a place."""
        return self._begin(free) if len(free) >= len(self.arms) else None

    def _begin(self, free: Int[Tensor, " line"]) -> Begun:
        n_arms = len(self.arms)
        some, self.waiting = self.waiting[: len(free) // n_arms], self.waiting[len(free) // n_arms :]
        lines = free[: n_arms * len(some)].view(n_arms, len(some))
        texts = [self.texts[i] for i in some]
        length = torch.tensor([len(t) for t in texts], device=free.device)
        self.kept.begin(lines.flatten(), length.repeat(n_arms))
        self.arm[lines] = self.arms[:, None].expand_as(lines)
        found: Tensor | None = None
        for pack, of in self.packs(texts, n_arms):
            here = lines[of.arms][:, of.prompts]
            with hooked(self.model, self.edits.on(self.arms[of.arms])):
                logits = packed_forward(
                    self.model, pack, len(of.arms), PackedAttention(pack, self.plain, self.kept, here)
                )
            if found is None:
                found = logits.new_zeros(*lines.shape, logits.shape[-1])
            found[torch.tensor(of.arms)[:, None], torch.tensor(of.prompts)] = logits
        assert found is not None
        self.hooks = self.edits.on(self.arm, n_prompt=0)
        first = torch.arange(n_arms, device=free.device)[:, None] * len(self.texts)
        return Begun(lines.flatten(), (first + torch.tensor(some, device=free.device)).flatten(), found.flatten(0, 1))

    def next(self, token: Int[Tensor, " line"], alive: Bool[Tensor, " line"]) -> Logits:
        """Logits after one more token of each line; those that are not alive stand still."""
        with hooked(self.model, self.hooks), packed(self.model, KeptAttention(self.kept, self.plain)):
            logits = self.model.model(
                input_ids=token[:, None], position_ids=self.kept.length[:, None], use_cache=False, logits_to_keep=1
            ).logits[:, -1]
        self.kept.advance(alive)
        return logits

    def keep(self, lines: Int[Tensor, " line"]) -> None:
        """Go on with these lines alone."""
        self.kept.keep(lines)
        self.arm = self.arm[lines]
        self.hooks = self.edits.on(self.arm, n_prompt=0)

    @property
    def bytes_per_token(self) -> float:
        """What keys and values of one token of one row take."""
        return self.kept.n_bytes / (len(self.kept.length) * self.kept.room)


@dataclass
class PaddedDecoder:
    """Reads padded prompts, then takes one token per line with transformers' own cache, or without one."""

    model: ChatModel
    edits: BatchEdits
    arm: Int[Tensor, " row"]
    ids: Int[Tensor, "row position"]
    mask: Int[Tensor, "row position"]
    cache: Any

    waiting = ()
    """All rows are read at once."""

    def __post_init__(self):
        self.n_rows = len(self.arm)

    def read(self) -> Begun:
        """Begin with all rows."""
        self.n_prompt = self.ids.shape[1]
        rows = torch.arange(self.n_rows, device=self.ids.device)
        with hooked(self.model, self.edits.on(self.arm)):
            return Begun(rows, rows, forward(self.model, self.ids, self.mask, self.cache))

    def refill(self, free: Int[Tensor, " line"]) -> None:
        """Never asked."""

    def next(self, token: Int[Tensor, " line"], alive: Bool[Tensor, " line"]) -> Logits:
        """Logits after one more token of each line."""
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        new = self.ids if self.cache is None else self.ids[:, -1:]
        with hooked(self.model, self.edits.on(self.arm, n_prompt=self.n_prompt if self.cache is None else 0)):
            return forward(self.model, new, self.mask, self.cache)

    def keep(self, lines: Int[Tensor, " line"]) -> None:
        """Go on with these lines alone."""
        self.arm, self.ids, self.mask = self.arm[lines], self.ids[lines], self.mask[lines]
        if self.cache is not None:
            self.cache.batch_select_indices(lines)

    @property
    def bytes_per_token(self) -> float:
        """What transformers' cache holds of one token of one row; 0 where there is none."""
        states = [x for layer in getattr(self.cache, "layers", ()) for x in vars(layer).values()]
        return sum(x.numel() * x.element_size() for x in states if isinstance(x, Tensor)) / self.mask.numel()

    @property
    def can_drop(self) -> bool:
        """Whether rows can leave."""
        return self.cache is None or can_drop_rows(self.cache)


class Lines:
    """What the lines of a batch have written so far: a line is one row until that row is done."""

    def __init__(self, begun: Begun, n_rows: int, new: int, stop: Int[Tensor, " token"]):
        device = begun.logits.device
        n, self.stop = len(begun.line), stop
        self.row = torch.zeros(n, dtype=torch.long, device=device)
        self.step, self.token = torch.zeros_like(self.row), torch.zeros_like(self.row)
        self.alive = torch.zeros(n, dtype=torch.bool, device=device)
        self.written = torch.full((n_rows, new), -1, dtype=torch.long, device=device)
        self.n_begun = self.n_ended = 0

    def begin(self, begun: Begun) -> None:
        """Further rows, and their first tokens."""
        self.row[begun.line], self.step[begun.line], self.alive[begun.line] = begun.row, 0, True
        self.n_begun += len(begun.row)
        self.take(begun.logits, begun.line)

    def take(self, logits: Logits, line: Int[Tensor, " line"] | slice = slice(None)) -> None:
        """The next token of some lines (all). A stop token is not written."""
        self.token[line] = logits.argmax(-1)
        stopped = torch.isin(self.token[line], self.stop)
        self.alive[line] &= ~stopped
        here = torch.zeros_like(self.alive)
        here[line] = self.alive[line]
        self.written[self.row[here], self.step[here]] = self.token[here]
        self.step = self.step + here
        self.alive &= self.step < self.written.shape[1]

    def end_decided(self, arm: Int[Tensor, " line"], decided: Callable[[int, list[int]], bool]) -> None:
        """End the rows whose tokens settle everything, each asked after every `DECIDED_EVERY` of its tokens."""
        for line in (self.alive & (self.step % DECIDED_EVERY == 0)).nonzero()[:, 0].tolist():
            tokens = self.written[self.row[line], : self.step[line]].tolist()
            self.alive[line] = not decided(int(arm[line]), tokens)

    def ended(self) -> int:
        """How many rows have ended since this was asked."""
        before, self.n_ended = self.n_ended, self.n_begun - int(self.alive.sum())
        return self.n_ended - before

    def keep(self, lines: Int[Tensor, " line"]) -> None:
        """Go on with these lines alone."""
        self.row, self.step, self.token, self.alive = (x[lines] for x in (self.row, self.step, self.token, self.alive))


def decode(
    decoder: PackedDecoder | PaddedDecoder,
    model: ChatModel,
    max_new_tokens: int,
    read: Callable[[Logits], Tensor] | None,
    decided: Callable[[int, list[int]], bool] | None,
    tick: Callable[[int], None],
) -> tuple[list[list[int]], Tensor | None]:
    """Greedy completions of a decoder's rows (the stop token left out), and `read` of their first logits.

    `decided(arm, tokens)` may end a row early; it is asked every `DECIDED_EVERY` tokens of a row. `tick` is told how
    many rows have ended, some at a time.
    """
    begun: Begun | None = decoder.read()
    stop = torch.tensor(sorted(model.stop_tokens()), device=begun.logits.device, dtype=torch.long)
    lines = Lines(begun, decoder.n_rows, max_new_tokens, stop)
    first: Tensor | None = None
    while True:
        if begun is not None:
            lines.begin(begun)
            if read is not None:
                found = read(begun.logits)
                first = found.new_zeros(decoder.n_rows, *found.shape[1:]) if first is None else first
                first[begun.row.to(found.device)] = found
        if decided is not None:
            lines.end_decided(decoder.arm, decided)
        n, begun = int(lines.alive.sum()), None
        # Not at every finished line: reading few prompts is slow, and to drop lines all that is cached is copied.
        if n <= len(lines.alive) - max(1, len(lines.alive) // 4):
            tick(lines.ended())
            if decoder.waiting:
                begun = decoder.refill((~lines.alive).nonzero()[:, 0])
            elif n == 0:
                break
            elif decoder.can_drop:
                left = lines.alive.nonzero()[:, 0]
                lines.keep(left)
                decoder.keep(left)
        if begun is None:
            lines.take(decoder.next(lines.token, lines.alive))
    tick(lines.ended())
    return [[t for t in line if t >= 0] for line in lines.written.tolist()], first
