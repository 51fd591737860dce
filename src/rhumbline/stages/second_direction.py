"""Stage *second direction*: the best direction orthogonal to the selected one, and its effects (second.json).

Candidates are the remainders of the run's differences in means, c - (c . r) r, at every site, and those by gradient
under representational independence (second_gradient.py), which are added at the site of r; all have the norm of r.
Remainders are scored as in the selection, with the coefficient 1, and directions by gradient with that of the run, as
they are tested. The selection rule of the run selects one on validation prompts; the metric of test prompts measures
its ablation and its addition. If none passes, the one by gradient with the lowest bypass score within the other bounds
is measured, so that a number is known even if it fails. No completion is generated.

A remainder is added at its own site, and the null directions among which it is ranked at that of r: if the two layers
differ, equal norms can be different shares of the residual stream.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from rhumbline.axes import Candidates
from rhumbline.evidence.selection_rules import SelectionRule, choose
from rhumbline.inference.independence import cosine_changes
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.arms import ABLATION, ADDITION
from rhumbline.records.arms import BASELINE as BASELINE_ID
from rhumbline.records.seed_files import Candidate, SecondDirection, WideRow
from rhumbline.records.shared import Label, SecondSource, Survivor
from rhumbline.stages.candidate_scores import ScoreGrid, score_candidates
from rhumbline.stages.metric_samples import Sample, samples, six_digits
from rhumbline.stages.second_gradient import FIT_PROMPTS, gradient_candidates
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.selection import ScoreRequest, Scores, score_grid, scores_in_jobs
from rhumbline.stages.stage_jobs import JobKind, SeedJobs, Span

STAGE = "second direction"
ROUNDING = 1e-4
"""Norm of a remainder relative to its candidate, and of a candidate relative to the direction, that is rounding."""
INDEPENDENCE_PROMPTS = 16
"""Validation positives on which the independence of both directions is measured."""


class _Scored(NamedTuple):
    """A candidate with its scores on validation prompts."""

    source: SecondSource
    direction: Direction
    row: Candidate


def measure_second_direction(run: SeedRun, jobs: SeedJobs) -> SecondDirection:
    """Select the second direction and measure it; without one only the tables of candidates are measured."""
    assert run.direction is not None
    rule = run.applied_rule.metric_only()
    # One long job, beside which the shorter ones of the remainders run.
    by_gradient = jobs.begin(GRADIENT_JOB, [Span(0, FIT_PROMPTS)])
    means, survivors, best = _by_means(run, jobs, rule)
    scored = [one.scored() for found in by_gradient() for one in found.candidates]
    gradient = choose([one.row for one in scored], run.model.n_layers, rule)
    passing = [one for one in (best, _selected(run, scored, rule)) if one is not None]
    if not passing:
        passing = [one for one in [_selected(run, scored, replace(rule, min_induce=None))] if one is not None]
    second = SecondDirection(
        selected=None, survivors=survivors + gradient.survivors, candidates=means, gradient=gradient.candidates
    )
    if not passing:
        return second
    source, direction, row = min(passing, key=lambda one: rule.criterion_of(one.row))
    assert row.bypass is not None
    return replace(
        second,
        selected=Survivor(row.position, row.layer, direction.norm, row.bypass),
        source=source,
        independence=_independence(run, run.direction, direction),
        rows=_rows(run, direction, run.protocol.second.prompts),
        ranked=_rows(run, direction, run.protocol.nulls.prompts),
    )


def remainder_grid(run: SeedRun) -> ScoreGrid:
    """The score grid of the remainders."""
    assert run.direction is not None
    remainders = rescaled_remainders(run.candidates, run.direction)
    rule = run.applied_rule.metric_only()
    return replace(score_grid(run), scorer=run.scorer(STAGE), candidates=remainders, rule=rule)


def _by_means(run: SeedRun, jobs: SeedJobs, rule: SelectionRule) -> tuple[tuple[Candidate, ...], int, _Scored | None]:
    """The table of the remainders, the number of survivors, and the selected one."""
    elsewhere = partial(scores_in_jobs, partial(jobs.request, REMAINDER_JOB))
    grid = replace(remainder_grid(run), elsewhere=elsewhere)
    table, _ = score_candidates(grid, full_grid=False, screen=run.protocol.second.screen)
    result = choose(table, run.model.n_layers, rule)
    if result.selected is None:
        return result.candidates, 0, None
    site = result.selected
    vector = grid.candidates[list(run.positions).index(site.position), site.layer]
    selected = _Scored("means", Direction.from_vector(vector, site.position, site.layer), site)
    return result.candidates, result.survivors, selected


def _by_gradient(run: SeedRun, fitted_on: Span) -> list[_Scored]:
    """The candidates by gradient with their scores, each with the sign that has the larger induce score."""
    assert run.direction is not None
    direction = run.direction
    scorer, spared, (positive, negative) = run.scorer(STAGE), run.protocol.ablation.spared, run.kept_sequences("val")
    if isinstance(scorer.metric, PairedLogOdds):  # without tangents, as in the screen of the selection
        return []
    # Rows of a contrast of texts are kept by the sign of a metric that is read after their prompts.
    kept = None if any(p.is_in_response for p in run.positions) else run.extraction.kept.train["positive"]
    train = run.sequences("train", "positive", kept)
    train = train[fitted_on.first : fitted_on.end]
    vectors = gradient_candidates(scorer, train, direction, spared) * direction.norm
    if not len(vectors):
        return []
    both = [[Direction.from_vector(s * v, direction.position, direction.layer) for s in (1, -1)] for v in vectors]
    coefficient = run.arms.addition.coefficient
    added = [Arm("addition", (Add(one, coefficient),)) for pair in both for one in pair]
    induce = scorer.read(negative, added).metric.mean(1).reshape(-1, 2)
    directions = [pair[int(values.argmax())] for pair, values in zip(both, induce, strict=True)]
    ablated = [Arm("ablation", (Ablate(one, spared=spared),)) for one in directions]
    bypass = scorer.read(positive, ablated).metric.mean(1)
    kl = scorer.kl(negative, ablated, scorer.baseline(negative)).mean(1)
    return [
        _Scored("gradient", one, Candidate(one.position, one.layer, *map(float, scores), norm=one.norm))
        for one, *scores in zip(directions, bypass, induce.max(1).values, kl, strict=True)
    ]


def _selected(run: SeedRun, scored: Sequence[_Scored], rule: SelectionRule) -> _Scored | None:
    """The candidate that a rule selects."""
    row = choose([one.row for one in scored], run.model.n_layers, rule).selected
    return next((one for one in scored if row == one.row), None)


def _independence(run: SeedRun, first: Direction, second: Direction) -> tuple[float, float]:
    """Mean |change| of the cosine with the second under the ablation of the first, and the reverse."""
    prompts = run.sequences("val", "positive")[:INDEPENDENCE_PROMPTS]
    pair = torch.stack([first.vector, second.vector])
    changes = cosine_changes(run.runner(STAGE), pair, first.position, prompts, run.protocol.ablation.spared)
    return changes[0][1], changes[1][0]


def rescaled_remainders(candidates: Candidates, direction: Direction) -> Candidates:
    """c - (c . r) r of every candidate c, with the norm of the direction; zero where only rounding remains."""
    r = direction.vector
    remainders = candidates - (candidates @ r)[..., None] * r
    norms = remainders.norm(dim=-1, keepdim=True)
    is_rounding = norms <= ROUNDING * candidates.norm(dim=-1, keepdim=True).clamp(min=ROUNDING * direction.norm)
    return torch.where(is_rounding, torch.zeros_like(remainders), remainders * (direction.norm / norms))


def _rows(run: SeedRun, direction: Direction, n: int) -> tuple[WideRow, ...]:
    """The metric of test prompts at baseline, and under the ablation (positives) or the addition (negatives)."""
    tested = samples(run, n)
    return tuple(row for label in LABELS for row in _rows_of(run, direction, label, tested[label]))


def _rows_of(run: SeedRun, direction: Direction, label: Label, prompts: Sample) -> tuple[WideRow, ...]:
    if label == "positive":
        ids, arm = (BASELINE_ID, ABLATION), Arm("ablation", (Ablate(direction, spared=run.protocol.ablation.spared),))
    else:
        addition = Add(direction, run.arms.addition.coefficient, run.arms.addition.positions)
        ids, arm = (BASELINE_ID, ADDITION), Arm("addition", (addition,))
    metric = run.scorer(STAGE).read(prompts.sequences, [BASELINE, arm]).metric
    return tuple(WideRow(arm=i, side=label, metric=six_digits(values)) for i, values in zip(ids, metric, strict=True))


# -- jobs -------------------------------------------------------------------------------------------------------------


def _prepare(run: SeedRun) -> Callable[[ScoreRequest], Scores]:
    grid = remainder_grid(run)
    return lambda request: Scores(tuple(grid.values(request.name, request.sites)))


REMAINDER_JOB = JobKind("remainders", ScoreRequest, Scores, _prepare)


@dataclass(frozen=True)
class GradientCandidate:
    """A direction by gradient, and its scores."""

    vector: tuple[float, ...]
    """A unit vector."""
    row: Candidate

    def scored(self) -> _Scored:
        """The candidate as it was computed. JSON has no NaN: null is a score that is not finite."""
        row, scores = self.row, ("bypass", "induce", "kl")
        assert row.norm is not None
        direction = Direction(torch.tensor(self.vector), row.norm, row.position, row.layer)
        missing = {name: math.nan for name in scores if getattr(row, name) is None}
        return _Scored("gradient", direction, replace(row, **missing))


@dataclass(frozen=True)
class GradientCandidates:
    """The candidates by gradient that are fitted on some training positives."""

    candidates: tuple[GradientCandidate, ...]


def _prepare_gradient(run: SeedRun) -> Callable[[Span], GradientCandidates]:
    def compute(fitted_on: Span) -> GradientCandidates:
        scored = _by_gradient(run, fitted_on)
        found = (GradientCandidate(tuple(one.direction.vector.tolist()), one.row) for one in scored)
        return GradientCandidates(tuple(found))

    return compute


GRADIENT_JOB = JobKind("directions by gradient", Span, GradientCandidates, _prepare_gradient)
