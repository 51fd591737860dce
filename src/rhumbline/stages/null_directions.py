"""Stage *nulls*: draw the null directions of a seed (nulls.json, nulls.safetensors).

Families that need only activations at the site of the direction are in null_families.py; `shuffled` repeats the whole
procedure (refits.py). Training and validation prompts only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import at_site
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import NullDirections
from rhumbline.records.shared import NullDirection
from rhumbline.stages.directions import group_cosine
from rhumbline.stages.null_families import Material, as_null, draw_nulls
from rhumbline.stages.refits import RefitSelection, ShuffledSelection, scored_sites, shuffled_differences
from rhumbline.stages.seed_artefacts import Null
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import DRAWS_PER_JOB, JobKind, SeedJobs, Span, spans


@dataclass(frozen=True)
class ShuffledDraw:
    """One draw of the family `shuffled`: the candidate that a refit on pseudo-classes selects."""

    position: Position
    layer: int
    vector: tuple[float, ...]
    """Difference in means of the pseudo-classes, with the norm of the true one at its site."""
    passed: bool
    """Whether the candidate passed the rule."""


@dataclass(frozen=True)
class ShuffledDraws:
    """Some draws of the family `shuffled`."""

    draws: tuple[ShuffledDraw, ...]


def draw_null_directions(run: SeedRun, jobs: SeedJobs) -> NullDirections:
    """Draw and write the null directions; returns their table, with the energy of the direction itself."""
    assert run.direction is not None
    direction, plan, material = run.direction, run.protocol.nulls, _material(run, run.direction)
    at_the_site = {family: plan.total(family) for family in plan.families if family != "shuffled"}
    nulls = draw_nulls(direction, material, at_the_site, seed=run.seed)
    rows = [_row(null) for null in nulls]
    if "shuffled" in plan.families:
        parts = jobs.request(SHUFFLED_JOB, spans(plan.total("shuffled"), DRAWS_PER_JOB))
        for number, draw in enumerate(draw for part in parts for draw in part.draws):
            vector = torch.tensor(draw.vector)
            null = as_null("shuffled", number, vector, direction, material)
            # It keeps its own site, and the norm with which it was selected: that of the true difference there.
            null = replace(null, direction=Direction.from_vector(vector, draw.position, draw.layer))
            nulls.append(null)
            rows.append(replace(_row(null), passed=draw.passed))
    run.directory.save_tensors(
        run.folder / "nulls.safetensors",
        {"nulls": torch.stack([n.direction.difference for n in nulls])},
        {"order": "as in nulls.json"},
    )
    groups = group_cosine(material.positive, material.negative)
    return NullDirections(material.energy(direction.vector), tuple(rows), groups)


def _row(null: Null) -> NullDirection:
    direction = null.direction
    return NullDirection(null.family, null.draw, null.cosine, null.energy, direction.position, direction.layer)


def _material(run: SeedRun, direction: Direction) -> Material:
    """Training activations at the site of the direction, the topics of the negatives, and the other contrast if any."""
    runner, plan, contrast = run.runner("nulls"), run.protocol.nulls, None

    def read(sequences: Sequence[TokenIds]) -> Tensor:
        return at_site(runner, sequences, direction.position, direction.layer)

    if plan.unrelated and "unrelated" in plan.families:
        other = read_contrast(plan.unrelated).prompts
        first, second = (read(run.encoded([p for p in other if p.label == label])) for label in LABELS)
        contrast = (first, second)
    topics = [p.category for p in run.rows("train", "negative", run.extraction.kept.train.negative)]
    positive, negative = (read(sequences) for sequences in run.kept_sequences("train"))
    return Material(positive, negative, topics, contrast, plan.top)


def _prepare_shuffled(run: SeedRun) -> Callable[[Span], ShuffledDraws]:
    """One pass over the training prompts gives the differences of all draws."""
    plan = run.protocol.nulls
    differences = shuffled_differences(
        run.runner("nulls"),
        run.kept_sequences("train"),
        run.candidates,
        run.positions,
        draws=plan.total("shuffled"),
        seed=run.seed,
    )

    if differences is None:
        return lambda span: ShuffledDraws(())
    sites = scored_sites(run.selection.candidates)
    shuffled = ShuffledSelection(
        RefitSelection(run.scorer("nulls"), sites, run.positions, run.rule.metric_only()),
        differences,
        run.kept_sequences("val"),
        plan.procedure_prompts,
        run.seed,
        plan.screen,
    )

    def compute(span: Span) -> ShuffledDraws:
        refits = shuffled.refits(span.range)
        draws = (ShuffledDraw(r.position, r.layer, tuple(r.vector.tolist()), r.passed) for r in refits)
        return ShuffledDraws(tuple(draws))

    return compute


SHUFFLED_JOB = JobKind("shuffled", Span, ShuffledDraws, _prepare_shuffled)
