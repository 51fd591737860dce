"""Direct feature attribution: the residual's projection on a direction, split exactly into what wrote it.

    projection at the site = embedding + every head + output biases + every other writer (MLPs, experts, ...)

(Arditi et al. 2024, section 5.1, after Kissane et al. 2024.) The writers are the proved ones, so the parts sum to the
projection up to rounding on every model in the exact mode. Heads are split off a writer that is affine in the heads'
outputs and reads nothing else: its input's columns are the heads. A writer that is not (a norm or a gate stands behind
the heads, or attention does not go through transformers' interface) is reported whole, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.axes import Vector
from rhumbline.errors import ModelError
from rhumbline.models.attention import watched_attention
from rhumbline.models.chat_model import ChatModel, Writer, forward
from rhumbline.models.hooks import Tap, hooked, run_until, tapped

UNSEEN = "attention of this block does not go through transformers' interface"
OTHER_INPUT = "it reads something else than the heads' outputs (a norm or a gate stands between)"
NOT_AFFINE = "it is not affine in the heads' outputs"


class Part(NamedTuple):
    """One term of the sum."""

    kind: str
    """`embedding`, `head`, `bias` (of an output projection) or `writer`."""
    layer: int | None = None
    module: str = ""
    head: int | None = None


@dataclass(frozen=True)
class Attribution:
    """The terms of every prompt."""

    parts: tuple[Part, ...]
    values: Float[Tensor, "prompt part"]
    """Float64; a row sums to its projection."""
    projection: Float[Tensor, " prompt"]
    whole: dict[tuple[int, str], str]
    """(layer, module) of the writers that were not split, and why; empty where a block's attention was split."""
    attention: list[dict[tuple[int, int], Tensor]]
    """Per prompt: (layer, head) -> attention weights of the position read, one for each token."""

    def error(self) -> float:
        """Largest |sum of the parts - projection| over the sum of the absolute parts."""
        apart = (self.values.sum(1) - self.projection).abs()
        return float((apart / self.values.abs().sum(1).clamp_min(1e-30)).max())


def attribute(
    model: ChatModel, sequences: Sequence[Sequence[int]], r: Vector, *, position: int = -1, layer: int
) -> Attribution:
    """Split r.x of every prompt, x the input of block `layer` at `position`; one pass per prompt, which ends there.

    Raises ModelError where the writers of the model are not proved.
    """
    if model.proof.mode != "exact":
        raise ModelError(
            f"{model.name} runs in the coarse mode: what writes into its residual stream is not proved, so nothing can "
            "be attributed to its parts."
        )
    probe = _Probe(model, r.double(), position, layer)
    rows = [probe.read(ids) for ids in sequences]
    parts = tuple(rows[0].terms) if rows else ()
    for row in rows:
        if tuple(row.terms) != parts:
            raise ModelError(f"{model.name}: its blocks write differently from prompt to prompt; no sum can be formed.")
    return Attribution(
        parts,
        torch.tensor([list(row.terms.values()) for row in rows], dtype=torch.float64),
        torch.tensor([row.projection for row in rows], dtype=torch.float64),
        rows[0].whole if rows else {},
        [row.attention for row in rows],
    )


class _Row(NamedTuple):
    terms: dict[Part, float]
    projection: float
    whole: dict[tuple[int, str], str]
    attention: dict[tuple[int, int], Tensor]


class _Call(NamedTuple):
    """One call of a writer, at the position read: its input (None where it is no tensor of tokens) and its write."""

    entered: Tensor | None
    written: Tensor


