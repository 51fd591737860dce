"""The claims of a verdict as records: a statement that the rule tests, its state, its number and its reasons.

`results.json` holds the claims of every seed and of the run; the verdict follows from them. Independent of rules and
rows.
"""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct, field

from rhumbline.records.verdict_reasons import ClaimState, VerdictReason


class ClaimKind(StrEnum):
    """What is claimed of the selected direction."""

    SUPPRESSES = "suppresses"
    """Its ablation removes the behaviour on positives."""
    INDUCES = "induces"
    """Its addition makes negatives show the behaviour."""
    BEATS_NULLS = "beats-nulls"
    """Both effects exceed those of every null family of the rule."""
    LEAVES_INTACT = "intact"
    """The interventions change little else."""
    STABLE = "stable"
    """Refits on resampled prompts, and other seeds, give nearly the same direction."""
    UNIQUE = "unique"
    """No second direction, orthogonal to it, has the same effects."""

    @property
    def text(self) -> str:
        """The claim in words."""
        return _TEXTS[self]


_TEXTS = {
    ClaimKind.SUPPRESSES: "suppresses",
    ClaimKind.INDUCES: "induces",
    ClaimKind.BEATS_NULLS: "beats its nulls",
    ClaimKind.LEAVES_INTACT: "leaves the rest intact",
    ClaimKind.STABLE: "stable",
    ClaimKind.UNIQUE: "unique",
}

EFFECT_CLAIMS = (ClaimKind.SUPPRESSES, ClaimKind.INDUCES, ClaimKind.BEATS_NULLS)
"""The claims whose refutation gives NOT-SINGLE-DIRECTION."""
DECISIVE_CLAIMS = (*EFFECT_CLAIMS, ClaimKind.LEAVES_INTACT)
"""The claims that SINGLE-DIRECTION-REPRODUCES needs."""


class Claim(Struct, frozen=True, kw_only=True):
    """One claim, decided by the rule.

    The number is that of the weakest condition, which is nearest to its margin if the claim is shown, and misses it by
    most otherwise: a relative change of the behaviour for the effects, the smallest relative gap to a null family, the
    largest damage in units of its bound, the mean cosine with the refits.
    """

    kind: ClaimKind = field(name="claim")
    state: ClaimState = field(name="status")
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    """Margin or bound of the rule."""
    n: int = 0
    """Prompts, or refits, that the number rests on."""
    reason: str = ""
    """Text of the reasons."""
    reasons: tuple[VerdictReason, ...] = ()
    """The conditions that decide the state."""

    @property
    def number(self) -> str:
        """The number with its interval and n; empty if it was not measured."""
        if self.value is None:
            return ""
        ends = "" if self.low is None or self.high is None else f" [{self.low:z.2f}, {self.high:z.2f}]"
        return f"{self.value:z.2f}{ends}, n = {self.n}"

    @property
    def text(self) -> str:
        """Claim, state and number."""
        return f"{self.kind.text} {self.state.text} {self.number}".strip()


def claim_of(kind: ClaimKind, claims: Sequence[Claim]) -> Claim:
    """The claim of a kind."""
    return next(claim for claim in claims if claim.kind is kind)


def beyond_one(claims: Sequence[Claim]) -> str | None:
    """Why intervals of shares end above 1; None if none does."""
    ends = (claim.high for claim in claims if claim.kind in EFFECT_CLAIMS)
    if not any(end is not None and end > 1 for end in ends):
        return None
    return (
        "Intervals that end above 1: a share is at most 1, and its interval is widened for differences between "
        "categories of prompts. A gap can exceed 1, because nulls can increase the behaviour; so can the change of a "
        "level."
    )


def was_tested(claims: Sequence[Claim]) -> bool:
    """Whether a claim that decides the headline was tested."""
    return any(claim.state is not ClaimState.NOT_TESTED for claim in claims if claim.kind in DECISIVE_CLAIMS)


def reasons_once(claims: Sequence[Claim]) -> list[str]:
    """The texts of the reasons for a table: a text that an earlier claim has too is empty."""
    texts = [claim.reason for claim in claims]
    return ["" if text in texts[:i] else text for i, text in enumerate(texts)]
