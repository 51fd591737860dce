"""Which arms an effect compares, and the outcomes of a seed by arm and class.

Independent of scores and margins.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rhumbline.errors import VerificationError
from rhumbline.records.arms import ABLATION, ADDITION, SUBTRACTION, ArmId, ArmKind
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
