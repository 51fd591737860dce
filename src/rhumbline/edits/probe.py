"""Read tensors at any module of a model: one forward pass is recorded, then blocks run alone with changed parameters.

Independent of the purpose of the tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.edits.projection import parameters_of
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.hooks import Observer, observed


class ReadPoint(NamedTuple):
    """Where a tensor is read: a module of one block, or of the whole model if layer is None."""

    layer: int | None
    module: str
    side: Literal["input", "output"] = "output"

    def __str__(self) -> str:
        where = "before the first block" if self.layer is None else f"layer {self.layer}"
        return f"{where}, {self.module}" if self.module else where


class _Stop(Exception):
    """Ends a forward pass before the first block."""


class _Call(NamedTuple):
    """The arguments and the output of one block in the recorded pass."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor


def hidden_states(args: tuple, kwargs: Mapping[str, Any], output: Any) -> Tensor | None:
    """The hidden states in the output of a call, or in its arguments if there is no output; None if there are none."""
    if output is not None:
        value = output[0] if isinstance(output, tuple) and output else output
    else:
        value = args[0] if args else kwargs.get("hidden_states")
    return value if isinstance(value, Tensor) else None


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class BlockProbe:
    """One recorded forward pass of a float32 model. Its blocks can be run again, each alone."""

    def __init__(self, chat_model: ChatModel, inputs: Mapping[str, Tensor]) -> None:
        self.chat_model, self.model, self.inputs = chat_model, chat_model.model, dict(inputs)
        self.parameters = parameters_of(self.model)
        self.d_model = chat_model.d_model
        self.prefix = f"{chat_model.blocks_name}."
        self.calls = self._recorded()
        # A block with state between calls (shared keys, for example) gives another output: the whole model is run.
        self.alone = {
            layer: torch.allclose(self.block_output(layer), call.output, rtol=1e-5, atol=1e-6)
            for layer, call in self.calls.items()
        }

    def _recorded(self) -> dict[int, _Call]:
        """Arguments and outputs of every block in one forward pass."""
        before: dict[int, tuple[tuple, dict[str, Any]]] = {}
        calls: dict[int, _Call] = {}
        observers = []
        for layer, block in enumerate(self.chat_model.blocks):

            def enter(args: tuple, kwargs: dict, output: Any, layer: int = layer) -> None:
                before.setdefault(layer, (tuple(map(_copy, args)), {k: _copy(v) for k, v in kwargs.items()}))

            def leave(args: tuple, kwargs: dict, output: Any, layer: int = layer) -> None:
                hidden = hidden_states(args, kwargs, output)
                assert hidden is not None
                calls.setdefault(layer, _Call(*before[layer], hidden.clone()))

            observers += [Observer(block, enter, "input"), Observer(block, leave)]
        with torch.no_grad(), observed(observers):
            self._forward()
        return calls

    def _forward(self) -> None:
        off = {"use_cache": False} if "use_cache" in self.chat_model.keywords else {}
        self.model(**{**self.inputs, **off})

    def block_output(self, layer: int) -> Tensor:
        """The output of a block that is run alone on its recorded input; NaN if it cannot be run alone."""
        call = self.calls[layer]
        try:
            with torch.no_grad():
                output = self.chat_model.blocks[layer](*map(_copy, call.args), **call.kwargs)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
            return torch.full_like(call.output, float("nan"))
        hidden = hidden_states((), {}, output)
        return hidden if hidden is not None else torch.full_like(call.output, float("nan"))

    def root(self, layer: int | None) -> nn.Module:
        """The module in which the name of a point is looked up."""
        return self.model if layer is None else self.chat_model.blocks[layer]

    def full_name(self, point: ReadPoint) -> str:
        """The dotted name of the module of a point in the model."""
        return point.module if point.layer is None else f"{self.prefix}{point.layer}.{point.module}"

    def run(self, layer: int | None, observers: Sequence[Observer]) -> None:
        """Run the part of the forward pass that contains the points of a layer."""
        with torch.no_grad(), observed(observers):
            if layer is None:

                def stop(args: tuple, kwargs: dict, output: Any) -> None:
                    raise _Stop

                try:
                    with observed([Observer(self.chat_model.blocks[0], stop, "input")]):
                        self._forward()
                except _Stop:
                    return
            elif self.alone[layer]:
                self.block_output(layer)
            else:
                self._forward()

    def read(self, point: ReadPoint) -> Float[Tensor, "token d_model"]:
        """The tensor at a point, at its first call in the pass."""
        seen: list[Tensor] = []

        def see(args: tuple, kwargs: dict, output: Any) -> None:
            hidden = hidden_states(args, kwargs, output)
            if hidden is not None and not seen:
                seen.append(hidden.detach().clone())

        first = point.layer is None and not point.module
        module = self.chat_model.blocks[0] if first else self.root(point.layer).get_submodule(point.module)
        self.run(point.layer, [Observer(module, see, point.side)])
        return seen[0].reshape(-1, self.d_model).float()

    def outputs(self, layer: int | None) -> dict[str, tuple[Tensor | None, Tensor]]:
        """(input, output) of every module of a layer whose output has the width of the stream, innermost first."""
        tensors: dict[str, tuple[Tensor | None, Tensor]] = {}

        def observer(name: str, module: nn.Module) -> Observer:
            def see(args: tuple, kwargs: dict, output: Any) -> None:
                hidden = hidden_states(args, kwargs, output)
                if hidden is not None and hidden.is_floating_point() and hidden.shape[-1] == self.d_model:
                    before = hidden_states(args, kwargs, None)
                    before = before.clone() if before is not None and before.is_floating_point() else None
                    tensors.setdefault(name, (before, hidden.detach().clone()))

            return Observer(module, see)

        modules = self.root(layer).named_modules()
        self.run(layer, [observer(n, m) for n, m in modules if n and not (layer is None and self.inside(n))])
        return tensors

    def inside(self, name: str) -> bool:
        """Whether a dotted name is inside the blocks."""
        return f"{name}.".startswith(self.prefix)

    @contextmanager
    def changed(self, changes: Mapping[str, Tensor]) -> Iterator[None]:
        """Give parameters other values while the context is active."""
        kept = {name: self.parameters[name].data for name in changes}
        try:
            for name, value in changes.items():
                self.parameters[name].data = value
            yield
        finally:
            for name, value in kept.items():
                self.parameters[name].data = value
