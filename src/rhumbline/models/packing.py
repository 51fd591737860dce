"""Prompts laid end to end behind the tokens that they share: no padding, and the shared tokens run once per arm.

A pack is one row of tokens, the same for every arm of a batch: [shared prefix][own tokens of prompt 0][prompt 1]...
Everything in a transformer block but attention treats tokens alone, so it runs on the pack as it is. Attention is given
to transformers as an attention function of our own, which unfolds the pack into one row per prompt, calls the model's
own attention function with an explicit mask, and folds the result back. For decoding, keys and values of each row are
kept in lines of the full length, so that a step copies nothing.

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

from rhumbline.axes import TokenIds
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.hooks import FinalStates, final_states, forward_replaced

NAME = "rhumbline_packed"
GROUP = 16
"""Prompts that are unfolded together for attention."""
_ACTIVE: ContextVar["PackedAttention | KeptAttention"] = ContextVar("packed attention in use")


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
    shared = min(n_shared(sequences), min(map(len, sequences)) - max(1, n_private))
    ids = [*sequences[0][:shared], *(t for s in sequences for t in s[shared:])]
    lengths = tuple(len(s) - shared for s in sequences)
    positions = [*range(shared), *(shared + i for n in lengths for i in range(n))]
    return Pack(torch.tensor(ids, device=device), torch.tensor(positions, device=device), shared, lengths)


@dataclass
class Kept:
    """Keys and values of rows that are decoded: a line for each row, filled from its start."""

    length: Int[Tensor, " row"]
    """Tokens that stand in each line so far."""
    longest: int
    """The largest of them."""
    room: int
    """Tokens for which a line has place."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values by layer, [row, token, head, channel].

    In this order what a row has so far is one stretch of memory. With heads first a look at it takes 1.1 to 1.5 times
    as long for heads of 128 channels, and 0.6 to 1.1 times for those of 64.
    """

    def begin(self, lines: Int[Tensor, " row"], length: Int[Tensor, " row"]) -> None:
        """Give some lines to new rows, whose prompts have this length."""
        self.length[lines] = length
        self.longest = int(self.length.max())

    def put(self, layer: int, lines: Int[Tensor, " row"], keys: Tensor, values: Tensor) -> None:
        """Write [row, head, token, channel] at the start of some lines; what lies beyond a row's length is not read."""
        if layer not in self.layers:
            shapes = ((len(self.length), self.room, x.shape[1], x.shape[3]) for x in (keys, values))
            k, v = (keys.new_zeros(shape) for shape in shapes)
            self.layers[layer] = k, v
        for kept, new in zip(self.layers[layer], (keys, values), strict=True):
            kept[lines, : new.shape[2]] = new.transpose(1, 2)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token [row, head, 1, channel] behind each row, and give all lines [row, head, token, channel]."""
        line = torch.arange(len(self.length), device=keys.device)
        found = []
        for kept, new in zip(self.layers[layer], (keys, values), strict=True):
            kept[line, self.length.to(kept.device)] = new[:, :, 0]
            found.append(kept[:, : self.longest + 1].transpose(1, 2))
        return found[0], found[1]

    def advance(self, alive: Bool[Tensor, " row"]) -> None:
        """The token that was appended in every layer counts from now on, in the lines that are alive."""
        self.length = self.length + alive
        # An upper bound until rows begin or leave, so that the device need not be asked.
        self.longest = min(self.longest + 1, self.room - 1)

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Forget all other rows."""
        self.length = self.length[rows]
        self.longest = int(self.length.max())
        for layer, (keys, values) in self.layers.items():
            self.layers[layer] = (keys[rows.to(keys.device)], values[rows.to(values.device)])

    @property
    def n_bytes(self) -> int:
        """What the lines take."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)


@dataclass
class KeptAttention:
    """The attention of one new token per row: it looks at the row's line, itself included."""

    kept: Kept
    plain: str
    """Name of the model's own attention implementation."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        """Attention output [row, 1, head, channel]."""
        keys, values = self.kept.append(module.layer_idx, key, value)
        window = kwargs.get("sliding_window")
        if window not in self.masks:
            self.masks[window] = self._mask(window, query)
        mask = self.masks[window].to(query.device)
        return own_attention(module, self.plain)(module, query, keys, values, mask, **kwargs)[0]

    def _mask(self, window: int | None, query: Tensor) -> Tensor:
        length = self.kept.length[:, None]
        place = torch.arange(self.kept.longest + 1, device=length.device)
        seen = place <= length
        if window is not None:
            seen &= place > length - window
        return as_wanted(seen[:, None, None], query.dtype, self.plain)


@dataclass
class PackedAttention:
    """The attention of one pack: unfolds it for the model's own attention function."""

    pack: Pack
    plain: str
    """Name of the model's own attention implementation."""
    kept: Kept | None = None
    """Where keys and values go for decoding."""
    lines: Int[Tensor, "arm prompt"] | None = None
    """Which line each row of the pack has there."""
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    only: Literal["keys", "last"] | None = None
    """In the last block: the call that brings keys and values, or the one that brings each prompt's last token."""
    last_keys: tuple[Tensor, Tensor] | None = None

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        """Attention output [arm, token, head, channel]."""
        attend = own_attention(module, self.plain)
        if self.only == "keys":
            self.last_keys = key, value
            raise _KeysTakenError
        if self.only == "last":
            return self._read_last(attend, module, query, kwargs)
        return self._read(attend, module, query, key, value, kwargs)

    def _read(self, attend: Callable, module: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: dict) -> Tensor:
        n_arms, n, first, parts = query.shape[0], self.pack.n_shared, 0, []
        if n:
            mask = self._shared_mask(kwargs.get("sliding_window"), query)
            parts.append(attend(module, query[:, :, :n], key[:, :, :n], value[:, :, :n], mask, **kwargs)[0])
        for i, group in enumerate(self.pack.groups):
            q, k, v = unfold(query, group.queries), unfold(key, group.keys), unfold(value, group.keys)
            first = self._keep(module, first, len(group.own), k, v)
            mask = self._mask(i, kwargs.get("sliding_window"), n_arms, query.dtype)
            found = attend(module, q, k, v, mask, **kwargs)[0]
            parts.append(found.view(n_arms, *group.own.shape, *found.shape[2:])[:, group.own])
        return torch.cat(parts, 1)

    def _read_last(self, attend: Callable, module: Any, query: Tensor, kwargs: dict) -> Tensor:
        """Each prompt's last token looks at the keys that were taken before; query is [arm, head, prompt, channel]."""
        assert self.last_keys is not None
        key, value = self.last_keys
        n_arms, first, parts = query.shape[0], 0, []
        for group in self.pack.groups:
            k, v = unfold(key, group.keys), unfold(value, group.keys)
            n = len(group.own)
            q = query[:, :, first : first + n].transpose(1, 2).flatten(0, 1)[:, :, None]
            seen = self._last_mask(group, kwargs.get("sliding_window"), n_arms, query.dtype)
            found = attend(module, q, k, v, seen, **kwargs)[0]
            parts.append(found.view(n_arms, n, *found.shape[2:]))
            first = self._keep(module, first, n, k, v)
        return torch.cat(parts, 1)

    def _keep(self, module: Any, first: int, n: int, keys: Tensor, values: Tensor) -> int:
        """Keep what prompts `first` .. `first + n` have been seen by; where the next ones begin."""
        if self.kept is not None and self.lines is not None:
            lines = self.lines[:, first : first + n].flatten().to(keys.device)
            self.kept.put(module.layer_idx, lines, keys, values)
        return first + n

    def _mask(self, group: int, window: int | None, n_arms: int, dtype: torch.dtype) -> Tensor:
        if (group, window) not in self.masks:
            mask = self.pack.groups[group].mask(window).repeat(n_arms, 1, 1)[:, None]
            self.masks[group, window] = as_wanted(mask, dtype, self.plain)
        return self.masks[group, window]

    def _last_mask(self, group: Group, window: int | None, n_arms: int, dtype: torch.dtype) -> Tensor:
        prompt, last = torch.arange(len(group.own), device=group.own.device), group.own.sum(1) - 1
        seen = group.mask(window)[prompt, last].repeat(n_arms, 1)
        return as_wanted(seen[:, None, None], dtype, self.plain)

    def _shared_mask(self, window: int | None, query: Tensor) -> Tensor:
        place = torch.arange(self.pack.n_shared, device=query.device)
        seen = place <= place[:, None]
        if window is not None:
            seen &= place > place[:, None] - window
        return as_wanted(seen.expand(query.shape[0], 1, -1, -1), query.dtype, self.plain)


