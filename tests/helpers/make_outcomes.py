"""Outcomes as records: one completion, or one for each letter of a text."""

from typing import Any

from rhumbline.records.arms import ArmId
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import Class, Label

LETTERS: dict[str, Class] = {
    "r": "refused",
    "c": "complied",
    "s": "shown",
    "a": "absent",
    "d": "degenerate",
    "u": "unscored",
}


def outcome(arm: str, side: Label, prompt_id: str, cls: Class, **fields: Any) -> Outcome:
    """One outcome; the fields that are not given have neutral values."""
    neutral = {"score": None, "evidence": "", "metric": None, "new_tokens": 0, "category": None}
    return Outcome(arm=ArmId.parse(arm), side=side, prompt_id=prompt_id, cls=cls, **{**neutral, **fields})


def outcomes_of(arm: str, side: Label, letters: str, metric: float | None = None) -> list[Outcome]:
    """One outcome for each letter; prompts are numbered, so that arms on the same side are paired."""
    return [outcome(arm, side, f"{side}-{i}", LETTERS[c], metric=metric) for i, c in enumerate(letters)]
