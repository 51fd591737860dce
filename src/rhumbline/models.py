"""A chat model as the instrument sees it: blocks, residual writers, hooks, forward passes. The only file with hooks.

Promises: edits act while a context is open and leave no trace; what a watcher sees is the stream after the edits.
Knows module names, hooks and devices. Does not know what is added or removed at a site, nor why; how the writers were
found is in proving.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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


def _hidden(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


def _edit_output(edit: Edit) -> Callable:
    return lambda module, args, output: _with_hidden(output, edit(_hidden(output)))


def _edit_flat_output(edit: Edit, shape: Callable[[], torch.Size]) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = _hidden(output)
        return _with_hidden(output, edit(hidden.reshape(shape())).reshape(hidden.shape))

    return hook


def _edit_input(edit: Edit) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return hook


def _watch_input(see: Callable[[Tensor], None]) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        see(args[0] if args else kwargs["hidden_states"])

    return hook


@contextmanager
def hooked(
    chat_model: ChatModel,
    edits: Mapping[Site, Edit],
    watch: Callable[[int, Residual], None] | None = None,
) -> Iterator[None]:
    """Apply `edits` at their sites while open; `watch(layer, residual)` sees the stream after the edits.

    `watch` is called with the input of every block (layer 0 .. L-1) and with layer L for the state before the final
    norm. Leaves no trace. Edits see [row, position, d_model] tensors.
    """
    flat = {(w.layer, w.module) for w in chat_model.writers if w.flat}
    shapes: dict[int, torch.Size] = {}
    with ExitStack() as stack:
        for layer in {layer for layer, module in flat if Site("write", layer, module) in edits}:
            see = _watch_input(lambda h, layer=layer: shapes.__setitem__(layer, h.shape))
            stack.callback(chat_model.blocks[layer].register_forward_pre_hook(see, with_kwargs=True).remove)
        for site, edit in edits.items():
            block = chat_model.blocks[site.layer]
            if site.kind == "resid_pre":
                handle = block.register_forward_pre_hook(_edit_input(edit), with_kwargs=True)
            elif site.kind == "resid_post":
                handle = block.register_forward_hook(_edit_output(edit))
            elif (site.layer, site.module) in flat:
                hook = _edit_flat_output(edit, lambda layer=site.layer: shapes[layer])
                handle = block.get_submodule(site.module).register_forward_hook(hook)
            else:
                handle = block.get_submodule(site.module).register_forward_hook(_edit_output(edit))
            stack.callback(handle.remove)
        # Watchers come after the edits: hooks of one module run in the order in which they were registered.
        if watch is not None:
            for layer, block in enumerate(chat_model.blocks):
                see = _watch_input(lambda h, layer=layer: watch(layer, h))
                stack.callback(block.register_forward_pre_hook(see, with_kwargs=True).remove)
            depth = chat_model.n_layers
            last = chat_model.blocks[-1].register_forward_hook(lambda m, a, out: watch(depth, _hidden(out)))
            stack.callback(last.remove)
        yield


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable) -> Iterator[None]:
    """`module` runs `forward` for its own while open; its hooks stay.

    An attribute of the instance hides the method of the class. Where the instance had one before (accelerate wraps
    `forward` so, to bring weights and inputs to their device), it is put back.
    """
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def resumed(chat_model: ChatModel, layer: int, stream: Residual) -> Iterator[None]:
    """Forward passes begin at the input of block `layer` with `stream`; the blocks before it do nothing."""

    def passing(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden

    with ExitStack() as stack:
        for block in chat_model.blocks[:layer]:
            stack.enter_context(forward_replaced(block, passing))
        handle = chat_model.blocks[layer].register_forward_pre_hook(_edit_input(lambda h: stream), with_kwargs=True)
        stack.callback(handle.remove)
        yield


class _ReachedError(Exception):
    """A forward pass came to the layer that it was to reach."""


def run_until(chat_model: ChatModel, layer: int, run: Callable[[], Any]) -> Residual:
    """The input of block `layer` in the forward pass that `run` makes, which ends there."""
    found: list[Tensor] = []

    def see(h: Tensor) -> None:
        found.append(h)
        raise _ReachedError

    handle = chat_model.blocks[layer].register_forward_pre_hook(_watch_input(see), with_kwargs=True)
    try:
        run()
    except _ReachedError:
        return found[0]
    finally:
        handle.remove()
    raise RuntimeError(f"the forward pass never reached layer {layer}")


class Final(NamedTuple):
    """The end of a forward pass: the decoder's last states, and how the model makes logits of some of them."""

    states: Float[Tensor, "row position d_model"]
    """After the final norm; for a model whose decoder cannot be told from its head, the logits themselves."""
    logits: Callable[[Float[Tensor, "row position d_model"]], Float[Tensor, "row position vocab"]]
    """With everything that the model does after its decoder: head, scaling, soft-capping."""


