"""Decoding of one batch with continuous batching: queued rows fill the slots of finished rows.

`PackedDecoder` prefills prompts in packs and stores keys and values in slots (models/packing.py). `PaddedDecoder` uses
transformers' own cache, or none if it is not exact. Both give the same tokens. Independent of what arms mean.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rhumbline.axes import Logits, Residual, TokenIds
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batching import Batch, DecodingBatch
from rhumbline.inference.largest import index_of_largest
from rhumbline.inference.passes import Padded, ReadLogits, places, places_in, response_lengths
from rhumbline.inference.windows import TokenPlaces
from rhumbline.models.chat_model import ChatModel, can_drop_rows, forward, index_on_every_device
from rhumbline.models.hooks import hooked
from rhumbline.models.packing import (
    KeyValueSlots,
    Pack,
    PackedAttention,
    own_implementation,
    packed_forward,
    slot_forward,
)

DECIDED_EVERY = 8
"""New tokens of a row after which `decided` is called again."""

IsDecided = Callable[[int, list[int]], bool]
"""Whether a row of this arm can end, since its tokens so far determine everything that is read from it."""
PickTokens = Callable[[Logits, Int[Tensor, " row"], Int[Tensor, " row"]], Int[Tensor, " row"]]
"""The next token of each row from its logits, its index in the batch and the number of its tokens so far."""


def most_probable(logits: Logits, row: Int[Tensor, " row"], step: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The most probable token of each row: greedy decoding."""
    del row, step
    return index_of_largest(logits)


class Prefilled(NamedTuple):
    """Rows whose prompts have been computed."""

    slot: Int[Tensor, " row"]
    """The slot of each row."""
    row: Int[Tensor, " row"]
    """Its index in the batch."""
    logits: Logits


class _QueuedPrompt(NamedTuple):
    """A prompt of a decoding batch."""

    part: int
    place: int
    """Its place among the prompts of the part."""


