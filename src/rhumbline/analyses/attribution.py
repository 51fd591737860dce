"""Direct feature attribution: the projection of the residual stream on a direction, as a sum over its writers.

    projection at the site = embedding + every head + output biases + every other writer (MLPs, experts, ...)

(Arditi et al. 2024, section 5.1, after Kissane et al. 2024.) The writers are the proved ones, so the terms sum to the
projection up to rounding on every model in the exact mode. An attention output is split into heads if it is affine in
the heads' outputs and reads nothing else; the columns of its input are then the heads. Other writers are reported
whole, with the reason: a norm or a gate follows the heads, or attention does not go through transformers' interface.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.axes import Vector
from rhumbline.errors import ModelError
from rhumbline.inference.residual_passes import check_positions
from rhumbline.models.attention import watched_attention
from rhumbline.models.chat_model import ChatModel, Writer, forward
from rhumbline.models.hooks import Observer, hooked, observed, run_until
from rhumbline.records.positions import Position
from rhumbline.records.suffix_file import PartKind

NOT_WATCHED = "attention of this block does not go through transformers' interface"
OTHER_INPUT = "it reads something else than the heads' outputs (a norm or a gate stands between)"
NOT_AFFINE = "it is not affine in the heads' outputs"
WriterKey = tuple[int, str]
"""Layer of a writer, and its name within the block."""


class Part(NamedTuple):
    """One term of the sum."""

    kind: PartKind
    layer: int | None = None
    """Block of the writer; None for the embedding."""
    module: str = ""
    """Name of the writer within the block; empty for the embedding."""
    head: int | None = None
    """Number of the head; None for other kinds."""


@dataclass(frozen=True)
class Attribution:
    """The terms of every prompt."""

    parts: tuple[Part, ...]
    """Sources of the terms."""
    values: Float[Tensor, "prompt part"]
    """Float64, in units of the residual stream; a row sums to its projection."""
    projection: Float[Tensor, " prompt"]
    whole: dict[WriterKey, str]
    """Why a writer was not split, for every writer of the blocks whose attention was not split."""
    attention: list[dict[tuple[int, int], Tensor]]
    """For each prompt: (layer, head) -> attention weights from the position, one for each token."""

    def error(self) -> float:
        """Largest |sum of the terms - projection|, relative to the sum of the absolute terms."""
        difference = (self.values.sum(1) - self.projection).abs()
        return float((difference / self.values.abs().sum(1).clamp_min(1e-30)).max())


def attribute(
    model: ChatModel, sequences: Sequence[Sequence[int]], r: Vector, *, position: Position | int = -1, layer: int
) -> Attribution:
    """Terms of r.x for every prompt, with x the input of block `layer` at `position`.

    One forward pass for each prompt, up to this block. Raises ModelError if the writers of the model are not proved.
    """
    if model.proof.mode != "exact":
        raise ModelError(
            f"{model.name} runs in the coarse mode: its residual writers are not proved, and attribution needs the "
            "exact mode. Use a model whose proof succeeds (`rhumbline model MODEL`)."
        )
    place = Position.of(position)
    check_positions(sequences, [place])
    probe = _Probe(model, r.double(), place, layer)
    rows = [probe.read(ids) for ids in sequences]
    parts = tuple(rows[0].terms) if rows else ()
    for row in rows:
        if tuple(row.terms) != parts:
            raise ModelError(
                f"{model.name}: the writers differ between prompts, so their terms cannot be averaged. Use another "
                "model for this analysis."
            )
    return Attribution(
        parts,
        torch.tensor([list(row.terms.values()) for row in rows], dtype=torch.float64),
        torch.tensor([row.projection for row in rows], dtype=torch.float64),
        rows[0].whole if rows else {},
        [row.attention for row in rows],
    )


class _PromptTerms(NamedTuple):
    """The terms of one prompt."""

    terms: dict[Part, float]
    projection: float
    whole: dict[WriterKey, str]
    attention: dict[tuple[int, int], Tensor]


class _Call(NamedTuple):
    """One call of a writer, at the position."""

    input: Tensor | None
    """None if the first argument is not a tensor with one row for each token."""
    written: Tensor
    """Its output."""


class _Probe:
    """Reads prompts one by one; the affine map of an output projection is computed once for each module."""

    def __init__(self, model: ChatModel, r: Tensor, position: Position, layer: int):
        self.model, self.r, self.position, self.layer = model, r, int(position), layer
        self.writers = [w for w in model.writers if w.layer < layer]
        self.maps: dict[WriterKey, tuple[Tensor, float] | None] = {}
        """Result of `affine_row` by writer."""

    def read(self, ids: Sequence[int]) -> _PromptTerms:
        """The terms of one prompt."""
        tokens = torch.tensor([list(ids)], device=self.model.device)
        calls: dict[WriterKey, _Call] = {}
        heads: dict[int, list[Tensor]] = {}
        weights: dict[int, Tensor] = {}
        stream: dict[int, Tensor] = {}

        def at(x: Any) -> Tensor | None:
            if not isinstance(x, Tensor) or x.shape[:-1].numel() != tokens.shape[1]:
                return None
            return x.reshape(-1, x.shape[-1])[self.position].detach().double().cpu().clone()

        def watch(layer: int, h: Tensor) -> None:
            stream[layer] = h[0, self.position].detach().double().cpu()

        def record_attention(output: Tensor, attention: Tensor) -> None:
            layer = max(stream)
            heads.setdefault(layer, []).append(output[0, self.position].detach().double().cpu())
            weights[layer] = attention[0, :, self.position].detach().float().cpu()

        def record(name: str) -> Any:
            def hook(args: tuple, kwargs: dict, output: Any) -> None:
                written = at(output[0] if isinstance(output, tuple) else output)
                assert written is not None
                # A module may be shared by several blocks: the call belongs to the block that runs now.
                calls.setdefault((max(stream), name), _Call(at(args[0]) if args else None, written))

            return hook

        observers = [Observer(self._module(w), record(w.module)) for w in self.writers]
        mask = torch.ones_like(tokens)
        with (
            torch.no_grad(),
            hooked(self.model, {}, watch),
            observed(observers),
            watched_attention(self.model, record_attention),
        ):
            h = run_until(self.model, self.layer, lambda: forward(self.model, tokens, mask))
        terms, whole = self._terms(stream[0], calls, heads)
        attention = {
            (p.layer, p.head): weights[p.layer][p.head] for p in terms if p.layer is not None and p.head is not None
        }
        return _PromptTerms(terms, float(h[0, self.position].double().cpu() @ self.r), whole, attention)

    def _module(self, writer: Writer) -> nn.Module:
        return self.model.blocks[writer.layer].get_submodule(writer.module)

    def _terms(
        self, first: Tensor, calls: dict[WriterKey, _Call], heads: dict[int, list[Tensor]]
    ) -> tuple[dict[Part, float], dict[WriterKey, str]]:
        carry = [1.0] * (self.layer + 1)
        for layer in range(self.layer - 1, -1, -1):
            carry[layer] = carry[layer + 1] * self.model.proof.carry[layer]
        terms = {Part("embedding"): carry[0] * float(first @ self.r)}
        whole: dict[WriterKey, str] = {}
        for layer in range(self.layer):
            reasons: dict[WriterKey, str] = {}
            for w in (w for w in self.writers if w.layer == layer):
                factor, call = w.scale * carry[layer + 1], calls[layer, w.module]
                split = self._split(w, call, heads.get(layer, []))
                if isinstance(split, str):
                    reasons[layer, w.module] = split
                    terms[Part("writer", layer, w.module)] = factor * float(call.written @ self.r)
                else:
                    values, bias = split
                    terms |= {Part("head", layer, w.module, k): factor * v for k, v in enumerate(values)}
                    terms[Part("bias", layer, w.module)] = factor * bias
            if not any(p.kind == "head" and p.layer == layer for p in terms):
                whole |= reasons
        return terms, whole

    def _split(self, w: Writer, call: _Call, heads: list[Tensor]) -> tuple[list[float], float] | str:
        """Contribution of every head along r, and of the bias; or the reason why this writer is not split."""
        if len(heads) != 1:
            return NOT_WATCHED
        (out,) = heads
        x = call.input
        if x is None or x.shape != (out.numel(),) or not torch.allclose(x, out.flatten(), rtol=1e-3, atol=1e-6):
            return OTHER_INPUT
        key = (w.layer, w.module)
        if key not in self.maps:
            self.maps[key] = affine_row(self._module(w), x, self.r)
        affine = self.maps[key]
        if affine is None:
            return NOT_AFFINE
        along, bias = affine
        return [float(v) for v in (x * along).view(out.shape).sum(1)], bias


def affine_row(module: nn.Module, x: Tensor, r: Tensor) -> tuple[Tensor, float] | None:
    """(r^T W, r.b) of a module z -> W z + b; None if the module is not affine at `x`."""
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32

    def run(z: Tensor) -> Tensor:
        with torch.no_grad():
            out: Any = module(z.to(device, dtype)[None])
        return (out[0] if isinstance(out, tuple) else out)[0].double().cpu()

    bias = run(torch.zeros(1, len(x)))[0]
    weight = run(torch.eye(len(x))) - bias
    expected, actual = x @ weight + bias, run(x[None])[0]
    bound = 64 * torch.finfo(dtype).eps * float(expected.abs().max() + x.norm())
    if not torch.isfinite(weight).all() or float((expected - actual).abs().max()) > bound:
        return None
    return weight @ r, float(bias @ r)
