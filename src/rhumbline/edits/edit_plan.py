"""A proved model and a subspace in, the parameters to edit out: found by what they do, not by what they are called.

A parameter writes into the residual stream along an axis when a change of it, an outer product with any vector v along
that axis, changes the writer's output by multiples of v and nothing else. That settles Linear and Conv1D, fused experts
(square ones too), shared experts, biases, embeddings and positions alike. Where a writer ends in a norm, the norm is
asked which vectors of its input it turns into the subspace.

Knows parameters, axes and one forward pass. Does not know files, prompts' meaning, nor any family by name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.edits.projection import Basis, ParameterEdit, Plan, inner_vectors, project
from rhumbline.errors import EditError
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.hooks import Observer, observed

PARALLEL = 1e-3
"""A change of a writer's output may leave the perturbed vector by this share and still count as along it (float32)."""
SILENT = 1e-6
"""A change of a writer's output below this share of it is no change: an expert that no token was routed to, say."""
EXACT = 1e-4
"""Largest difference between an edited writer's output and the projected one, as a share of the output's largest."""


class Point(NamedTuple):
    """Where a tensor is read: a module of one block (or, with layer None, of the whole model)."""

    layer: int | None
    module: str
    side: Literal["input", "output"] = "output"

    def __str__(self) -> str:
        where = "before the first block" if self.layer is None else f"layer {self.layer}"
        return f"{where}, {self.module}" if self.module else where


def _first_tensor(args: tuple, kwargs: Mapping[str, Any], output: Any) -> Tensor | None:
    """The hidden states of a call: of what came back, or of what went in where nothing came back yet."""
    if output is not None:
        found = output[0] if isinstance(output, tuple) and output else output
    else:
        found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) else None


class _Reached(Exception):
    """The point was read; the rest of the forward pass is of no interest."""


class _Call(NamedTuple):
    args: tuple
    kwargs: dict[str, Any]
    output: Tensor


class Probe:
    """One recorded forward pass of a float32 model whose blocks can be run again, each alone."""

    def __init__(self, chat_model: ChatModel, inputs: Mapping[str, Any]) -> None:
        self.chat_model, self.model, self.inputs = chat_model, chat_model.model, dict(inputs)
        self.parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters(remove_duplicate=False))
        self.d_model = chat_model.d_model
        self.prefix = f"{chat_model.blocks_name}."
        calls: dict[int, _Call] = {}

        def keep(layer: int, args: tuple, kwargs: dict, output: Any) -> None:
            hidden = _first_tensor(args, kwargs, output)
            assert hidden is not None
            calls.setdefault(layer, _Call(before[layer][0], before[layer][1], hidden.clone()))

        before: dict[int, tuple[tuple, dict]] = {}
        copy = lambda value: value.clone() if isinstance(value, Tensor) else value  # noqa: E731
        observers = []
        for layer, block in enumerate(chat_model.blocks):

            def arrive(args: tuple, kwargs: dict, output: Any, layer: int = layer) -> None:
                before.setdefault(layer, (tuple(map(copy, args)), {k: copy(v) for k, v in kwargs.items()}))

            def leave(args: tuple, kwargs: dict, output: Any, layer: int = layer) -> None:
                keep(layer, args, kwargs, output)

            observers += [Observer(block, arrive, "input"), Observer(block, leave)]
        with torch.no_grad(), observed(observers):
            self._whole()
        self.calls = calls
        # A block that keeps state between calls (shared keys, say) does not repeat itself: it is run within the model.
        self.alone = {
            layer: torch.allclose(self.block_output(layer), call.output, rtol=1e-5, atol=1e-6)
            for layer, call in calls.items()
        }

    def _whole(self) -> None:
        off = {"use_cache": False} if "use_cache" in self.chat_model.keywords else {}
        self.model(**{**self.inputs, **off})

    def block_output(self, layer: int) -> Tensor:
        """What a block returns when it is run alone on its recorded input; NaN where it cannot be."""
        try:
            with torch.no_grad():
                output = self.chat_model.blocks[layer](
                    *(a.clone() if isinstance(a, Tensor) else a for a in self.calls[layer].args),
                    **self.calls[layer].kwargs,
                )
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
            return torch.full_like(self.calls[layer].output, float("nan"))
        hidden = _first_tensor((), {}, output)
        return hidden if hidden is not None else torch.full_like(self.calls[layer].output, float("nan"))

    def root(self, layer: int | None) -> nn.Module:
        """The module in which a point's name is looked up."""
        return self.model if layer is None else self.chat_model.blocks[layer]

    def full_name(self, point: Point) -> str:
        """The dotted name in the model of a point's module."""
        return point.module if point.layer is None else f"{self.prefix}{point.layer}.{point.module}"

    def run(self, layer: int | None, observers: Sequence[Observer]) -> None:
        """As much of the forward pass as a point of this layer needs."""
        with torch.no_grad(), observed(observers):
            if layer is None:

                def stop(args: tuple, kwargs: dict, output: Any) -> None:
                    raise _Reached

                try:
                    with observed([Observer(self.chat_model.blocks[0], stop, "input")]):
                        self._whole()
                except _Reached:
                    return
            elif self.alone[layer]:
                self.block_output(layer)
            else:
                self._whole()

    def read(self, point: Point) -> Float[Tensor, "token d_model"]:
        """The tensor at a point, its first call in the pass."""
        seen: list[Tensor] = []

        def see(args: tuple, kwargs: dict, output: Any) -> None:
            hidden = _first_tensor(args, kwargs, output)
            if hidden is not None and not seen:
                seen.append(hidden.detach().clone())

        first = point.layer is None and not point.module
        module = self.chat_model.blocks[0] if first else self.root(point.layer).get_submodule(point.module)
        self.run(point.layer, [Observer(module, see, point.side)])
        return seen[0].reshape(-1, self.d_model).float()

    def outputs(self, layer: int | None) -> dict[str, tuple[Tensor | None, Tensor]]:
        """(input, output) of every module of a layer, first calls, innermost first; those of the stream's width."""
        found: dict[str, tuple[Tensor | None, Tensor]] = {}

        def see(name: str, args: tuple, kwargs: dict, output: Any) -> None:
            hidden = _first_tensor(args, kwargs, output)
            if hidden is not None and hidden.is_floating_point() and hidden.shape[-1] == self.d_model:
                before = _first_tensor(args, kwargs, None)
                before = before if before is not None and before.is_floating_point() else None
                found.setdefault(name, (before if before is None else before.clone(), hidden.detach().clone()))

        def observer(name: str, module: nn.Module) -> Observer:
            return Observer(module, lambda args, kwargs, output: see(name, args, kwargs, output))

        names = [(n, m) for n, m in self.root(layer).named_modules() if n and not (layer is None and self.inside(n))]
        self.run(layer, [observer(n, m) for n, m in names])
        return found

    def inside(self, name: str) -> bool:
        """Whether a dotted name lies within the blocks."""
        return f"{name}.".startswith(self.prefix)

    @contextmanager
    def changed(self, changes: Mapping[str, Tensor]) -> Iterator[None]:
        """Parameters with other values while open."""
        kept = {name: self.parameters[name].data for name in changes}
        try:
            for name, value in changes.items():
                self.parameters[name].data = value
            yield
        finally:
            for name, value in kept.items():
                self.parameters[name].data = value