@dataclass
class PackedDecoder:
    """Prefills packs of prompts, then appends one token per slot; keys and values are in slots of the full length.

    A batch can have more rows than there are slots; the others are queued.
    """

    model: ChatModel
    edits: BatchEdits
    sequences: Sequence[TokenIds]
    batch: DecodingBatch
    """The rows, by index of `sequences` and of the arms of `edits`."""
    n_slots: int
    """Rows that are decoded together, at least as many as any prompt has arms."""
    max_new_tokens: int
    packs: Callable[[Sequence[TokenIds], int], Iterator[tuple[Pack, Batch]]]
    """Divides prompts under a number of arms into packs within the budget of a forward pass."""
    queue: list[_QueuedPrompt] = field(init=False)
    """Prompts that are not prefilled yet, longest first, so that later rows fit into the slots."""
    arm: Int[Tensor, " slot"] = field(init=False)
    """The arm of the row in each slot."""
    n_prompt: Int[Tensor, " slot"] = field(init=False)
    """The number of tokens before the completion in each slot."""
    passed: Bool[Tensor, " slot"] = field(init=False)
    """Whether the boundary of the windows is in the completion so far."""

    can_drop = True

    def __post_init__(self):
        places = ((part, place) for part, some in enumerate(self.batch.parts) for place in range(len(some.prompts)))
        self.queue = sorted((_QueuedPrompt(*place) for place in places), key=lambda queued: -len(self._text(queued)))
        self.n_rows = self.batch.n_rows
        self.first_row = list(itertools.accumulate((part.n_rows for part in self.batch.parts), initial=0))
        self.implementation = own_implementation(self.model)

    def prefill(self) -> Prefilled:
        """Prefill as many rows as there are slots."""
        longest = len(self._text(self.queue[0]))
        places = self._dequeued(self.n_slots)
        n = sum(len(self.batch.parts[part].arms) * len(some) for part, some in places.items())
        # The prompt with the most arms needs as many slots, when all other rows have ended.
        n, device = max(n, self.batch.most_arms), self.model.device
        self.slots = KeyValueSlots(
            torch.zeros(n, dtype=torch.long, device=device), longest, longest + self.max_new_tokens
        )
        self.arm = torch.zeros(n, dtype=torch.long, device=device)
        self.n_prompt, self.passed = torch.zeros_like(self.arm), self.arm > 0
        return self._prefill(places, torch.arange(n, device=device))

    def refill(self, free: Int[Tensor, " free"]) -> Prefilled | None:
        """Prefill queued rows in free slots; None if every queued prompt has more arms than there are free slots."""
        places = self._dequeued(len(free))
        if not places:
            return None
        self.slots.clear(free)
        return self._prefill(places, free)

    def _text(self, queued: _QueuedPrompt) -> TokenIds:
        return self.sequences[self.batch.parts[queued.part].prompts[queued.place]]

    def _dequeued(self, room: int) -> dict[int, list[int]]:
        """The next prompts whose rows fit into `room` slots: by part, their places in it."""
        places: dict[int, list[int]] = {}
        waiting = []
        for queued in self.queue:
            n_arms = len(self.batch.parts[queued.part].arms)
            if n_arms <= room:
                places.setdefault(queued.part, []).append(queued.place)
                room -= n_arms
            else:
                waiting.append(queued)
        self.queue = waiting
        return places

    def _prefill(self, places: Mapping[int, list[int]], free: Int[Tensor, " free"]) -> Prefilled:
        """Prefill the prompts at some places of the parts, in the first free slots."""
        device, parts = free.device, self.batch.parts
        free = free[: sum(len(parts[number].arms) * len(some) for number, some in places.items())]
        row, all_logits, start = torch.zeros_like(free), None, 0
        for number, some in places.items():
            part, n_arms = parts[number], len(parts[number].arms)
            texts = [self.sequences[part.prompts[place]] for place in some]
            n_response = response_lengths(texts)
            # The places of these rows among all that are prefilled here.
            index = start + torch.arange(n_arms * len(some), device=device).view(n_arms, len(some))
            start, slots = start + index.numel(), free[index]
            first = self.first_row[number] + torch.arange(n_arms, device=device)[:, None] * len(part.prompts)
            row[index] = first + torch.tensor(some, device=device)
            self._assign(slots, torch.tensor(part.arms, device=device), texts, n_response)
            for pack, batch in self.packs(texts, n_arms):
                attention = PackedAttention(pack, self.implementation, self.slots, slots[batch.arms][:, batch.prompts])
                where = places_in(pack, [n_response[i] for i in batch.prompts])
                is_prompt = where.is_prompt if any(n_response) else None
                arms = torch.tensor([part.arms[a] for a in batch.arms], device=device)
                with hooked(self.model, self.edits.on(arms, is_prompt, where)):
                    logits = packed_forward(self.model, pack, len(batch.arms), attention)
                if all_logits is None:
                    all_logits = logits.new_zeros(len(free), logits.shape[-1])
                all_logits[index[batch.arms][:, batch.prompts]] = logits
        assert all_logits is not None
        self.hooks = self.edits.at_all_tokens(self.arm, n_prompt=0)
        return Prefilled(free, row, all_logits)

    def _assign(
        self,
        slots: Int[Tensor, "arm prompt"],
        arms: Int[Tensor, " arm"],
        texts: Sequence[TokenIds],
        n_response: Sequence[int],
    ) -> None:
        """Give slots to the rows of some prompts under some arms."""
        device = slots.device
        length = torch.tensor([len(t) for t in texts], device=device)
        self.slots.assign(slots.flatten(), length.repeat(len(arms)))
        self.arm[slots] = arms[:, None].expand_as(slots)
        self.n_prompt[slots] = length - torch.tensor(n_response, device=device)
        responses = (list(text)[len(text) - n :] for text, n in zip(texts, n_response, strict=True))
        self.passed[slots] = torch.tensor([_boundary(self.edits) in some for some in responses], device=device)

    def next(self, token: Int[Tensor, " slot"], alive: Bool[Tensor, " slot"]) -> Logits:
        """Logits after one more token in each slot; slots of finished rows do not advance."""
        length = self.slots.length[:, None]
        where = TokenPlaces(length, None, length - self.n_prompt[:, None], token[:, None], self.passed)
        edits = self.edits.within(self.hooks, self.arm, where)
        with hooked(self.model, edits):
            logits = slot_forward(self.model, self.slots, token)
        if (boundary := _boundary(self.edits)) is not None:
            self.passed = self.passed | (token == boundary)
        self.slots.advance(alive)
        return logits

    def keep(self, slots: Int[Tensor, " kept"]) -> None:
        """Drop all other slots."""
        self.slots.keep(slots)
        self.arm, self.n_prompt, self.passed = self.arm[slots], self.n_prompt[slots], self.passed[slots]
        self.hooks = self.edits.at_all_tokens(self.arm, n_prompt=0)

    @property
    def bytes_per_token(self) -> float:
        """Memory of keys and values for one token of one row."""
        return self.slots.n_bytes / (len(self.slots.length) * self.slots.capacity)


