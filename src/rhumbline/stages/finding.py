"""Finding the direction: the judge of a style, the tokens of the fast metric, the candidates, the choice among them.

Every function is one stage: it takes the seed's run, reads the artefacts of the stages before it, and returns the
content of its own. Sees training and validation prompts only.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from rhumbline.axes import TokenIds
from rhumbline.evidence.selection_rules import choose
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import Extraction, extract
from rhumbline.judging.metric import Metric
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.scorer import Scorer
from rhumbline.prompts.contrasts import LABELS, Label, Prompt, Split
from rhumbline.records.positions import Position
from rhumbline.records.reasons import NoCandidate
from rhumbline.records.selection_files import Candidate, Selection
from rhumbline.records.shared import ByLabel
from rhumbline.records.shared import Cell as SelectedCell
from rhumbline.stages.directions import difference_in_means
from rhumbline.stages.metric_on_test import coefficient_on_validation
from rhumbline.stages.refusal_tokens import opening_tokens, shifted_tokens
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.selection import Cell, Grid, Score, score_candidates
from rhumbline.stages.stage_jobs import CANDIDATES_PER_BLOCK, Ask, Block, cuts
from rhumbline.stages.style_judge import has_room, make_styling, with_completions

# -- train: who judges, which tokens, which candidates ----------------------------------------------------------------


def make_style(run: SeedRun) -> dict[str, Any]:
    """Markers and classifier of a continuous score."""
    record, tensors = make_styling(run.runner("style"), run.chat, run.splits, run.protocol)
    if tensors:
        run.directory.save_tensors(run.folder / "classifier.safetensors", tensors, {"form": "logistic regression"})
    return record


def find_tokens(run: SeedRun) -> dict[str, Any]:
    """The tokens of the metric."""
    given = run.protocol.refusal_tokens
    if given == "auto" and run.pairs is not None:
        return {"how": "pairs", "tokens": [], "auroc": None, "refusals": None, "n": None, "reason": None}
    runner, (positive, negative) = run.runner("refusal tokens"), (run.sequences("train", c) for c in LABELS)
    if given == "auto" and run.protocol.is_continuous:
        return shifted_tokens(runner, run.chat, positive, negative)
    return opening_tokens(
        runner,
        run.chat,
        positive,
        negative,
        run.judge(),
        given=None if given == "auto" else given,
        max_new_tokens=run.protocol.max_new_tokens,
    )


def extract_candidates(run: SeedRun) -> dict[str, Any]:
    """Candidates from the training means, and which train and val prompts the metric's sign keeps."""
    found = {(s, c): _extract(run, s, c) for s in ("train", "val") for c in LABELS}
    positive, negative = (found["train", c].stats.mean() for c in LABELS)
    candidates = difference_in_means(positive, negative)
    if not all(found["train", c].stats.n for c in LABELS):
        candidates = torch.full_like(candidates, float("nan"))
    run.directory.save_tensors(
        run.folder / "directions.safetensors",
        {"candidates": candidates, "negative_mean": negative.float()},
        {"positions": str([int(p) for p in run.positions]), "seed": str(run.seed), "form": "difference in means"},
    )
    return {
        "positions": [int(p) for p in run.positions],
        "kept": {s: {c: found[s, c].kept.tolist() for c in LABELS} for s in ("train", "val")},
        "n": {s: {c: int(found[s, c].kept.sum()) for c in LABELS} for s in ("train", "val")},
        "metric": {s: {c: found[s, c].metric.tolist() for c in LABELS} for s in ("train", "val")},
    }


def _extract(run: SeedRun, split: Split, label: Label) -> Extraction:
    keep = None
    read = None if isinstance(run.metric, PairedLogOdds) or run.positions[0].is_in_response else run.metric
    if run.protocol.extraction.filter and read is not None:
        keep = (lambda m: m > 0) if label == "positive" else (lambda m: m < 0)
    sequences = run.encoded(run.read(split, label))
    return extract(run.runner("extraction"), sequences, run.positions, read=read, keep=keep)


# -- validation: the choice -------------------------------------------------------------------------------------------