# -- what one parameter does ------------------------------------------------------------------------------------------


def _outer(like: Tensor, axis: int, v: Tensor, generator: torch.Generator) -> Tensor:
    """A change of a parameter that is an outer product with v along `axis`, as large as the parameter itself."""
    shape = [n for i, n in enumerate(like.shape) if i != axis]
    rest = torch.randn(shape, generator=generator) if shape else torch.ones(())
    size = max(float(like.float().std()) if like.numel() > 1 else 0.0, 0.02)
    view = [1] * like.ndim
    view[axis] = -1
    return (size * v.view(view) * rest.unsqueeze(axis)).to(like)


def writing_axis(probe: Probe, name: str, point: Point, value: Tensor) -> int | Literal["silent"] | None:
    """The axis along which a parameter writes at a point; None if none does; "silent" if it changes nothing there."""
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


class _Found(NamedTuple):
    edits: tuple[ParameterEdit, ...]
    reason: str | None
    """None: exact. Otherwise why the edit is only approximate."""


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _hits(probe: Probe, names: Sequence[str], point: Point, value: Tensor, read: Basis, write: Basis, norm: str):
    """The parameters among `names` that write at the point, with silent siblings of the same role."""
    axes = {name: writing_axis(probe, name, point, value) for name in names}
    known = {(_pattern(n), probe.parameters[n].ndim): a for n, a in axes.items() if isinstance(a, int)}
    found = []
    for name, axis in axes.items():
        inferred = axis == "silent" and re.search(r"\d", name) is not None
        decided = known.get((_pattern(name), probe.parameters[name].ndim)) if inferred else axis
        if isinstance(decided, int):
            found.append(ParameterEdit(name, decided, read, write, str(point), norm, inferred))
    return found


def _scopes(probe: Probe, point: Point, value: Tensor, aliases: Sequence[str]) -> Iterator[list[str]]:
    """Names of the parameters that may write at a point: few first, then more."""
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
    mine = [n for n, p in probe.parameters.items() if n.startswith(start) and probe.d_model in p.shape]
    tried: list[list[str]] = []
    for alias in aliases:
        names = [n for n in mine if n.startswith(f"{start}{alias}.")]
        if names and names not in tried:
            tried.append(names)
            yield names
    if mine not in tried:
        yield mine


def _gap(got: Tensor, wanted: Tensor, value: Tensor) -> float:
    return float((got - wanted).abs().max() / value.abs().max().clamp_min(1e-30))