@dataclass
class PaddedDecoder:
    """Prefills padded prompts, then appends one token per row with transformers' own cache, or without a cache."""

    model: ChatModel
    edits: BatchEdits
    arm: Int[Tensor, " slot"]
    ids: Int[Tensor, "slot position"]
    mask: Int[Tensor, "slot position"]
    cache: Any
    """A transformers cache; None: every step is a whole forward pass."""
    n_response: Sequence[int] = ()
    """The tokens of the response at the end of each prompt, for one arm or for every row; by default none."""
    watch: Callable[[int, Residual], None] | None = None
    """Called with the input of every block, after the edits."""

    queue = ()
    """All rows are prefilled at once."""

    def __post_init__(self):
        self.n_rows = len(self.arm)

    def prefill(self) -> Prefilled:
        """Prefill all rows."""
        self.where = places(Padded(self.ids, self.mask), self.n_response)
        rows = torch.arange(self.n_rows, device=self.ids.device)
        with hooked(self.model, self.edits.on(self.arm, self.where.is_prompt, self.where), self.watch):
            return Prefilled(rows, rows, forward(self.model, self.ids, self.mask, self.cache))

    def refill(self, free: Int[Tensor, " free"]) -> None:
        """No rows are queued."""

    def next(self, token: Int[Tensor, " slot"], alive: Bool[Tensor, " slot"]) -> Logits:
        """Logits after one more token in each slot."""
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        in_completion = cast(Tensor, self.where.in_completion)
        in_text, in_completion = (torch.cat([x, x[:, -1:] + 1], 1) for x in (self.where.in_text, in_completion))
        self.where = TokenPlaces(in_text, None, in_completion, self.ids)
        new, where = self.ids, self.where
        if self.cache is not None:
            new, where = self.ids[:, -1:], self.where.last_only(_boundary(self.edits))
        n_prompt = 0 if self.cache is not None else where.is_prompt
        with hooked(self.model, self.edits.on(self.arm, n_prompt, where), self.watch):
            return forward(self.model, new, self.mask, self.cache)

    def keep(self, slots: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""
        self.arm, self.ids, self.mask = self.arm[slots], self.ids[slots], self.mask[slots]
        self.where = self.where.of_rows(slots)
        if self.cache is not None:
            self.cache.batch_select_indices(index_on_every_device(self.model, slots))

    @property
    def bytes_per_token(self) -> float:
        """Memory of the cache for one token of one row; 0 without a cache."""
        states = [x for layer in getattr(self.cache, "layers", ()) for x in vars(layer).values()]
        # Recurrent layers keep their states in dictionaries.
        states += [x for some in states if isinstance(some, dict) for x in some.values()]
        return sum(x.numel() * x.element_size() for x in states if isinstance(x, Tensor)) / self.mask.numel()

    @property
    def can_drop(self) -> bool:
        """Whether rows can be removed."""
        return self.cache is None or can_drop_rows(self.cache)


def _boundary(edits: BatchEdits) -> int | None:
    """The token at which the windows of the arms divide completions, if any does."""
    return None if edits.windows is None else edits.windows.boundary


class Slots:
    """The tokens written so far: a slot belongs to one row until that row has ended."""

    def __init__(self, n_slots: int, n_rows: int, max_new_tokens: int, stop: Int[Tensor, " token"], pick: PickTokens):
        device, self.stop, self.pick = stop.device, stop, pick
        self.row = torch.zeros(n_slots, dtype=torch.long, device=device)
        self.step, self.token = torch.zeros_like(self.row), torch.zeros_like(self.row)
        self.alive = torch.zeros(n_slots, dtype=torch.bool, device=device)
        self.written = torch.full((n_rows, max_new_tokens), -1, dtype=torch.long, device=device)
        self.n_started = self.n_ended = 0

    def start(self, prefilled: Prefilled) -> None:
        """Take over prefilled rows, with their first new tokens."""
        self.row[prefilled.slot], self.step[prefilled.slot], self.alive[prefilled.slot] = prefilled.row, 0, True
        self.n_started += len(prefilled.row)
        self.append(prefilled.logits, prefilled.slot)

    def append(self, logits: Logits, slot: Int[Tensor, " row"] | slice = slice(None)) -> None:
        """Append the picked token in some slots (all by default). A stop token ends its row unwritten."""
        self.token[slot] = self.pick(logits, self.row[slot], self.step[slot])
        stopped = torch.isin(self.token[slot], self.stop)
        self.alive[slot] &= ~stopped
        here = torch.zeros_like(self.alive)
        here[slot] = self.alive[slot]
        self.written[self.row[here], self.step[here]] = self.token[here]
        self.step = self.step + here
        self.alive &= self.step < self.written.shape[1]

    def end_decided(self, arm: Int[Tensor, " slot"], decided: IsDecided) -> None:
        """End the rows that are decided; each is checked after every `DECIDED_EVERY` of its tokens."""
        for slot in (self.alive & (self.step % DECIDED_EVERY == 0)).nonzero()[:, 0].tolist():
            tokens = self.written[self.row[slot], : self.step[slot]].tolist()
            self.alive[slot] = not decided(int(arm[slot]), tokens)

    def newly_ended(self) -> int:
        """Number of rows that ended since the last call."""
        before, self.n_ended = self.n_ended, self.n_started - int(self.alive.sum())
        return self.n_ended - before

    def keep(self, slots: Int[Tensor, " kept"]) -> None:
        """Drop all other slots."""
        self.row, self.step, self.token, self.alive = (x[slots] for x in (self.row, self.step, self.token, self.alive))


def decode(
    decoder: PackedDecoder | PaddedDecoder,
    max_new_tokens: int,
    stop: Collection[int],
    read: ReadLogits | None,
    decided: IsDecided | None,
    tick: Callable[[int], None],
    pick: PickTokens = most_probable,
) -> tuple[list[list[int]], Tensor | None]:
    """Completions of a decoder's rows up to a token of `stop`, without it, and `read` of their first logits.

    `tick` is called with the number of rows that have ended since its last call. `pick` selects the tokens.
    """
    prefilled: Prefilled | None = decoder.prefill()
    stop_ids = torch.tensor(sorted(stop), device=prefilled.logits.device, dtype=torch.long)
    slots = Slots(len(decoder.arm), decoder.n_rows, max_new_tokens, stop_ids, pick)
    readings: Tensor | None = None
    while True:
        if prefilled is not None:
            slots.start(prefilled)
            if read is not None:
                values = read(prefilled.logits)
                readings = values.new_zeros(decoder.n_rows, *values.shape[1:]) if readings is None else readings
                readings[prefilled.row.to(values.device)] = values
        if decided is not None:
            slots.end_decided(decoder.arm, decided)
        n_alive, prefilled = int(slots.alive.sum()), None
        # Not after every finished row: prefilling few prompts is slow, and dropping slots copies the whole cache.
        if n_alive <= len(slots.alive) - max(1, len(slots.alive) // 4):
            tick(slots.newly_ended())
            if decoder.queue:
                prefilled = decoder.refill((~slots.alive).nonzero()[:, 0])
            elif n_alive == 0:
                break
            elif decoder.can_drop:
                alive = slots.alive.nonzero()[:, 0]
                slots.keep(alive)
                decoder.keep(alive)
        if prefilled is None:
            slots.append(decoder.next(slots.token, slots.alive))
    tick(slots.newly_ended())
    return [[token for token in row if token >= 0] for row in slots.written.tolist()], readings
