"""Pack prompts behind their shared prefix into one row without padding, so that the prefix is computed once per arm.

A pack is one row of tokens, the same for every arm of a batch: [shared prefix][own tokens of prompt 0][prompt 1]...
Everything in a block except attention is computed for each token separately, so it runs on the pack unchanged. For
attention, transformers calls a function of this module, which unfolds the pack into one row per prompt, calls the
model's own attention function with an explicit mask, and folds the result back. For decoding, keys and values of each
row are stored in a slot of the full length, so that a step copies nothing.

The logits are those of the plain forward pass up to rounding. pass_checks.py tests for each model whether this is true;
it is not for recurrent layers and for attention outside the interface.
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

from rhumbline.axes import TokenIds
from rhumbline.models.chat_model import ChatModel, index_on_every_device
from rhumbline.models.hooks import FinalStates, final_states, forward_replaced

NAME = "rhumbline_packed"
GROUP = 16
"""Prompts that are unfolded together for attention."""
_ACTIVE: ContextVar["PackedAttention | SlotAttention"] = ContextVar("active attention")


@dataclass(frozen=True)
class Pack:
    """Prompts in one row, and which of its tokens belong to which prompt."""

    ids: Int[Tensor, " token"]
    position_ids: Int[Tensor, " token"]
    n_shared: int
    """Leading tokens that all prompts share."""
    lengths: tuple[int, ...]
    """Number of own tokens of each prompt, after the shared ones."""

    @cached_property
    def starts(self) -> Int[Tensor, " prompt"]:
        """Index in the pack of the first own token of each prompt."""
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return self.n_shared + lengths.cumsum(0) - lengths

    @cached_property
    def last(self) -> Int[Tensor, " prompt"]:
        """Index in the pack of the last token of each prompt."""
        return self.starts + torch.tensor(self.lengths, device=self.ids.device) - 1

    @cached_property
    def groups(self) -> "tuple[Group, ...]":
        """The prompts in groups of similar length, since a group is padded to its longest prompt."""
        ends = [*range(GROUP, len(self.lengths) - GROUP // 2, GROUP), len(self.lengths)]
        return tuple(self.group(a, b) for a, b in pairwise([0, *ends]))

    def group(self, first: int, end: int) -> "Group":
        """Consecutive prompts, unfolded."""
        device = self.ids.device
        lengths = torch.tensor(self.lengths[first:end], device=device)
        width = torch.arange(int(lengths.max()), device=device)
        is_token = width < lengths[:, None]
        queries = torch.where(is_token, self.starts[first:end, None] + width, 0)
        shared = torch.arange(self.n_shared, device=device).expand(len(lengths), -1)
        return Group(is_token, queries, torch.cat([shared, queries], 1))


@dataclass(frozen=True)
class Group:
    """Prompts that are unfolded from a pack into one row each, padded on the right."""

    is_token: Bool[Tensor, "prompt width"]
    """Which elements of the rows are tokens and not padding."""
    queries: Int[Tensor, "prompt width"]
    """Index in the pack of every own token; arbitrary for padding."""
    keys: Int[Tensor, "prompt key"]
    """Index in the pack of every token that a prompt can attend to: the shared tokens, then its own."""

    @cached_property
    def places(self) -> Int[Tensor, " token"]:
        """Index of every token among the elements of all rows."""
        return self.is_token.flatten().nonzero()[:, 0]

    def mask(self, window: int | None) -> Bool[Tensor, "prompt width key"]:
        """Causal mask: earlier tokens of the same prompt, within the sliding window if there is one."""
        n_keys, (n_prompts, width), device = self.keys.shape[1], self.is_token.shape, self.is_token.device
        key = torch.arange(n_keys, device=device)
        query = n_keys - width + torch.arange(width, device=device)
        seen = key <= query[:, None]
        if window is not None:
            seen &= key > query[:, None] - window
        return seen.expand(n_prompts, -1, -1)


def pack(sequences: Sequence[Sequence[int]], n_private: int, device: torch.device) -> Pack:
    """Pack token sequences behind their longest common prefix; each keeps at least its last `n_private` tokens."""
    shared = min(shared_length(sequences), min(map(len, sequences)) - max(1, n_private))
    ids = [*sequences[0][:shared], *(t for s in sequences for t in s[shared:])]
    lengths = tuple(len(s) - shared for s in sequences)
    positions = [*range(shared), *(shared + i for n in lengths for i in range(n))]
    return Pack(torch.tensor(ids, device=device), torch.tensor(positions, device=device), shared, lengths)


@dataclass
class KeyValueSlots:
    """Keys and values of decoded rows: one slot per row, filled from its start."""

    length: Int[Tensor, " slot"]
    """Tokens in each slot so far."""
    longest: int
    """The largest of them, or an upper bound."""
    capacity: int
    """Tokens for which a slot has room."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values by layer, [slot, token, head, channel].

    In this order the tokens of a row are contiguous in memory. With heads first, attention takes 1.1 to 1.5 times as
    long for heads of 128 channels, and 0.6 to 1.1 times for heads of 64.
    """

    def assign(self, slots: Int[Tensor, " row"], length: Int[Tensor, " row"]) -> None:
        """Assign slots to new rows, whose prompts have these lengths."""
        self.length[slots] = length
        self.longest = int(self.length.max())

    def clear(self, slots: Int[Tensor, " row"]) -> None:
        """Remove earlier rows: where they are not finite, even masked tokens would count, as 0 times NaN is NaN."""
        for stored in (x for pair in self.layers.values() for x in pair):
            stored[slots.to(stored.device)] = 0

    def put(self, layer: int, slots: Int[Tensor, " row"], keys: Tensor, values: Tensor) -> None:
        """Write [row, head, token, channel] to the start of some slots. Tokens beyond a row's length are not read."""
        if layer not in self.layers:
            shapes = ((len(self.length), self.capacity, x.shape[1], x.shape[3]) for x in (keys, values))
            k, v = (keys.new_zeros(shape) for shape in shapes)
            self.layers[layer] = k, v
        for stored, new in zip(self.layers[layer], (keys, values), strict=True):
            stored[slots, : new.shape[2]] = new.transpose(1, 2)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one token [slot, head, 1, channel] to each slot; all tokens so far [slot, head, token, channel]."""
        slot = torch.arange(len(self.length), device=keys.device)
        both = []
        for stored, new in zip(self.layers[layer], (keys, values), strict=True):
            stored[slot, self.length.to(stored.device)] = new[:, :, 0]
            both.append(stored[:, : self.longest + 1].transpose(1, 2))
        return both[0], both[1]

    def advance(self, alive: Bool[Tensor, " slot"]) -> None:
        """Count the token that was appended in every layer, in the slots whose rows are not finished."""
        self.length = self.length + alive
        # An upper bound, exact after the next `assign` or `keep`: reading the maximum would wait for the device.
        self.longest = min(self.longest + 1, self.capacity - 1)

    def keep(self, slots: Int[Tensor, " kept"]) -> None:
        """Drop all other slots."""
        self.length = self.length[slots]
        self.longest = int(self.length.max())
        for layer, (keys, values) in self.layers.items():
            self.layers[layer] = (keys[slots.to(keys.device)], values[slots.to(values.device)])

    @property
    def n_bytes(self) -> int:
        """Memory of all slots."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)


