"""What the direction is held against: null directions, every draw by the fast metric, doses, and the choice made again.

Null directions and refits are made of training and validation prompts; wide nulls and doses are read on test prompts.
Stages take the seed's run and return the content of their artefact; the blocks that they ask for are below them.
Does not know what the arms complete (testing.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import at_site
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS, Label
from rhumbline.stages.directions import group_cosine
from rhumbline.stages.metric_on_test import Sample, best_sites, dose, sample, scored_sites, wide
from rhumbline.stages.nulls import Material, as_null, draw_nulls
from rhumbline.stages.refits import Choosing, Site, bootstrap_refits, resample, shuffled_differences, shuffled_refits
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import DRAWS_PER_BLOCK, NULLS_PER_BLOCK, REFITS_PER_BLOCK, Ask, Block, spans

# -- null directions, from train --------------------------------------------------------------------------------------


def draw_controls(run: SeedRun, ask: Ask) -> dict[str, Any]:
    """Draw and write the null directions; returns their table, and the direction's own energy."""
    assert run.direction is not None
    direction, plan, material = run.direction, run.protocol.nulls, _material(run, run.direction)
    at_the_site = {f: plan.total(f) for f in plan.families if f != "shuffled"}
    found = draw_nulls(direction, material, at_the_site, seed=run.seed)
    passed = [True] * len(found)
    if "shuffled" in plan.families:
        parts = ask("shuffled", spans(plan.total("shuffled"), DRAWS_PER_BLOCK))
        for draw, refit in enumerate(refit for part in parts for refit in part):
            vector = torch.tensor(refit["vector"])
            null = as_null("shuffled", draw, vector, direction, material)
            # Its own site and the norm that it was selected with: that of the true difference there.
            own = Direction.from_vector(vector, refit["position"], refit["layer"])
            found.append(replace(null, direction=own))
            passed.append(refit["passed"])
    run.directory.save_tensors(
        run.folder / "nulls.safetensors",
        {"nulls": torch.stack([n.direction.difference for n in found])},
        {"order": "as in nulls.json"},
    )
    rows = [
        {
            "family": n.family,
            "draw": n.draw,
            "cosine": n.cosine,
            "energy": n.energy,
            "position": int(n.direction.position),
            "layer": n.direction.layer,
            "passed": ok,
        }
        for n, ok in zip(found, passed, strict=True)
    ]
    groups = group_cosine(material.positive, material.negative)
    return {"energy": material.energy(direction.vector), "groups": groups, "nulls": rows}


def _material(run: SeedRun, direction: Direction) -> Material:
    """Training activations at the direction's site, the topics of the negatives, and the other contrast if any."""
    runner, plan, contrast = run.runner("nulls"), run.protocol.nulls, None

    def read(sequences: Sequence[TokenIds]) -> Tensor:
        return at_site(runner, sequences, direction.position, direction.layer)

    if plan.unrelated and "unrelated" in plan.families:
        other = read_contrast(plan.unrelated).prompts
        first, second = (read(run.encoded([p for p in other if p.label == c])) for c in LABELS)
        contrast = (first, second)
    topics = [p.category for p in run.read("train", "negative", run.extraction["kept"]["train"]["negative"])]
    positive, negative = (read(sequences) for sequences in run.kept("train"))
    return Material(positive, negative, topics, contrast, plan.top)


def shuffled_block(run: SeedRun) -> Block:
    """The whole procedure on some draws of pseudo-classes; one pass over the training prompts serves them all."""
    plan = run.protocol.nulls
    differences = shuffled_differences(
        run.runner("nulls"),
        run.kept("train"),
        run.candidates,
        run.positions,
        draws=plan.total("shuffled"),
        seed=run.seed,
    )

    def refits(first: int, end: int) -> list[dict[str, Any]]:
        if differences is None:
            return []
        sites = scored_sites(run.selection.candidates, run.positions)
        found = shuffled_refits(
            Choosing(run.scorer("nulls"), sites, run.positions, run.rule.metric_only()),
            differences,
            run.kept("val"),
            draws=range(first, end),
            prompts=plan.procedure_prompts,
            seed=run.seed,
        )
        return [{**r._asdict(), "position": int(r.position), "vector": r.vector.tolist()} for r in found]

    return refits