def select(run: SeedRun, ask: Ask) -> Selection:
    """Scores of the candidates on the kept validation prompts, and the candidate that the rule selects."""
    metric, extraction, rule = run.metric, run.extraction, run.protocol.selection
    n = ByLabel(**extraction["n"]["val"])
    is_empty = any(count == 0 for split in ("train", "val") for count in extraction["n"][split].values())
    if metric is None or is_empty:
        reason = NoCandidate.NO_TOKENS if metric is None else NoCandidate.NO_PROMPTS
        return Selection(selected=None, reason=reason, survivors=0, tied=(), n=n, candidates=())
    kept, (positive, negative) = extraction["kept"]["val"], run.kept("val")
    prompts: dict[Label, list[Prompt]] = {c: run.prompts("val", c, kept[c]) for c in LABELS}
    room = True
    if run.protocol.is_continuous:
        room = has_room(run.runner("selection"), run.chat, run.styling, prompts, run.protocol)
        rule = rule if room else rule.without_induce_and_kl()
    table = score_candidates(
        run.runner("selection"),
        run.candidates,
        run.positions,
        positive,
        negative,
        metric,
        rule,
        # Completions choose among all who pass, so none may be left unscored.
        full_grid=run.protocol.full_grid or rule != rule.metric_only(),
        values=partial(_scores, ask),
    )
    coefficient = partial(_coefficient, run, metric, negative)
    if run.protocol.is_continuous:
        table = with_completions(
            run.runner("selection"),
            run.chat,
            run.styling,
            prompts,
            table,
            lambda row: run.direction_at(row.position, row.layer),
            rule,
            run.protocol,
            coefficient,
            room,
        )
    result = choose(table, run.model.n_layers, rule)
    best = result.selected
    return Selection(
        selected=None if best is None else _cell(best),
        reason=result.reason,
        survivors=result.survivors,
        tied=tuple(_cell(row) for row in result.tied),
        baseline=ByLabel(*(_mean(extraction["metric"]["val"][c], kept[c]) for c in LABELS)),
        coefficient=1.0 if best is None else coefficient(run.direction_at(best.position, best.layer)),
        room=room,
        n=n,
        candidates=result.candidates,
    )


def _coefficient(run: SeedRun, metric: Metric, negative: Sequence[TokenIds], direction: Direction) -> float:
    """The coefficient of the additions of a direction: given, or chosen on validation negatives."""
    given = run.protocol.addition.coefficient
    if given != "validation":
        return float(given)
    return coefficient_on_validation(Scorer(run.runner("selection"), metric), negative, direction)


def _scores(ask: Ask, name: Score, cells: Sequence[Cell]) -> list[float]:
    """One score of every cell, by blocks."""
    # By layer: a pass of additions climbs from one layer to the next.
    order = sorted(range(len(cells)), key=lambda i: (cells[i][1], cells[i][0]))
    blocks = [[[int(cells[i][0]), cells[i][1]] for i in order[a:b]] for a, b in cuts(len(cells), CANDIDATES_PER_BLOCK)]
    found = ask("candidates", [{"name": name, "cells": block} for block in blocks])
    # JSON has no NaN: null is a score that is not finite, and not one that nobody asked for.
    values = dict(zip(order, (math.nan if v is None else v for block in found for v in block), strict=True))
    return [values[i] for i in range(len(cells))]


def score_block(run: SeedRun) -> Block:
    """One score of some candidates, on the kept validation prompts."""
    assert run.metric is not None
    positive, negative = run.kept("val")
    runner, rule = run.runner("selection"), run.protocol.selection
    grid = Grid(runner, run.candidates, run.positions, positive, negative, run.metric, rule)

    def scores(name: Score, cells: Sequence[Sequence[int]]) -> list[float]:
        return grid.values(name, [(Position(position), layer) for position, layer in cells])

    return scores


def _cell(row: Candidate) -> SelectedCell:
    assert row.norm is not None
    assert row.bypass is not None
    return SelectedCell(row.position, row.layer, row.norm, row.bypass)


def _mean(values: Sequence[float | None], kept: Sequence[bool]) -> float | None:
    known = [v for v, k in zip(values, kept, strict=True) if k and v is not None]
    return float(np.mean(known)) if known else None