def final_states(chat_model: ChatModel, run: Callable[[], Any]) -> Final:
    """The states that the forward pass of `run` ends in, before the unembedding, which is then done in pieces.

    The whole table of logits of a long batch would be vocab / d_model times larger than its states. The model's own
    forward is called with its decoder standing still, so that no step after the head is lost.
    """
    model = chat_model.model
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    found: list[Any] = []

    def see(module: nn.Module, args: tuple, output: Any) -> None:
        found.append(output)
        raise _ReachedError

    if decoder is model:
        return Final(run(), lambda logits: logits)
    handle = decoder.register_forward_hook(see)
    try:
        run()
    except _ReachedError:
        output = found[0]
    else:
        raise RuntimeError("the forward pass never went through the model's decoder")
    finally:
        handle.remove()

    def logits(states: Tensor) -> Tensor:
        rows, width = states.shape[:2]
        ids = torch.zeros(rows, width, dtype=torch.long, device=chat_model.device)
        with forward_replaced(decoder, lambda *args, **kwargs: type(output)(last_hidden_state=states)):
            return forward(chat_model, ids, torch.ones_like(ids), keep=0)

    return Final(output.last_hidden_state, logits)


class Tap(NamedTuple):
    """A module that is watched, and who is told of its calls."""

    module: nn.Module
    see: Callable[[tuple, dict, Any], None]
    """Called with the positional arguments, the keyword arguments and, on side `output`, what the module returned."""
    side: Literal["input", "output"] = "output"


@contextmanager
def tapped(taps: Sequence[Tap]) -> Iterator[None]:
    """Tell every tap of its module's calls while open; changes nothing and leaves no trace."""
    with ExitStack() as stack:
        for module, see, side in taps:
            if side == "input":
                handle = module.register_forward_pre_hook(
                    lambda m, args, kwargs, see=see: see(args, kwargs, None), with_kwargs=True
                )
            else:
                handle = module.register_forward_hook(
                    lambda m, args, kwargs, output, see=see: see(args, kwargs, output), with_kwargs=True
                )
            stack.callback(handle.remove)
        yield


class Trace(NamedTuple):
    """One layer of the probe: its input, its output, and what its submodules returned, in the order they finished."""

    before: Tensor
    after: Tensor
    outputs: dict[str, Tensor]


def trace_layers(model: Any, blocks: Sequence[nn.Module], inputs: Mapping[str, Any]) -> list[Trace]:
    """One forward pass that keeps what every submodule of every block returned; the probe of the proof."""
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    outputs: list[dict[str, Tensor]] = [{} for _ in blocks]

    def keep(layer: int, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.is_floating_point():
                # A clone: some models (llama4) add into the tensor later. The first call counts, as for shared modules.
                outputs[layer].setdefault(name, first.detach().clone())

        return hook

    def take(store: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
        return lambda h: store.__setitem__(layer, h.detach().clone())

    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(_watch_input(take(before, layer)), with_kwargs=True)
            stack.callback(handle.remove)
            keep_output = take(after, layer)
            handle = block.register_forward_hook(lambda m, a, out, f=keep_output: f(_hidden(out)))
            stack.callback(handle.remove)
            for name, module in block.named_modules():
                if name:
                    stack.callback(module.register_forward_hook(keep(layer, name)).remove)
        model(**inputs)
    return [Trace(before[i], after[i], outputs[i]) for i in range(len(blocks))]


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
