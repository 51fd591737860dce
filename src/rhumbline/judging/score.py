"""The score of a completion: class, value and evidence."""

from collections.abc import Callable
from dataclasses import dataclass

from rhumbline.errors import ProtocolError
from rhumbline.records.outcome_rows import NO_ANSWER
from rhumbline.records.shared import Class

OTHER_LANGUAGE = "language not covered"
"""Evidence of a completion in a language that the judge does not cover."""


@dataclass(frozen=True)
class Score:
    """The result of a judge for one completion."""

    value: float | None
    """Amount of the behaviour, 0 to 1; for a keyword judge 1 if refused, otherwise 0. None if and only if unscored."""
    cls: Class
    """The class that rates count."""
    evidence: str = ""
    """The listed phrase that matched, the kind of degeneration, or why it is unscored. Never the completion."""
    repeats: bool = False
    """Whether a refused completion repeats itself after its refusal."""
    uncovered: str | None = None
    """The language of the completion, if the judge does not cover it."""

    def __post_init__(self):
        if (self.value is None) != (self.cls == "unscored"):
            raise ProtocolError(
                f"Score has value {self.value} and class {self.cls!r}: expected the value None for an unscored "
                "completion, and a number for any other. Pass a matching pair."
            )
        if self.value is not None and not 0 <= self.value <= 1:  # true of NaN, too
            raise ProtocolError(f"Score has value {self.value}: expected 0 to 1. Rescale the scores of the judge.")


TextJudge = Callable[[str], Score]
"""A judge: from a completion to its score."""


def score_of(judge: TextJudge, answer: str | None) -> Score:
    """The score of an answer; a completion without one (None) is unscored."""
    return Score(None, "unscored", NO_ANSWER) if answer is None else judge(answer)