def _solve(
    probe: Probe,
    point: Point,
    read: Basis,
    write: Basis,
    aliases: Sequence[str],
    norm: str,
    oblique: bool,
    depth: int = 2,
) -> _Found | None:
    """The parameters whose edit makes the value at a point y into y - write^T (read . y), or nearly; None if none."""
    value = probe.read(point)
    on = value.device
    wanted = value - (value @ read.float().to(on).T) @ write.float().to(on)
    hits: list[ParameterEdit] = []
    for names in _scopes(probe, point, value, aliases):
        hits = _hits(probe, names, point, value, read, write, norm)
        with probe.changed({e.name: project(probe.parameters[e.name].data, e.axis, read, write) for e in hits}):
            if _gap(probe.read(point), wanted, value) <= EXACT:
                return _Found(tuple(hits), None)
    if depth == 0:
        return None
    for name, (before, after) in probe.outputs(point.layer).items():
        if before is None or after.numel() != value.numel() or before.numel() != value.numel():
            continue
        if not torch.equal(after.reshape(value.shape).float(), value) or torch.equal(before, after):
            continue
        inner = _through_norm(probe, Point(point.layer, name), before, read, write, oblique, depth)
        if inner is not None:
            return inner
    return None


def _through_norm(
    probe: Probe, at: Point, before: Tensor, read: Basis, write: Basis, oblique: bool, depth: int
) -> _Found | None:
    """Edit what goes into a norm (or an elementwise scale), so that nothing along the subspace comes out of it."""
    module = probe.root(at.layer).get_submodule(at.module)
    found = inner_vectors(module, before.reshape(-1, probe.d_model).float(), read, oblique=oblique)
    if found is None:
        return None
    inner_read, inner_write, linear = found
    value = probe.read(at)
    start = f"{probe.full_name(at)}."
    own = [n for n, p in probe.parameters.items() if n.startswith(start) and probe.d_model in p.shape]
    biases = _hits(probe, own, at, value, read, write, "")
    into = Point(at.layer, at.module, "input")
    z = probe.read(into)
    same = [
        name
        for name, (_, after) in probe.outputs(at.layer).items()
        if after.numel() == z.numel() and torch.equal(after.reshape(z.shape).float(), z)
    ]
    inner = _solve(probe, into, inner_read, inner_write, same, probe.full_name(at), oblique, depth - 1)
    if inner is None:
        return None
    if linear and inner.reason is None:
        return _Found((*biases, *inner.edits), None)
    reason = (
        inner.reason or f"{at}: the stream gets the output of a {type(module).__name__}, whose scale the edit moves"
    )
    return _Found((*biases, *inner.edits), reason)


# -- the whole model --------------------------------------------------------------------------------------------------


def untied(model: Any) -> bool:
    """Give a head that shares the embedding's weight a weight of its own; True where it did."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is embedding.weight
    if head is not None and tied:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if tied or getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    return tied


def _unsolved(probe: Probe, point: Point) -> str:
    """Why no edit was found, as far as one can tell."""
    why = "no set of parameters was found whose edit removes the direction from what it writes"
    if point.layer is None:
        return f"{why}; something that is not a parameter (a fixed table of positions, say) writes there"
    kind = type(probe.root(point.layer).get_submodule(point.module)).__name__
    return f"{why}; what is added to the stream comes out of a {kind}, and what goes into that cannot be edited for it"


def plan_ablation(chat_model: ChatModel, basis: Basis, inputs: Mapping[str, Any], *, oblique: bool = False) -> Plan:
    """What to edit so that no residual writer of a float32, untied model writes into the subspace."""
    if chat_model.proof.mode != "exact":
        raise EditError(
            f"{chat_model.name}: its residual writers are not proved ({chat_model.proof.note}), so a weight edit "
            "cannot "
            "be either. Use interventions at run time instead (rhumbline run --coarse, rhumbline.applied)."
        )
    probe = Probe(chat_model, inputs)
    points = [(Point(None, "", "input"), ())]
    points += [(Point(w.layer, w.module), w.aliases) for w in chat_model.writers]
    edits: dict[str, ParameterEdit] = {}
    reasons, faults = [], []
    for point, aliases in points:
        found = _solve(probe, point, basis, basis, aliases, "", oblique)
        if found is None:
            faults.append(f"{point}: {_unsolved(probe, point)}")
            continue
        if found.reason is not None:
            reasons.append(found.reason)
        for edit in found.edits:
            known = edits.setdefault(edit.name, edit)
            same = (
                known.axis == edit.axis
                and torch.allclose(known.read, edit.read)
                and torch.allclose(known.write, edit.write)
            )
            if not same:
                faults.append(f"{edit.name} writes at two places ({known.writer}; {edit.writer}) that need other edits")
    if faults:
        listed = "\n  ".join(faults[:6]) + (f"\n  ... and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise EditError(f"{chat_model.name}: no weight edit can be proved; nothing was saved.\n  {listed}")
    return Plan("approximate" if reasons else "exact", tuple(edits.values()), tuple(reasons))
