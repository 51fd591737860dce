"""Find the parameters of a proved float32 model to edit for an ablation or an addition.

A parameter writes into the residual stream along an axis if a change by an outer product with any vector v along that
axis changes the output of the writer by multiples of v only. The test covers Linear and Conv1D, fused experts (square
ones too), shared experts, biases and embeddings. If a writer ends in a norm, the response of the norm determines which
vectors of its input it maps to the subspace. Independent of the names of parameters, of model families and of files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rhumbline.axes import Vector
from rhumbline.edits.probe import BlockProbe, ReadPoint
from rhumbline.edits.projection import Basis, EditPlan, ParameterEdit, inner_vectors, parameters_of, project
from rhumbline.errors import EditError
from rhumbline.models.chat_model import ChatModel

PARALLEL = 1e-3
"""A change of a writer's output is along the perturbed vector if at most this share of it is not (float32)."""
SILENT = 1e-6
"""A smaller relative change of a writer's output counts as none (an expert without routed tokens, for example)."""
EXACT = 1e-4
"""Largest difference between an edited writer's output and the projected one, relative to the largest output."""

# -- one parameter ----------------------------------------------------------------------------------------------------


def _outer(like: Tensor, axis: int, v: Tensor, generator: torch.Generator) -> Tensor:
    """An outer product with v along `axis`, of the size of the parameter."""
    shape = [n for i, n in enumerate(like.shape) if i != axis]
    rest = torch.randn(shape, generator=generator) if shape else torch.ones(())
    size = max(float(like.float().std()) if like.numel() > 1 else 0.0, 0.02)
    view = [1] * like.ndim
    view[axis] = -1
    return (size * v.view(view) * rest.unsqueeze(axis)).to(like)


def writing_axis(probe: BlockProbe, name: str, point: ReadPoint, value: Tensor) -> int | Literal["silent"] | None:
    """The axis along which a parameter writes at a point.

    None if it does not write there; "silent" if changing it changes nothing there. `value`: the tensor at the point.
    """
    parameter = probe.parameters[name]
    generator = torch.Generator().manual_seed(len(name))
    silent = False
    for axis in (a for a, n in enumerate(parameter.shape) if n == probe.d_model):
        v = torch.randn(probe.d_model, generator=generator)
        with probe.changed({name: parameter.data + _outer(parameter.data, axis, v, generator)}):
            change = (probe.read(point) - value).double()
        if float(change.norm()) <= SILENT * float(value.norm()):
            silent = True
            continue
        unit = (v / v.norm()).to(change)
        if float((change - (change @ unit)[:, None] * unit).norm()) <= PARALLEL * float(change.norm()):
            return axis
    return "silent" if silent else None


# -- one writer -------------------------------------------------------------------------------------------------------


class _Removal(NamedTuple):
    """The removal at a point: y becomes y - write^T (read . y)."""

    read: Basis
    write: Basis
    norm: str = ""
    """Dotted name of the norm between the point and the stream; empty if there is none."""
    oblique: bool = False
    """Whether the oblique edit of the input of a norm is used, or the orthogonal one."""


class _Solution(NamedTuple):
    """The parameter edits for one point."""

    edits: tuple[ParameterEdit, ...]
    reason: str | None
    """Why the edit is approximate; None if it is exact."""


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _writing(
    probe: BlockProbe, names: Sequence[str], point: ReadPoint, value: Tensor, removal: _Removal
) -> list[ParameterEdit]:
    """Edits of the parameters among `names` that write at the point, and of silent ones with the same role."""
    axes = {name: writing_axis(probe, name, point, value) for name in names}
    by_role = {(_pattern(n), probe.parameters[n].ndim): a for n, a in axes.items() if isinstance(a, int)}
    edits = []
    for name, axis in axes.items():
        inferred = axis == "silent" and re.search(r"\d", name) is not None
        decided = by_role.get((_pattern(name), probe.parameters[name].ndim)) if inferred else axis
        if isinstance(decided, int):
            edits.append(ParameterEdit(name, decided, removal.read, removal.write, str(point), removal.norm, inferred))
    return edits


