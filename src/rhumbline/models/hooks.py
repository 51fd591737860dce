"""TODO."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.axes import Residual
from rhumbline.models.chat_model import ChatModel, Edit, Site, forward


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
