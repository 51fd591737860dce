"""First-order estimates of a metric under ablations and additions: one backward pass for any number of directions.

With g the gradient of the metric at a hook point, the estimates for a direction r of length n read from the stream h

    ablation   metric - sum over hook points and tokens of (r . h) (r . g)
    addition   metric + n sum over the tokens at the block input of its layer of (r . g)

are the metric's tangents at the unedited model, extrapolated to the whole intervention. Their order is used, not their
values. As a function of the direction, the estimate of an ablation is a quadratic form (`tangents`). Independent of
what a metric measures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rhumbline.axes import TokenIds, Vector
from rhumbline.inference.batching import Batch, rectangles
from rhumbline.inference.interventions import Direction
from rhumbline.inference.passes import ReadLogits, padded, places
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import HookPoint, forward
from rhumbline.models.hooks import contiguous_head, hooked

ROWS_PER_PROMPT = 3
"""Rows that a prompt counts as: a backward pass costs as much as two forward passes."""


class Estimates(NamedTuple):
    """The metric of every prompt, estimated for every direction."""

    ablation: Float[Tensor, "direction prompt"]
    addition: Float[Tensor, "direction prompt"]
    """Addition of the whole difference in means at all tokens, at the block input of the direction's layer."""


def first_order(
    runner: Runner, sequences: Sequence[TokenIds], read: ReadLogits, directions: Sequence[Direction], spared: int = 0
) -> Estimates:
    """The estimates of `read` for every direction, in one backward pass over the prompts.

    The ablation does not edit the first `spared` tokens of a prompt.
    """
    model, n = runner.model, len(sequences)
    estimates = Estimates(*(torch.full((len(directions), n), float("nan"), dtype=torch.float64) for _ in range(2)))
    unit = torch.stack([d.vector for d in directions]).to(model.device)
    at = [torch.tensor([d.layer == layer for d in directions]) for layer in range(model.n_layers)]
    norms = torch.tensor([d.norm for d in directions], dtype=torch.float64)

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        texts = [sequences[i] for i in batch.prompts]
        padded_texts = padded(model, texts)
        streams, values = _with_gradients(runner, *padded_texts, lambda logits, _: read(logits))
        edited = (places(padded_texts).in_text >= spared)[..., None]
        ablated = (streams[point] for point in model.ablation_points)
        ablation = values - _changes((_Stream(h * edited.to(h.device), g) for h, g in ablated), unit)
        addition = values.expand(len(directions), -1).clone()
        for layer, here in enumerate(at):
            gradient = streams[HookPoint("resid_pre", layer)].g.sum(1)
            along = unit[here.to(unit.device)].to(gradient.device) @ gradient.T
            addition[here] += norms[here, None] * along.double().cpu()
        return ablation, addition

    lengths, same_length = [len(s) for s in sequences], model.proof.padding_changes_logits
    longest = model.proof.longest_proved
    batches = rectangles(lengths, 1, runner.tokens_per_forward, same_length=same_length, longest=longest)
    for done, parts in runner.within_memory(batches, run, gradients=True):
        runner.tick(ROWS_PER_PROMPT * len(done.prompts))
        for table, values in zip(estimates, parts, strict=True):
            table[:, done.prompts] = values
    return estimates


def _changes(
    streams: Iterable["_Stream"], unit: Float[Tensor, "direction d_model"]
) -> Float[Tensor, "direction prompt"]:
    """Sum of (r . h) (r . g) over the tokens of some hook points: what an ablation removes from each prompt's metric.

    For more directions than the stream has dimensions, as r^T A r with A = sum of h g^T: one product for each prompt
    instead of two for each token.
    """
    n, d_model = unit.shape
    if n <= d_model:
        parts = (((h @ unit.to(h.device).T) * (g @ unit.to(g.device).T)).sum(1).T.double().cpu() for h, g in streams)
        return torch.stack(list(parts)).sum(0)
    forms = sum(torch.einsum("rpd,rpe->rde", h, g).to(unit.device) for h, g in streams)
    assert isinstance(forms, Tensor)
    return torch.stack([((unit @ form) * unit).sum(1) for form in forms], 1).double().cpu()