def _scopes(probe: BlockProbe, point: ReadPoint, aliases: Sequence[str]) -> Iterator[list[str]]:
    """Names of parameters that can write at a point, the smallest set first."""
    if point.layer is None:
        head = probe.model.get_output_embeddings()
        own = {id(p) for p in head.parameters()} if head is not None else set()
        yield [
            n
            for n, p in probe.parameters.items()
            if probe.d_model in p.shape and not probe.inside(n) and id(p) not in own
        ]
        return
    start = f"{probe.prefix}{point.layer}."
    in_block = [n for n, p in probe.parameters.items() if n.startswith(start) and probe.d_model in p.shape]
    tried: list[list[str]] = []
    for alias in aliases:
        names = [n for n in in_block if n.startswith(f"{start}{alias}.")]
        if names and names not in tried:
            tried.append(names)
            yield names
    if in_block not in tried:
        yield in_block


def _solve(
    probe: BlockProbe, point: ReadPoint, removal: _Removal, aliases: Sequence[str], depth: int = 2
) -> _Solution | None:
    """The parameters whose edit makes the removal at a point, exactly or nearly; None if there are none."""
    read, write = removal.read, removal.write
    value = probe.read(point)
    on = value.device
    target = value - (value @ read.float().to(on).T) @ write.float().to(on)
    for names in _scopes(probe, point, aliases):
        edits = _writing(probe, names, point, value, removal)
        with probe.changed({e.name: project(probe.parameters[e.name].data, e.axis, read, write) for e in edits}):
            error = (probe.read(point) - target).abs().max()
        if float(error / value.abs().max().clamp_min(1e-30)) <= EXACT:
            return _Solution(tuple(edits), None)
    if depth == 0:
        return None
    for name, (before, after) in probe.outputs(point.layer).items():
        if before is None or after.numel() != value.numel() or before.numel() != value.numel():
            continue
        if not torch.equal(after.reshape(value.shape).float(), value) or torch.equal(before, after):
            continue
        inner = _through_norm(probe, ReadPoint(point.layer, name), before, removal, depth)
        if inner is not None:
            return inner
    return None


def _through_norm(probe: BlockProbe, at: ReadPoint, before: Tensor, removal: _Removal, depth: int) -> _Solution | None:
    """Edit the input of a norm (or of an elementwise scale) so that its output has no component along the subspace."""
    module = probe.root(at.layer).get_submodule(at.module)
    inner = inner_vectors(module, before.reshape(-1, probe.d_model).float(), removal.read, oblique=removal.oblique)
    if inner is None:
        return None
    inner_read, inner_write, linear = inner
    value = probe.read(at)
    start = f"{probe.full_name(at)}."
    own = [n for n, p in probe.parameters.items() if n.startswith(start) and probe.d_model in p.shape]
    biases = _writing(probe, own, at, value, removal._replace(norm=""))
    into = ReadPoint(at.layer, at.module, "input")
    z = probe.read(into)
    same = [
        name
        for name, (_, after) in probe.outputs(at.layer).items()
        if after.numel() == z.numel() and torch.equal(after.reshape(z.shape).float(), z)
    ]
    inner_removal = _Removal(inner_read, inner_write, probe.full_name(at), removal.oblique)
    solution = _solve(probe, into, inner_removal, same, depth - 1)
    if solution is None:
        return None
    reason = solution.reason
    if reason is None and not linear:
        reason = f"{at}: a {type(module).__name__} follows the edited parameters, and the edit changes its scale"
    return _Solution((*biases, *solution.edits), reason)


# -- the whole model --------------------------------------------------------------------------------------------------


