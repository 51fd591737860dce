"""Next steps after a command as data: a code with its numbers, and the only place that turns it into text.

Independent of rules and rows.
"""

import shlex
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import UNSET, Struct

from rhumbline.records.arms import BASELINE
from rhumbline.records.claims import DECISIVE_CLAIMS
from rhumbline.records.reasons import Discard
from rhumbline.records.results import Results
from rhumbline.records.verdict_names import NO_BASELINE, VerdictName
from rhumbline.records.verdict_reasons import ClaimState, VerdictCode, VerdictReason


class NextStep(StrEnum):
    """What a user can do next."""

    VERIFY = "verify"
    ANALYZE = "analyze"
    FURTHER_DIRECTIONS = "further-directions"
    EDIT = "edit"
    PLAY = "play"
    PLAY_EDITED = "play-edited"
    SHARE = "share"
    USE_SHARED = "use-shared"
    REPORT = "report"
    RUN = "run"
    RUN_STYLE = "run-style"
    RUN_OWN = "run-own"
    BASELINE_RATE = "baseline-rate"
    """`rate` of `n` positives show the behaviour by `judge`; the rule needs `bound`."""
    BASELINE_SCORE = "baseline-score"
    """The continuous score of the classes has an AUROC of at least `rate` at baseline; the rule needs `bound`."""
    OPEN_CLAIM = "open-claim"
    """`advice`: a claim that is not decided, with its number."""
    SAVE_TEXTS = "save-texts"
    READ_TEXTS = "read-texts"
    JUDGE = "judge"
    LONGER_ANSWERS = "longer-answers"
    """`tokens` per completion."""
    OTHER_JUDGE = "other-judge"
    OTHER_MODEL = "other-model"
    OTHER_PROMPTS = "other-prompts"
    ADVICE = "advice"
    """`advice` about the metric."""
    SOURCES_OF_DAMAGE = "sources-of-damage"
    SPARE_TOKENS = "spare-tokens"
    WIDER_BOUND = "wider-bound"
    ADD_LESS = "add-less"
    ADD_MORE = "add-more"
    """`coefficient` of the addition."""
    WHOLE_RUN = "whole-run"
    WITHOUT_PLAN = "without-plan"
    MORE_PROMPTS = "more-prompts"
    """`prompts` per class would decide an undecided effect; None: no practical number."""
    MORE_DRAWS = "more-draws"
    """`draws` of each null family on the metric."""
    MORE_COMPLETED = "more-completed"
    """`draws` of each null family that complete test prompts."""
    OTHER_NEGATIVES = "other-negatives"


