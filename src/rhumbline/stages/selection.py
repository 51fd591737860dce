"""Stage *selection*: score the candidates on validation prompts and select one by the rule (selection.json).

The kept validation prompts only. The rule itself is in evidence/selection_rules.py.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rhumbline.axes import TokenIds
from rhumbline.evidence.selection_rules import choose
from rhumbline.inference.interventions import BASELINE, Add, Arm, Direction
from rhumbline.judging.scorer import Scorer
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.seed_files import Candidate, Selection
from rhumbline.records.shared import ByLabel, Site, Survivor
from rhumbline.settings import COEFFICIENTS
from rhumbline.stages.candidate_scores import ScoreGrid, ScoreName, score_candidates
from rhumbline.stages.completion_scores import CompletionScores
from rhumbline.stages.refits import RefitSelection
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import CANDIDATES_PER_JOB, JobKind, SeedJobs, spans

log = logging.getLogger("rhumbline")

SUFFICIENT_SHARE = 0.9
"""Share of validation negatives with a positive metric from which a coefficient is large enough."""
Z_95 = 1.96
"""Half-width of a 95 % interval in standard errors."""


def select(run: SeedRun, jobs: SeedJobs) -> Selection:
    """Scores of the candidates, and the candidate that the rule selects."""
    metric, kept, n = run.metric, run.extraction.kept.val, run.extraction.n
    is_empty = any(some[label] == 0 for some in (n.train, n.val) for label in LABELS)
    if metric is None or is_empty:
        reason = NoCandidate.NO_TOKENS if metric is None else NoCandidate.NO_PROMPTS
        return Selection(selected=None, reason=reason, survivors=0, tied=(), n=n.val, candidates=())
    by_completions = CompletionScores(run, {c: run.prompts("val", c, kept[c]) for c in LABELS})
    rule, is_testable = run.protocol.selection, True
    if run.protocol.is_continuous:
        if by_completions.lacks_baseline():
            reason = NoCandidate.NO_BASELINE
            return Selection(selected=None, reason=reason, survivors=0, tied=(), n=n.val, candidates=())
        is_testable = by_completions.induction_is_testable()
        rule = rule if is_testable else rule.without_induce_and_kl()
    first, *others = rule.attempts()
    elsewhere = partial(scores_in_jobs, partial(jobs.request, CANDIDATE_JOB))
    grid = replace(score_grid(run), rule=first, elsewhere=elsewhere)
    selection = _select(run, grid, by_completions, is_testable=is_testable)
    for other in others:
        if selection.selected is None and any(row.discarded is Discard.KL_TOO_LARGE for row in selection.candidates):
            log.info("no candidate has a KL divergence of at most %g nats; %g is tried", first.max_kl, other.max_kl)
            selection = _select(run, grid.under(other), by_completions, is_testable=is_testable)
    return selection


def _select(run: SeedRun, grid: ScoreGrid, by_completions: CompletionScores, *, is_testable: bool) -> Selection:
    """Compute the scores that the rule of the grid needs, and apply it."""
    kept, n, rule = run.extraction.kept.val, run.extraction.n, grid.rule
    # A rule that needs completions compares all candidates that pass, so every score is computed.
    full_grid = run.protocol.full_grid or rule != rule.metric_only()
    table, rounding = score_candidates(grid, full_grid=full_grid, screen=run.protocol.screen)
    coefficient_of = partial(_coefficient, run, grid.negative)
    if run.protocol.is_continuous:
        labels = LABELS if is_testable else LABELS[:1]
        table = by_completions.added_to(table, rule, coefficient_of, labels)
    result = choose(table, run.model.n_layers, rule)
    while rule.above_noise and result.selected is not None and result.selected.swing_low is None:
        low = swing_low(grid, result.selected.site)
        table = [replace(row, swing_low=low) if row.site == result.selected.site else row for row in table]
        if low <= 0:  # The next candidate can be one that was not needed so far.
            table = [replace(r, discarded=None) if r.discarded is Discard.NOT_NEEDED else r for r in table]
        result = choose(table, run.model.n_layers, rule)
    best = result.selected
    return Selection(
        selected=None if best is None else _cell(best),
        reason=result.reason,
        survivors=result.survivors,
        tied=tuple(_cell(row) for row in result.tied),
        baseline=ByLabel(*(_mean(run.extraction.metric.val[c], kept[c]) for c in LABELS)),
        coefficient=1.0 if best is None else coefficient_of(run.direction_at(best.position, best.layer)),
        room=is_testable,
        rounding=rounding,
        n=n.val,
        candidates=result.candidates,
    )


def _cell(row: Candidate) -> Survivor:
    assert row.norm is not None
    assert row.bypass is not None
    return Survivor(row.position, row.layer, row.norm, row.bypass)


def swing_low(grid: ScoreGrid, site: Site) -> float:
    """Lower end of the 95 % interval of a candidate's swing over the validation prompts.

    0, which is within noise, if it is not known: for one prompt of a class, and if a score is not finite.
    """
    if min(len(grid.positive), len(grid.negative)) < 2:
        return 0.0
    before = [grid.scorer.read(sequences, [BASELINE]).metric[0] for sequences in (grid.positive, grid.negative)]
    falls, rises = before[0] - grid.by_prompt("bypass", [site])[0], grid.by_prompt("induce", [site])[0] - before[1]
    error = math.sqrt(sum(float(x.double().var()) / len(x) for x in (falls, rises)))
    low = float(falls.double().mean() + rises.double().mean()) - Z_95 * error
    return low if math.isfinite(low) else 0.0


def _mean(values: Sequence[float | None], kept: Sequence[bool]) -> float | None:
    """Mean of the finite values of the kept prompts; None if there are none."""
    known = [v for v, is_kept in zip(values, kept, strict=True) if is_kept and v is not None]
    return float(np.mean(known)) if known else None


# -- the coefficient of additions -------------------------------------------------------------------------------------


def _coefficient(run: SeedRun, negative: Sequence[TokenIds], direction: Direction) -> float:
    """The coefficient of the additions of a direction: that of the protocol, or selected on validation negatives."""
    coefficient = run.protocol.addition.coefficient
    if coefficient != "validation":
        return float(coefficient)
    return coefficient_on_validation(run.scorer("selection"), negative, direction)


def coefficient_on_validation(scorer: Scorer, negative: Sequence[TokenIds], direction: Direction) -> float:
    """The smallest coefficient with a positive metric on enough negatives; or else the one with the largest share."""
    arms = [Arm(f"{c}", (Add(direction, c),)) for c in COEFFICIENTS]
    shares = (scorer.read(negative, arms).metric > 0).double().mean(1).tolist()
    sufficient = [c for c, share in zip(COEFFICIENTS, shares, strict=True) if share >= SUFFICIENT_SHARE]
    return sufficient[0] if sufficient else COEFFICIENTS[shares.index(max(shares))]


# -- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreRequest:
    """One score of some candidates."""

    name: ScoreName
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Scores:
    """The score of each candidate; None: not finite."""

    values: tuple[float | None, ...]


def score_grid(run: SeedRun) -> ScoreGrid:
    """The score grid of the run on its kept validation prompts."""
    positive, negative = run.kept_sequences("val")
    protocol, scorer = run.protocol, run.scorer("selection")
    spared, coefficient = protocol.ablation.spared, protocol.addition.selection_coefficient
    return ScoreGrid(scorer, run.candidates, run.positions, positive, negative, protocol.selection, spared, coefficient)


def refit_selection(run: SeedRun, stage: str) -> RefitSelection:
    """The selection as refits repeat it."""
    spared, coefficient = run.protocol.ablation.spared, run.protocol.addition.selection_coefficient
    return RefitSelection(run.scorer(stage), run.rule.metric_only(), spared, coefficient)


def _prepare(run: SeedRun) -> Callable[[ScoreRequest], Scores]:
    grid = score_grid(run)
    return lambda request: Scores(tuple(grid.values(request.name, request.sites)))


CANDIDATE_JOB = JobKind("candidates", ScoreRequest, Scores, _prepare)


def scores_in_jobs(
    request: Callable[[Sequence[ScoreRequest]], list[Scores]], name: ScoreName, sites: Sequence[Site]
) -> list[float]:
    """One score of every site, computed in jobs; `request` runs them."""
    # Ordered by layer: a pass of additions continues from one layer to the next.
    order = sorted(range(len(sites)), key=lambda i: (sites[i].layer, sites[i].position))
    parts = [tuple(sites[i] for i in order[span.first : span.end]) for span in spans(len(sites), CANDIDATES_PER_JOB)]
    results = request([ScoreRequest(name, part) for part in parts])
    # JSON has no NaN: null is a score that is not finite, not a score that was not computed.
    values = dict(zip(order, (math.nan if v is None else v for part in results for v in part.values), strict=True))
    return [values[i] for i in range(len(sites))]
