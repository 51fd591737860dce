"""The parameters to edit: a proved float32 model and a subspace in, a plan of parameter edits out.

A parameter writes into the residual stream along an axis if changing it by an outer product with any vector v along
that axis changes the writer's output by multiples of v only. The test covers Linear and Conv1D, fused experts (square
ones too), shared experts, biases and embeddings. If a writer ends in a norm, the response of the norm says which
vectors of its input it maps to the subspace. Independent of the names of parameters, of model families and of files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rhumbline.edits.probe import Point, Probe
from rhumbline.edits.projection import Basis, ParameterEdit, Plan, inner_vectors, project
from rhumbline.errors import EditError
from rhumbline.models.chat_model import ChatModel

PARALLEL = 1e-3
"""A change of a writer's output is along the perturbed vector if at most this share of it is not (float32)."""
SILENT = 1e-6
"""A smaller relative change of a writer's output is no change (of an expert that no token was routed to, say)."""
EXACT = 1e-4
"""Largest difference between an edited writer's output and the projected one, relative to the largest output."""

# -- one parameter ----------------------------------------------------------------------------------------------------


def _outer(like: Tensor, axis: int, v: Tensor, generator: torch.Generator) -> Tensor:
    """A change of a parameter: an outer product with v along `axis`, of the size of the parameter."""
    shape = [n for i, n in enumerate(like.shape) if i != axis]
    rest = torch.randn(shape, generator=generator) if shape else torch.ones(())
    size = max(float(like.float().std()) if like.numel() > 1 else 0.0, 0.02)
    view = [1] * like.ndim
    view[axis] = -1
    return (size * v.view(view) * rest.unsqueeze(axis)).to(like)


def writing_axis(probe: Probe, name: str, point: Point, value: Tensor) -> int | Literal["silent"] | None:
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
    """What is removed at a point: y becomes y - write^T (read . y)."""

    read: Basis
    write: Basis
    norm: str = ""
    """Dotted name of the norm between the point and the stream; empty if there is none."""
    oblique: bool = False
    """Which of the two edits of the input of a norm is made."""


class _Solution(NamedTuple):
    """The parameter edits for one point."""

    edits: tuple[ParameterEdit, ...]
    reason: str | None
    """Why the edit is approximate; None if it is exact."""


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _writing(probe: Probe, names: Sequence[str], point: Point, value: Tensor, removal: _Removal) -> list[ParameterEdit]:
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


def _scopes(probe: Probe, point: Point, aliases: Sequence[str]) -> Iterator[list[str]]:
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


def _relative_error(result: Tensor, target: Tensor, value: Tensor) -> float:
    return float((result - target).abs().max() / value.abs().max().clamp_min(1e-30))


def _solve(probe: Probe, point: Point, removal: _Removal, aliases: Sequence[str], depth: int = 2) -> _Solution | None:
    """The parameters whose edit makes the removal at a point, exactly or nearly; None if there are none."""
    read, write = removal.read, removal.write
    value = probe.read(point)
    on = value.device
    target = value - (value @ read.float().to(on).T) @ write.float().to(on)
    for names in _scopes(probe, point, aliases):
        edits = _writing(probe, names, point, value, removal)
        with probe.changed({e.name: project(probe.parameters[e.name].data, e.axis, read, write) for e in edits}):
            if _relative_error(probe.read(point), target, value) <= EXACT:
                return _Solution(tuple(edits), None)
    if depth == 0:
        return None
    for name, (before, after) in probe.outputs(point.layer).items():
        if before is None or after.numel() != value.numel() or before.numel() != value.numel():
            continue
        if not torch.equal(after.reshape(value.shape).float(), value) or torch.equal(before, after):
            continue
        inner = _through_norm(probe, Point(point.layer, name), before, removal, depth)
        if inner is not None:
            return inner
    return None


def _through_norm(probe: Probe, at: Point, before: Tensor, removal: _Removal, depth: int) -> _Solution | None:
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
    into = Point(at.layer, at.module, "input")
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
    if linear and solution.reason is None:
        return _Solution((*biases, *solution.edits), None)
    reason = solution.reason or (
        f"{at}: a {type(module).__name__} follows the edited parameters, and the edit changes its scale"
    )
    return _Solution((*biases, *solution.edits), reason)


# -- the whole model --------------------------------------------------------------------------------------------------


def untied(model: Any) -> bool:
    """Give a head that shares the weight of the embedding a weight of its own; True if it did."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is embedding.weight
    if head is not None and tied:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if tied or getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    return tied


def _unsolved(probe: Probe, point: Point) -> str:
    """Why there is no edit for a point."""
    why = "no set of parameters was found whose edit removes the direction from the output"
    if point.layer is None:
        return f"{why}; something that is not a parameter (a fixed table of positions, for example) writes there"
    kind = type(probe.root(point.layer).get_submodule(point.module)).__name__
    return f"{why}; the output of a {kind} is added to the stream, and its input cannot be edited for it"


def plan_ablation(chat_model: ChatModel, basis: Basis, inputs: Mapping[str, Tensor], *, oblique: bool = False) -> Plan:
    """The edits after which no residual writer of a float32, untied model writes into the subspace; or EditError."""
    if chat_model.proof.mode != "exact":
        raise EditError(
            f"{chat_model.name}: its residual writers are not proved ({chat_model.proof.note}), so no weight edit can "
            "be proved. Use interventions at run time (rhumbline run --coarse, rhumbline.applied)."
        )
    probe = Probe(chat_model, inputs)
    points = [(Point(None, "", "input"), ())]
    points += [(Point(w.layer, w.module), w.aliases) for w in chat_model.writers]
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
            same = (
                first.axis == edit.axis
                and torch.allclose(first.read, edit.read)
                and torch.allclose(first.write, edit.write)
            )
            if not same:
                faults.append(f"{edit.name} writes at two places ({first.writer}; {edit.writer}) that need other edits")
    if faults:
        listed = "\n  ".join(faults[:6]) + (f"\n  ... and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise EditError(
            f"{chat_model.name}: no weight edit can be proved; nothing was saved. Use rhumbline.applied instead.\n  "
            f"{listed}"
        )
    return Plan("approximate" if reasons else "exact", tuple(edits.values()), tuple(reasons))
