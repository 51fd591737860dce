"""The procedure again, on other labels or on resampled prompts: the whole procedure's null, and the choice's spread.

One pass over the training prompts gives every refit its means at every candidate site (weighted sums; nothing is kept
per prompt). Selection is then done again by the fast metric, lazily: a candidate's induce and kl are only computed once
its bypass puts it in question. What is not done again: the refusal tokens, and the filter by the metric's sign.
Sees training and validation prompts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates, TokenIds
from rhumbline.evidence.selection_rules import SelectionRule, choose
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.scorer import Scorer
from rhumbline.records.positions import Position
from rhumbline.records.selection_files import Candidate
from rhumbline.stages.nulls import generator, halves

IN_QUESTION = 4
"""Candidates whose induce and kl are computed together, in the order of their bypass."""

Site = tuple[int, int]
"""Index of a position among those of the run, and a layer."""


def weighted_sums(
    runner: Runner, sequences: Sequence[TokenIds], positions: Sequence[Position], weights: Float[Tensor, "draw prompt"]
) -> Float[Tensor, "draw position layer d_model"]:
    """Sum of weight * block input over the prompts, for every draw of weights, in one pass; float64."""
    model = runner.model
    total = torch.zeros(len(weights), len(positions), model.n_layers, model.d_model, dtype=torch.float64)
    for prompt, h, _ in runner.residuals(sequences, positions):
        total += torch.einsum("nr,rpld->npld", weights[:, prompt].double(), h.double().cpu())
    return total


@dataclass(frozen=True)
class Validation:
    """Prompts that a refit is chosen on, each with its share in the mean."""

    positive: Sequence[TokenIds]
    negative: Sequence[TokenIds]
    baseline: Float[Tensor, "negative vocab"]
    """Logits of the negatives without an intervention."""
    positive_weight: Float[Tensor, " positive"]
    negative_weight: Float[Tensor, " negative"]


class Refit(NamedTuple):
    """What one refit chose."""

    position: Position
    layer: int
    vector: Float[Tensor, " d_model"]
    passed: bool
    """False where no candidate passed the rule: this is then the one with the best bypass."""


@dataclass(frozen=True)
class Choosing:
    """What every refit has in common: the sites that it may choose, and how it chooses."""

    scorer: Scorer
    sites: Sequence[Site]
    positions: Sequence[Position]
    rule: SelectionRule


def choose_again(choosing: Choosing, candidates: Candidates, validation: Validation) -> Refit | None:
    """Selection among the sites by the rule, induce and kl computed only where they can decide; None of nothing."""
    scorer, positions, rule = choosing.scorer, choosing.positions, choosing.rule
    directions = {
        (p, layer): Direction.from_vector(candidates[p, layer], positions[p], layer)
        for p, layer in choosing.sites
        if 0 < float(candidates[p, layer].norm()) < float("inf")
    }
    if not directions:
        return None
    cells = list(directions)
    ablations = [Arm(f"{cell}", (Ablate(directions[cell]),)) for cell in cells]
    bypass = (scorer.read(validation.positive, ablations).metric @ validation.positive_weight.double()).tolist()
    rows = [Candidate(positions[p], layer, b, None, None) for (p, layer), b in zip(cells, bypass, strict=True)]
    lazily = rule.criterion == "lowest-bypass"
    order = sorted(range(len(cells)), key=lambda i: (bypass[i], rows[i].position, rows[i].layer))
    step = IN_QUESTION if lazily else len(cells)
    depth = scorer.runner.model.n_layers
    for start in range(0, len(order), step):
        now = order[start : start + step]
        arms = [ablations[i] for i in now] + [Arm("add", (Add(directions[cells[i]]),)) for i in now]
        found = scorer.read(validation.negative, arms, validation.baseline)
        weight = validation.negative_weight.double()
        kl, induce = (found.kl[: len(now)] @ weight).tolist(), (found.metric[len(now) :] @ weight).tolist()
        for i, k, up in zip(now, kl, induce, strict=True):
            rows[i] = replace(rows[i], kl=k, induce=up)
        selected = choose([rows[i] for i in order[: start + step]], depth, rule).selected
        if selected is not None:
            return _refit(selected, positions, candidates, True)
    return _refit(rows[order[0]], positions, candidates, False)


def _refit(row: Candidate, positions: Sequence[Position], candidates: Candidates, passed: bool) -> Refit:
    return Refit(row.position, row.layer, candidates[list(positions).index(row.position), row.layer], passed)


# -- other labels: the null of the whole procedure --------------------------------------------------------------------


def shuffled_differences(
    runner: Runner,
    train: tuple[Sequence[TokenIds], Sequence[TokenIds]],
    candidates: Candidates,
    positions: Sequence[Position],
    *,
    draws: int,
    seed: int,
) -> Float[Tensor, "draw position layer d_model"] | None:
    """Differences in means of balanced pseudo-classes, each with half of either true class; None of too few prompts.

    Every one is given the norm of the true difference at its site, so that additions are matched.
    """
    if draws == 0 or min(len(s) for s in train) < 2:
        return None
    signs = [torch.stack([halves(len(s), generator(seed, "shuffled", d)) for d in range(draws)]) for s in train]
    sums = [weighted_sums(runner, s, positions, w) for s, w in zip(train, signs, strict=True)]
    differences = torch.nn.functional.normalize(sums[0] + sums[1], dim=-1).float()
    return differences * candidates.float().norm(dim=-1, keepdim=True)


def shuffled_refits(
    choosing: Choosing,
    differences: Float[Tensor, "draw position layer d_model"],
    val: tuple[Sequence[TokenIds], Sequence[TokenIds]],
    *,
    draws: Sequence[int],
    prompts: int,
    seed: int,
) -> list[Refit]:
    """Selection on balanced pseudo-classes, for some draws of pseudo-differences.

    `prompts` validation prompts of either true class are dealt to the pseudo-classes.
    """
    found = []
    for draw in draws:
        rng = np.random.default_rng([seed, draw, prompts])
        taken = [[s[i] for i in rng.permutation(len(s))[:prompts]] for s in val]
        first, second = ([x for s in taken for x in s[half::2]] for half in (0, 1))
        if not (first and second):
            continue
        refit = choose_again(choosing, differences[draw], _equally(choosing.scorer, first, second))
        if refit is not None:
            found.append(refit)
    return found


def _equally(scorer: Scorer, positive: Sequence[TokenIds], negative: Sequence[TokenIds]) -> Validation:
    shares = (torch.full((len(s),), 1 / len(s)) for s in (positive, negative))
    return Validation(positive, negative, scorer.baseline(negative), *shares)


# -- other prompts: how stable the choice is --------------------------------------------------------------------------


class BootstrapRefit(NamedTuple):
    """One bootstrap refit: what it chose, and its cosine with the direction at the direction's own site."""

    position: Position | None
    layer: int | None
    cosine: float


