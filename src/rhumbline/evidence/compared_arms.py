"""Which arms an effect compares, and the outcomes of a seed by arm and class.

Independent of scores and margins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from rhumbline.errors import VerificationError
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, SUBTRACTION, ArmId, ArmKind
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import EffectName, Label


class ComparedArms(NamedTuple):
    """One effect: a change of the behaviour on one class of prompts, from the baseline to an arm."""

    name: EffectName
    arm: ArmId
    """The arm of the direction."""
    label: Label
    """The class of the prompts."""
    sign: int
    """1 for a fall, -1 for a rise: sign * (baseline - arm) is positive in the expected direction."""

    def has_null(self, arm: ArmId) -> bool:
        """Whether the arm is the same intervention with a null. A null has no sign: its addition is its subtraction."""
        kind = ArmKind.ADDITION if self.arm.kind is ArmKind.SUBTRACTION else self.arm.kind
        return arm.is_null and arm.kind is kind


EFFECTS = (ComparedArms("suppression", ABLATION, "positive", 1), ComparedArms("induction", ADDITION, "negative", -1))
"""Ablation on positives, and addition on negatives."""
SUBTRACTS = ComparedArms("subtraction", SUBTRACTION, "positive", 1)
"""Subtraction on positives, the paper's bypass by activation addition. No claim uses it."""


def arms_of(name: EffectName) -> ComparedArms:
    """The arms of suppression or of induction."""
    return next(arms for arms in EFFECTS if arms.name == name)


NullDraw = tuple[str, int]
"""Family and draw of a null."""


@dataclass(frozen=True)
class NullComparison:
    """How the null draws of a seed are compared with the direction."""

    aligned: frozenset[NullDraw] = frozenset()
    """Draws that are not compared, because they lie along the direction."""
    ineffective: frozenset[ArmId] = frozenset()
    """Arms of draws that count as if they had not been run: the selection found no direction in the draw, or its
    ablation damages the model more than the rule permits and more than that of the direction does."""
    least_draws: int = 0
    """p is unknown with fewer comparable draws."""

    def n_ineffective(self, arms: Iterable[ArmId]) -> int | UnsetType:
        """How many of some arms are ineffective; UNSET if none is."""
        return sum(arm in self.ineffective for arm in arms) or UNSET


EVERY_DRAW = NullComparison()
"""Every draw is compared as it was measured."""

OutcomeTable = Mapping[tuple[ArmId, Label], Mapping[str, Outcome]]
"""Outcomes by arm and class, then by prompt id, in the order of the rows."""


def outcomes_by_arm(outcomes: Iterable[Outcome]) -> OutcomeTable:
    """The outcomes of a seed as a table. Raises VerificationError for a repeated row."""
    table: dict[tuple[ArmId, Label], dict[str, Outcome]] = {}
    for row in outcomes:
        prompts = table.setdefault((row.arm, row.side), {})
        if row.prompt_id in prompts:
            raise VerificationError(
                f"The outcome of arm {row.arm} on the {row.side} prompt {row.prompt_id} occurs twice. Keep one row for "
                "each arm and prompt."
            )
        prompts[row.prompt_id] = row
    return table


def as_compared(table: OutcomeTable, nulls: NullComparison) -> OutcomeTable:
    """The same outcomes, in which those of ineffective arms are the outcomes of the baseline on their prompts."""

    def rows_of(arm: ArmId, label: Label, rows: Mapping[str, Outcome]) -> Mapping[str, Outcome]:
        if arm not in nulls.ineffective:
            return rows
        baseline = table.get((BASELINE, label), {})
        return {prompt: baseline.get(prompt, row) for prompt, row in rows.items()}

    return {(arm, label): rows_of(arm, label, rows) for (arm, label), rows in table.items()}
