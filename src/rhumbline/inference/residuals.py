"""Statistics of the residual stream over many prompts, in one pass: means, single sites, projections.

Sums are float64 and the results are the same for every batch size. Independent of what the prompts mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.axes import Candidates, TokenIds
from rhumbline.inference.passes import ReadLogits
from rhumbline.inference.runner import Runner
from rhumbline.records.positions import Position


@dataclass
class ResidualStats:
    """Running sums of block inputs per position and layer."""

    total: Float[Tensor, "position layer d_model"]
    """float64 sum over the prompts so far."""
    n: int = 0
    """Number of these prompts."""

    @classmethod
    def empty(cls, n_positions: int, n_layers: int, d_model: int) -> "ResidualStats":
        """Sums over no prompts."""
        # float64: a bfloat16 running mean over a few hundred prompts loses the small difference between the classes.
        return cls(torch.zeros(n_positions, n_layers, d_model, dtype=torch.float64))

    def update(self, h: Float[Tensor, "row position layer d_model"]) -> None:
        """Add the prompts of a batch."""
        self.total += h.double().sum(0).cpu()
        self.n += h.shape[0]

    def mean(self) -> Candidates:
        """Mean block input per position and layer, float64."""
        return self.total / max(self.n, 1)


@dataclass(frozen=True)
class Extraction:
    """Results of one pass over a set of prompts."""

    stats: ResidualStats
    """Sums over the kept prompts."""
    metric: Float[Tensor, " prompt"]
    """The metric of every prompt; NaN if it was not read."""
    kept: Bool[Tensor, " prompt"]
    """Which prompts the filter keeps."""


def extract(
    runner: Runner,
    sequences: Sequence[TokenIds],
    positions: Sequence[Position | int],
    *,
    read: ReadLogits | None = None,
    keep: Callable[[Float[Tensor, " row"]], Bool[Tensor, " row"]] | None = None,
) -> Extraction:
    """Sums of block inputs over `sequences`. Prompts whose metric does not satisfy `keep` are not included."""
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
    runner: Runner, sequences: Sequence[TokenIds], position: Position | int, layer: int
) -> Float[Tensor, "prompt d_model"]:
    """Every prompt's block input at one position and layer, float32 on the CPU; the pass ends there."""
    inputs = torch.zeros(len(sequences), runner.model.d_model)
    for prompt, h, _ in runner.residuals(sequences, [position], layers=[layer]):
        inputs[prompt] = h[:, 0, 0].float().cpu()
    return inputs


def projections(
    runner: Runner, sequences: Sequence[TokenIds], candidates: Candidates, positions: Sequence[Position | int]
) -> Float[Tensor, "prompt position layer"]:
    """r^.x of every prompt at every site, with r^ the unit candidate of that site (zero for a zero candidate)."""
    unit = torch.nn.functional.normalize(candidates.float(), dim=-1)
    projected = torch.zeros(len(sequences), *candidates.shape[:2], dtype=torch.float64)
    for prompt, h, _ in runner.residuals(sequences, positions):
        projected[prompt] = torch.einsum("rpld,pld->rpl", h.float(), unit.to(h.device)).double().cpu()
    return projected
