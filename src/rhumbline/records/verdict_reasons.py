"""Reasons of a verdict as data: a code with its numbers, and the only place that turns them into text.

`results.json` holds the reasons of every seed and of the run, and next to them their text as `reason`. Independent of
rules and rows.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from rhumbline.records.arms import ArmId
from rhumbline.records.reasons import TOKEN_ADVICE, Discard, NoCandidate, TokensLacking
from rhumbline.records.shared import EffectName, Label

DAMAGE_ADVICE = "`rhumbline analyze damage RUN` measures the KL divergence by position and layer"
"""The next step if an ablation, or those of candidates, change the next token of negatives too much."""


class ClaimState(StrEnum):
    """What the evidence says of a claim, or of one condition of it."""

    SHOWN = "shown"
    """The whole interval reaches the margin."""
    REFUTED = "refuted"
    """The whole interval misses the margin."""
    UNDECIDED = "undecided"
    """The interval contains the margin."""
    NOT_TESTED = "not-tested"
    """A quantity was not measured, or the rule has no bound for it."""

    @property
    def text(self) -> str:
        """The state in words."""
        return self.value.replace("-", " ")


class VerdictCode(StrEnum):
    """Why a verdict was reached, or what decides the state of a claim."""

    # conditions of claims; the state of the reason says whether they are met
    EFFECT_SIZE = "effect-size"
    """Relative (or, for a rule that reads estimates, absolute) change by `effect`; `most` if degenerate completions
    count in its favour, and `prompts` that would decide it."""
    NULL_GAP = "null-gap"
    """`effect` minus its mean under the nulls of `family`; `draws` were completed."""
    NULL_RANK = "null-rank"
    """`beaten` of `draws` comparable draws of `family` change the metric by at least as much as `effect`: rank `p`."""
    TOO_FEW_DRAWS = "too-few-draws"
    """`family` has `draws` comparable draws, fewer than `bound`."""
    OVER_REFUSAL = "over-refusal"
    """Rise of the rate of the behaviour on `label` under `arm`."""
    REFIT_COSINE = "refit-cosine"
    """Cosine of the refitted directions with the direction; the interval contains 95 % of the refits."""
    SEED_COSINE = "seed-cosine"
    """Smallest cosine between the directions of two seeds; if it is refuted, of those with one site."""
    NOT_IN_RULE = "not-in-rule"
    """The rule has no bound for this claim."""
    NOT_MEASURED = "not-measured"
    """The run did not measure what the claim needs."""
    SECOND_DIRECTION = "second-direction"
    """No second direction was measured, or none passed the selection rule."""
    FIRST_NOT_SHOWN = "first-not-shown"
    """The second direction lacks an effect, and the effects of the first are not both shown."""
    SECOND_EFFECT = "second-effect"
    """Relative change by `effect` of the second direction, and the largest of its ranks `p`."""
    # nothing could be tested
    LABELS_NOT_INFORMATIVE = "labels-not-informative"
    """At baseline the rate of the positives exceeds that of the negatives by `value`, and the lower end of its
    interval is below `bound`."""
    # NO-BASELINE
    BASELINE_NOT_MEASURED = "baseline-not-measured"
    """The rate of the positives at baseline is unknown."""
    BASELINE_TOO_LOW = "baseline-too-low"
    """The rate (or level) `value` of the positives at baseline is below `bound`."""
    CLASSES_NOT_MEASURED = "classes-not-measured"
    """The AUROC of the continuous score between the classes is unknown."""
    CLASSES_NOT_SEPARATED = "classes-not-separated"
    """The lower end `value` of the 95 % interval of that AUROC is below `bound`."""
    # NOT-TESTED; up to version 4 of the rule NOT-SINGLE-DIRECTION
    NO_CANDIDATE = "no-candidate"
    """No candidate was selected, because of `no_candidate`."""
    # NOT-SINGLE-DIRECTION up to version 4; a quantity that is not measured is a claim that is not tested from 5 on
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
    """Ablation changes the next-token distribution of negatives by `value` nats on average, above `bound`; a refuted
    condition without a value: its logits are not finite."""
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
    state: ClaimState | None = None
    """Whether the condition is met. Absent up to version 4 of the rule."""
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
    most: float | None = None
    """Upper end of the interval if degenerate completions count in favour of the effect; absent if it is `high`."""
    n: int = 0
    """Prompts, refits or pairs of seeds that `value` rests on."""
    draws: int | None = None
    """Null draws of the family: completed ones for a gap, comparable ones for a rank."""
    beaten: int | None = None
    """Comparable draws that reach the effect."""
    p: float | None = None
    prompts: int | None = None
    """Prompts per class that would decide an undecided effect."""
    units: int | None = None
    """Categories of prompts that widen the interval."""
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
        if self.state is not None:
            return self._condition(self.state)
        match self.code:
            case VerdictCode.LABELS_NOT_INFORMATIVE:
                return (
                    f"at baseline positives exceed negatives by {self.value:.2f} [{self.low:.2f}, {self.high:.2f}], "
                    f"lower end < {self.bound:g}"
                )
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

    def _condition(self, state: ClaimState) -> str:
        """A condition of a claim: the quantity, its interval, and how it compares with its margin or bound."""
        where = f" under {self.arm} on {self.label}s" if self.arm else ""
        nulls = f"{self.family} nulls ({self.effect})"
        match self.code:
            case VerdictCode.EFFECT_SIZE:
                if_counted = (
                    f" (up to {self.most:.2f} if degenerate completions count)" if self.most is not None else ""
                )
                text = f"{self.effect} {self._reached(state)}{if_counted}"
                if self.prompts:
                    return f"{text}; about {self.prompts} prompts per class would decide it"
                few = state is ClaimState.UNDECIDED and self.units is not None
                return f"{text}; the interval is over {self.units} categories of prompts" if few else text
            case VerdictCode.NULL_GAP:
                return f"gap to {nulls} {self._reached(state)}"
            case VerdictCode.NULL_RANK:
                sign = "<=" if state is ClaimState.SHOWN else ">"
                return f"{nulls}: {self.beaten} of {self.draws} draws reach it, p = {self.p:.3g} {sign} {self.bound:g}"
            case VerdictCode.TOO_FEW_DRAWS:
                return f"{nulls}: {self.draws} comparable draws, {self.bound:g} needed"
            case VerdictCode.EFFECT_NOT_MEASURED:
                return f"{self.effect} not measured"
            case VerdictCode.NULL_NOT_MEASURED:
                return f"{nulls} not measured"
            case VerdictCode.DEGENERATE:
                return f"more degenerate completions{where}: {self._bounded(state)}"
            case VerdictCode.KL_TOO_LARGE:
                is_broken = state is ClaimState.REFUTED and self.value is None
                text = f"KL under ablation on negatives: {'not finite' if is_broken else self._bounded(state)}"
                return f"{text}; {DAMAGE_ADVICE}" if state is ClaimState.REFUTED else text
            case VerdictCode.ANSWERS_LOST:
                return f"right answers lost{where}: {self._bounded(state)}"
            case VerdictCode.CONTENT_LOST:
                return f"content lost{where}: {self._bounded(state)}"
            case VerdictCode.OVER_REFUSAL:
                return f"more of the behaviour{where}: {self._bounded(state)}"
            case VerdictCode.REFIT_COSINE:
                return f"cosine with {self.n} refits {self._reached(state)}"
            case VerdictCode.SEED_COSINE if state is ClaimState.NOT_TESTED:
                return "only one seed has a direction"
            case VerdictCode.SEED_COSINE:
                site = " with one site" if state is ClaimState.REFUTED else ""
                return f"smallest cosine between seeds{site} {self._reached(state)}"
            case VerdictCode.NO_ROOM:
                return self.negatives
            case VerdictCode.NOT_IN_RULE:
                return "the rule has no bound"
            case VerdictCode.NOT_MEASURED:
                return "not measured"
            case VerdictCode.SECOND_DIRECTION if state is ClaimState.NOT_TESTED:
                return "no second direction was measured"
            case VerdictCode.SECOND_DIRECTION:
                return "no second direction passed the selection; this does not show that there is none"
            case VerdictCode.FIRST_NOT_SHOWN:
                return "the second direction lacks an effect, but the first one does not show both either"
            case VerdictCode.SECOND_EFFECT:
                rank = "" if self.p is None else f", p up to {self.p:.3g}"
                return f"second direction: {self.effect} {self._number}{rank}, margin {self.bound:g}"
        raise NotImplementedError(f"no text for {self.code} with a state")

    def _reached(self, state: ClaimState) -> str:
        signs = {ClaimState.SHOWN: ">=", ClaimState.REFUTED: "<"}
        return f"{self._number} {signs.get(state, 'around')} {self.bound:g}"

    def _bounded(self, state: ClaimState) -> str:
        if state is ClaimState.NOT_TESTED:
            return "not measured"
        signs = {ClaimState.SHOWN: "<=", ClaimState.REFUTED: ">"}
        return f"{self._number} {signs.get(state, 'around')} {self.bound:g}"

    @property
    def _number(self) -> str:
        """The value, with its interval if it has one."""
        if self.value is None:
            return "unknown"
        ends = "" if self.low is None or self.high is None else f" [{self.low:z.2f}, {self.high:z.2f}]"
        return f"{self.value:z.2f}{ends}"

    @property
    def advice(self) -> str | None:
        """What a user can do about a missing or unusable metric, or candidates with a large KL divergence; or None."""
        if self.code is VerdictCode.METRIC_NOT_SEPARATING:
            return TOKEN_ADVICE
        if (self.counts or {}).get(Discard.KL_TOO_LARGE):
            return f"The ablation of some candidates changed the next token of negatives too much; {DAMAGE_ADVICE}."
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
    """The reasons of a verdict in one line; empty without reasons."""
    by_seed = _texts_by_seed(reasons)
    texts = {seed: "; ".join(some) for seed, some in by_seed.items()}
    return "; ".join(f"seed {seed}: {text}" if seed is not None else text for seed, text in texts.items())


def reason_texts(reasons: Sequence[VerdictReason]) -> list[str]:
    """The reasons of a verdict, one text each with its seed; those of `reason_text`."""
    by_seed = _texts_by_seed(reasons)
    return [text if seed is None else f"seed {seed}: {text}" for seed, some in by_seed.items() for text in some]


def _texts_by_seed(reasons: Sequence[VerdictReason]) -> dict[int | None, list[str]]:
    """The texts by seed; under None if they do not depend on the seed.

    Reasons of several seeds are listed seed by seed, or once if the text is the same for all seeds. Of the same
    condition on several null families, that on the one with the smallest value is listed.
    """
    by_seed: dict[int | None, list[VerdictReason]] = {}
    for reason in reasons:
        by_seed.setdefault(reason.seed, []).append(reason)
    texts = {seed: _one_for_all_families(some) for seed, some in by_seed.items()}
    one = next(iter(texts.values()), [])
    return texts if any(some != one for some in texts.values()) else {None: one}


def _one_for_all_families(reasons: Sequence[VerdictReason]) -> list[str]:
    """The texts of reasons; those that differ in the null family only are one text."""
    alike: dict[tuple[object, ...], list[VerdictReason]] = {}
    for i, reason in enumerate(reasons):
        key = (i,) if reason.state is None or reason.family is None else (reason.code, reason.state, reason.effect)
        alike.setdefault(key, []).append(reason)
    texts = []
    for some in alike.values():
        weakest = min(some, key=lambda r: (r.value if r.value is not None else 0.0, -(r.p or 0.0)))
        others = f" (and {len(some) - 1} more families)" if len(some) > 1 else ""
        texts.append(weakest.text + others)
    return texts


def _comparison(value: float | None, sign: str, bound: float | None) -> str:
    """For example `0.40 < 0.50`, with enough digits to distinguish the two numbers."""
    digits = next(d for d in range(2, 11) if d == 10 or f"{value:.{d}f}" != f"{bound:.{d}f}")
    return f"{value:.{digits}f} {sign} {bound:.{digits}f}"
