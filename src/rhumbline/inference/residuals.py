"""One pass over prompts in, streaming statistics of the residual stream out.

Promises: float64 sums, nothing kept per prompt but what is asked for, the same result for every batch size.
Knows positions and layers. Does not know what the prompts mean, nor which set is positive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.axes import Candidates, Logits, TokenIds
from rhumbline.inference.runner import Runner
from rhumbline.records.positions import Position


@dataclass
class ResidualStats:
    """Running sums of block inputs per position and layer."""

    total: Float[Tensor, "position layer d_model"]
    """float64 sum over the prompts seen so far."""
    n: int = 0

    @classmethod
    def empty(cls, n_positions: int, n_layers: int, d_model: int) -> "ResidualStats":
        """Nothing seen yet."""
        # float64: a bfloat16 running mean over a few hundred prompts loses the small difference we are looking for.
        return cls(torch.zeros(n_positions, n_layers, d_model, dtype=torch.float64))

    def update(self, h: Float[Tensor, "row position layer d_model"]) -> None:
        """Add a batch of prompts."""
        self.total += h.double().sum(0).cpu()
        self.n += h.shape[0]

    def mean(self) -> Candidates:
        """Mean residual per position and layer, float64."""
        return self.total / max(self.n, 1)


@dataclass(frozen=True)
class Extraction:
    """What one pass over a set of prompts found."""

    stats: ResidualStats
    """Over the kept prompts."""
    metric: Float[Tensor, " prompt"]
    """The metric of every prompt, NaN where none was asked for."""
    kept: Bool[Tensor, " prompt"]


def extract(
    runner: Runner,
    sequences: Sequence[TokenIds],
    positions: Sequence[Position | int],
    *,
    read: Callable[[Logits], Float[Tensor, " row"]] | None = None,
    keep: Callable[[Float[Tensor, " row"]], Bool[Tensor, " row"]] | None = None,
) -> Extraction:
    """Mean block inputs over `sequences`, in one pass; prompts whose metric fails `keep` are left out of the mean."""
    model = runner.model
    stats = ResidualStats.empty(len(positions), model.n_layers, model.d_model)
    metric = torch.full((len(sequences),), float("nan"), dtype=torch.float64)
    kept = torch.ones(len(sequences), dtype=torch.bool)
    for prompt, h, readings in runner.residuals(sequences, positions, read=read):
        if readings is not None:
            metric[prompt] = readings.double().cpu()
            if keep is not None:
                kept[prompt] = keep(metric[prompt])
        stats.update(h[kept[prompt].to(h.device)])
    return Extraction(stats, metric, kept)


def at_site(
    runner: Runner, sequences: Sequence[TokenIds], position: Position, layer: int
) -> Float[Tensor, "prompt d_model"]:
    """Every prompt's block input at one position and layer, float32 on the CPU; the pass ends there."""
    found = torch.zeros(len(sequences), runner.model.d_model)
    for prompt, h, _ in runner.residuals(sequences, [position], layers=[layer]):
        found[prompt] = h[:, 0, 0].float().cpu()
    return found


def projections(
    runner: Runner, sequences: Sequence[TokenIds], candidates: Candidates, positions: Sequence[Position | int]
) -> Float[Tensor, "prompt position layer"]:
    """r^.x of every prompt at every position and layer, with r^ the unit candidate of that cell (0 for a zero one)."""
    unit = torch.nn.functional.normalize(candidates.float(), dim=-1)
    found = torch.zeros(len(sequences), *candidates.shape[:2], dtype=torch.float64)
    for prompt, h, _ in runner.residuals(sequences, positions):
        found[prompt] = torch.einsum("rpld,pld->rpl", h.float(), unit.to(h.device)).double().cpu()
    return found
