"""Interventions of any strength, and the strengths at which each has the same trajectory KL.

Independent of what the interventions are fitted on and of what is measured at a dose.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from rhumbline.analyses.trajectory_kl import Trajectories
from rhumbline.evidence.dosing import DoseSearch, Strength
from rhumbline.inference.interventions import Ablate, AblateSpan, Add, Arm, Direction, Intervention
from rhumbline.inference.stream_edits import Affine

Name = TypeVar("Name", bound=str)

AtStrength = Callable[[float], Intervention]
MOST_ADDED = 64.0
"""Largest coefficient of an addition, in norms of the direction."""


@dataclass(frozen=True)
class DosedIntervention:
    """One intervention of any strength; strength 0 changes nothing."""

    draws: Sequence[AtStrength]
    """One function; one for each random vector of a null."""
    first: float
    """Strength at which the search for a dose begins."""
    largest: float
    """Largest strength."""

    def arm(self, draw: int, strength: float) -> Arm:
        """The arm of one strength."""
        return Arm(f"draw {draw} at {strength:g}", (self.draws[draw](strength),))


def dosed_erasure(*erased: Ablate | AblateSpan | Affine) -> DosedIntervention:
    """Interventions that remove something completely at strength 1, one for each draw."""
    return DosedIntervention([lambda a, e=e: replace(e, strength=a) for e in erased], 0.25, 1.0)


def dosed_addition(*directions: Direction, sign: int = 1) -> DosedIntervention:
    """Additions of a direction for each draw; `sign` -1: subtractions."""
    return DosedIntervention([lambda c, d=d: Add(d, sign * c) for d in directions], 0.25, MOST_ADDED)


class Setting(NamedTuple):
    """One intervention at one strength for each draw."""

    name: str
    dose: float | None
    """None: its largest strength."""
    strengths: tuple[Strength, ...]

    @property
    def cost(self) -> float:
        """Mean cost over the draws."""
        return sum(s.cost for s in self.strengths) / len(self.strengths)


def find_doses(
    trajectories: Trajectories,
    interventions: Mapping[Name, DosedIntervention],
    targets: Callable[[Name], Sequence[float]],
    tolerance: float,
) -> dict[Name, list[DoseSearch]]:
    """The finished searches of every intervention and draw, made together so that one pass evaluates many strengths."""
    searches = {
        name: [DoseSearch(targets(name), dosed.largest, dosed.first, tolerance) for _ in dosed.draws]
        for name, dosed in interventions.items()
    }
    while True:
        wanted = [
            (search, strength, dosed.arm(draw, strength))
            for name, dosed in interventions.items()
            for draw, search in enumerate(searches[name])
            for strength in search.proposals()
        ]
        if not wanted:
            return searches
        costs = trajectories.divergence([arm for _, _, arm in wanted]).means
        for (search, strength, _), cost in zip(wanted, costs, strict=True):
            search.add({strength: float(cost)})


def settings(name: str, searches: Sequence[DoseSearch]) -> Iterator[Setting]:
    """The doses that every draw reaches, then the largest strength if it costs less than the largest dose."""
    targets = searches[0].targets
    for target in targets:
        strengths = [search.reached(target) for search in searches]
        if all(strengths):
            yield Setting(name, target, tuple(s for s in strengths if s is not None))
    largest = [search.at_largest() for search in searches]
    if all(s is not None and s.cost < max(targets) for s in largest):
        yield Setting(name, None, tuple(s for s in largest if s is not None))