def untie(model: Any) -> bool:
    """Give a head that shares the weight of the embedding its own weight; whether it shared it."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and getattr(head, "weight", None) is embedding.weight
    if head is not None and is_tied:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        if is_tied or getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    return is_tied


def _unsolved(probe: BlockProbe, point: ReadPoint) -> str:
    """Why there is no edit for a point."""
    why = "no set of parameters was found whose edit removes the direction from the output"
    if point.layer is None:
        return f"{why}; the stream has a part that is not a parameter (a fixed table of positions, for example)"
    kind = type(probe.root(point.layer).get_submodule(point.module)).__name__
    return f"{why}; the output of a {kind} is added to the stream, and no edit of its input removes the direction"


def plan_ablation(chat_model: ChatModel, basis: Basis, inputs: Mapping[str, Tensor], oblique: bool = False) -> EditPlan:
    """The edits after which no residual writer of a float32, untied model writes into the subspace; or EditError."""
    if chat_model.proof.mode != "exact":
        raise EditError(
            f"{chat_model.name}: its residual writers are not proved ({chat_model.proof.note}), so no weight edit can "
            "be proved. Use interventions at run time (`rhumbline run ... --coarse`, rhumbline.applied)."
        )
    probe = BlockProbe(chat_model, inputs)
    points = [(ReadPoint(None, "", "input"), ())]
    points += [(ReadPoint(w.layer, w.module), w.aliases) for w in chat_model.writers]
    edits: dict[str, ParameterEdit] = {}
    reasons, faults = [], []
    for point, aliases in points:
        solution = _solve(probe, point, _Removal(basis, basis, oblique=oblique), aliases)
        if solution is None:
            faults.append(f"{point}: {_unsolved(probe, point)}")
            continue
        if solution.reason is not None:
            reasons.append(solution.reason)
        for edit in solution.edits:
            first = edits.setdefault(edit.name, edit)
            vectors = zip((first.read, first.write), (edit.read, edit.write), strict=True)
            if first.axis != edit.axis or not all(torch.allclose(a, b) for a, b in vectors):
                faults.append(f"{edit.name} writes at two points ({first.writer}; {edit.writer}) with different edits")
    if faults:
        listed = "\n  ".join(faults[:6]) + (f"\n  ... and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise EditError(
            f"{chat_model.name}: no weight edit can be proved; nothing was saved. Use rhumbline.applied instead.\n  "
            f"{listed}"
        )
    return EditPlan("approximate" if reasons else "exact", tuple(edits.values()), tuple(reasons))


# -- additions --------------------------------------------------------------------------------------------------------


class Bias(NamedTuple):
    """A parameter that shifts the stream by `gain * v` at every token if v is added to it (to each of its rows)."""

    name: str
    gain: float


def plan_addition(chat_model: ChatModel, layer: int, inputs: Mapping[str, Tensor]) -> Bias:
    """The parameter whose shift is an addition at the input of block `layer`; EditError if there is none.

    Before block 0 it is the token embedding, before any other block an output bias of the block below. It is identified
    by its effect, not by its name.
    """
    probe = BlockProbe(chat_model, inputs)
    point = ReadPoint(None, "", "input") if layer == 0 else ReadPoint(layer - 1, "")
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


def _gain(probe: BlockProbe, name: str, point: ReadPoint) -> float | None:
    """Shift of the stream per unit of v added to the parameter; None unless every token shifts along v by the same."""

    def read() -> Tensor:
        if point.layer is None:
            return probe.read(point)
        return probe.block_output(point.layer).reshape(-1, probe.d_model)

    parameter, value = probe.parameters[name], read()
    v = torch.randn(probe.d_model, generator=torch.Generator().manual_seed(1)).to(parameter)
    v = v * max(float(value.norm(dim=1).mean()), 1e-3) / v.norm()
    with probe.changed({name: parameter.data + v}):
        change = (read() - value).double()
    gain = float((change @ v.double()).mean() / (v.double() @ v.double()))
    residual = (change - gain * v.double()).norm(dim=1).max()
    if abs(gain) < 1e-3 or float(residual) > PARALLEL * abs(gain) * float(v.norm()):
        return None
    return gain


def add_constant(model: Any, bias: Bias, v: Vector) -> None:
    """Shift the parameter so that the stream shifts by v at every token."""
    parameter = parameters_of(model)[bias.name]
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