def as_wanted(seen: Bool[Tensor, "..."], dtype: torch.dtype, plain: str) -> Tensor:
    """A mask as the attention implementation `plain` takes it: eager adds its mask, the others take truth values."""
    if plain != "eager":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


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
def packed(chat_model: ChatModel, attention: PackedAttention | KeptAttention) -> Iterator[None]:
    """The model attends so while this is open."""
    config = chat_model.model.config.get_text_config(decoder=True)
    token = _ACTIVE.set(attention)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = attention.plain
        _ACTIVE.reset(token)


def own_implementation(chat_model: ChatModel) -> str:
    """The name of the attention that the model is configured for now."""
    return chat_model.model.config.get_text_config(decoder=True)._attn_implementation


def attention_of(chat_model: ChatModel, pack: Pack) -> PackedAttention:
    """The packed attention for a model as it is configured now."""
    return PackedAttention(pack, own_implementation(chat_model))


def packed_forward(
    chat_model: ChatModel, pack: Pack, n_arms: int, attention: PackedAttention
) -> Float[Tensor, "arm prompt vocab"]:
    """Next-token logits of every prompt of a pack under each arm (a row of the batch).

    Where the proof allows it, the last block brings keys for all tokens, and everything else of it runs for each
    prompt's last token alone.
    """
    narrow = chat_model.proof.last_block_can_be_pruned
    with packed(chat_model, attention), _last_tokens_only(chat_model, pack, attention) if narrow else nullcontext():
        return chat_model.model(
            input_ids=pack.ids.expand(n_arms, -1),
            position_ids=pack.position_ids.expand(n_arms, -1),
            use_cache=False,
            logits_to_keep=0 if narrow else pack.last,
        ).logits


def packed_states(chat_model: ChatModel, pack: Pack, n_arms: int, attention: PackedAttention) -> FinalStates:
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


def n_shared(sequences: Sequence[TokenIds]) -> int:
    """Leading tokens that all sequences have in common."""
    least, greatest = min(map(list, sequences)), max(map(list, sequences))
    return next((i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b), len(least))