class Resampled(NamedTuple):
    """What every bootstrap refit is made of."""

    differences: Float[Tensor, "refit position layer d_model"]
    val: tuple[Sequence[TokenIds], Sequence[TokenIds]]
    baseline: Float[Tensor, "negative vocab"]
    shares: list[tuple[Float[Tensor, " positive"], Float[Tensor, " negative"]]]
    """Of every validation prompt, refit by refit."""


def resample(
    scorer: Scorer,
    train: tuple[Sequence[TokenIds], Sequence[TokenIds]],
    val: tuple[Sequence[TokenIds], Sequence[TokenIds]],
    positions: Sequence[Position],
    *,
    refits: int,
    prompts: int,
    seed: int,
) -> Resampled:
    """Prompts drawn with replacement from train and from `prompts` validation prompts per class."""
    rng = np.random.default_rng([seed, refits, prompts])
    means = []
    for sequences in train:
        n = len(sequences)
        weights = torch.tensor(rng.multinomial(n, np.full(n, 1 / n), size=refits) / n)
        means.append(weighted_sums(scorer.runner, sequences, positions, weights))
    first, second = ([s[i] for i in rng.permutation(len(s))[:prompts]] for s in val)

    def shares(n: int) -> Tensor:
        return torch.tensor(rng.multinomial(n, np.full(n, 1 / n)) / n)

    drawn = [(shares(len(first)), shares(len(second))) for _ in range(refits)]
    return Resampled((means[0] - means[1]).float(), (first, second), scorer.baseline(second), drawn)


def bootstrap_refits(
    choosing: Choosing, resampled: Resampled, direction: Direction, *, refits: Sequence[int]
) -> tuple[list[BootstrapRefit], float | None]:
    """Some of the refits.

    Also the mean cosine between two of all refits, at the direction's site.
    """
    at = resampled.differences[:, list(choosing.positions).index(direction.position), direction.layer]
    here = torch.nn.functional.normalize(at)
    found = []
    for refit in refits:
        validation = Validation(*resampled.val, resampled.baseline, *resampled.shares[refit])
        again = choose_again(choosing, resampled.differences[refit], validation)
        chosen = again if again is not None and again.passed else None
        cosine = float(here[refit] @ direction.vector)
        found.append(
            BootstrapRefit(None, None, cosine)
            if chosen is None
            else BootstrapRefit(chosen.position, chosen.layer, cosine)
        )
    gram, n = here @ here.T, len(here)
    between = float((gram.sum() - gram.trace()) / (n * (n - 1))) if n > 1 else None
    return found, between