@dataclass
class SlotAttention:
    """Attention of one new token per slot to all tokens of its slot, itself included."""

    slots: KeyValueSlots
    implementation: str
    """Name of the model's own attention implementation."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        """Attention output [slot, 1, head, channel]."""
        keys, values = self.slots.append(module.layer_idx, key, value)
        window = kwargs.get("sliding_window")
        if window not in self.masks:
            self.masks[window] = self._mask(window, query)
        mask = self.masks[window].to(query.device)
        return own_attention(module, self.implementation)(module, query, keys, values, mask, **kwargs)[0]

    def _mask(self, window: int | None, query: Tensor) -> Tensor:
        length = self.slots.length[:, None]
        token = torch.arange(self.slots.longest + 1, device=length.device)
        seen = token <= length
        if window is not None:
            seen &= token > length - window
        return as_mask(seen[:, None, None], query.dtype, self.implementation)


@dataclass
class PackedAttention:
    """Attention of one pack, unfolded for the model's own attention function."""

    pack: Pack
    implementation: str
    """Name of the model's own attention implementation."""
    slots: KeyValueSlots | None = None
    """Where keys and values are stored for decoding; None: they are not."""
    slot_of: Int[Tensor, "arm prompt"] | None = None
    """The slot of each row of the pack."""
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    only: Literal["keys", "last"] | None = None
    """In a pruned last block: the call that computes keys and values of all tokens, or that of each last token."""
    last_keys: tuple[Tensor, Tensor] | None = None

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        """Attention output [arm, token, head, channel]."""
        attend = own_attention(module, self.implementation)
        if self.only == "keys":
            self.last_keys = key, value
            raise _KeysTakenError
        if self.only == "last":
            return self._attend_last(attend, module, query, kwargs)
        return self._attend(attend, module, query, key, value, kwargs)

    def _attend(self, attend: Callable, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        n_arms, n, first, parts = query.shape[0], self.pack.n_shared, 0, []
        if n:
            mask = self._shared_mask(kwargs.get("sliding_window"), query)
            parts.append(attend(module, query[:, :, :n], key[:, :, :n], value[:, :, :n], mask, **kwargs)[0])
        for i, group in enumerate(self.pack.groups):
            q, k, v = unfold(query, group.queries), unfold(key, group.keys), unfold(value, group.keys)
            first = self._store(module, first, len(group.is_token), k, v)
            mask = self._mask(i, kwargs.get("sliding_window"), n_arms, query.dtype).to(query.device)
            output = attend(module, q, k, v, mask, **kwargs)[0]
            rows = output.view(n_arms, group.is_token.numel(), *output.shape[2:])
            parts.append(rows.index_select(1, group.places.to(rows.device)))
        return torch.cat(parts, 1)

    def _attend_last(self, attend: Callable, module: Any, query: Tensor, kwargs: dict) -> Tensor:
        """Attention of last tokens to the keys of the first call; query is [arm, head, prompt, channel]."""
        assert self.last_keys is not None
        key, value = self.last_keys
        n_arms, first, parts = query.shape[0], 0, []
        for group in self.pack.groups:
            k, v = unfold(key, group.keys), unfold(value, group.keys)
            n = len(group.is_token)
            q = query[:, :, first : first + n].transpose(1, 2).flatten(0, 1)[:, :, None]
            seen = self._last_mask(group, kwargs.get("sliding_window"), n_arms, query.dtype).to(query.device)
            output = attend(module, q, k, v, seen, **kwargs)[0]
            parts.append(output.view(n_arms, n, *output.shape[2:]))
            first = self._store(module, first, n, k, v)
        return torch.cat(parts, 1)

    def _store(self, module: Any, first: int, n: int, keys: Tensor, values: Tensor) -> int:
        """Store keys and values of the prompts `first` .. `first + n - 1`; returns the index of the next prompt."""
        if self.slots is not None and self.slot_of is not None:
            slots = self.slot_of[:, first : first + n].flatten().to(keys.device)
            self.slots.put(module.layer_idx, slots, keys, values)
        return first + n

    def _mask(self, group: int, window: int | None, n_arms: int, dtype: torch.dtype) -> Tensor:
        if (group, window) not in self.masks:
            mask = self.pack.groups[group].mask(window).repeat(n_arms, 1, 1)[:, None]
            self.masks[group, window] = as_mask(mask, dtype, self.implementation)
        return self.masks[group, window]

    def _last_mask(self, group: Group, window: int | None, n_arms: int, dtype: torch.dtype) -> Tensor:
        prompt, last = torch.arange(len(group.is_token), device=group.is_token.device), group.is_token.sum(1) - 1
        seen = group.mask(window)[prompt, last].repeat(n_arms, 1)
        return as_mask(seen[:, None, None], dtype, self.implementation)

    def _shared_mask(self, window: int | None, query: Tensor) -> Tensor:
        token = torch.arange(self.pack.n_shared, device=query.device)
        seen = token <= token[:, None]
        if window is not None:
            seen &= token > token[:, None] - window
        return as_mask(seen.expand(query.shape[0], 1, -1, -1), query.dtype, self.implementation)


def as_mask(seen: Bool[Tensor, "..."], dtype: torch.dtype, implementation: str) -> Tensor:
    """A mask in the form of an attention implementation: additive for eager, boolean for the others."""
    if implementation != "eager":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def unfold(
    packed: Float[Tensor, "arm head token channel"], tokens: Int[Tensor, "prompt width"]
) -> Float[Tensor, "row head width channel"]:
    """One row per (arm, prompt), with the elements at the indices `tokens`."""
    arms, heads, _, channels = packed.shape
    prompts, width = tokens.shape
    # Takes a quarter of the time of an index in brackets.
    elements = packed.transpose(1, 2).index_select(1, tokens.flatten().to(packed.device))
    return elements.view(arms * prompts, width, heads, channels).transpose(1, 2)


def own_attention(module: Any, name: str) -> Callable:
    """The attention function of this name for a module, as the module itself would look it up."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _packed_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple:
    del mask  # None: transformers makes no mask for a registered attention function without a mask function
    return _ACTIVE.get()(module, query, key, value, kwargs), None


AttentionInterface.register(NAME, _packed_attention)


@contextmanager
def packed(chat_model: ChatModel, attention: PackedAttention | SlotAttention) -> Iterator[None]:
    """Use this attention in every attention module while the context is active."""
    config = chat_model.model.config.get_text_config(decoder=True)
    token = _ACTIVE.set(attention)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = attention.implementation
        _ACTIVE.reset(token)


def own_implementation(chat_model: ChatModel) -> str:
    """Name of the attention implementation in the model's config."""
    return chat_model.model.config.get_text_config(decoder=True)._attn_implementation


def attention_of(chat_model: ChatModel, pack: Pack) -> PackedAttention:
    """The attention of a pack, with the attention implementation in the model's config."""
    return PackedAttention(pack, own_implementation(chat_model))


def packed_forward(
    chat_model: ChatModel, pack: Pack, n_arms: int, attention: PackedAttention
) -> Float[Tensor, "arm prompt vocab"]:
    """Next-token logits of every prompt of a pack under each arm (a row of the batch).

    If the proof permits it, the last block is pruned: it computes keys and values for all tokens, and everything else
    for each prompt's last token only.
    """
    prune = chat_model.proof.last_block_can_be_pruned
    with packed(chat_model, attention), _last_tokens_only(chat_model, pack, attention) if prune else nullcontext():
        return chat_model.model(
            input_ids=pack.ids.expand(n_arms, -1),
            position_ids=pack.position_ids.expand(n_arms, -1),
            use_cache=False,
            logits_to_keep=0 if prune else index_on_every_device(chat_model, pack.last),
        ).logits


def slot_forward(
    chat_model: ChatModel, slots: KeyValueSlots, tokens: Int[Tensor, " slot"]
) -> Float[Tensor, "slot vocab"]:
    """Next-token logits after one more token in each slot. `slots.advance` counts the tokens."""
    with packed(chat_model, SlotAttention(slots, own_implementation(chat_model))):
        return chat_model.model(
            input_ids=tokens[:, None], position_ids=slots.length[:, None], use_cache=False, logits_to_keep=1
        ).logits[:, -1]


def packed_states(chat_model: ChatModel, pack: Pack, n_arms: int, attention: PackedAttention) -> FinalStates:
    """The final states of every token of a pack under each arm (a row of the batch)."""

    def run() -> Tensor:
        return chat_model.model(
            input_ids=pack.ids.expand(n_arms, -1), position_ids=pack.position_ids.expand(n_arms, -1), use_cache=False
        ).logits

    with packed(chat_model, attention):
        return final_states(chat_model, run)


class _KeysTakenError(Exception):
    """Stops a call of the last block once its keys and values are computed."""


@contextmanager
def _last_tokens_only(chat_model: ChatModel, pack: Pack, attention: PackedAttention) -> Iterator[None]:
    block = chat_model.blocks[-1]
    whole, n_tokens = block.forward, len(pack.ids)

    def pruned(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(pruned(v) for v in value)
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[1] == n_tokens:
            return value[:, pack.last.to(value.device)]
        return value

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            attention.only = "keys"
            whole(*args, **kwargs)
        except _KeysTakenError:
            attention.only = "last"
            return whole(*map(pruned, args), **{k: pruned(v) for k, v in kwargs.items()})
        finally:
            attention.only = attention.last_keys = None
        raise RuntimeError("the last block does not call an attention module of transformers' interface")

    with forward_replaced(block, forward):
        yield


def shared_length(sequences: Sequence[TokenIds]) -> int:
    """Number of leading tokens that all sequences have in common."""
    least, greatest = min(map(list, sequences)), max(map(list, sequences))
    return next((i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b), len(least))
