"""Stage *nulls*: draw the null directions of a seed (nulls.json, nulls.safetensors).

Families that need only activations at the site of the direction are in null_families.py; `shuffled` repeats the whole
procedure (refits.py). Training and validation prompts only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
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
from rhumbline.records.shared import NullDirection, Site
from rhumbline.stages.directions import group_cosine, group_cosines
from rhumbline.stages.null_families import Enough, Material, as_null, draw_nulls, topics_of
from rhumbline.stages.refits import ShuffledSelection, at_sites, scored_sites, shuffled_differences
from rhumbline.stages.seed_artefacts import Null
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.selection import refit_selection
from rhumbline.stages.stage_jobs import JobKind, SeedJobs, spans

MORE_DRAWS = 3
"""Draws of the whole procedure that are added at a time; each time reads the training prompts again."""


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
class ShuffledRequest:
    """One draw of the family `shuffled`: the candidates on pseudo-classes that are scored."""

    draw: int
    sites: tuple[Site, ...]
    vectors: bytes
    """Their differences in means, float32, one after the other."""


@dataclass(frozen=True)
class ShuffledResult:
    """The draw; None if nothing can be selected."""

    draw: ShuffledDraw | None


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

    Further draws than the planned ones are computed, a few at a time, until there are enough.
    """
    assert run.direction is not None
    direction = run.direction
    planned = run.protocol.nulls.total("shuffled")
    nulls: list[tuple[Null, bool]] = []

    def add(draws: range) -> None:
        for draw in _shuffled_draws(run, jobs, draws):
            vector = torch.tensor(draw.vector)
            null = as_null("shuffled", len(nulls), vector, direction, material)
            # It keeps its own site, and the norm with which it was selected: that of the true difference there.
            kept = replace(null, direction=Direction.from_vector(vector, draw.position, draw.layer))
            nulls.append((kept, draw.passed))

    add(range(planned))
    for span in spans(planned * (enough.limit - 1), MORE_DRAWS):
        if enough.reached([null for null, _ in nulls]):
            break
        add(range(planned + span.first, planned + span.end))
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


def _shuffled_draws(run: SeedRun, jobs: SeedJobs, draws: range) -> list[ShuffledDraw]:
    """Some draws, each selected in a job; one pass over the training prompts gives the candidates of all."""
    differences = shuffled_differences(
        run.runner("nulls"), run.kept_sequences("train"), run.candidates, run.positions, draws=draws, seed=run.seed
    )
    if differences is None:
        return []
    sites = scored_sites(run.selection.candidates)
    of_draw = {draw: at_sites(some, sites, run.positions) for draw, some in zip(draws, differences, strict=True)}
    requests = [
        ShuffledRequest(draw, tuple(kept), b"".join(v.numpy().astype("<f4").tobytes() for v in kept.values()))
        for draw, kept in _shuffled_selection(run).screened(of_draw, run.protocol.nulls.screen).items()
    ]
    return [result.draw for result in jobs.request(SHUFFLED_JOB, requests) if result.draw is not None]


def _shuffled_selection(run: SeedRun) -> ShuffledSelection:
    plan = run.protocol.nulls
    return ShuffledSelection(refit_selection(run, "nulls"), run.kept_sequences("val"), plan.procedure_prompts, run.seed)


def _prepare(run: SeedRun) -> Callable[[ShuffledRequest], ShuffledResult]:
    shuffled = _shuffled_selection(run)

    def compute(request: ShuffledRequest) -> ShuffledResult:
        vectors = np.frombuffer(request.vectors, "<f4").reshape(len(request.sites), run.model.d_model)
        refit = shuffled.refit(request.draw, dict(zip(request.sites, torch.tensor(vectors), strict=True)))
        if refit is None:
            return ShuffledResult(None)
        return ShuffledResult(ShuffledDraw(refit.position, refit.layer, tuple(refit.vector.tolist()), refit.passed))

    return compute


SHUFFLED_JOB = JobKind("shuffled", ShuffledRequest, ShuffledResult, _prepare)
