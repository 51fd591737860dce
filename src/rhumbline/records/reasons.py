"""Reasons as data."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from rhumbline.records.arms import ArmId
from rhumbline.records.shared import EffectName, Label


class Discard(StrEnum):
    """Why a candidate was left out of the choice, in the order in which a rule tests it."""

    TOO_LATE = "too late"
    NO_DIFFERENCE = "no difference"
    NOT_FINITE = "not finite"
    """The candidate or one of its scores overflowed."""
    KL_TOO_LARGE = "kl too large"
    DOES_NOT_INDUCE = "does not induce"
    LOSES_CONTENT = "loses content"
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
    Discard.NOT_SCORED: "a score is missing",
    Discard.NOT_NEEDED: "KL score not needed for the selection",
    Discard.SCREENED: "not among the best first-order estimates",
}


class NoCandidate(StrEnum):
    """Why nothing was selected."""

    ALL_DISCARDED = "all candidates discarded"
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


class VerdictCode(StrEnum):
    """Why a verdict was reached."""

    # NO-BASELINE
    BASELINE_NOT_MEASURED = "baseline-not-measured"
    """The rate of the positives at baseline is unknown."""
    BASELINE_TOO_LOW = "baseline-too-low"
    """The rate (or level) `value` of the positives at baseline is below `bound`."""
    CLASSES_NOT_MEASURED = "classes-not-measured"
    """The AUROC of the continuous score between the classes is unknown."""
    CLASSES_NOT_SEPARATED = "classes-not-separated"
    """The lower end `value` of the 95 % interval of that AUROC is below `bound`."""
    # NOT-SINGLE-DIRECTION
    NO_CANDIDATE = "no-candidate"
    """No candidate was selected, because of `no_candidate`."""
    EFFECT_NOT_MEASURED = "effect-not-measured"
    """The size of `effect` is unknown."""
    NEITHER_EFFECT = "neither-effect"
    """Both effects are below `bound`."""
    ONE_EFFECT_ONLY = "one-effect-only"
    """`effect` is below `bound`; the other effect reaches it."""
    EFFECT_TOO_SMALL = "effect-too-small"
    """`effect` is below `bound`; the other effect is undecided or was not tested."""
    NULL_NOT_MEASURED = "null-not-measured"
    """The gap or the rank to `family` is unknown: for `effect`, or for every tested effect."""
    NULL_NOT_SEPARATED = "null-not-separated"
    """The estimated gap to `family` is below `bound`: for `effect`, or for every tested effect."""
    NULL_INTERVAL_NOT_SEPARATED = "null-interval-not-separated"
    """The interval of the gap to `family` is below `bound`, or the rank `p` is too large."""
    SEVERAL_DIRECTIONS = "several-directions"
    """The directions of two groups of positives have the cosine `value`, below `bound`."""
    SEEDS_DISAGREE = "seeds-disagree"
    """The seeds have different verdicts (`verdicts`), and not only inconclusive ones."""
    # DAMAGED
    DEGENERATE = "degenerate"
    """The share of degenerate completions of `label` rises by `value` under `arm`, above `bound`."""
    KL_TOO_LARGE = "kl-too-large"
    """Ablation changes the next-token distribution of negatives by `value` nats on average, above `bound`."""
    ANSWERS_LOST = "answers-lost"
    """The share of right answers on negatives falls by `value` under ablation, above `bound`."""
    CONTENT_LOST = "content-lost"
    """The share of the content that completions of `label` keep falls by `value` under `arm`, above `bound`."""
    # INCONCLUSIVE
    EFFECT_UNDECIDED = "effect-undecided"
    """The interval of a rate contains `bound`; `prompts` per class would decide it (None: no practical number)."""
    LEVEL_UNDECIDED = "level-undecided"
    """The interval of a level contains `bound`."""
    GAP_UNDECIDED = "gap-undecided"
    """The interval of the gap of `effect` to `family` contains `bound`."""
    NARROW_CONE = "narrow-cone"
    """The cosine `value` of two groups of positives is below `bound`: one direction, or a narrow cone of several."""
    NO_ROOM = "no-room"
    """Suppression is shown. Induction is not testable: the rate `value` of negatives at baseline is above `bound`."""
    METRIC_NOT_SEPARATING = "metric-not-separating"
    """The judge separates the classes at baseline, but the AUROC `value` of the metric is below `bound`."""
    NOT_EVERY_SEED = "not-every-seed"
    """Some seeds are inconclusive and the others reproduce (`verdicts`)."""


class SeedVerdicts(Struct, frozen=True):
    """The seeds with one verdict."""

    verdict: str
    seeds: tuple[int, ...]


class VerdictReason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reason of a verdict. A field that the code does not use is None; `effect` None: both, or not an effect."""

    code: VerdictCode
    seed: int | None = None
    effect: EffectName | None = None
    family: str | None = None
    arm: ArmId | None = None
    label: Label | None = None
    value: float | None = None
    """A rate, a change of the rate, a cosine, an AUROC, a share, or KL in nats, with its 95 % interval."""
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    """The margin or bound of the rule, in the unit of `value`."""
    p: float | None = None
    prompts: int | None = None
    """Prompts per class that would decide an undecided effect."""
    no_candidate: NoCandidate | None = None
    lacking: TokensLacking | None = None
    """Why the token metric has no tokens; for NO_TOKENS."""
    counts: Mapping[Discard, int] | None = None
    """Number of candidates by the reason for which they were discarded."""
    sets: tuple[str, ...] = ()
    """Splits and classes without prompts after filtering, such as `train positive`."""
    verdicts: tuple[SeedVerdicts, ...] = ()

    @property
    def text(self) -> str:
        """The reason as a short clause."""
        match self.code:
            case VerdictCode.BASELINE_NOT_MEASURED:
                return "baseline not measured"
            case VerdictCode.BASELINE_TOO_LOW:
                return f"baseline {_comparison(self.value, '<', self.bound)}"
            case VerdictCode.CLASSES_NOT_MEASURED:
                return "classes not measured"
            case VerdictCode.CLASSES_NOT_SEPARATED:
                area = _comparison(self.value, "<", self.bound)
                return f"score does not tell the classes apart: AUROC at least {area}"
            case VerdictCode.METRIC_NOT_SEPARATING:
                area = _comparison(self.value, "<", self.bound)
                return f"not measured, the metric does not separate the classes: AUROC {area}"
            case VerdictCode.NO_CANDIDATE:
                return f"no candidate passed: {self._no_candidate()}" if self.no_candidate else "no candidate passed"
            case VerdictCode.SEVERAL_DIRECTIONS:
                return f"spread: {self._groups()}"
            case VerdictCode.NARROW_CONE:
                return f"one direction or a narrow cone of several: {self._groups()} < {self.bound:g}"
            case VerdictCode.NO_ROOM:
                return f"suppresses; induction has no room: {self.negatives}"
            case VerdictCode.SEEDS_DISAGREE:
                return f"seeds disagree: {self._verdicts()}"
            case VerdictCode.NOT_EVERY_SEED:
                return f"not every seed decides: {self._verdicts()}"
            case VerdictCode.DEGENERATE:
                return f"{self.value:.2f} degenerate under {self.arm} on {self.label}s > {self.bound:g}"
            case VerdictCode.KL_TOO_LARGE:
                return f"KL {self.value:.2f} > {self.bound:g} under ablation on negatives"
            case VerdictCode.ANSWERS_LOST:
                return f"{self.value:.2f} of the right answers lost under ablation > {self.bound:g}"
            case VerdictCode.CONTENT_LOST:
                return f"{self.value:.2f} of the content lost under {self.arm} on {self.label}s > {self.bound:g}"
            case _:
                return self._effect()

    @property
    def advice(self) -> str | None:
        """What a user can do about a missing or unusable metric; None for other reasons."""
        if self.code is VerdictCode.METRIC_NOT_SEPARATING:
            return TOKEN_ADVICE
        return None if self.lacking is None else self.lacking.advice

    @property
    def negatives(self) -> str:
        """Reason NO_ROOM without the conclusion: the rate of the negatives at baseline."""
        return f"negatives have {_comparison(self.value, '>', self.bound)} at baseline"

    def _effect(self) -> str:
        only = f" ({self.effect})" if self.effect else ""
        is_suppression = self.effect == "suppression"
        match self.code:
            case VerdictCode.EFFECT_NOT_MEASURED:
                return f"{self.effect} not measured"
            case VerdictCode.NEITHER_EFFECT:
                return "neither suppresses nor induces"
            case VerdictCode.ONE_EFFECT_ONLY:
                return "induces only" if is_suppression else "suppresses only"
            case VerdictCode.EFFECT_TOO_SMALL:
                return "does not suppress" if is_suppression else "does not induce"
            case VerdictCode.NULL_NOT_MEASURED:
                return f"null not measured: {self.family}{only}"
            case VerdictCode.NULL_NOT_SEPARATED:
                return f"not separated from null: {self.family}{only}"
            case VerdictCode.NULL_INTERVAL_NOT_SEPARATED:
                return f"NOT-SEPARATED-FROM-NULL: {self.family}{only}"
            case VerdictCode.GAP_UNDECIDED:
                return f"gap of {self.effect} to {self.family} nulls"
        undecided = (
            f"{self.effect} undecided: {self.value:.2f} [{self.low:.2f}, {self.high:.2f}] around {self.bound:.2f}"
        )
        if self.code is VerdictCode.LEVEL_UNDECIDED:
            return undecided
        n = f"about {self.prompts} prompts per class" if self.prompts else "no practical number of prompts"
        return f"{undecided}; {n} would settle it"

    def _no_candidate(self) -> str:
        if self.no_candidate is NoCandidate.ALL_DISCARDED:
            return ", ".join(f"{n} {code}" for code, n in sorted((self.counts or {}).items()))
        if self.lacking is not None:
            return f"not measured, {self.no_candidate}: {self.lacking}"
        return f"{self.no_candidate} in {', '.join(self.sets)}" if self.sets else str(self.no_candidate)

    def _groups(self) -> str:
        return f"two groups of positives have directions with cosine {self.value:.2f}"

    def _verdicts(self) -> str:
        return ", ".join(f"{v.verdict} (seed {' '.join(map(str, v.seeds))})" for v in self.verdicts)


def reason_text(reasons: Sequence[VerdictReason]) -> str:
    """The reasons of a verdict in one line; empty without reasons.

    Reasons of several seeds are listed seed by seed, or once if the text is the same for all seeds.
    """
    by_seed: dict[int | None, list[str]] = {}
    for reason in reasons:
        by_seed.setdefault(reason.seed, []).append(reason.text)
    texts = {seed: "; ".join(some) for seed, some in by_seed.items()}
    if len(set(texts.values())) > 1:
        return "; ".join(f"seed {seed}: {text}" for seed, text in texts.items())
    return next(iter(texts.values()), "")


def _comparison(value: float | None, sign: str, bound: float | None) -> str:
    """For example `0.40 < 0.50`, with enough digits to distinguish the two numbers."""
    digits = next(d for d in range(2, 11) if d == 10 or f"{value:.{d}f}" != f"{bound:.{d}f}")
    return f"{value:.{digits}f} {sign} {bound:.{digits}f}"
