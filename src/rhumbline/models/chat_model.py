"""A loaded decoder with its blocks, its proved residual writers and its forward pass.

Independent of interventions: an edit is any function from a residual stream to a new tensor. The hooks that apply
edits are in hooks.py, the proof of the writers is in proving.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rhumbline.arguments import checked
from rhumbline.axes import Residual
from rhumbline.models.chat import Chat
from rhumbline.records.protocol_file import StopSource
from rhumbline.records.shared import ModelDescription


@runtime_checkable
class _HasConfig(Protocol):
    config: Any

    def get_input_embeddings(self) -> Any: ...


TransformersModel = Annotated[Any, _HasConfig, "a transformers model"]
"""The type of a model that is not loaded by rhumbline."""

Edit = Callable[[Residual], Residual]
"""Maps the residual stream, or the output of a residual writer, to a new tensor of the same shape."""

Mode = Literal["exact", "coarse"]
"""`exact`: the residual writers are proved. `coarse`: edits act on block inputs and outputs only."""


class HookPoint(NamedTuple):
    """Where a hook reads or edits activations: input or output of a block, or of a residual writer."""

    kind: Literal["resid_pre", "write_input", "write", "resid_post"]
    """Block input, input of a writer, output of a writer, block output."""
    layer: int
    module: str = ""
    """Name of the writer inside its block; empty for block inputs and outputs."""


@dataclass(frozen=True)
class Writer:
    """A residual writer: a submodule whose output, times `scale`, is added to the residual stream."""

    layer: int
    module: str
    """Name inside the block of the innermost submodule with this output, or of the adapter around it; the hook is
    registered on it."""
    aliases: tuple[str, ...]
    """Every submodule of the block that returned the same values, innermost first."""
    scale: float
    """Factor of the output before it is added, such as granite's residual multiplier."""
    flat: bool = False
    """Whether the submodule returns [row * position, d_model]."""


@dataclass(frozen=True)
class Proof:
    """Results of the probe forward passes. Errors are relative to the sum of the absolute terms."""

    mode: Mode
    sum_error: tuple[float, ...]
    """Per layer: largest |output - (carry * input + sum of writes)|, over the sum of the absolute terms."""
    carry: tuple[float, ...]
    """Per layer: factor of the block input; 1 unless the model rescales the stream."""
    leak: float
    """Largest |r.x| / |x| over block inputs and the final state, under ablation of a random direction r."""
    leak_bound: float
    """Largest permitted `leak` in the dtype of the model."""
    padding_changes_logits: bool
    """Whether left padding changes the logits of a prompt. If so, a batch contains prompts of one length only."""
    packing_is_exact: bool
    """Whether packed prompts have the logits of each prompt alone, also when a pass resumes at a middle layer."""
    last_block_can_be_pruned: bool
    """Whether the last block of a pack can run for the last token of each prompt only."""
    cache_is_exact: bool
    """Whether decoding with the model's cache gives the logits of a whole forward pass. If not, no cache is used."""
    longest_proved: int | None = None
    """Tokens of the longest text for which padding, packing and the cache are proved; longer ones run alone, without a
    cache. None: any."""
    longest_pack: int | None = None
    """Tokens of the longest pack that is proved; None: any."""
    note: str = ""
    """In coarse mode: the layers whose writers could not be proved, or what remained of an ablated direction."""


