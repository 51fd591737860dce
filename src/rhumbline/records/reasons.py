"""Reasons as data: why a candidate was discarded, why nothing was selected, why the token metric has no tokens.

    Discard          why a candidate was left out of the choice     selection.json, candidates[].discarded
    NoCandidate      why nothing was selected                       selection.json, reason
    TokensLacking    why the token metric has no tokens             metric.json, reason

A reason is a code. Its numbers are other fields of the same file. Files of version 0.1 hold sentences, which are read
as their codes. Why a verdict was reached is in verdict_reasons.py. Independent of rules, models and rows.
"""

from enum import StrEnum


class Discard(StrEnum):
    """Why a candidate was left out of the choice, in the order in which a rule tests it."""

    TOO_LATE = "too late"
    """Its layer is at or above the rule's layer cut."""
    NO_DIFFERENCE = "no difference"
    """The class means agree: the norm of the candidate is zero up to rounding."""
    NOT_FINITE = "not finite"
    """The candidate or one of its scores overflowed."""
    KL_TOO_LARGE = "kl too large"
    """Its KL exceeds the rule's bound."""
    DOES_NOT_INDUCE = "does not induce"
    """Its induce score is below the rule's bound."""
    LOSES_CONTENT = "loses content"
    """The share of the content that is left is below the rule's bound."""
    NOT_SCORED = "not scored"
    """A score that the rule needs was not computed."""
    NOT_NEEDED = "not needed"
    """It passed so far; its KL cannot change the choice and was not computed."""
    SCREENED = "screened"
    """Its first-order estimates are not among the best, and a better one passes."""

    @classmethod
    def _missing_(cls, value: object) -> "Discard | None":
        # Version 0.1 wrote the numbers too: "kl too large (0.23 > 0.1)".
        kind, parenthesis, _ = str(value).partition(" (")
        return cls(kind) if parenthesis else None

    @property
    def text(self) -> str:
        """The reason in words."""
        return _DISCARD_TEXTS[self]


_DISCARD_TEXTS = {
    Discard.TOO_LATE: "layer at or above the layer cut",
    Discard.NO_DIFFERENCE: "equal class means",
    Discard.NOT_FINITE: "a score is not finite",
    Discard.KL_TOO_LARGE: "KL score above the bound",
    Discard.DOES_NOT_INDUCE: "induce score below the bound",
    Discard.LOSES_CONTENT: "content below the bound",
    Discard.NOT_SCORED: "a score is missing",
    Discard.NOT_NEEDED: "KL score not needed for the selection",
    Discard.SCREENED: "not among the best first-order estimates",
}


class NoCandidate(StrEnum):
    """Why nothing was selected."""

    ALL_DISCARDED = "all candidates discarded"
    """Every candidate was discarded; each has its reason."""
    NO_TOKENS = "no refusal tokens"
    """The token metric has no tokens (metric.json has the reason), so nothing was scored."""
    NO_PROMPTS = "no prompt left after filtering"
    """The sign of the metric kept no prompt of some class (extraction.json has the numbers)."""

    @classmethod
    def _missing_(cls, value: object) -> "NoCandidate | None":
        # Version 0.1: "no candidate passed: 3 too late, 1 kl too large".
        _, prefix, details = str(value).partition("no candidate passed: ")
        if not prefix:
            return None
        return next((code for code in cls if details.startswith(code)), cls.ALL_DISCARDED)


class TokensLacking(StrEnum):
    """Why the token metric has no tokens."""

    NOT_SHOWN = "no training positive showed the behaviour at baseline"
    NOT_SEPARATING = "no first token of a refusal separates the classes"
    NOT_LIKELIER = "no first token is likelier after the positives"

    @classmethod
    def _missing_(cls, value: object) -> "TokensLacking | None":
        # Version 0.1: "none of 12 training positives showed the behaviour at baseline".
        return cls.NOT_SHOWN if str(value).endswith("training positives showed the behaviour at baseline") else None