class _Probe:
    """Reads one prompt after the other; what a projection makes of its input is found once for each module."""

    def __init__(self, model: ChatModel, r: Tensor, position: int, layer: int):
        self.model, self.r, self.position, self.layer = model, r, position, layer
        self.writers = [w for w in model.writers if w.layer < layer]
        self.responses: dict[tuple[int, str], tuple[Tensor, float] | None] = {}

    def read(self, ids: Sequence[int]) -> _Row:
        """The terms of one prompt."""
        tokens = torch.tensor([list(ids)], device=self.model.device)
        calls: dict[tuple[int, str], _Call] = {}
        heads: dict[int, list[Tensor]] = {}
        weights: dict[int, Tensor] = {}
        stream: dict[int, Tensor] = {}

        def at(x: Any) -> Tensor | None:
            if not isinstance(x, Tensor) or x.shape[:-1].numel() != tokens.shape[1]:
                return None
            return x.reshape(-1, x.shape[-1])[self.position].detach().double().cpu().clone()

        def watch(layer: int, h: Tensor) -> None:
            stream[layer] = h[0, self.position].detach().double().cpu()

        def see_attention(output: Tensor, found: Tensor) -> None:
            layer = max(stream)
            heads.setdefault(layer, []).append(output[0, self.position].detach().double().cpu())
            weights[layer] = found[0, :, self.position].detach().float().cpu()

        def see(name: str) -> Any:
            def hook(args: tuple, kwargs: dict, output: Any) -> None:
                written = at(output[0] if isinstance(output, tuple) else output)
                assert written is not None
                # A module may be shared by several blocks: the call belongs to the block that runs now.
                calls.setdefault((max(stream), name), _Call(at(args[0]) if args else None, written))

            return hook

        taps = [Tap(self._module(w), see(w.module)) for w in self.writers]
        mask = torch.ones_like(tokens)
        with torch.no_grad(), hooked(self.model, {}, watch), tapped(taps), watched_attention(self.model, see_attention):
            h = run_until(self.model, self.layer, lambda: forward(self.model, tokens, mask))
        terms, whole = self._terms(stream[0], calls, heads)
        kept = {(p.layer, p.head): weights[p.layer][p.head] for p in terms if p.kind == "head"}  # type: ignore[index]
        return _Row(terms, float(h[0, self.position].double().cpu() @ self.r), whole, kept)  # type: ignore[arg-type]

    def _module(self, writer: Writer) -> nn.Module:
        return self.model.blocks[writer.layer].get_submodule(writer.module)

    def _terms(
        self, first: Tensor, calls: dict[tuple[int, str], _Call], heads: dict[int, list[Tensor]]
    ) -> tuple[dict[Part, float], dict[tuple[int, str], str]]:
        carry = [1.0] * (self.layer + 1)
        for layer in range(self.layer - 1, -1, -1):
            carry[layer] = carry[layer + 1] * self.model.proof.carry[layer]
        terms = {Part("embedding"): carry[0] * float(first @ self.r)}
        whole: dict[tuple[int, str], str] = {}
        for layer in range(self.layer):
            reasons: dict[tuple[int, str], str] = {}
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
        """What every head writes along r, and the bias; or why this writer is not split."""
        if len(heads) != 1:
            return UNSEEN
        (out,) = heads
        x = call.entered
        if x is None or x.shape != (out.numel(),) or not torch.allclose(x, out.flatten(), rtol=1e-3, atol=1e-6):
            return OTHER_INPUT
        key = (w.layer, w.module)
        if key not in self.responses:
            self.responses[key] = _response(self._module(w), x, self.r)
        response = self.responses[key]
        if response is None:
            return NOT_AFFINE
        along, bias = response
        return [float(v) for v in (x * along).view(out.shape).sum(1)], bias


def _response(module: nn.Module, x: Tensor, r: Tensor) -> tuple[Tensor, float] | None:
    """(r^T W, r.b) of a module that is z -> W z + b; None where it is not affine."""
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32

    def run(z: Tensor) -> Tensor:
        with torch.no_grad():
            out: Any = module(z.to(device, dtype)[None])
        return (out[0] if isinstance(out, tuple) else out)[0].double().cpu()

    bias = run(torch.zeros(1, len(x)))[0]
    response = run(torch.eye(len(x))) - bias
    expected, found = x @ response + bias, run(x[None])[0]
    bound = 64 * torch.finfo(dtype).eps * float(expected.abs().max() + x.norm())
    if not torch.isfinite(response).all() or float((expected - found).abs().max()) > bound:
        return None
    return response @ r, float(bias @ r)
