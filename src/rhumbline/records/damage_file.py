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
        if self.bound is None or whole.mean is None:
            return "The selection rule has no bound on the KL divergence."
        if whole.mean <= self.bound:
            return f"The ablation at all positions has a KL divergence of {whole.mean:.2f}, within {self.bound:g}."
        spared: tuple[AblatedPositions, ...] = (
            "all but the first token",
            "all but the template before the instruction",
        )
        below = [name for name in spared if (kl := self.kl(name).mean) is not None and kl <= self.bound]
        start = f"The ablation at all positions has a KL divergence of {whole.mean:.2f}, above {self.bound:g}"
        values = ", ".join(f"{name}: {self.kl(name).mean:.2f}" for name in spared)
        end = "Sparing these positions removes the damage" if below else "Sparing positions does not remove the damage"
        first = 1 if "all but the first token" in below else round(self._template_tokens)
        advice = f" Rerun with --spare-tokens {first} to select and test such an ablation." if below else ""
        return f"{start}. {end} ({values}).{advice}"

    @property
    def _template_tokens(self) -> float:
        return next(r.tokens for r in self.by_position if r.positions == "the template before the instruction")
