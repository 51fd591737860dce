"""Register hooks on a model and remove them on exit: the only module that does so.

Edits change activations at hook points, observers read them, and forward passes can stop or resume at a block input.
Independent of what an edit means.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.axes import Residual
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint, forward

# -- hook functions for torch -----------------------------------------------------------------------------------------


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


def _read_input(read: Callable[[Tensor], None]) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        read(args[0] if args else kwargs["hidden_states"])

    return hook


# -- edits and reads of the residual stream ---------------------------------------------------------------------------


@contextmanager
def hooked(
    chat_model: ChatModel,
    edits: Mapping[HookPoint, Edit],
    watch: Callable[[int, Residual], None] | None = None,
) -> Iterator[None]:
    """Apply `edits` at their hook points while the context is active; remove all hooks on exit.

    `watch(layer, residual)` is called after the edits with the input of every block (layer 0 .. L-1), and with layer L
    for the state before the final norm. Edits receive [row, position, d_model] tensors.
    """
    flat = {(w.layer, w.module) for w in chat_model.writers if w.flat}
    shapes: dict[int, torch.Size] = {}
    with ExitStack() as stack:
        for layer in {layer for layer, module in flat if HookPoint("write", layer, module) in edits}:
            read = _read_input(lambda h, layer=layer: shapes.__setitem__(layer, h.shape))
            stack.callback(chat_model.blocks[layer].register_forward_pre_hook(read, with_kwargs=True).remove)
        for point, edit in edits.items():
            block = chat_model.blocks[point.layer]
            if point.kind == "resid_pre":
                handle = block.register_forward_pre_hook(_edit_input(edit), with_kwargs=True)
            elif point.kind == "resid_post":
                handle = block.register_forward_hook(_edit_output(edit))
            elif point.kind == "write_input":
                writer = block.get_submodule(point.module)
                handle = writer.register_forward_pre_hook(_edit_input(edit), with_kwargs=True)
            elif (point.layer, point.module) in flat:
                hook = _edit_flat_output(edit, lambda layer=point.layer: shapes[layer])
                handle = block.get_submodule(point.module).register_forward_hook(hook)
            else:
                handle = block.get_submodule(point.module).register_forward_hook(_edit_output(edit))
            stack.callback(handle.remove)
        # Registered after the edits, because hooks of one module run in the order of their registration.
        if watch is not None:
            for layer, block in enumerate(chat_model.blocks):
                read = _read_input(lambda h, layer=layer: watch(layer, h))
                stack.callback(block.register_forward_pre_hook(read, with_kwargs=True).remove)
            depth = chat_model.n_layers
            last = chat_model.blocks[-1].register_forward_hook(lambda m, a, out: watch(depth, _hidden(out)))
            stack.callback(last.remove)
        yield


@contextmanager
def contiguous_head(chat_model: ChatModel) -> Iterator[None]:
    """Make the input of the unembedding contiguous while the context is active.

    The last position of a padded batch is a slice, for which torch copies the weight once for each row.
    """
    head = chat_model.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


# -- passes that stop or resume at a block input ----------------------------------------------------------------------


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Replace the forward method of `module` while the context is active; its hooks remain registered.

    An attribute of the instance hides the method of the class. If the instance had such an attribute before (accelerate
    uses one to move weights and inputs to their device), it is restored on exit.
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
    """Forward passes start at block `layer` with `stream` as its input; the blocks before it are skipped."""

    def skip(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden

    with ExitStack() as stack:
        for block in chat_model.blocks[:layer]:
            stack.enter_context(forward_replaced(block, skip))
        handle = chat_model.blocks[layer].register_forward_pre_hook(_edit_input(lambda h: stream), with_kwargs=True)
        stack.callback(handle.remove)
        yield


class _ReachedError(Exception):
    """Stops a forward pass once it has reached the requested module."""


def run_until(chat_model: ChatModel, layer: int, run: Callable[[], Any]) -> Residual:
    """The input of block `layer` in the forward pass of `run`, which stops there."""
    inputs: list[Tensor] = []

    def stop(h: Tensor) -> None:
        inputs.append(h)
        raise _ReachedError

    handle = chat_model.blocks[layer].register_forward_pre_hook(_read_input(stop), with_kwargs=True)
    try:
        run()
    except _ReachedError:
        return inputs[0]
    finally:
        handle.remove()
    raise RuntimeError(f"the forward pass did not reach layer {layer}")


class FinalStates(NamedTuple):
    """The last states of a forward pass, and the function from states to logits."""

    states: Float[Tensor, "row position d_model"]
    """States after the final norm. If the model does not separate decoder and head: the logits."""
    logits: Callable[[Float[Tensor, "row position d_model"]], Float[Tensor, "row position vocab"]]
    """Every step of the model after its decoder: unembedding, scaling, soft-capping."""


def final_states(chat_model: ChatModel, run: Callable[[], Any]) -> FinalStates:
    """The states of the forward pass of `run` before the unembedding, so that logits can be computed in pieces.

    All logits of a long batch are vocab / d_model times larger than its states. `FinalStates.logits` calls the model's
    own forward method with a decoder that returns the given states, so every step after the decoder is kept.
    """
    model = chat_model.model
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if decoder is model:
        return FinalStates(run(), lambda logits: logits)
    outputs: list[Any] = []

    def stop(module: nn.Module, args: tuple, output: Any) -> None:
        outputs.append(output)
        raise _ReachedError

    handle = decoder.register_forward_hook(stop)
    try:
        run()
    except _ReachedError:
        output = outputs[0]
    else:
        raise RuntimeError("the forward pass did not call the model's decoder")
    finally:
        handle.remove()

    def logits(states: Tensor) -> Tensor:
        rows, width = states.shape[:2]
        ids = torch.zeros(rows, width, dtype=torch.long, device=chat_model.device)
        with forward_replaced(decoder, lambda *args, **kwargs: type(output)(last_hidden_state=states)):
            return forward(chat_model, ids, torch.ones_like(ids), keep=0)

    return FinalStates(output.last_hidden_state, logits)


# -- observers --------------------------------------------------------------------------------------------------------


class Observer(NamedTuple):
    """A function that is called for every call of a module."""

    module: nn.Module
    read: Callable[[tuple, dict, Any], None]
    """Receives positional arguments, keyword arguments and the output; None instead of the output on side `input`."""
    side: Literal["input", "output"] = "output"
    """Whether `read` is called before or after the module runs."""


@contextmanager
def observed(observers: Sequence[Observer]) -> Iterator[None]:
    """Call every observer while the context is active; activations are unchanged, hooks are removed on exit."""
    with ExitStack() as stack:
        for module, read, side in observers:
            if side == "input":
                handle = module.register_forward_pre_hook(
                    lambda m, args, kwargs, read=read: read(args, kwargs, None), with_kwargs=True
                )
            else:
                handle = module.register_forward_hook(
                    lambda m, args, kwargs, output, read=read: read(args, kwargs, output), with_kwargs=True
                )
            stack.callback(handle.remove)
        yield


class Trace(NamedTuple):
    """One block in the probe forward pass: its input, its output and the outputs of its submodules."""

    before: Tensor
    after: Tensor
    outputs: dict[str, Tensor]
    """By name of the submodule, in the order in which they returned."""
    inputs: Mapping[str, int] = MappingProxyType({})
    """By name of the submodule: the identity of the first argument, equal if a submodule passes its input on."""


def trace_layers(model: Any, blocks: Sequence[nn.Module], inputs: Mapping[str, Any]) -> tuple[list[Trace], Tensor]:
    """The traces of all blocks in one forward pass, and its logits [row, position, vocab]."""
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    outputs: list[dict[str, Tensor]] = [{} for _ in blocks]
    arguments: list[dict[str, int]] = [{} for _ in blocks]

    def keep(layer: int, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.is_floating_point():
                # Cloned, because some models (llama4) add into the tensor later. Of a shared module the first call
                # counts.
                outputs[layer].setdefault(name, first.detach().clone())
                if args:
                    arguments[layer].setdefault(name, id(args[0]))

        return hook

    def store(values: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
        return lambda h: values.__setitem__(layer, h.detach().clone())

    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(_read_input(store(before, layer)), with_kwargs=True)
            stack.callback(handle.remove)
            keep_output = store(after, layer)
            handle = block.register_forward_hook(lambda m, a, out, f=keep_output: f(_hidden(out)))
            stack.callback(handle.remove)
            for name, module in block.named_modules():
                if name:
                    stack.callback(module.register_forward_hook(keep(layer, name)).remove)
        logits = model(**inputs).logits
    # Where accelerate places blocks on several devices, a block moves its input after this hook has read it.
    traces = [Trace(before[i].to(after[i].device), after[i], outputs[i], arguments[i]) for i in range(len(blocks))]
    return traces, logits