# -- wide nulls and doses, on test ------------------------------------------------------------------------------------


def _samples(run: SeedRun, n: int) -> dict[Label, Sample]:
    return {c: sample(run.splits.get("test", c), run.sequences("test", c), n, run.seed) for c in LABELS}


def widen(run: SeedRun, ask: Ask) -> dict[str, Any]:
    """Every null draw by the fast metric."""
    if run.protocol.nulls.wide == 0:
        return {"prompts": {}, "rows": [], "kl": []}
    parts = ask("wide", spans(len(run.nulls), NULLS_PER_BLOCK) or [{"first": 0, "end": 0}])
    # What is no null is in every block; the first one's counts.
    more = [row for part in parts[1:] for row in part["rows"] if row["arm"].startswith("null:")]
    rows = [row for c in LABELS for row in [*parts[0]["rows"], *more] if row["set"] == c]
    return {**parts[0], "rows": rows}


def wide_block(run: SeedRun) -> Block:
    """Some null draws by the fast metric, beside the baseline and the direction."""
    assert run.direction is not None
    direction, samples = run.direction, _samples(run, run.protocol.nulls.prompts)

    def read(first: int, end: int) -> dict[str, Any]:
        return wide(run.scorer("wide nulls"), samples, direction, run.nulls[first:end], run.how)

    return read


def measure_doses(run: SeedRun, ask: Ask) -> dict[str, Any]:
    """The curves over strengths."""
    parts = ask("dose", [{"label": label} for label in LABELS])
    return {**parts[0], "rows": [row for part in parts for row in part["rows"]]}


def dose_block(run: SeedRun) -> Block:
    """The curves of one class."""
    assert run.direction is not None
    direction, plan, samples = run.direction, run.protocol.dose, _samples(run, run.protocol.dose.prompts)
    few = [n for n in run.nulls if n.draw < plan.draws]

    def curves(label: Label) -> dict[str, Any]:
        own = replace(plan, coefficients=()) if label == "positive" else replace(plan, strengths=())
        return dose(run.scorer("dose"), samples, direction, few, own, run.protocol.addition.positions)

    return curves


# -- the choice again, on train and validation ------------------------------------------------------------------------


def measure_stability(run: SeedRun, ask: Ask) -> dict[str, Any]:
    """Bootstrap refits of the choice."""
    places = [{"position": int(run.positions[p]), "layer": layer} for p, layer in _best_sites(run)]
    parts = ask("refits", spans(run.protocol.stability.refits, REFITS_PER_BLOCK))
    refits = [refit for part in parts for refit in part["refits"]]
    return {"sites": places, "refits": refits, "between": parts[0]["between"] if parts else None}


def _best_sites(run: SeedRun) -> list[Site]:
    rule, n = run.rule.metric_only(), run.protocol.stability.sites
    return best_sites(run.selection.candidates, run.positions, rule, n)


def refit_block(run: SeedRun) -> Block:
    """Some bootstrap refits; one pass over the training prompts serves them all."""
    assert run.direction is not None
    direction, plan, scorer = run.direction, run.protocol.stability, run.scorer("stability")
    sets = (run.kept("train"), run.kept("val"))
    resampled = resample(scorer, *sets, run.positions, refits=plan.refits, prompts=plan.prompts, seed=run.seed)

    def refits(first: int, end: int) -> dict[str, Any]:
        choosing = Choosing(scorer, _best_sites(run), run.positions, run.rule.metric_only())
        found, between = bootstrap_refits(choosing, resampled, direction, refits=range(first, end))
        rows = [{**r._asdict(), "position": None if r.position is None else int(r.position)} for r in found]
        return {"refits": rows, "between": between}

    return refits
