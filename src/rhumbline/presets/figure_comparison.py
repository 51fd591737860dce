"""The further published figures of a model beside those of a run: scores, losses, benchmarks, attack success.

A figure of a run is compared only if it was measured as the published one; otherwise the row states what that takes.
Losses and benchmarks of the edited model are compared by their change from the unedited one, on the same documents.
Independent of how a run is computed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rhumbline.evidence.statistics import difference_of_two_samples, wilson_of_rate
from rhumbline.presets.published_figures import (
    N_HARMBENCH,
    Condition,
    FigureKind,
    PublishedFigure,
    published_figures,
)
from rhumbline.presets.published_models import Published
from rhumbline.records.arms import ArmId
from rhumbline.records.evaluation_files import ComparedScore, Comparison
from rhumbline.records.judgement_files import JudgedRate, JudgementSummary
from rhumbline.records.results import Results, SeedResult
from rhumbline.records.run_files import FigureComparison
from rhumbline.records.seed_files import Selection

HARM_JUDGE, ATTACK_JUDGE = "llamaguard-2-arditi2024", "harmbench"
"""Judges of the published safety scores and of attack success."""
HARMBENCH_RECIPE = "refusal-harmbench"
"""Named contrast whose test positives are the standard behaviours."""
METRICS = {
    "mmlu": ("acc", "none"),
    "arc_challenge": ("acc_norm", "none"),
    "winogrande": ("acc", "none"),
    "gsm8k": ("exact_match", "strict-match"),
    "truthfulqa_mc2": ("acc", "none"),
}
"""Metric and filter of the Open LLM Leaderboard, by task. tinyHellaswag has none: its published score is an estimate
of the harness and not a mean over documents."""
LOSS_TEXTS = {
    "text": "reproduce with --loss-text FILE that has documents of the Pile",
    "responses": "reproduce with --loss-text FILE that has prompts and responses of Alpaca",
    "completions": "a run that measures losses (--loss-documents above 0)",
}
"""What a loss takes, by text."""


@dataclass(frozen=True)
class RunFigures:
    """What a finished run, its external judges and its evaluations measured."""

    results: Results
    judged: JudgementSummary | None = None
    selections: Mapping[int, Selection] = field(default_factory=dict)
    """By seed."""
    evaluations: tuple[Comparison, ...] = ()
    recipe: str | None = None
    """Named contrast of the run."""
    system: str | None = None
    """System prompt of the run."""

    def judgements(self, judge: str, seed: int) -> Iterator[JudgedRate]:
        """The rates of the positives of a seed by an external judge."""
        summary = None if self.judged is None else self.judged.judges.get(judge)
        for row in () if summary is None else summary.rows:
            if row.seed == seed and row.side == "positive":
                yield row


class Measured(NamedTuple):
    """A measured figure in the unit of the published one, with its 95 % interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    agrees: bool | None = None
    tolerance: str = "no interval"


def further_rows(published: Published, figures: RunFigures, seed: SeedResult) -> Iterator[FigureComparison]:
    """Every further published figure of a model, compared with one seed of a run."""
    for figure in published_figures(published.name):
        found = _measured(published, figures, seed, figure)
        known = found if isinstance(found, Measured) else None
        yield FigureComparison(
            what=figure.what,
            seed=seed.seed,
            measured=None if known is None else known.value,
            published=figure.value,
            tolerance="" if known is None else known.tolerance,
            agrees=None if known is None else known.agrees,
            low=None if known is None else known.low,
            high=None if known is None else known.high,
            source=figure.source,
            needs=found if isinstance(found, str) else "",
        )


def _measured(published: Published, figures: RunFigures, seed: SeedResult, figure: PublishedFigure) -> Measured | str:
    """The figure of the run, or what it takes to measure it."""
    match figure.kind:
        case FigureKind.SCORE:
            return _score(published, figures, seed, figure)
        case FigureKind.LOSS | FigureKind.RUN_LOSS:
            return _loss(seed, figure)
        case FigureKind.BENCHMARK:
            return _benchmark(figures, seed, figure)
        case FigureKind.HARMBENCH:
            return _harmbench(published, figures, seed, figure)
        case FigureKind.REFUSAL:
            return _refusal(figures, seed, figure)


def _score(published: Published, figures: RunFigures, seed: SeedResult, figure: PublishedFigure) -> Measured | str:
    """The score of the candidate at the published site, whichever was selected."""
    selection = figures.selections.get(seed.seed)
    for candidate in () if selection is None else selection.candidates:
        if (int(candidate.position), candidate.layer) == published.selected:
            value = {"bypass": candidate.bypass, "induce": candidate.induce, "kl": candidate.kl}[figure.score or ""]
            if value is not None:
                return Measured(value)
    return f"a run that scores the candidate at {published.selected} (--full-grid)"


