"""The arms of a seed: a direction, its nulls and the parameters of additions give the interventions of every arm.

Each stage lists the arms that it runs; `SeedArms.arm` makes the interventions of any of them. Independent of prompts
and of what an arm is measured with.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rhumbline.errors import InputError
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction, Intervention
from rhumbline.prompts.contrasts import Label
from rhumbline.records.arms import (
    ABLATION,
    ADDITION,
    ADDITION_ALL,
    ADDITION_PROMPT,
    BASELINE,
    DIRECTION,
    SUBTRACTION,
    ArmId,
    ArmKind,
    Positions,
)
from rhumbline.records.shared import DoseKind
from rhumbline.records.verdict_rule import is_comparable
from rhumbline.settings import SUBTRACTED_DRAWS
from rhumbline.stages.seed_artefacts import Null

Arms = dict[ArmId, Arm]
"""Arms of a run by identity, in the order in which they are run and written."""


@dataclass(frozen=True)
class AdditionParameters:
    """The parameters of every addition of a seed."""

    coefficient: float
    """In units of the norm of the direction."""
    positions: Positions
    """`all`: generated tokens too. `prompt`: prompt tokens only."""


class DoseArm(NamedTuple):
    """One strength of one intervention."""

    id: ArmId
    """The direction or a null, without the intervention."""
    kind: DoseKind
    dose: float
    """Strength of an ablation, coefficient of an addition."""
    arm: Arm


@dataclass(frozen=True)
class SeedArms:
    """Makes the arms of one seed."""

    direction: Direction | None
    """The selected direction; None: the baseline is the only arm."""
    nulls: Sequence[Null]
    addition: AdditionParameters
    spared: int = 0
    """Tokens at the start of a text that ablations do not edit."""
    same_cosine: float | None = None
    """Nulls with a larger |cosine| are aligned with the direction; they complete nothing. None: every null can."""

    def arm(self, arm: ArmId) -> Arm:
        """The arm of this identity; InputError if the seed has no such arm."""
        return Arm(str(arm), self._interventions(arm))

    def arms(self, ids: Iterable[ArmId]) -> Arms:
        """Several arms by identity."""
        return {arm: self.arm(arm) for arm in ids}

    def _interventions(self, arm: ArmId) -> tuple[Intervention, ...]:
        coefficient, positions = self.addition.coefficient, arm.positions or self.addition.positions
        match arm.kind:
            case ArmKind.BASELINE:
                return ()
            case ArmKind.ABLATION:
                return (Ablate(self._direction(arm), spared=self.spared),)
            case ArmKind.ADDITION:
                return (Add(self._direction(arm), coefficient, positions),)
            case ArmKind.SUBTRACTION:
                return (Add(self._direction(arm), -coefficient, positions),)
        own = ", ".join(str(a) for a in self.every() if not a.is_null)
        raise InputError(f"arm {arm} has no intervention. Use {own}, or null:FAMILY:DRAW:ablation or :addition.")

    def _direction(self, arm: ArmId) -> Direction:
        """The direction along which an arm intervenes."""
        if self.direction is None:
            raise InputError(f"arm {arm} needs a direction, and no candidate was selected. Use the arm baseline.")
        if arm.null_draw is None:
            return self.direction
        if arm.null_draw not in self._null_by_draw:
            drawn = ", ".join(sorted({n.family for n in self.nulls})) or "no null"
            raise InputError(f"arm {arm} was not drawn; the run drew {drawn}. Use a null that was drawn.")
        return self._null_by_draw[arm.null_draw].direction

    @cached_property
    def _null_by_draw(self) -> dict[tuple[str, int], Null]:
        return {(n.family, n.draw): n for n in self.nulls}

    # The arms of each stage

    def outcomes(self, label: Label, draws: Collection[int]) -> Arms:
        """Arms that complete test prompts: baseline, direction, then these comparable draws of each family, from 0.

        Subtraction acts on positives.
        """
        if self.direction is None:
            return self.arms([BASELINE])
        if label == "positive":
            # A null has no sign: its addition is also the null of the subtraction.
            subtracted = self._of_nulls(ArmKind.ADDITION, set(range(SUBTRACTED_DRAWS)) & set(draws))
            nulls = [*self._of_nulls(ArmKind.ABLATION, draws), *subtracted]
            return self.arms([BASELINE, ABLATION, SUBTRACTION, *nulls])
        other = ADDITION_PROMPT if self.addition.positions == "all" else ADDITION_ALL
        return self.arms([BASELINE, ADDITION, other, ABLATION, *self._of_nulls(ArmKind.ADDITION, draws)])

    def wide(self, label: Label) -> Arms:
        """Arms of the direction that the metric evaluates: ablation on positives, addition on negatives.

        Negatives have the ablation too.
        """
        return self.arms([BASELINE, ABLATION, *([] if label == "positive" else [ADDITION])])

    def doses(self, kind: DoseKind, doses: Sequence[float], draws: int) -> list[DoseArm]:
        """Every dose of the direction and of the first comparable draws of each null family."""
        assert self.direction is not None
        positions = self.addition.positions
        directions = {DIRECTION: self.direction}
        directions |= {ArmId.null(n.family, n.draw): n.direction for n in self._comparable(range(draws))}
        arms = []
        for arm, direction in directions.items():
            for dose in doses:
                if kind == "ablation":
                    intervention = Ablate(direction, dose, self.spared)
                else:
                    intervention = Add(direction, dose, positions)
                arms.append(DoseArm(arm, kind, dose, Arm(f"{arm} {kind} {dose}", (intervention,))))
        return arms

    def losses(self, families: Sequence[str]) -> Arms:
        """Arms under which losses are measured: those of the direction, and the first comparable draw of each family.

        Subtraction is the paper's bypass by addition.
        """
        firsts = [(n.family, n.draw) for n in self._comparable((0,)) if n.family in families]
        kinds = (ArmKind.ABLATION, ArmKind.ADDITION)
        nulls = [ArmId.null(*first, kind) for first in firsts for kind in kinds]
        return self.arms([BASELINE, ABLATION, ADDITION, SUBTRACTION, *nulls])

    def conditions(self, label: Label, draws: Collection[int]) -> Arms:
        """Arms under another system prompt: baseline, direction, then these comparable draws of each family, from 0.

        Ablation acts on both classes, addition on negatives. Nulls are ablated on positives and added on negatives.
        """
        if self.direction is None:
            return self.arms([BASELINE])
        if label == "positive":
            return self.arms([BASELINE, ABLATION, *self._of_nulls(ArmKind.ABLATION, draws)])
        return self.arms([BASELINE, ABLATION, ADDITION, *self._of_nulls(ArmKind.ADDITION, draws)])

    def every(self) -> list[ArmId]:
        """Identities of all arms that a finished run can be evaluated under."""
        if self.direction is None:
            return [BASELINE]
        kinds = (ArmKind.ABLATION, ArmKind.ADDITION)
        nulls = [ArmId.null(n.family, n.draw, kind) for n in self.nulls for kind in kinds]
        return [BASELINE, ABLATION, ADDITION, ADDITION_ALL, ADDITION_PROMPT, SUBTRACTION, *nulls]

    def _of_nulls(self, kind: ArmKind, draws: Collection[int]) -> list[ArmId]:
        return [ArmId.null(n.family, n.draw, kind) for n in self._comparable(draws)]

    def _comparable(self, draws: Collection[int]) -> list[Null]:
        """The comparable draws of every family at these places, from 0."""
        families: dict[str, list[Null]] = {}
        for null in self.nulls:
            if is_comparable(null.cosine, self.same_cosine):
                families.setdefault(null.family, []).append(null)
        return [null for some in families.values() for place, null in enumerate(some) if place in draws]
