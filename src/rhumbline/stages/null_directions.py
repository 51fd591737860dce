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
from rhumbline.protocol import Protocol
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import NullDirections, UnrelatedSource
from rhumbline.records.shared import NullDirection
from rhumbline.stages.directions import group_cosine, group_cosines
from rhumbline.stages.null_families import Enough, Material, as_null, draw_nulls, topics_of
from rhumbline.stages.refits import ShuffledSelection, scored_sites, shuffled_differences
from rhumbline.stages.seed_artefacts import Null
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.selection import refit_selection
from rhumbline.stages.stage_jobs import DRAWS_PER_JOB, MORE_DRAWS_PER_JOB, JobKind, SeedJobs, Span, spans


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
    direction, plan, (material, topics) = run.direction, run.protocol.nulls, _material(run, run.direction)
    enough = _enough(run.protocol)
    at_the_site = {family: plan.total(family) for family in plan.families if family != "shuffled"}
    nulls = draw_nulls(direction, material, at_the_site, seed=run.seed, enough=enough)
    rows = [_row(null) for null in nulls]
    if "shuffled" in plan.families:
        for null, passed in _shuffled_nulls(run, jobs, material, enough):
            nulls.append(null)
            rows.append(replace(_row(null), passed=passed))
    run.directory.save_tensors(
        run.folder / "nulls.safetensors",
        {"nulls": torch.stack([n.direction.difference for n in nulls])},
        {"order": "as in nulls.json"},
    )
    return NullDirections(
        material.energy(direction.vector),
        tuple(rows),
        group_cosine(material.positive, material.negative),
        group_cosines(material.positive, material.negative, run.seed),
        topics,
    )


def _enough(protocol: Protocol) -> Enough:
    """Comparable draws for the completions, and for the ranks if there are wide nulls."""
    rule, plan = protocol.rule, protocol.nulls
    for_ranks = (rule.min_draws or 0) if plan.wide else 0
    return Enough(max(plan.draws, for_ranks), rule.same_cosine, plan.limit)


def _shuffled_nulls(run: SeedRun, jobs: SeedJobs, material: Material, enough: Enough) -> list[tuple[Null, bool]]:
    """The draws of the whole procedure, and whether a candidate passed the rule in each.

    The planned draws are independent jobs. Further ones are computed job by job until there are enough.
    """
    assert run.direction is not None
    direction = run.direction
    planned = run.protocol.nulls.total("shuffled")
    nulls: list[tuple[Null, bool]] = []

    def add(parts: Sequence[ShuffledDraws]) -> None:
        for draw in (draw for part in parts for draw in part.draws):
            vector = torch.tensor(draw.vector)
            null = as_null("shuffled", len(nulls), vector, direction, material)
            # It keeps its own site, and the norm with which it was selected: that of the true difference there.
            kept = replace(null, direction=Direction.from_vector(vector, draw.position, draw.layer))
            nulls.append((kept, draw.passed))

    add(jobs.request(SHUFFLED_JOB, spans(planned, DRAWS_PER_JOB)))
    for span in spans(planned * (enough.limit - 1), MORE_DRAWS_PER_JOB):
        if enough.reached([null for null, _ in nulls]):
            break
        add(jobs.request(MORE_SHUFFLED_JOB, [Span(planned + span.first, planned + span.end)]))
    return nulls


def _row(null: Null) -> NullDirection:
    direction = null.direction
    return NullDirection(null.family, null.draw, null.cosine, null.energy, direction.position, direction.layer)


def _material(run: SeedRun, direction: Direction) -> tuple[Material, UnrelatedSource | None]:
    """Training activations at the site of the direction, and what the family `unrelated` halves."""
    runner, plan, contrast = run.runner("nulls"), run.protocol.nulls, None

    def read(sequences: Sequence[TokenIds]) -> Tensor:
        return at_site(runner, sequences, direction.position, direction.layer)

    is_drawn = "unrelated" in plan.families
    if plan.unrelated and is_drawn:
        other = read_contrast(plan.unrelated).prompts
        first, second = (read(run.encoded([p for p in other if p.label == label])) for label in LABELS)
        contrast = (first, second)
    positive, negative = (read(sequences) for sequences in run.kept_sequences("train"))
    categories = [p.category for p in run.rows("train", "negative", run.extraction.kept.train.negative)]
    topics, are_clusters = topics_of(categories, negative)
    source: UnrelatedSource = "contrast" if contrast else "clusters" if are_clusters else "categories"
    return Material(positive, negative, topics, contrast, plan.top), source if is_drawn else None


def _prepare_shuffled(run: SeedRun) -> Callable[[Span], ShuffledDraws]:
    """One pass over the training prompts gives the differences of all planned draws."""
    return _shuffled(run, range(run.protocol.nulls.total("shuffled")))


def _prepare_more_shuffled(run: SeedRun) -> Callable[[Span], ShuffledDraws]:
    """The same for further draws; a pass for each job, because few jobs are needed."""
    return lambda span: _shuffled(run, span.range)(span)


def _shuffled(run: SeedRun, draws: range) -> Callable[[Span], ShuffledDraws]:
    differences = shuffled_differences(
        run.runner("nulls"), run.kept_sequences("train"), run.candidates, run.positions, draws=draws, seed=run.seed
    )

    if differences is None:
        return lambda span: ShuffledDraws(())
    plan, sites = run.protocol.nulls, scored_sites(run.selection.candidates)
    shuffled = ShuffledSelection(
        refit_selection(run, "nulls", sites),
        draws,
        differences,
        run.kept_sequences("val"),
        plan.procedure_prompts,
        run.seed,
        plan.screen,
    )

    def compute(span: Span) -> ShuffledDraws:
        refits = shuffled.refits(span.range)
        found = (ShuffledDraw(r.position, r.layer, tuple(r.vector.tolist()), r.passed) for r in refits)
        return ShuffledDraws(tuple(found))

    return compute


SHUFFLED_JOB = JobKind("shuffled", Span, ShuffledDraws, _prepare_shuffled)
MORE_SHUFFLED_JOB = JobKind("more shuffled", Span, ShuffledDraws, _prepare_more_shuffled)
