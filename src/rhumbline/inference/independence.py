"""Representational independence: vectors and prompts -> how far the ablation of one changes what another reads.

Two directions are representationally independent if the ablation of either leaves the cosines of the residual stream
with the other unchanged (Wollschlaeger et al. 2025). Independent of labels and of the behaviour.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.records.positions import Position


def cosine_changes(
    runner: Runner,
    vectors: Float[Tensor, "member d_model"],
    position: Position,
    sequences: Sequence[TokenIds],
    spared: int = 0,
) -> list[list[float]]:
    """Mean |change| of the stream's cosine with each vector (column) under the ablation of each vector (row).

    Over the prompts and all block inputs, at one position.
    """
    plain = _cosines(runner, vectors, position, sequences, BASELINE)
    changes = []
    for vector in vectors:
        arm = Arm("one", (Ablate(Direction.from_vector(vector, position, 0), spared=spared),))
        changes.append((_cosines(runner, vectors, position, sequences, arm) - plain).abs().mean((0, 1)).tolist())
    return changes


def _cosines(
    runner: Runner,
    vectors: Float[Tensor, "member d_model"],
    position: Position,
    sequences: Sequence[TokenIds],
    arm: Arm,
) -> Float[Tensor, "prompt layer member"]:
    values = torch.zeros(len(sequences), runner.model.n_layers, len(vectors))
    for prompt, h, _ in runner.residuals(sequences, [position], arm):
        values[prompt] = torch.nn.functional.normalize(h[:, 0].float().cpu(), dim=-1) @ vectors.T
    return values