Form = Float[Tensor, "d_model d_model"]
"""Symmetric A: the ablation of a unit vector s lowers a number by s^T A s, to first order; the mean over prompts."""
_Target = Callable[[Tensor, Mapping[HookPoint, Tensor]], Float[Tensor, " row"]]
"""What is differentiated: from the logits and the streams at the hook points to a number for each prompt."""


def tangents(runner: Runner, sequences: Sequence[TokenIds], read: ReadLogits, spared: int = 0) -> Form:
    """The form of `read`, in one backward pass over the prompts. Ablations do not edit the first `spared` tokens."""
    return _tangents(runner, sequences, lambda logits, _: read(logits), spared)


def projection_tangents(runner: Runner, sequences: Sequence[TokenIds], direction: Vector, spared: int = 0) -> Form:
    """The form of the projection of the last token on a direction, summed over the block inputs."""

    def projections(logits: Tensor, outputs: Mapping[HookPoint, Tensor]) -> Float[Tensor, " row"]:
        streams = [h[:, -1].float() for point, h in outputs.items() if point.kind == "resid_pre"]
        return torch.stack([(h @ direction.to(h.device)).to(logits.device) for h in streams]).sum(0)

    return _tangents(runner, sequences, projections, spared)


def _tangents(runner: Runner, sequences: Sequence[TokenIds], target: _Target, spared: int) -> Form:
    model = runner.model
    total = torch.zeros(model.d_model, model.d_model, dtype=torch.float64)

    def run(batch: Batch) -> Form:
        padded_texts = padded(model, [sequences[i] for i in batch.prompts])
        streams, _ = _with_gradients(runner, *padded_texts, target)
        edited = (places(padded_texts).in_text >= spared)[..., None]
        form = torch.zeros_like(total)
        for point in model.ablation_points:
            h, g = streams[point]
            form += torch.einsum("rpd,rpe->de", h * edited.to(h.device), g).double().cpu()
        return (form + form.T) / 2

    lengths, same_length = [len(s) for s in sequences], model.proof.padding_changes_logits
    longest = model.proof.longest_proved
    batches = rectangles(lengths, 1, runner.tokens_per_forward, same_length=same_length, longest=longest)
    for done, form in runner.within_memory(batches, run, gradients=True):
        runner.tick(ROWS_PER_PROMPT * len(done.prompts))
        total += form
    return (total / len(sequences)).float()


class _Stream(NamedTuple):
    """The output of a hook point and the gradient of the metric there, float32; zero at padding."""

    h: Float[Tensor, "row position d_model"]
    g: Float[Tensor, "row position d_model"]


def _with_gradients(
    runner: Runner, ids: Int[Tensor, "row position"], mask: Int[Tensor, "row position"], target: _Target
) -> tuple[dict[HookPoint, _Stream], Float[Tensor, " row"]]:
    """The stream and the gradient at every ablation point and block input, and the metric of every prompt."""
    model = runner.model
    outputs: dict[HookPoint, Tensor] = {}

    def keep(point: HookPoint, h: Tensor) -> Tensor:
        # The weights need no gradient, so the graph starts at the first hook point.
        h = h if h.requires_grad else h.detach().requires_grad_(True)
        h.retain_grad()
        outputs[point] = h
        return h

    inputs = {HookPoint("resid_pre", layer) for layer in range(model.n_layers)}
    points = dict.fromkeys((*model.ablation_points, *sorted(inputs)))
    with _frozen(runner), contiguous_head(model), hooked(model, {p: lambda h, p=p: keep(p, h) for p in points}):
        values = target(forward(model, ids, mask), outputs)
        gradients = torch.autograd.grad(values.double().sum(), list(outputs.values()), allow_unused=True)
    streams = {
        point: _Stream(
            *(x.detach().float() * mask[..., None].to(x.device) for x in (h, torch.zeros_like(h) if g is None else g))
        )
        for (point, h), g in zip(outputs.items(), gradients, strict=True)
    }
    return streams, values.detach().double().cpu()


@contextmanager
def _frozen(runner: Runner):
    """The weights need no gradient while the context is active."""
    trainable = [p for p in runner.model.model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
