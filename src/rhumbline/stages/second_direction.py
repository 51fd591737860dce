"""Stage *second direction*: the best direction orthogonal to the selected one, and its effects (second.json).

The candidates are the remainders of the run's differences in means, c - (c . r) r, at every site. The selection rule of
the run selects one on validation prompts; the metric of test prompts measures its ablation and its addition. No
completion is generated.

Every remainder is rescaled to the norm of the selected direction, as the null directions among which it is ranked are.
Its addition is at its own site, though, and theirs at the site of the selected direction: if the two layers differ,
equal norms can be different shares of the residual stream.
"""

from dataclasses import replace

import torch

from rhumbline.axes import Candidates
from rhumbline.evidence.selection_rules import choose
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.records.arms import ABLATION, ADDITION
from rhumbline.records.arms import BASELINE as BASELINE_ID
from rhumbline.records.seed_files import SecondDirection, WideRow
from rhumbline.records.shared import Label, Survivor
from rhumbline.stages.candidate_scores import score_candidates
from rhumbline.stages.metric_samples import Sample, samples, six_digits
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.selection import score_grid

STAGE = "second direction"
ROUNDING = 1e-4
"""Norm of a remainder relative to its candidate, and of a candidate relative to the direction, that is rounding."""


def measure_second_direction(run: SeedRun) -> SecondDirection:
    """Select the second direction and measure it; without a survivor only the table of candidates is measured."""
    assert run.direction is not None
    plan = run.protocol.second
    remainders = rescaled_remainders(run.candidates, run.direction)
    rule = run.rule.metric_only()
    grid = replace(score_grid(run), scorer=run.scorer(STAGE), candidates=remainders, rule=rule)
    table, _ = score_candidates(grid, full_grid=False, screen=plan.screen)
    result = choose(table, run.model.n_layers, rule)
    if result.selected is None:
        return SecondDirection(selected=None, survivors=0, candidates=result.candidates)
    site = result.selected
    vector = remainders[list(run.positions).index(site.position), site.layer]
    direction = Direction.from_vector(vector, site.position, site.layer)
    tested, ranked = (samples(run, n) for n in (plan.prompts, run.protocol.nulls.prompts))
    assert site.bypass is not None
    return SecondDirection(
        selected=Survivor(site.position, site.layer, direction.norm, site.bypass),
        survivors=result.survivors,
        candidates=result.candidates,
        rows=_rows(run, direction, "positive", tested.positive) + _rows(run, direction, "negative", tested.negative),
        ranked=_rows(run, direction, "positive", ranked.positive) + _rows(run, direction, "negative", ranked.negative),
    )


def rescaled_remainders(candidates: Candidates, direction: Direction) -> Candidates:
    """c - (c . r) r of every candidate c, with the norm of the direction; zero where only rounding remains."""
    r = direction.vector
    remainders = candidates - (candidates @ r)[..., None] * r
    norms = remainders.norm(dim=-1, keepdim=True)
    is_rounding = norms <= ROUNDING * candidates.norm(dim=-1, keepdim=True).clamp(min=ROUNDING * direction.norm)
    return torch.where(is_rounding, torch.zeros_like(remainders), remainders * (direction.norm / norms))


def _rows(run: SeedRun, direction: Direction, label: Label, prompts: Sample) -> tuple[WideRow, ...]:
    """The metric of test prompts at baseline, and under the ablation or the addition of a direction."""
    if label == "positive":
        ids, arm = (BASELINE_ID, ABLATION), Arm("ablation", (Ablate(direction, spared=run.protocol.ablation.spared),))
    else:
        addition = Add(direction, run.arms.addition.coefficient, run.arms.addition.positions)
        ids, arm = (BASELINE_ID, ADDITION), Arm("addition", (addition,))
    metric = run.scorer(STAGE).read(prompts.sequences, [BASELINE, arm]).metric
    return tuple(WideRow(arm=i, side=label, metric=six_digits(values)) for i, values in zip(ids, metric, strict=True))
