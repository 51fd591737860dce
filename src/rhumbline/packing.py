"""Prompts laid end to end behind the tokens that they share: no padding, and the shared tokens run once per arm.

A pack is one row of tokens, the same for every arm of a batch: [shared prefix][own tokens of prompt 0][prompt 1]...
Everything in a transformer block but attention treats tokens alone, so it runs on the pack as it is. Attention is given
to transformers as an attention function of our own, which unfolds the pack into one row per prompt, calls the model's
own attention function with an explicit mask, and folds the result back. Decoding keeps keys and values there too, in
buffers of the full length, so that a step copies nothing.

Promises the logits of the plain forward pass up to rounding; whether a model keeps this promise (recurrent layers and
home-made attention do not) is found by `packing_holds`, not by its name.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from rhumbline.models import ChatModel, Final, final_states, forward_replaced

NAME = "rhumbline_packed"
GROUP = 16
"""Prompts that are unfolded together for attention."""
_ACTIVE: ContextVar["PackedAttention"] = ContextVar("packed attention in use")


@dataclass(frozen=True)
class Pack:
    """Which token of the packed row belongs to which prompt."""

    ids: Int[Tensor, " token"]
    position_ids: Int[Tensor, " token"]
    n_shared: int
    """Leading tokens of the pack that every prompt has."""
    lengths: tuple[int, ...]
    """Own tokens of each prompt, after the shared ones."""

    @cached_property
    def starts(self) -> Int[Tensor, " prompt"]:
        """Where each prompt's own tokens begin in the pack."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return self.n_shared + lengths.cumsum(0) - lengths

    @cached_property
    def last(self) -> Int[Tensor, " prompt"]:
        """Where each prompt's last token stands in the pack."""
        return self.starts + torch.tensor(self.lengths, device=self.ids.device) - 1

    @cached_property
    def groups(self) -> "tuple[Group, ...]":
        """The prompts in runs of a similar number of tokens, since a group is padded to its longest."""
        ends = [*range(GROUP, len(self.lengths) - GROUP // 2, GROUP), len(self.lengths)]
        return tuple(self.group(a, b) for a, b in pairwise([0, *ends]))

    def group(self, first: int, end: int) -> "Group":
        """Some prompts in a row, unfolded."""
        device = self.ids.device
        lengths = torch.tensor(self.lengths[first:end], device=device)
        width = torch.arange(int(lengths.max()), device=device)
        own = width < lengths[:, None]
        queries = torch.where(own, self.starts[first:end, None] + width, 0)
        shared = torch.arange(self.n_shared, device=device).expand(len(lengths), -1)
        return Group(own, queries, torch.cat([shared, queries], 1))


@dataclass(frozen=True)
class Group:
    """Prompts unfolded from a pack into one row each, padded on the right."""

    own: Bool[Tensor, "prompt width"]
    """Which places hold a token."""
    queries: Int[Tensor, "prompt width"]
    """Place in the pack of every own token (any place for padding)."""
    keys: Int[Tensor, "prompt key"]
    """Place in the pack of what a prompt may look at: the shared tokens, then its own."""

    def mask(self, window: int | None) -> Bool[Tensor, "prompt width key"]:
        """Who sees whom: earlier tokens of the same prompt, within the sliding window where there is one."""
        key = torch.arange(self.keys.shape[1], device=self.own.device)
        query = self.keys.shape[1] - self.own.shape[1] + torch.arange(self.own.shape[1], device=self.own.device)
        seen = key <= query[:, None]
        if window is not None:
            seen &= key > query[:, None] - window
        return seen.expand(len(self.own), -1, -1)


def pack(sequences: Sequence[Sequence[int]], n_private: int, device: torch.device) -> Pack:
    """Pack token sequences behind their longest common prefix; each keeps at least its last `n_private` tokens."""
    shortest = min(map(len, sequences))
    shared = 0
    while shared < shortest - max(1, n_private) and len({s[shared] for s in sequences}) == 1:
        shared += 1
    ids = [*sequences[0][:shared], *(t for s in sequences for t in s[shared:])]
    lengths = tuple(len(s) - shared for s in sequences)
    positions = [*range(shared), *(shared + i for n in lengths for i in range(n))]
    return Pack(torch.tensor(ids, device=device), torch.tensor(positions, device=device), shared, lengths)


@dataclass
class PackedAttention:
    """The attention of one pack: unfolds it for the model's own attention function, and keeps keys for decoding."""

    pack: Pack
    plain: str
    """Name of the model's own attention implementation."""
    room: int = 0
    """Tokens that will be generated; 0 keeps nothing."""
    step: int = -1
    """Tokens generated so far; -1 while the prompt is read."""
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values by layer, [row, key, head, channel], rows in the order (arm, prompt).

    In this order what a row has so far is one stretch of memory; with heads first a step took twice as long.
    """
    masks: dict[Any, Tensor] = field(default_factory=dict)
    own: Tensor | None = None
    """While decoding: which prompt places of each row hold a token, [row, key]."""
    only: Literal["keys", "last"] | None = None
    """In the last block: the call that brings keys and values, or the one that brings each prompt's last token."""
    last_keys: tuple[Tensor, Tensor] | None = None

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Decoding goes on with all rows in one buffer, so then they are one group."""
        return (self.pack.group(0, len(self.pack.lengths)),) if self.room else self.pack.groups

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        """Attention output [row, token, head, channel] of tokens that are packed (or of one new token per row)."""
        attend = own_attention(module, self.plain)
        if self.step >= 0:
            return self._decode(attend, module, query, key, value, kwargs)
        if self.only == "keys":
            self.last_keys = key, value
            raise _KeysTakenError
        if self.only == "last":
            return self._read_last(attend, module, query, kwargs)
        return self._read(attend, module, query, key, value, kwargs)

    def _read(self, attend: Callable, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        n_arms, n = query.shape[0], self.pack.n_shared
        parts = []
        if n:
            mask = self._shared_mask(kwargs.get("sliding_window"), query)
            parts.append(attend(module, query[:, :, :n], key[:, :, :n], value[:, :, :n], mask, **kwargs)[0])
        for i, group in enumerate(self.groups):
            q, k, v = unfold(query, group.queries), unfold(key, group.keys), unfold(value, group.keys)
            if self.room:
                self.kept[module.layer_idx] = (self._with_room(k), self._with_room(v))
            mask = self._mask(i, kwargs.get("sliding_window"), n_arms, query.dtype)
            found = attend(module, q, k, v, mask, **kwargs)[0]
            parts.append(found.view(n_arms, *group.own.shape, *found.shape[2:])[:, group.own])
        return torch.cat(parts, 1)

    def _read_last(self, attend: Callable, module: Any, query: Tensor, kwargs: dict) -> Tensor:
        """Each prompt's last token looks at the keys that were taken before; query is [arm, head, prompt, channel]."""
        assert self.last_keys is not None
        key, value = self.last_keys
        n_arms, first, parts = query.shape[0], 0, []
        for i, group in enumerate(self.groups):
            k, v = unfold(key, group.keys), unfold(value, group.keys)
            if self.room:
                self.kept[module.layer_idx] = (self._with_room(k), self._with_room(v))
            n = len(group.own)
            q = query[:, :, first : first + n].transpose(1, 2).flatten(0, 1)[:, :, None]
            seen = self._last_mask(i, kwargs.get("sliding_window"), n_arms, query.dtype)
            found = attend(module, q, k, v, seen, **kwargs)[0]
            parts.append(found.view(n_arms, n, *found.shape[2:]))
            first += n
        return torch.cat(parts, 1)

    def _decode(self, attend: Callable, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        keys, values = self.kept[module.layer_idx]
        here = keys.shape[1] - self.room + self.step
        keys[:, here], values[:, here] = key[:, :, 0], value[:, :, 0]
        mask = self._later_mask(kwargs.get("sliding_window"), query.dtype)
        seen = (kept[:, : here + 1].transpose(1, 2) for kept in (keys, values))
        return attend(module, query, *seen, mask, **kwargs)[0]

    def _with_room(self, kept: Tensor) -> Tensor:
        rows, heads, length, channels = kept.shape
        buffer = kept.new_empty(rows, length + self.room, heads, channels)
        buffer[:, :length] = kept.transpose(1, 2)
        return buffer

    def _mask(self, group: int, window: int | None, n_arms: int, dtype: torch.dtype) -> Tensor:
        if (group, window) not in self.masks:
            mask = self.groups[group].mask(window).repeat(n_arms, 1, 1)[:, None]
            self.masks[group, window] = self._as_wanted(mask, dtype)
        return self.masks[group, window]

    def _last_mask(self, group: int, window: int | None, n_arms: int, dtype: torch.dtype) -> Tensor:
        own = self.groups[group].own
        prompt, last = torch.arange(len(own), device=own.device), own.sum(1) - 1
        seen = self.groups[group].mask(window)[prompt, last].repeat(n_arms, 1)
        return self._as_wanted(seen[:, None, None], dtype)

    def _shared_mask(self, window: int | None, query: Tensor) -> Tensor:
        place = torch.arange(self.pack.n_shared, device=query.device)
        seen = place <= place[:, None]
        if window is not None:
            seen &= place > place[:, None] - window
        return self._as_wanted(seen.expand(query.shape[0], 1, -1, -1), query.dtype)

    def _later_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Generated tokens stand behind the padding of the prompts, which nobody sees. Made once per step."""
        if window not in self.masks:
            assert self.own is not None
            later = torch.ones(len(self.own), self.step + 1, dtype=torch.bool, device=self.own.device)
            seen = torch.cat([self.own, later], 1)
            if window is not None:
                # Distance in the row's own count: tokens from here on back that are no padding.
                distance = seen.flip(1).cumsum(1).flip(1)
                seen = seen & (distance <= window)
            self.masks[window] = self._as_wanted(seen[:, None, None], dtype)
        return self.masks[window]

    def _as_wanted(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """Eager attention adds its mask; the others take truth values."""
        if self.plain != "eager":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    def begin_decoding(self, n_arms: int) -> None:
        """From now on each forward pass brings one new token per (arm, prompt) row."""
        own = self.groups[0].own
        self.own = torch.cat([own.new_ones(len(own), self.pack.n_shared), own], 1).repeat(n_arms, 1)

    def next_token(self) -> None:
        """One more token per row comes."""
        self.step += 1
        self.masks.clear()

    def keep_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Forget the rows that are done."""
        assert self.own is not None
        self.own = self.own[rows]
        for layer, (keys, values) in self.kept.items():
            self.kept[layer] = (keys[rows], values[rows])


def unfold(
    packed: Float[Tensor, "arm head token channel"], places: Int[Tensor, "prompt width"]
) -> Float[Tensor, "row head width channel"]:
    """One row per (arm, prompt) with the tokens at `places`."""
    arms, heads, _, channels = packed.shape
    prompts, width = places.shape
    found = packed.transpose(1, 2)[:, places.flatten()].view(arms * prompts, width, heads, channels)
    return found.transpose(1, 2)


def own_attention(module: Any, name: str) -> Callable:
    """The attention function that the module would have called."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _packed_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple:
    del mask  # None: transformers makes no mask for an attention function that it does not know
    return _ACTIVE.get()(module, query, key, value, kwargs), None


AttentionInterface.register(NAME, _packed_attention)


@contextmanager
def packed(chat_model: ChatModel, attention: PackedAttention) -> Iterator[None]:
    """The model attends within the pack while this is open."""
    config = chat_model.model.config.get_text_config(decoder=True)
    token = _ACTIVE.set(attention)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = attention.plain
        _ACTIVE.reset(token)


def attention_of(chat_model: ChatModel, pack: Pack, room: int = 0) -> PackedAttention:
    """The packed attention for a model as it is configured now."""
    config = chat_model.model.config.get_text_config(decoder=True)
    return PackedAttention(pack, config._attn_implementation, room)


def packed_forward(
    chat_model: ChatModel, pack: Pack, n_arms: int, attention: PackedAttention
) -> Float[Tensor, "arm prompt vocab"]:
    """Next-token logits of every prompt of a pack under each arm (a row of the batch).

    Where the proof allows it, the last block brings keys for all tokens, and everything else of it runs for each
    prompt's last token alone.
    """
    narrow = chat_model.proof.narrowed
    with packed(chat_model, attention), _last_tokens_only(chat_model, pack, attention) if narrow else nullcontext():
        return chat_model.model(
            input_ids=pack.ids.expand(n_arms, -1),
            position_ids=pack.position_ids.expand(n_arms, -1),
            use_cache=False,
            logits_to_keep=0 if narrow else pack.last,
        ).logits


def packed_states(chat_model: ChatModel, pack: Pack, n_arms: int, attention: PackedAttention) -> Final:
    """The final states of every token of a pack under each arm (a row of the batch)."""

    def run() -> Tensor:
        return chat_model.model(
            input_ids=pack.ids.expand(n_arms, -1), position_ids=pack.position_ids.expand(n_arms, -1), use_cache=False
        ).logits

    with packed(chat_model, attention):
        return final_states(chat_model, run)


class _KeysTakenError(Exception):
    """The last block's keys and values are known; the rest of that call is not needed."""


@contextmanager
def _last_tokens_only(chat_model: ChatModel, pack: Pack, attention: PackedAttention) -> Iterator[None]:
    block = chat_model.blocks[-1]
    whole, n_tokens = block.forward, len(pack.ids)

    def narrow(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(narrow(v) for v in value)
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[1] == n_tokens:
            return value[:, pack.last.to(value.device)]
        return value

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            attention.only = "keys"
            whole(*args, **kwargs)
        except _KeysTakenError:
            attention.only = "last"
            return whole(*map(narrow, args), **{k: narrow(v) for k, v in kwargs.items()})
        finally:
            attention.only = attention.last_keys = None
        raise RuntimeError("the last block has no attention of the kind that packing needs")

    with forward_replaced(block, forward):
        yield