class Step(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A next step with its numbers; a number that the code does not use is None."""

    what: NextStep
    rate: float | None = None
    bound: float | None = None
    n: int = 0
    judge: str = ""
    behaviour: str = ""
    tokens: int | None = None
    prompts: int | None = None
    sizes: tuple[int, int] | None = None
    draws: int | None = None
    coefficient: float | None = None
    advice: str = ""


class Line(NamedTuple):
    """A next step in words."""

    command: str
    """A command line or an option; empty for an advice alone."""
    why: str


class RunFacts(NamedTuple):
    """Settings of a run that its next steps depend on."""

    behaviour: str
    judge: str
    max_new_tokens: int
    min_baseline: float
    wide_nulls: int
    is_quick: bool
    has_texts: bool
    sizes: tuple[int, int]
    """Prompts per class in train and validation."""
    spared: int = 0
    """Tokens at the start of a text that ablations spare."""
    coefficient: float = 1.0
    """Of the additions in the selection."""


# -- steps by outcome -------------------------------------------------------------------------------------------------


def after_run(results: Results, facts: RunFacts) -> tuple[Step, ...]:
    """Return what to do after a run, by its verdict and the reasons of it."""
    verdict = VerdictName(results.verdict).headline
    reasons = [reason for holder in (results, *results.seeds) for reason in holder.reasons]
    if verdict in NO_BASELINE:
        return _without_baseline(results, reasons, facts)
    if verdict is VerdictName.INCONCLUSIVE:
        return _undecided(results, facts)
    whole = _steps(NextStep.WHOLE_RUN) if facts.is_quick else ()
    if verdict is VerdictName.NOT_TESTED:
        return (*whole, *_untested(reasons, facts))
    if verdict is VerdictName.DAMAGED:
        return (*whole, *_steps(NextStep.SOURCES_OF_DAMAGE, *_spare(facts), NextStep.ADD_LESS, NextStep.PLAY))
    if verdict is VerdictName.NOT_SINGLE:
        return (*whole, *_steps(NextStep.FURTHER_DIRECTIONS, NextStep.PLAY, NextStep.OTHER_PROMPTS))
    return (*whole, *_steps(NextStep.VERIFY, NextStep.ANALYZE, NextStep.PLAY, NextStep.EDIT, NextStep.SHARE))


def _steps(*codes: NextStep) -> tuple[Step, ...]:
    return tuple(Step(what=code) for code in codes)


def _without_baseline(results: Results, reasons: Sequence[VerdictReason], facts: RunFacts) -> tuple[Step, ...]:
    rates = [
        row
        for seed in results.seeds
        for row in seed.arms
        if (row.arm, row.side) == (BASELINE, "positive") and row.rate is not None
    ]
    lowest = min(rates, key=lambda row: row.rate or 0.0, default=None)
    measured = () if lowest is None else (
        Step(
            what=NextStep.BASELINE_RATE,
            rate=lowest.rate,
            n=lowest.n,
            judge=facts.judge,
            behaviour=facts.behaviour,
            bound=facts.min_baseline,
        ),
    )  # fmt: skip
    areas = [reason for reason in reasons if reason.code is VerdictCode.CLASSES_NOT_SEPARATED]
    if areas:  # a level is no share of the positives
        lowest_area = min(areas, key=lambda reason: reason.value or 0.0)
        measured = (Step(what=NextStep.BASELINE_SCORE, rate=lowest_area.value, bound=lowest_area.bound),)
    return (
        *measured,
        *_steps(NextStep.READ_TEXTS if facts.has_texts else NextStep.SAVE_TEXTS),
        Step(what=NextStep.LONGER_ANSWERS, tokens=4 * facts.max_new_tokens),
        *_steps(NextStep.OTHER_JUDGE, NextStep.OTHER_MODEL),
    )


def _untested(reasons: Sequence[VerdictReason], facts: RunFacts) -> tuple[Step, ...]:
    damaging = [reason for reason in reasons if Discard.KL_TOO_LARGE in (reason.counts or ())]
    advice = dict.fromkeys(reason.advice for reason in reasons if reason not in damaging)
    steps = [Step(what=NextStep.ADVICE, advice=text) for text in advice if text is not None]
    if damaging:
        steps += _steps(NextStep.SOURCES_OF_DAMAGE, *_spare(facts), NextStep.WIDER_BOUND)
    if any(Discard.DOES_NOT_INDUCE in (reason.counts or ()) for reason in reasons):
        steps.append(Step(what=NextStep.ADD_MORE, coefficient=2 * facts.coefficient))
    return (*steps, *_steps(NextStep.OTHER_PROMPTS))


def _undecided(results: Results, facts: RunFacts) -> tuple[Step, ...]:
    """Return the open claims, and what would decide them: more prompts, more draws, or other negatives."""
    open_states = (ClaimState.UNDECIDED, ClaimState.NOT_TESTED)
    claims = [c for c in results.claims if c.kind in DECISIVE_CLAIMS and c.state in open_states]
    named = tuple(Step(what=NextStep.OPEN_CLAIM, advice=f"{claim.text}.") for claim in claims)
    if facts.is_quick:
        return (*named, *_steps(NextStep.WHOLE_RUN))
    of_seeds = [
        c for seed in results.seeds for c in seed.claims if c.kind in DECISIVE_CLAIMS and c.state in open_states
    ]
    reasons = [r for claim in (*claims, *of_seeds) for r in claim.reasons if r.state in (None, *open_states)]
    steps = [step for answer in _ANSWERS for step in answer(reasons, facts)]
    families = (null for seed in results.seeds for effect in seed.wide for null in effect.families.values())
    if any(null.damaging is not UNSET for null in families):
        steps += _steps(*_spare(facts))
    return (*named, *dict.fromkeys(steps or [_more_prompts(reasons, facts)]), *_steps(NextStep.PLAY))


def _of_prompts(reasons: Sequence[VerdictReason], facts: RunFacts) -> Iterable[Step]:
    """More prompts, for intervals that contain a margin; more draws do not change these."""
    if any(r.code in _DECIDED_BY_PROMPTS and r.state is ClaimState.UNDECIDED for r in reasons):
        yield _more_prompts(reasons, facts)


def _more_prompts(reasons: Sequence[VerdictReason], facts: RunFacts) -> Step:
    numbers = [reason.prompts for reason in reasons if reason.prompts is not None]
    return Step(what=NextStep.MORE_PROMPTS, prompts=max(numbers, default=None), sizes=facts.sizes)


def _of_draws(reasons: Sequence[VerdictReason], facts: RunFacts) -> Iterable[Step]:
    """More draws: completed ones for a gap, whose interval contains their variance, and others for a rank."""
    if gaps := [reason.draws or 0 for reason in reasons if reason.code is VerdictCode.NULL_GAP]:
        yield Step(what=NextStep.MORE_COMPLETED, draws=2 * max(1, *gaps))
    if any(reason.code in (VerdictCode.TOO_FEW_DRAWS, VerdictCode.NULL_RANK) for reason in reasons):
        yield Step(what=NextStep.MORE_DRAWS, draws=2 * facts.wide_nulls + 1)


def _of_damage(reasons: Sequence[VerdictReason], facts: RunFacts) -> Iterable[Step]:
    """Where the damage comes from, if it is undecided or if it left no candidate in a seed."""
    if any(Discard.KL_TOO_LARGE in (r.counts or ()) or r.code is VerdictCode.KL_TOO_LARGE for r in reasons):
        yield from _steps(NextStep.SOURCES_OF_DAMAGE, *_spare(facts))
    if any(reason.code is VerdictCode.DEGENERATE for reason in reasons):
        yield from _steps(NextStep.ADD_LESS)


def _of_contrast(reasons: Sequence[VerdictReason], facts: RunFacts) -> Iterable[Step]:
    """Other negatives or tokens, if these permit no test of induction or of the metric."""
    del facts
    if any(reason.code is VerdictCode.NO_ROOM for reason in reasons):
        yield from _steps(NextStep.OTHER_NEGATIVES)
    advice = dict.fromkeys(r.advice for r in reasons if r.advice is not None and not r.counts)
    yield from (Step(what=NextStep.ADVICE, advice=text) for text in advice if text)


_ANSWERS = (_of_prompts, _of_draws, _of_damage, _of_contrast)
_DECIDED_BY_PROMPTS = (
    VerdictCode.EFFECT_SIZE,
    VerdictCode.OVER_REFUSAL,
    VerdictCode.DEGENERATE,
    VerdictCode.ANSWERS_LOST,
    VerdictCode.CONTENT_LOST,
)
"""Conditions of claims whose interval becomes narrower with more test prompts."""


def _spare(facts: RunFacts) -> tuple[NextStep, ...]:
    return () if facts.spared else (NextStep.SPARE_TOKENS,)


# -- text -------------------------------------------------------------------------------------------------------------


def lines(steps: Iterable[Step], run: str, model: str, other: str = "DIR", prompts: Sequence[str] = ()) -> list[Line]:
    """Return steps in words, for a run directory and a model; `other` is what else a command names.

    `prompts` are the options with which an analysis reads the prompts of the run (`prompt_options`).
    """
    run, model, other = (shlex.quote(name) if name else "" for name in (run, model, other))
    again = "".join(f" {shlex.quote(word)}" for word in prompts)
    return [_line(step, run, model, other, again) for step in steps]


def prompt_options(contrast: str | None, data_dir: str | None = None) -> tuple[str, ...]:
    """Options with which an analysis reads the prompts of a run again; a contrast of None is that of an organism."""
    passed = {"--contrast": contrast, "--data-dir": data_dir}
    return tuple(word for option, value in passed.items() if value is not None for word in (option, value))


def _line(step: Step, run: str, model: str, other: str, prompts: str) -> Line:
    match step.what:
        case NextStep.VERIFY:
            return Line(f"rhumbline verify {run}", "recompute every number from the rows of the prompts")
        case NextStep.ANALYZE:
            why = "how the candidates relate; see analyze --help for others"
            return Line(f"rhumbline analyze geometry {run}{prompts}", why)
        case NextStep.FURTHER_DIRECTIONS:
            why = "whether several directions have the effect together"
            return Line(f"rhumbline analyze directions {run}{prompts}", why)
        case NextStep.EDIT:
            return Line(f"rhumbline edit {model} --direction {run} --out EDITED", "write a checkpoint with the edit")
        case NextStep.PLAY:
            return Line(f"rhumbline play {model} --direction {run}", "chat with the model before and after")
        case NextStep.PLAY_EDITED:
            return Line(f"rhumbline play {other}", "chat with the edited model")
        case NextStep.SHARE:
            return Line(f"rhumbline push {run} OWNER/NAME --dry-run SHARED", "write the files that would be shared")
        case NextStep.USE_SHARED:
            return Line(f"rhumbline chat {model} --direction hf:{other}", "use the shared direction, once uploaded")
        case NextStep.REPORT:
            return Line(f"rhumbline report {run}", "write the report with these numbers")
        case NextStep.RUN:
            contrast = f" --contrast {run}" if run else ""
            return Line(
                f"rhumbline run {model}{contrast} --out {other}", "test whether a direction changes the behaviour"
            )
        case NextStep.RUN_STYLE:
            return Line(f"rhumbline run {model} --contrast {run} --behaviour style --out {other}", "test a style")
        case NextStep.RUN_OWN:
            return Line(f"rhumbline run MODEL --contrast {other} --out RUN", "run the procedure on a model of your own")
        case _:
            return _option(step, run, other, prompts)


def _sizes(step: Step) -> str:
    return ",".join(map(str, step.sizes or ("TRAIN", "VALIDATION")))


def _option(step: Step, run: str, other: str, prompts: str) -> Line:
    """Return a step that changes an option of the same command, or an advice."""
    match step.what:
        case NextStep.BASELINE_RATE:
            return Line(
                "",
                f"At baseline {step.judge} finds {step.behaviour} in {step.rate or 0.0:.0%} of {step.n} positives; the "
                f"rule needs {step.bound or 0.0:.0%}.",
            )
        case NextStep.BASELINE_SCORE:
            return Line(
                "",
                f"At baseline the score separates the classes with an AUROC of at least {step.rate or 0.0:.2f}; the "
                f"rule needs {step.bound or 0.0:g}.",
            )
        case NextStep.OPEN_CLAIM:
            return Line("", step.advice)
        case NextStep.SAVE_TEXTS:
            return Line("--save-completions", "rerun with another --out and read the texts: the judge may miss it")
        case NextStep.READ_TEXTS:
            return Line(f"rhumbline label {run}", "write a sheet of the texts: the judge may miss the behaviour")
        case NextStep.JUDGE:
            return Line(
                f"rhumbline judge {run} --judge {other}",
                "classify the texts of a run with --save-completions",
            )
        case NextStep.OTHER_JUDGE:
            return Line("--judge NAME", "another judge; `rhumbline run --help` lists them")
        case NextStep.OTHER_MODEL:
            other = "rhumbline run OTHER-MODEL --contrast FILE --out runs/other"
            return Line(other, "this model may not have the behaviour")
        case NextStep.OTHER_PROMPTS:
            return Line("--contrast FILE|NAME", "other prompts; `rhumbline data list` shows the named ones")
        case NextStep.ADVICE:
            return Line("", step.advice)
        case NextStep.SOURCES_OF_DAMAGE:
            why = "where ablation changes negatives, by position and layer"
            return Line(f"rhumbline analyze damage {run}{prompts}", why)
        case NextStep.SPARE_TOKENS:
            return Line(
                "--spare-tokens 1", "leave the first token unedited, if the damage comes from there; with another --out"
            )
        case NextStep.WIDER_BOUND:
            why = "set selection.max_kl_otherwise to test a candidate beyond the bound; with another --out"
            return Line("--config experiment.toml", why)
        case NextStep.OTHER_NEGATIVES:
            return Line("--contrast FILE|NAME", "negatives that do not show the behaviour, so that induction is tested")
        case NextStep.ADD_LESS:
            return Line("--coefficient 0.5 --add-at prompt", "a smaller addition, at prompt positions only")
        case NextStep.WITHOUT_PLAN:
            return Line("", "This was a plan. Rerun the command without --plan.")
        case NextStep.WHOLE_RUN:
            return Line("", "This was a quick run. Rerun the command without --quick for the whole one.")
        case _:
            return _larger(step)


def _larger(step: Step) -> Line:
    """Return a step that increases a number."""
    match step.what:
        case NextStep.LONGER_ANSWERS:
            return Line(f"--max-new-tokens {step.tokens}", "the behaviour may begin later in the answer")
        case NextStep.ADD_MORE:
            coefficient = "C" if step.coefficient is None else f"{step.coefficient:g}"
            why = "a larger addition, if too few candidates induce the behaviour; with another --out"
            return Line(f"--coefficient {coefficient}", why)
        case NextStep.MORE_PROMPTS if step.prompts is not None:
            n = step.prompts
            why = f"about {n} test prompts per class would decide the undecided effect; with another --out"
            return Line(f"--sizes {_sizes(step)},{n}", why)
        case NextStep.MORE_PROMPTS:
            why = "more test prompts, with another --out; no practical number is known to decide it"
            return Line(f"--sizes {_sizes(step)},N", why)
        case NextStep.MORE_DRAWS:
            return Line(
                f"--wide-nulls {step.draws}", "more null draws, so that the rank p can be smaller; with another --out"
            )
        case NextStep.MORE_COMPLETED:
            return Line(
                f"--nulls {step.draws}",
                "more null draws with completions, so that the gap has a smaller interval; with another --out",
            )
    raise NotImplementedError(f"no text for {step.what}")
