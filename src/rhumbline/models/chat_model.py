"""A chat model as the instrument sees it: blocks, residual writers, hooks, forward passes. The only file with hooks.

Promises: edits act while a context is open and leave no trace; what a watcher sees is the stream after the edits.
Knows module names, hooks and devices. Does not know what is added or removed at a site, nor why; how the writers were
found is in proving.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.axes import Residual

Edit = Callable[[Residual], Residual]
"""What a site does to the residual stream (or to what is written into it); returns a new tensor."""

Mode = Literal["exact", "coarse"]


class Site(NamedTuple):
    """Where the residual stream is edited: a block's input or output, or what a submodule writes into it."""

    kind: Literal["resid_pre", "write", "resid_post"]
    layer: int
    module: str = ""
    """Name of the writer inside its block; empty for block inputs and outputs."""


@dataclass(frozen=True)
class Writer:
    """A submodule whose output is added to the residual stream, times `scale`."""

    layer: int
    module: str
    """The innermost submodule with this output, by its name inside the block: where the hook goes."""
    aliases: tuple[str, ...]
    """Every submodule of the block that returned the same values, innermost first."""
    scale: float
    """The constant the model multiplies this output by before adding it (granite's residual multiplier)."""
    flat: bool = False
    """True where the submodule returns [row * position, d_model]."""


@dataclass(frozen=True)
class Proof:
    """What the probe forwards showed. Errors are relative to the size of the terms that are summed."""

    mode: Mode
    sum_error: tuple[float, ...]
    """Per layer: largest |output - (carry * input + sum of writes)| over the sum of the absolute terms."""
    carry: tuple[float, ...]
    """Per layer: the factor on the layer's input (1 except in models that rescale the stream)."""
    leak: float
    """Largest |r.x| / |x| over block inputs and the final state while a random direction r was ablated."""
    leak_bound: float
    """What `leak` may be at the model's precision."""
    unpadded: bool
    """True where a left-padded prompt does not give the logits that it gives alone: batches hold one length only."""
    packed: bool
    """Whether prompts packed behind their shared prefix, begun at any layer, give the logits that they give alone."""
    narrowed: bool
    """Whether the last block of a pack may run for the last tokens alone."""
    cached: bool
    """Whether decoding with the model's cache gives the logits of a whole forward pass; if not, nothing is cached."""
    note: str = ""


@dataclass(frozen=True)
class ChatModel:
    """A decoder with its tokenizer, its blocks and the proof of what writes into its residual stream."""

    model: Any
    """A transformers model."""
    tokenizer: Any
    """Its tokenizer."""
    name: str
    blocks: tuple[nn.Module, ...]
    blocks_name: str
    """Dotted name of the list of blocks, e.g. `model.layers`."""
    writers: tuple[Writer, ...]
    proof: Proof
    keywords: frozenset[str] = field(repr=False, default=frozenset())
    """Keyword arguments that the model's forward accepts."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @cached_property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        device = self.model.get_input_embeddings().weight.device
        # Offloaded weights live on the meta device; accelerate's hooks move the inputs to the execution device.
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding, in which the residual stream runs."""
        return self.model.get_input_embeddings().weight.dtype

    @cached_property
    def ablation_sites(self) -> tuple[Site, ...]:
        """Where an ablation acts so that the whole stream is orthogonal: the first input, then every write."""
        first = (Site("resid_pre", 0),)
        if self.proof.mode == "exact":
            return first + tuple(Site("write", w.layer, w.module) for w in self.writers)
        return tuple(Site(kind, layer) for layer in range(self.n_layers) for kind in ("resid_pre", "resid_post"))

    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end a completion: the generation config's and the tokenizer's."""
        config = getattr(self.model, "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        ids = found if isinstance(found, list) else [found]
        return frozenset(int(i) for i in [*ids, getattr(self.tokenizer, "eos_token_id", None)] if i is not None)

    @property
    def pad_token(self) -> int:
        """A token id to pad with; its value never matters, since padding is masked."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return int(pad) if pad is not None else min(self.stop_tokens(), default=0)

    def record(self) -> dict:
        """What a protocol says of the model; `fingerprint` is computed apart since it reads every weight."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "model_type": self.model.config.model_type,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "mode": self.proof.mode,
        }


# -- hooks ------------------------------------------------------------------------------------------------------------


# -- forward passes ---------------------------------------------------------------------------------------------------


def fresh_cache(chat_model: ChatModel) -> Any:
    """An empty cache of transformers' own, or None where the model's forward takes none."""
    from transformers import DynamicCache

    if "past_key_values" not in chat_model.keywords:
        return None
    return DynamicCache(config=chat_model.model.config.get_text_config(decoder=True))


def new_cache(chat_model: ChatModel) -> Any:
    """An empty cache for decoding (transformers' own), or None where the proof found that it does not hold."""
    return fresh_cache(chat_model) if chat_model.proof.cached else None


def can_drop_rows(cache: Any) -> bool:
    """Whether rows can leave the cache: attention layers can, some recurrent ones cannot."""
    return all(hasattr(layer, "batch_select_indices") and not hasattr(layer, "conv_states") for layer in cache.layers)


def forward(
    chat_model: ChatModel, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, *, keep: int = 1
) -> Float[Tensor, "row vocab"] | Float[Tensor, "row position vocab"]:
    """Logits of the last position [row, vocab] (or of all positions with keep=0), in the model's dtype.

    `attention_mask` covers cached and new tokens [row, cached + position]; positions count real tokens only. With a
    `cache` (transformers' own) the new tokens are appended to it.
    """
    n_new = input_ids.shape[1]
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "position_ids" in chat_model.keywords:
        positions = attention_mask.long().cumsum(-1) - 1
        arguments["position_ids"] = positions.clamp_min(0)[:, -n_new:]
    if "logits_to_keep" in chat_model.keywords:
        arguments["logits_to_keep"] = keep
    if cache is not None:
        arguments |= {"past_key_values": cache, "use_cache": True}
    elif "use_cache" in chat_model.keywords:
        arguments["use_cache"] = False
    logits = chat_model.model(**arguments).logits
    return logits[:, -1] if keep == 1 else logits