@dataclass(frozen=True)
class ChatModel:
    """A decoder with its tokenizer, its blocks and the proof of its residual writers."""

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
    """Keyword arguments of the model's forward method."""
    dequantised: str | None = None
    """The stored format that was dequantised while loading, such as `GGUF (F32, Q8_0)`; None for other models."""

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
        """Device of the input embedding, on which token ids are passed."""
        device = self.model.get_input_embeddings().weight.device
        # Offloaded weights are on the meta device; accelerate's hooks move the inputs to the execution device.
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the input embedding, and of the residual stream."""
        return self.model.get_input_embeddings().weight.dtype

    @cached_property
    def ablation_points(self) -> tuple[HookPoint, ...]:
        """Hook points at which ablation leaves the whole stream orthogonal: first block input, then every writer.

        In the coarse mode: every block input and output.
        """
        first = (HookPoint("resid_pre", 0),)
        if self.proof.mode == "exact":
            return first + tuple(HookPoint("write", w.layer, w.module) for w in self.writers)
        return tuple(HookPoint(kind, layer) for layer in range(self.n_layers) for kind in ("resid_pre", "resid_post"))

    @property
    def generation_config(self) -> Any:
        """Settings for generation that come with the weights; None without any."""
        return getattr(self.model, "generation_config", None)

    def stop_sources(self) -> dict[StopSource, frozenset[int]]:
        """Token ids that end a completion, by where they come from; those of a chat template are not among them."""
        eos = getattr(self.generation_config, "eos_token_id", None)
        sources: dict[StopSource, list[int | None]] = {
            "generation config": eos if isinstance(eos, list) else [eos],
            "tokenizer": [getattr(self.tokenizer, "eos_token_id", None)],
        }
        return {source: frozenset(int(i) for i in ids if i is not None) for source, ids in sources.items()}

    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end a text without a chat, from the generation config and the tokenizer."""
        return frozenset().union(*self.stop_sources().values())

    @property
    def pad_token(self) -> int:
        """Token id for padding, inside the embedding. Padding is masked, so its value changes no result."""
        pad, rows = getattr(self.tokenizer, "pad_token_id", None), self.model.get_input_embeddings().weight.shape[0]
        ids = [*([] if pad is None else [int(pad)]), *sorted(self.stop_tokens()), 0]
        return next(i for i in ids if 0 <= i < rows)

    @cached_property
    def own_chat(self) -> Chat:
        """The chat template of the tokenizer with its defaults. Raises TemplateError."""
        return Chat.of(self.tokenizer)

    @checked
    def chat(self, text: str, *, max_new_tokens: int = 128, chat: Chat | None = None) -> str:
        """The model's reply to one message, greedy. Under `rhumbline.applied` it is that of the edited model.

        `chat` renders the message with other options (`Chat.of`). Raises InputError and TemplateError.
        """
        from rhumbline.models.replies import reply

        return reply(self, chat or self.own_chat, text, max_new_tokens)

    def __repr__(self) -> str:
        """One line: name, size and mode of the proof."""
        dtype = str(self.dtype).removeprefix("torch.")
        size = f"{self.n_layers} layers, width {self.d_model}"
        return f"ChatModel({self.name!r}, {size}, {dtype}, {self.device}, {self.proof.mode})"

    def record(self) -> ModelDescription:
        """The description of the model in protocol.json, without the fingerprint, which reads every weight."""
        return ModelDescription(
            name=self.name,
            cls=type(self.model).__name__,
            model_type=self.model.config.model_type,
            n_layers=self.n_layers,
            d_model=self.d_model,
            dtype=str(self.dtype).removeprefix("torch."),
            mode=self.proof.mode,
            dequantised=self.dequantised,
        )


# -- caches and forward passes ----------------------------------------------------------------------------------------


def fresh_cache(chat_model: ChatModel) -> Any:
    """An empty transformers cache; None if the model's forward method takes none."""
    from transformers import DynamicCache

    if "past_key_values" not in chat_model.keywords:
        return None
    return DynamicCache(config=chat_model.model.config.get_text_config(decoder=True))


def new_cache(chat_model: ChatModel) -> Any:
    """An empty transformers cache for decoding; None unless the proof showed that the cache is exact."""
    return fresh_cache(chat_model) if chat_model.proof.cache_is_exact else None


def can_drop_rows(cache: Any) -> bool:
    """Whether rows can be removed from the cache: possible for attention layers, not for some recurrent layers."""
    return all(hasattr(layer, "batch_select_indices") and not hasattr(layer, "conv_states") for layer in cache.layers)


def index_on_every_device(chat_model: ChatModel, index: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """An index of tensors that can be on other devices, if the layers of the model are: then on the processor."""
    placed = getattr(chat_model.model, "hf_device_map", None) or {}
    return index.cpu() if len(set(placed.values())) > 1 else index


def forward(
    chat_model: ChatModel, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, *, keep: int = 1
) -> Float[Tensor, "row vocab"] | Float[Tensor, "row position vocab"]:
    """Logits of the last position [row, vocab], or of all positions with keep=0, in the model's dtype.

    `attention_mask` covers cached and new tokens [row, cached + position]; position ids count unmasked tokens only.
    New tokens are appended to `cache`, a transformers cache.
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
