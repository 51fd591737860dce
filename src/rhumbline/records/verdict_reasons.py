"""Why a verdict is what it is: one frozen record a reason, a code and its numbers, and its sentence."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from msgspec import Struct

from rhumbline.errors import InputError
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.shared import EffectName as Effect
from rhumbline.records.shared import Label


def _check(record: Struct, code: str, needs: Mapping[str, Sequence[str]]) -> None:
    """Refuse a record without the fields of its code, or with those of another."""
    fields = [name for name in record.__struct_fields__ if name != "code"]
    optional = {name.rstrip("?") for name in needs[code] if name.endswith("?")}
    wanted = {name for name in needs[code] if not name.endswith("?")}
    given = {name for name in fields if getattr(record, name) not in (None, ())}
    if lacking := sorted(wanted - given):
        raise InputError(f"reason {code} needs {', '.join(lacking)}.")
    if spare := sorted(given - wanted - optional):
        raise InputError(f"reason {code} has no {', '.join(spare)}.")


class VerdictCode(StrEnum):
    """Why a verdict is what it is; a verdict has none, one or several reasons."""

    # NO-BASELINE
    BASELINE_NOT_MEASURED = "baseline-not-measured"
    """There is no rate of the positives at baseline."""
    BASELINE_TOO_LOW = "baseline-too-low"
    """The rate (or level) `value` of the positives at baseline is below `bound`."""
    CLASSES_NOT_MEASURED = "classes-not-measured"
    """There is no AUROC of the continuous score between the classes."""
    CLASSES_NOT_SEPARATED = "classes-not-separated"
    """Its AUROC is at least `value` (95 %), below `bound`."""
    # NOT-SINGLE-DIRECTION
    NO_CANDIDATE = "no-candidate"
    """Nothing was selected; `no_candidate` says why."""
    EFFECT_NOT_MEASURED = "effect-not-measured"
    """`effect` has no value."""
    NEITHER_EFFECT = "neither-effect"
    """Both effects are refuted: below `bound`."""
    ONE_EFFECT_ONLY = "one-effect-only"
    """`effect` reaches `bound`, and the other one is refuted, with the value `value`."""
    EFFECT_REFUTED = "effect-refuted"
    """`effect` is refuted, with the value `value`, and the other one is undecided or was not tested."""
    NULL_NOT_MEASURED = "null-not-measured"
    """`family` has no gap or no rank; for `effect`, or for every tested effect."""
    NULL_NOT_SEPARATED = "null-not-separated"
    """The gap `value` to `family` is below `bound`, or the rank `p` above `max_p`; for `effect`, or for every one."""
    SPREAD = "spread"
    """The directions of two groups of positives have the cosine `value`, below `bound`."""
    SEEDS_DISAGREE = "seeds-disagree"
    """The seeds have the verdicts in `verdicts`, and some of them speak against each other."""
    # DAMAGED
    DEGENERATE = "degenerate"
    """`value` more degenerate completions than at baseline under `arm` on `label`s, above `bound`."""
    KL_TOO_LARGE = "kl-too-large"
    """Mean KL of `value` nats under ablation on negatives, above `bound`."""
    ANSWERS_LOST = "answers-lost"
    """The share `value` of right answers lost under ablation on negatives, above `bound`."""
    CONTENT_LOST = "content-lost"
    """The share `value` of the content lost under `arm` on `label`s, above `bound`."""
    # INCONCLUSIVE
    EFFECT_UNDECIDED = "effect-undecided"
    """The interval `low` to `high` of `effect` (estimate `value`) holds `bound`; `prompts` would settle it."""
    GAP_UNDECIDED = "gap-undecided"
    """The interval of the gap of `effect` to `family` holds the margin."""
    NARROW_CONE = "narrow-cone"
    """The cosine `value` of two groups of positives is below `bound`: one direction, or several that are close."""
    NO_ROOM = "no-room"
    """Suppression holds; the rate `value` of negatives at baseline is above `bound`, so induction was not tested."""
    NOT_EVERY_SEED = "not-every-seed"
    """The seeds have the verdicts in `verdicts`: some are inconclusive, and none speaks against the claim."""


_ESTIMATE = ("value?", "low?", "high?", "bound?")
_VERDICT_FIELDS: Mapping[str, Sequence[str]] = {
    VerdictCode.BASELINE_NOT_MEASURED: (),
    VerdictCode.BASELINE_TOO_LOW: ("value", "bound", "n?"),
    VerdictCode.CLASSES_NOT_MEASURED: (),
    VerdictCode.CLASSES_NOT_SEPARATED: ("value", "bound"),
    VerdictCode.NO_CANDIDATE: ("no_candidate", "counts?", "sets?"),
    VerdictCode.EFFECT_NOT_MEASURED: ("effect",),
    VerdictCode.NEITHER_EFFECT: ("bound?",),
    VerdictCode.ONE_EFFECT_ONLY: ("effect", *_ESTIMATE, "n?"),
    VerdictCode.EFFECT_REFUTED: ("effect", *_ESTIMATE, "n?"),
    VerdictCode.NULL_NOT_MEASURED: ("family", "effect?"),
    VerdictCode.NULL_NOT_SEPARATED: ("family", "reads", "effect?", "p?", "max_p?", *_ESTIMATE),
    VerdictCode.SPREAD: ("value", "bound?"),
    VerdictCode.SEEDS_DISAGREE: ("verdicts",),
    VerdictCode.DEGENERATE: ("value", "bound", "arm", "label"),
    VerdictCode.KL_TOO_LARGE: ("value", "bound"),
    VerdictCode.ANSWERS_LOST: ("value", "bound"),
    VerdictCode.CONTENT_LOST: ("value", "bound", "arm", "label"),
    VerdictCode.EFFECT_UNDECIDED: ("effect", "value", "low", "high", "bound", "unit", "prompts?"),
    VerdictCode.GAP_UNDECIDED: ("effect", "family", *_ESTIMATE),
    VerdictCode.NARROW_CONE: ("value", "bound"),
    VerdictCode.NO_ROOM: ("value", "bound"),
    VerdictCode.NOT_EVERY_SEED: ("verdicts",),
}
_DAMAGE = (VerdictCode.DEGENERATE, VerdictCode.KL_TOO_LARGE, VerdictCode.ANSWERS_LOST, VerdictCode.CONTENT_LOST)
_VERBS: Mapping[Effect, tuple[str, str]] = {
    "suppression": ("suppresses", "suppress"),
    "induction": ("induces", "induce"),
}


class SeedVerdicts(Struct, frozen=True):
    """The seeds that have one verdict."""

    verdict: str
    """Name of the verdict."""
    seeds: tuple[int, ...]
    """Numbers of the seeds."""


class VerdictReason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a verdict is what it is."""

    code: VerdictCode
    """The kind of the reason."""
    effect: Effect | None = None
    """The effect that it is about; None: every tested one, or none."""
    family: str | None = None
    """The null family that it is about."""
    arm: Literal["ablation", "addition"] | None = None
    """The intervention that did the damage."""
    label: Label | None = None
    """The class on which it did."""
    value: float | None = None
    """What was measured: a rate, a change of the rate, a gap, a cosine, an AUROC, a share, or KL in nats."""
    low: float | None = None
    """Lower end of its 95 % interval."""
    high: float | None = None
    """Upper end of its 95 % interval."""
    bound: float | None = None
    """The margin or the bound of the rule, in the units of `value`."""
    n: int | None = None
    """Prompts that the value rests on."""
    p: float | None = None
    """Rank of the direction among the wide draws of the family."""
    max_p: float | None = None
    """The largest rank that the rule accepts."""
    prompts: int | None = None
    """Prompts per class that would settle an undecided rate; None where no practical number would."""
    unit: Literal["rate", "level"] | None = None
    """Of an undecided effect: for a level no number of prompts is known."""
    reads: Literal["estimate", "interval"] | None = None
    """What the rule holds against a null: the estimate, or the whole interval."""
    no_candidate: NoCandidate | None = None
    """Why nothing was selected."""
    counts: Mapping[Discard, int] | None = None
    """Candidates by the reason for which each was discarded."""
    sets: tuple[str, ...] = ()
    """Splits and classes of which no prompt was kept, such as `train positive`."""
    verdicts: tuple[SeedVerdicts, ...] = ()
    """Verdicts of the seeds, in the order of the seeds."""

    def __post_init__(self):
        _check(self, self.code, _VERDICT_FIELDS)

    def text(self) -> str:
        """The whole clause, without a full stop."""
        value, bound = self.value, self.bound
        match self.code:
            case VerdictCode.BASELINE_NOT_MEASURED:
                return "baseline not measured"
            case VerdictCode.BASELINE_TOO_LOW:
                return f"baseline {compared(value, '<', bound)}"
            case VerdictCode.CLASSES_NOT_MEASURED:
                return "classes not measured"
            case VerdictCode.CLASSES_NOT_SEPARATED:
                return f"score does not tell the classes apart: AUROC at least {compared(value, '<', bound)}"
            case VerdictCode.NO_CANDIDATE:
                return f"no candidate passed: {self._no_candidate()}"
            case VerdictCode.SEEDS_DISAGREE:
                return f"seeds disagree: {_listed(self.verdicts)}"
            case VerdictCode.NOT_EVERY_SEED:
                return f"not every seed decides: {_listed(self.verdicts)}"
            case VerdictCode.SPREAD:
                return f"spread: {_groups(value)}"
            case VerdictCode.NARROW_CONE:
                return f"one direction or a narrow cone of several: {_groups(value)} < {bound:g}"
            case VerdictCode.NO_ROOM:
                room = f"negatives have {compared(value, '>', bound)} at baseline"
                return f"suppresses; induction has no room: {room}"
            case code if code in _DAMAGE:
                return self._damage()
            case _:
                return self._condition()

    def _no_candidate(self) -> str:
        if self.no_candidate is NoCandidate.ALL_DISCARDED:
            return ", ".join(f"{n} {code}" for code, n in sorted((self.counts or {}).items()))
        return f"{self.no_candidate} in {', '.join(self.sets)}" if self.sets else str(self.no_candidate)

    def _damage(self) -> str:
        value, bound = f"{self.value:.2f}", f"{self.bound:g}"
        match self.code:
            case VerdictCode.DEGENERATE:
                return f"{value} degenerate under {self.arm} on {self.label}s > {bound}"
            case VerdictCode.KL_TOO_LARGE:
                return f"KL {value} > {bound} under ablation on negatives"
            case VerdictCode.ANSWERS_LOST:
                return f"{value} of the right answers lost under ablation > {bound}"
            case _:
                return f"{value} of the content lost under {self.arm} on {self.label}s > {bound}"

    def _condition(self) -> str:
        only = f" ({self.effect})" if self.effect else ""
        match self.code:
            case VerdictCode.EFFECT_NOT_MEASURED:
                return f"{self.effect} not measured"
            case VerdictCode.NEITHER_EFFECT:
                return "neither suppresses nor induces"
            case VerdictCode.NULL_NOT_MEASURED:
                return f"null not measured: {self.family}{only}"
            case VerdictCode.NULL_NOT_SEPARATED:
                near = "not separated from null" if self.reads == "estimate" else "NOT-SEPARATED-FROM-NULL"
                return f"{near}: {self.family}{only}"
            case VerdictCode.GAP_UNDECIDED:
                return f"gap of {self.effect} to {self.family} nulls"
        assert self.effect is not None
        does, infinitive = _VERBS[self.effect]
        if self.code is VerdictCode.ONE_EFFECT_ONLY:
            return f"{does} only"
        if self.code is VerdictCode.EFFECT_REFUTED:
            return f"does not {infinitive}"
        span = f"{self.effect} undecided: {self.value:.2f} [{self.low:.2f}, {self.high:.2f}] around {self.bound:.2f}"
        if self.unit == "level":
            return span
        n = f"about {self.prompts}" if self.prompts else "no practical number of"
        return f"{span}; {n} prompts{' per class' if self.prompts else ''} would settle it"


def describe(reasons: Sequence[VerdictReason]) -> str:
    """Every reason of one verdict in one clause; empty for none."""
    return "; ".join(reason.text() for reason in reasons)


def describe_seeds(reasons: Mapping[int, Sequence[VerdictReason]]) -> str:
    """The reasons of seeds that have the same verdict: said once where they are the same."""
    told = {seed: describe(some) for seed, some in sorted(reasons.items())}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"seed {seed}: {text}" for seed, text in told.items())


def compared(value: float | None, sign: str, bound: float | None) -> str:
    """For example `0.40 < 0.50`, with as many digits as tell the two apart."""
    assert value is not None
    assert bound is not None
    digits = next(d for d in range(2, 11) if d == 10 or f"{value:.{d}f}" != f"{bound:.{d}f}")
    return f"{value:.{digits}f} {sign} {bound:.{digits}f}"


def _groups(cosine: float | None) -> str:
    return f"two groups of positives have directions with cosine {cosine:.2f}"


def _listed(verdicts: Sequence[SeedVerdicts]) -> str:
    return ", ".join(f"{v.verdict} (seed {' '.join(map(str, v.seeds))})" for v in verdicts)
