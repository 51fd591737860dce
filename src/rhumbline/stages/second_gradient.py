"""Second directions by gradient under representational independence: training prompts, direction r -> candidates.

By its tangent at the unedited model (first_order.py), the ablation of a unit vector s lowers the metric of positives by
s^T A s. The candidates are the eigenvectors of A with the largest eigenvalues in the orthogonal complement of

    r itself
    what r is computed from: vectors whose ablation changes the projection on r, by its own tangent
    what is computed from r: the mean change of the stream, up to the last layer, under the ablation of r

The last two keep a candidate representationally independent of r (Wollschlaeger et al. 2025): the ablation of either
leaves the other. Otherwise the best second direction of any model would be the input or the output of the first one,
such as the unembedding of the refusal tokens. Independent of validation and test prompts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import TokenIds, Vector
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.scorer import Scorer

FIT_PROMPTS = 32
"""Training positives on which the candidates are fitted."""
CANDIDATES = 4
"""Eigenvectors that are candidates."""
DEPENDENT = 0.1
"""Change relative to that under the ablation of r itself, above which a vector depends on r, or r on it."""


def gradient_candidates(
    scorer: Scorer, positive: Sequence[TokenIds], direction: Direction, spared: int = 0
) -> Float[Tensor, "candidate d_model"]:
    """Unit vectors, by falling eigenvalue; fewer than `CANDIDATES` if fewer lower the metric."""
    r = direction.vector
    read_from = scorer.projection_tangents(positive, r, spared)
    written = _changes(scorer.runner, [[*ids, *scorer.start] for ids in positive], Ablate(direction, spared=spared))
    fixed = torch.cat([r[None], _upstream(read_from, r), _downstream(written, r)])
    return largest(scorer.tangents(positive, spared), fixed, CANDIDATES)


def largest(
    form: Float[Tensor, "d_model d_model"], fixed: Float[Tensor, "fixed d_model"], n: int
) -> Float[Tensor, "candidate d_model"]:
    """The eigenvectors of a form with the n largest positive eigenvalues, orthogonal to the rows of `fixed`."""
    if not bool(form.isfinite().all()):
        return form[:0]
    values, vectors = torch.linalg.eigh(_without(form.double(), fixed.double()))
    order = values.argsort(descending=True)[:n]
    # Relative to the whole form: of one that lies in the span of `fixed` only rounding remains.
    return vectors.T[order[values[order] > 1e-9 * float(torch.linalg.matrix_norm(form.double(), 2))]].float()


def _without(form: Float[Tensor, "d_model d_model"], fixed: Tensor) -> Float[Tensor, "d_model d_model"]:
    """The form on the orthogonal complement of some vectors; zero on their span."""
    _, values, rows = torch.linalg.svd(fixed, full_matrices=False)
    q = rows[values > 1e-6 * values[0]].T  # a basis of the span, also of rows that depend on one another
    form = form - q @ (q.T @ form)
    return form - (form @ q) @ q.T


def _upstream(form: Float[Tensor, "d_model d_model"], r: Vector) -> Float[Tensor, "upstream d_model"]:
    """Vectors orthogonal to r whose ablation changes the projection on r, given the form of that change."""
    whole = float(r @ form @ r)
    values, vectors = torch.linalg.eigh(_without(form.double(), r[None].double()))
    return vectors.T[values.abs() > DEPENDENT * abs(whole)].float()


def _downstream(changes: Float[Tensor, "layer d_model"], r: Vector) -> Float[Tensor, "downstream d_model"]:
    """Directions of the changes of the stream under the ablation of r, apart from r."""
    whole = float(changes.norm(dim=-1).max())
    _, values, rows = torch.linalg.svd(changes - (changes @ r)[:, None] * r, full_matrices=False)
    return rows[values > DEPENDENT * whole]


def _changes(runner: Runner, sequences: Sequence[TokenIds], ablation: Ablate) -> Float[Tensor, "layer d_model"]:
    """Mean change of the last token under the ablation, at every block input and after the last block."""
    means = []
    for arm in (BASELINE, Arm("ablation", (ablation,))):
        total = torch.zeros(runner.model.n_layers + 1, runner.model.d_model, dtype=torch.float64)
        # `read` makes the pass whole: layer L is the state after the last block.
        every = range(runner.model.n_layers + 1)
        for _, h, _ in runner.residuals(sequences, [-1], arm, layers=every, read=_nothing, padding="left"):
            total += h[:, 0].double().sum(0).cpu()
        means.append(total / len(sequences))
    return (means[1] - means[0]).float()


def _nothing(logits: Tensor) -> Tensor:
    return logits[:, 0]
