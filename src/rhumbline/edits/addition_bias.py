"""Activation addition as a weight edit: a layer in, the bias that adds a constant to the stream before it out.

Before block 0 the constant is added to every row of the token embedding. Before any other block it is added to an
output bias of the block below, if the architecture has one or its config can enable one. The bias is identified by its
effect, independent of its name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhumbline.axes import Vector
from rhumbline.edits.edit_plan import PARALLEL
from rhumbline.edits.probe import Point, Probe
from rhumbline.errors import EditError
from rhumbline.models.chat_model import ChatModel


class Bias(NamedTuple):
    """A parameter that shifts the stream by `gain * v` at every token if v is added to it (to each of its rows)."""

    name: str
    gain: float


def plan_addition(chat_model: ChatModel, layer: int, inputs: Mapping[str, Tensor]) -> Bias:
    """The parameter whose shift is an addition at the input of block `layer`; EditError if there is none."""
    probe = Probe(chat_model, inputs)
    point = Point(None, "", "input") if layer == 0 else Point(layer - 1, "")
    if layer == 0:
        embedding = chat_model.model.get_input_embeddings().weight
        first = [n for n, p in probe.parameters.items() if p is embedding]
        nearby = {n: p for n, p in probe.parameters.items() if not probe.inside(n)}
    else:
        first, start = [], f"{probe.prefix}{layer - 1}."
        nearby = {n: p for n, p in probe.parameters.items() if n.startswith(start)}
    width = chat_model.d_model
    # One vector, or one row for each expert.
    biases = [n for n, p in nearby.items() if p.shape[-1:] == (width,) and p.ndim <= 2]
    names = first + sorted(biases, key=lambda n: nearby[n].ndim)
    for name in names:
        gain = _gain(probe, name, point)
        if gain is not None:
            return Bias(name, gain)
    raise EditError(
        f"{chat_model.name}: no bias writes into the stream before block {layer}, so an addition there cannot be "
        "saved as weights. Use rhumbline.applied, or export a control vector (--to gguf) or a steering file "
        "(--to lm-eval)."
    )


def _gain(probe: Probe, name: str, point: Point) -> float | None:
    """Shift of the stream per unit of v added to the parameter; None unless every token shifts along v by the same."""
    parameter = probe.parameters[name]
    value = _read(probe, point)
    v = torch.randn(probe.d_model, generator=torch.Generator().manual_seed(1)).to(parameter)
    v = v * max(float(value.norm(dim=1).mean()), 1e-3) / v.norm()
    with probe.changed({name: parameter.data + v}):
        change = (_read(probe, point) - value).double()
    gain = float((change @ v.double()).mean() / (v.double() @ v.double()))
    residual = (change - gain * v.double()).norm(dim=1).max()
    if abs(gain) < 1e-3 or float(residual) > PARALLEL * abs(gain) * float(v.norm()):
        return None
    return gain


def _read(probe: Probe, point: Point) -> Tensor:
    if point.layer is None:
        return probe.read(point)
    return probe.block_output(point.layer).reshape(-1, probe.d_model)


def add_constant(model: Any, bias: Bias, v: Vector) -> None:
    """Shift the parameter so that the stream shifts by v at every token."""
    parameter = dict(model.named_parameters(remove_duplicate=False))[bias.name]
    with torch.no_grad():
        parameter.copy_((parameter.double() + v.double().to(parameter.device) / bias.gain).to(parameter.dtype))


def with_output_biases(model: Any) -> Any | None:
    """The same model with output biases of zero, enabled in its config; None if the config has no such entry."""
    config = model.config
    old = set(dict(model.named_parameters()))
    switches = [k for k, v in config.to_dict().items() if "bias" in k and v is False]
    for switch in sorted(switches, key=lambda k: ("mlp" not in k, "out" not in k, k)):
        trial = type(config).from_dict({**config.to_dict(), switch: True})
        try:
            with torch.device("meta"):
                shell = type(model)(trial)
        except (TypeError, ValueError, RuntimeError):
            continue
        shapes = {n: tuple(p.shape) for n, p in shell.named_parameters()}
        width = config.get_text_config().hidden_size
        if old - set(shapes) or not any(shapes[n] == (width,) for n in set(shapes) - old):
            continue
        reference = next(model.parameters())
        new: Any = type(model)(trial).to(device=reference.device, dtype=reference.dtype)
        new.load_state_dict(model.state_dict(), strict=False)
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                if name not in old:
                    parameter.zero_()
        new.generation_config = model.generation_config
        return new.eval()
    return None