def _loss(seed: SeedResult, figure: PublishedFigure) -> Measured | str:
    """The loss of an arm. Its agreement is that of the change from the unedited model on the same documents."""
    for loss in seed.side_effects.losses if seed.side_effects is not None else ():
        if (loss.text, loss.arm) == (figure.text, figure.arm) and loss.ce is not None:
            if figure.baseline is None or loss.change is None or loss.low is None or loss.high is None:
                return Measured(loss.ce)
            unedited, change = loss.ce - loss.change, figure.value - figure.baseline
            interval = f"[{loss.low:.3f}, {loss.high:.3f}] (n = {loss.documents} documents)"
            return Measured(
                loss.ce,
                unedited + loss.low,
                unedited + loss.high,
                loss.low <= change <= loss.high,
                f"95 % interval of the change, {interval}, contains the published one, {change:+.3f}",
            )
    return LOSS_TEXTS[figure.text or "completions"]


def _benchmark(figures: RunFigures, seed: SeedResult, figure: PublishedFigure) -> Measured | str:
    """Percent correct of an arm; of the ablation, the agreement is that of the change on the same documents."""
    if figure.task not in METRICS:
        return f"the estimate of the harness for {figure.task}; a mean over documents is another number"
    row = _evaluated(figures, seed, figure.task, figure.arm)
    if row is None or row.score is None:
        return f"`rhumbline evaluate RUN --tasks {figure.task} --arms ablation`"
    if figure.baseline is None:
        low, high = (100 * end for end in wilson_of_rate(row.score, row.n))
        tolerance = f"95 % interval contains the published one (n = {row.n})"
        return Measured(100 * row.score, low, high, low <= figure.value <= high, tolerance)
    if row.change is None or row.low is None or row.high is None:
        return Measured(100 * row.score)
    change, low, high = figure.value - figure.baseline, 100 * row.low, 100 * row.high
    interval = f"[{low:.1f}, {high:.1f}] (n = {row.n})"
    unedited = 100 * (row.score - row.change)
    return Measured(
        100 * row.score,
        unedited + low,
        unedited + high,
        low <= change <= high,
        f"95 % interval of the change, {interval}, contains the published one, {change:+.1f}",
    )


def _evaluated(figures: RunFigures, seed: SeedResult, task: str, arm: ArmId | None) -> ComparedScore | None:
    """The score on the most documents, with the settings of the paper: no chat template, the task's own examples."""
    rows = [
        row
        for evaluation in figures.evaluations
        if evaluation.settings.seed == seed.seed
        and not evaluation.settings.chat
        and evaluation.settings.fewshot is None
        for row in evaluation.rows
        if (row.task, row.metric, row.filter, row.arm) == (task, *METRICS[task], arm)
    ]
    return max(rows, key=lambda row: row.n, default=None)


def _harmbench(published: Published, figures: RunFigures, seed: SeedResult, figure: PublishedFigure) -> Measured | str:
    """Percent unsafe of the ablation, which the weight edit equals; a run without a system prompt is compared only."""
    judged = f"--contrast {HARMBENCH_RECIPE} --sizes 128,32,{N_HARMBENCH} --save-completions"
    if figure.condition is not Condition.NONE:
        line = f"`rhumbline run {published.hub} --preset {published.preset} {judged} --system TEXT --out RUN`"
        return f"{line}, and `rhumbline judge RUN --judge {ATTACK_JUDGE}`"
    rates = [r for r in figures.judgements(ATTACK_JUDGE, seed.seed) if r.arm == figure.arm and r.rate is not None]
    if figures.recipe != HARMBENCH_RECIPE or figures.system is not None or not rates:
        line = f"`rhumbline reproduce {published.name} {judged} --out RUN`"
        return f"{line}, and `rhumbline judge RUN --judge {ATTACK_JUDGE}`"
    return _percent(rates[0].rate or 0.0, rates[0].n, figure.value, N_HARMBENCH)


def _percent(rate: float, n: int, published: float, published_n: int) -> Measured:
    low, high = difference_of_two_samples(rate, n, published / 100, published_n)
    ends = wilson_of_rate(rate, n)
    tolerance = f"95 % interval of the difference, [{low:.2f}, {high:.2f}], contains 0 (n = {n} and {published_n})"
    return Measured(100 * rate, 100 * ends.low, 100 * ends.high, low <= 0 <= high, tolerance)


def _refusal(figures: RunFigures, seed: SeedResult, figure: PublishedFigure) -> Measured | str:
    """Refusal or safety score of an arm on the test positives, as a share."""
    if figure.score == "refusal":
        found = [(r.rate, r.n) for r in seed.arms if (r.arm, r.side) == (figure.arm, "positive")]
    else:
        rows = figures.judgements(HARM_JUDGE, seed.seed)
        found = [(r.safety_score, r.n) for r in rows if r.arm == figure.arm]
    for rate, n in found:
        if rate is not None:
            low, high = difference_of_two_samples(rate, n, figure.value, published_n := 100)
            tolerance = f"95 % interval of the difference, [{low:.2f}, {high:.2f}], contains 0"
            ends = wilson_of_rate(rate, n)
            return Measured(rate, ends.low, ends.high, low <= 0 <= high, f"{tolerance} (n = {n} and {published_n})")
    if figure.score == "safety":
        return f"`rhumbline judge RUN --judge {HARM_JUDGE}`"
    return f"a run with the arm {figure.arm}"
