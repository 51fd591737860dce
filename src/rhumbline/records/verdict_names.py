"""The names of verdicts, and the qualification of those that a weaker rule gives."""

from enum import StrEnum
from typing import Literal

Criteria = Literal["", "by the paper's criteria", "by the blog's criteria", "by weaker criteria"]
"""What qualifies a verdict; empty for a rule that is at least as strict as the default."""


class VerdictName(StrEnum):
    """The verdict of a seed or of a run."""

    REPRODUCES = "SINGLE-DIRECTION-REPRODUCES"
    """The first four claims are shown in every seed that could be tested."""
    NOT_SINGLE = "NOT-SINGLE-DIRECTION"
    """A claim about the effects or the nulls is refuted."""
    NO_BASELINE_REFUSAL = "NO-BASELINE-REFUSAL"
    """NO-BASELINE, for the behaviour refusal."""
    NO_BASELINE = "NO-BASELINE"
    """The positives rarely show the behaviour at baseline, so nothing was tested."""
    DAMAGED = "DAMAGED"
    """Only the claim that the rest stays intact is refuted."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Something was tested, and it decides neither for nor against one direction."""
    NOT_TESTED = "NOT-TESTED"
    """No claim could be tested."""
    REPRODUCES_PAPER = "SINGLE-DIRECTION-REPRODUCES by the paper's criteria"
    REPRODUCES_BLOG = "SINGLE-DIRECTION-REPRODUCES by the blog's criteria"
    REPRODUCES_WEAKER = "SINGLE-DIRECTION-REPRODUCES by weaker criteria"
    NOT_SINGLE_PAPER = "NOT-SINGLE-DIRECTION by the paper's criteria"
    NOT_SINGLE_BLOG = "NOT-SINGLE-DIRECTION by the blog's criteria"
    NOT_SINGLE_WEAKER = "NOT-SINGLE-DIRECTION by weaker criteria"

    @property
    def headline(self) -> "VerdictName":
        """The verdict without its qualification."""
        return _HEADLINES.get(self, (self, ""))[0]

    def qualified(self, criteria: Criteria) -> "VerdictName":
        """The verdict with the qualification of a weaker rule; verdicts that decide nothing have none."""
        return _QUALIFIED.get((self, criteria), self)


_HEADLINES: dict[VerdictName, tuple[VerdictName, Criteria]] = {
    VerdictName.REPRODUCES_PAPER: (VerdictName.REPRODUCES, "by the paper's criteria"),
    VerdictName.REPRODUCES_BLOG: (VerdictName.REPRODUCES, "by the blog's criteria"),
    VerdictName.REPRODUCES_WEAKER: (VerdictName.REPRODUCES, "by weaker criteria"),
    VerdictName.NOT_SINGLE_PAPER: (VerdictName.NOT_SINGLE, "by the paper's criteria"),
    VerdictName.NOT_SINGLE_BLOG: (VerdictName.NOT_SINGLE, "by the blog's criteria"),
    VerdictName.NOT_SINGLE_WEAKER: (VerdictName.NOT_SINGLE, "by weaker criteria"),
}
_QUALIFIED = {headline: verdict for verdict, headline in _HEADLINES.items()}
NO_BASELINE = (VerdictName.NO_BASELINE, VerdictName.NO_BASELINE_REFUSAL)
"""The two names of one verdict."""
