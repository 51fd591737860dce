"""analyses/damage.json: where the ablation changes the next token of negatives, as records."""

from dataclasses import dataclass
from typing import Literal

from rhumbline.records.analysis_files import LayerMean, Mean
from rhumbline.records.shared import Site

AblatedPositions = Literal[
    "all",
    "all but the first token",
    "all but the template before the instruction",
    "the first token",
    "the template before the instruction",
    "the instruction",
    "the template after the instruction",
]
"""The positions on which an ablation acts."""


@dataclass(frozen=True)
class PositionDamage:
    """KL divergence of the next-token distribution of negatives, baseline to ablation at some positions, nats."""

    positions: AblatedPositions
    tokens: float
    """Mean number of these positions per prompt."""
    kl: Mean


@dataclass(frozen=True, kw_only=True)
class DamageRecord:
    """analyses/damage.json: the KL divergence of the ablation by position and by layer."""

    analysis: Literal["damage"] = "damage"
    seed: int
    site: Site
    is_selected: bool
    """Whether the direction was selected; otherwise it is the best candidate that the rule discarded."""
    bound: float | None
    """Largest KL score of the selection rule; None: no bound."""
    spared: int = 0
    """Tokens at the start of a text that the ablation of the run does not edit."""
    by_position: tuple[PositionDamage, ...]
    by_layer: tuple[LayerMean, ...]
    """The ablation at the hook points of one layer only, at all positions."""
    first_norm: Mean
    """Norm of the residual stream of the first token at the middle layer."""
    other_norm: Mean
    """Median of the norms of the other tokens. A first token with a much larger norm is a massive activation."""

    def kl(self, positions: AblatedPositions) -> Mean:
        """The KL divergence of the ablation at some positions."""
        return next(row.kl for row in self.by_position if row.positions == positions)

    @property
    def sentence(self) -> str:
        """Whether the KL divergence is within the bound, and whether sparing positions brings it there."""
        whole = self.kl("all")
        if whole.mean is None:
            return "The KL divergence of the ablation at all positions was not measured: no prompt has a finite value."
        if self.bound is None:
            value = f"The ablation at all positions has a KL divergence of {whole.mean:.2f}"
            return f"{value}; the selection rule has no bound on it."
        if whole.mean <= self.bound:
            return f"The ablation at all positions has a KL divergence of {whole.mean:.2f}, within {self.bound:g}."
        start = f"The ablation at all positions has a KL divergence of {whole.mean:.2f}, above {self.bound:g}."
        values = ", ".join(f"{spared}: {_number(self.kl(others).mean)}" for others, spared in _SPARED.items())
        below: list[AblatedPositions] = [
            others for others in _SPARED if (kl := self.kl(others).mean) is not None and kl <= self.bound
        ]
        if not below:
            return f"{start} Sparing positions at the start does not bring it within the bound ({values})."
        spared = _SPARED[below[0]]
        tokens = round(next(row.tokens for row in self.by_position if row.positions == spared))
        if tokens <= self.spared:
            return f"{start} Sparing {spared}, as the run does, brings it within the bound ({values})."
        return (
            f"{start} Sparing {spared} brings it within the bound ({values}). Rerun with --spare-tokens {tokens} to "
            "select and test such an ablation."
        )


_SPARED: dict[AblatedPositions, AblatedPositions] = {
    "all but the first token": "the first token",
    "all but the template before the instruction": "the template before the instruction",
}
"""The ablations that spare positions at the start of a prompt, and these positions; the fewest first."""


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
