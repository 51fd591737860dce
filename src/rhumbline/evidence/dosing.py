"""Dose finding: the strength of an intervention at which its cost reaches a target, by bracketing and interpolation.

The cost of strength 0 is 0. Costs are evaluated by the caller, many strengths at once. Independent of interventions
and of what the cost is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MOST_EVALUATIONS = 20
"""Strengths that are evaluated for each target, at most."""
GROWTH = 16.0
"""Largest factor between an unbounded strength and the next one."""


class Strength(NamedTuple):
    """A strength and its cost."""

    strength: float
    cost: float


@dataclass
class DoseSearch:
    """The strengths of one intervention at which its cost equals each target, within a tolerance.

    Of several strengths with this cost the smallest evaluated bracket counts.
    """

    targets: Sequence[float]
    largest: float
    """Largest strength."""
    first: float
    """Strength that is evaluated first."""
    tolerance: float = 0.05
    """Largest |cost - target|, as a share of the target."""
    known: dict[float, float] = field(default_factory=dict)
    """The cost of every evaluated strength."""

    def proposals(self) -> list[float]:
        """Strengths to evaluate next; empty when every target is reached or cannot be."""
        if not self.known:
            return sorted({min(self.first, self.largest), min(4 * self.first, self.largest)})
        if len(self.known) >= MOST_EVALUATIONS * len(self.targets):
            return []
        wanted = (self._next(target) for target in self.targets if self.reached(target) is None)
        return sorted({s for s in wanted if s is not None and s not in self.known})

    def add(self, costs: Mapping[float, float]) -> None:
        """Store evaluated costs. A cost that is not finite counts as infinite: the edit broke the model."""
        self.known.update({s: cost if math.isfinite(cost) else math.inf for s, cost in costs.items()})

    def reached(self, target: float) -> Strength | None:
        """The smallest evaluated strength whose cost equals the target within the tolerance; None so far."""
        fits = (Strength(s, c) for s, c in sorted(self.known.items()) if abs(c - target) <= self.tolerance * target)
        return next(fits, None)

    def at_largest(self) -> Strength | None:
        """The largest strength with its cost; None if it was not evaluated."""
        cost = self.known.get(self.largest)
        return None if cost is None else Strength(self.largest, cost)

    def _next(self, target: float) -> float | None:
        """The next strength for one target; None if it cannot be reached."""
        low = Strength(0.0, 0.0)
        for s, cost in sorted(self.known.items()):
            if cost >= target:
                return self._between(low, Strength(s, cost), target)
            low = Strength(s, cost)
        if low.strength >= self.largest:
            return None
        # A cost grows about with the square of a small strength.
        factor = 1.1 * math.sqrt(target / low.cost) if low.cost > 0 else GROWTH
        return min(self.largest, low.strength * min(GROWTH, max(1.5, factor)))

    def _between(self, low: Strength, high: Strength, target: float) -> float | None:
        """A strength inside of a bracket: by a power law, or its middle if the costs do not follow one."""
        width = high.strength - low.strength
        if width <= 1e-6 * high.strength:
            return None  # The cost jumps over the target.
        least = low.strength + width / 20 if low.strength > 0 else high.strength / 100
        inside = sum(low.strength / 2 <= s <= high.strength * 2 for s in self.known)
        if inside > 10 or not math.isfinite(high.cost):
            guess = math.sqrt(least * high.strength)
        elif low.cost <= 0:
            guess = high.strength * math.sqrt(target / high.cost)
        else:
            power = math.log(high.strength / low.strength) / math.log(high.cost / low.cost)
            guess = low.strength * (target / low.cost) ** power
        return min(high.strength - width / 20, max(least, guess))


def cost_at_half(points: Sequence[tuple[float, float]], start: float, *, interpolate: bool = True) -> float | None:
    """The cost at which a rate first falls to half of `start`, by linear interpolation of (cost, rate) in the cost.

    Points are in the order of their strength, and a point (0, start) precedes them. Without `interpolate` it is the
    cost of the first point that falls so far. None if none does, or if there is nothing to halve.
    """
    cost, rate = 0.0, start
    for next_cost, next_rate in points if start > 0 else ():
        if next_rate <= start / 2 < rate:
            if not interpolate:
                return next_cost
            return cost + (next_cost - cost) * (rate - start / 2) / (rate - next_rate)
        cost, rate = next_cost, next_rate
    return None
