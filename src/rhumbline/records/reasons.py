"""Reasons as data: why a candidate was discarded, why nothing was selected, why the token metric has no tokens."""

from enum import StrEnum


class Discard(StrEnum):
    """Why a candidate was left out of the choice, in the order in which a rule tests it."""

    TOO_LATE = "too late"
    NO_DIFFERENCE = "no difference"
    NOT_FINITE = "not finite"
    """The candidate or one of its scores overflowed."""
    KL_TOO_LARGE = "kl too large"
    DOES_NOT_INDUCE = "does not induce"
    LOSES_CONTENT = "loses content"
    WITHIN_NOISE = "within noise"
    """The interval of its swing contains 0."""
    NOT_SCORED = "not scored"
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
    Discard.WITHIN_NOISE: "swing within its noise",
    Discard.NOT_SCORED: "a score is missing",
    Discard.NOT_NEEDED: "KL score not needed for the selection",
    Discard.SCREENED: "not among the best first-order estimates",
}


class NoCandidate(StrEnum):
    """Why nothing was selected."""

    ALL_DISCARDED = "all candidates discarded"
    NO_TOKENS = "no refusal tokens"
    """The token metric has no tokens (metric.json has the reason), so nothing was scored."""
    NO_BASELINE = "no baseline"
    """The continuous score does not separate the classes at baseline, so nothing was scored."""
    NO_PROMPTS = "no prompt left after filtering"
    """The sign of the metric kept no prompt of some class (extraction.json has the numbers)."""

    @classmethod
    def _missing_(cls, value: object) -> "NoCandidate | None":
        # Version 0.1: "no candidate passed: 3 too late, 1 kl too large".
        _, prefix, details = str(value).partition("no candidate passed: ")
        if not prefix:
            return None
        return next((code for code in cls if details.startswith(code)), cls.ALL_DISCARDED)


TOKEN_ADVICE = "Pass other first tokens of the behaviour (--refusal-tokens), or use more training prompts (--sizes)."


class TokensLacking(StrEnum):
    """Why the token metric has no tokens."""

    NOT_SHOWN = "no training positive showed the behaviour at baseline"
    NOT_SEPARATING = "no first token of a refusal separates the classes"
    NOT_LIKELIER = "no first token is likelier after the positives"
    AFTER_BLOCK = "most refusals follow a block, such as a think block, that differs between prompts"

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        if self is TokensLacking.AFTER_BLOCK:
            return "Turn off thinking (--thinking off), or pass a template that closes the block (--chat-template)."
        return TOKEN_ADVICE

    @classmethod
    def _missing_(cls, value: object) -> "TokensLacking | None":
        # Version 0.1: "none of 12 training positives showed the behaviour at baseline".
        return cls.NOT_SHOWN if str(value).endswith("training positives showed the behaviour at baseline") else None
