"""Extraction and selection again: on pseudo-classes (the family `shuffled`) or on resampled prompts (stability).

One pass over the training prompts gives every refit its means at every site, as weighted sums; no activation of a
single prompt is stored. Selection uses the metric only and is lazy: induce and KL are computed for the candidates with
the best bypass scores first. Refusal tokens and the filter by the sign of the metric are not computed again. Training
and validation prompts only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates, TokenIds, Vector
from rhumbline.evidence.selection_rules import SelectionRule, choose, screened
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.scorer import Scorer
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.seed_files import BootstrapRefit, Candidate, Estimates
from rhumbline.records.shared import Site
from rhumbline.stages.null_families import generator, halves

CANDIDATES_AT_ONCE = 2
"""Candidates whose induce and KL scores are computed together, in the order of their bypass scores."""

Sequences = Sequence[TokenIds]
Differences = Mapping[Site, Vector]
"""Differences in means of the candidates of a refit: neither zero nor infinite."""


def scored_sites(table: Sequence[Candidate]) -> list[Site]:
    """The sites that were scored or screened: those that a refit of the whole procedure can select."""
    return [row.site for row in table if row.induce is not None or row.estimates is not None]


def at_sites(candidates: Candidates, sites: Sequence[Site], positions: Sequence[Position]) -> Differences:
    """The candidates of some sites that have a direction; `positions` are those of the first axis."""
    vectors = ((site, candidates[list(positions).index(site.position), site.layer]) for site in sites)
    return {site: vector for site, vector in vectors if 0 < float(vector.norm()) < float("inf")}


def best_sites(table: Sequence[Candidate], rule: SelectionRule, n: int) -> list[Site]:
    """The n best candidates by the rule: survivors, and those whose KL score could not change the selection."""
    scored = (row for row in table if row.bypass is not None and row.induce is not None)
    eligible = [row for row in scored if row.discarded in (None, Discard.NOT_NEEDED)]
    return [row.site for row in sorted(eligible, key=rule.criterion_of)[:n]]


# -- one refit --------------------------------------------------------------------------------------------------------


def weighted_sums(
    runner: Runner, sequences: Sequences, positions: Sequence[Position], weights: Float[Tensor, "draw prompt"]
) -> Float[Tensor, "draw position layer d_model"]:
    """Sum of weight * block input over the prompts, for every draw of weights, in one pass; float64."""
    model = runner.model
    total = torch.zeros(len(weights), len(positions), model.n_layers, model.d_model, dtype=torch.float64)
    for prompt, h, _ in runner.residuals(sequences, positions):
        total += torch.einsum("nr,rpld->npld", weights[:, prompt].double(), h.double().cpu())
    return total


@dataclass(frozen=True)
class Validation:
    """The prompts of one selection, each with its weight in the mean."""

    positive: Sequences
    negative: Sequences
    baseline: Float[Tensor, "negative vocab"]
    """Logits of the negatives without intervention."""
    positive_weight: Float[Tensor, " positive"]
    negative_weight: Float[Tensor, " negative"]


class Refit(NamedTuple):
    """The candidate that one refit selects."""

    position: Position
    layer: int
    vector: Float[Tensor, " d_model"]
    passed: bool
    """False if no candidate passed the rule; the refit is then the candidate with the best bypass score."""


@dataclass(frozen=True)
class RefitSelection:
    """How all refits of a stage select."""

    scorer: Scorer
    rule: SelectionRule
    spared: int
    """Tokens at the start of a prompt that ablations do not edit."""
    coefficient: float
    """Of the additions, in differences in means."""

    def directions(self, candidates: Differences) -> list[Direction]:
        """The directions of candidates, with the length of their additions."""
        return [Direction.from_vector(self.coefficient * v, s.position, s.layer) for s, v in candidates.items()]

    def select(self, candidates: Differences, validation: Validation) -> Refit | None:
        """Select among candidates by the rule; None if there are none."""
        if not candidates:
            return None
        directions = self.directions(candidates)
        ablations = [Arm("ablation", (Ablate(d, spared=self.spared),)) for d in directions]
        additions = [Arm("addition", (Add(d),)) for d in directions]
        weight = validation.positive_weight.double()
        bypass = (self.scorer.read(validation.positive, ablations).metric @ weight).tolist()
        rows = [Candidate(s.position, s.layer, b, None, None) for s, b in zip(candidates, bypass, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: (bypass[i], rows[i].position, rows[i].layer))
        first, *others = self.rule.attempts()
        n_layers = self.scorer.runner.model.n_layers
        # Only the criterion lowest-bypass is known before the other scores.
        step = CANDIDATES_AT_ONCE if self.rule.criterion == "lowest-bypass" else len(rows)
        for start in range(0, len(order), step):
            now = order[start : start + step]
            arms = [ablations[i] for i in now] + [additions[i] for i in now]
            readings = self.scorer.read(validation.negative, arms, validation.baseline)
            weight = validation.negative_weight.double()
            kl, induce = (readings.kl[: len(now)] @ weight).tolist(), (readings.metric[len(now) :] @ weight).tolist()
            for i, k, up in zip(now, kl, induce, strict=True):
                rows[i] = replace(rows[i], kl=k, induce=up)
            table = [rows[i] for i in order[: start + step]]
            selected = choose(table, n_layers, first).selected
            if selected is not None:
                return _refit(selected, candidates, True)
        for other in others:
            selected = choose(rows, n_layers, other).selected
            if selected is not None:
                return _refit(selected, candidates, True)
        return _refit(rows[order[0]], candidates, False)


def _refit(row: Candidate, candidates: Differences, passed: bool) -> Refit:
    return Refit(row.position, row.layer, candidates[row.site], passed)


# -- pseudo-classes: the null of the whole procedure ------------------------------------------------------------------


def shuffled_differences(
    runner: Runner,
    train: tuple[Sequences, Sequences],
    candidates: Candidates,
    positions: Sequence[Position],
    *,
    draws: Sequence[int],
    seed: int,
) -> Float[Tensor, "draw position layer d_model"] | None:
    """Differences in means of pseudo-classes, each with half of either true class; None for too few prompts.

    Every difference is rescaled to the norm of the true difference at its site, so that additions are comparable.
    """
    if len(draws) == 0 or min(len(s) for s in train) < 2:
        return None
    signs = [torch.stack([halves(len(s), generator(seed, "shuffled", d)) for d in draws]) for s in train]
    sums = [weighted_sums(runner, s, positions, w) for s, w in zip(train, signs, strict=True)]
    differences = torch.nn.functional.normalize(sums[0] + sums[1], dim=-1).float()
    return differences * candidates.float().norm(dim=-1, keepdim=True)


class PseudoClasses(NamedTuple):
    """The validation prompts of one draw, by index in positives followed by negatives."""

    positive: list[int]
    negative: list[int]

    @classmethod
    def of(cls, sizes: tuple[int, int], draw: int, prompts: int, seed: int) -> "PseudoClasses":
        """Each pseudo-class gets half of `prompts` validation prompts of either true class."""
        rng = np.random.default_rng([seed, draw, prompts])
        drawn = [(start + rng.permutation(n)[:prompts]).tolist() for start, n in zip((0, sizes[0]), sizes, strict=True)]
        return cls(*([i for some in drawn for i in some[half::2]] for half in (0, 1)))


@dataclass(frozen=True)
class ShuffledSelection:
    """Selection on pseudo-classes."""

    selection: RefitSelection
    val: tuple[Sequences, Sequences]
    prompts: int
    """Validation prompts of either true class in a draw."""
    seed: int

    def screened(self, of_draw: Mapping[int, Differences], n: int) -> dict[int, Differences]:
        """The n candidates of every draw with the best first-order estimates; one backward pass for all draws.

        All candidates if n is 0 or not smaller than their number, or for the paired log-odds of responses.
        """
        scorer, most = self.selection.scorer, max(map(len, of_draw.values()), default=0)
        if not n or most <= n or isinstance(scorer.metric, PairedLogOdds):
            return dict(of_draw)
        every = [d for candidates in of_draw.values() for d in self.selection.directions(candidates)]
        ablation, addition = scorer.estimates([*self.val[0], *self.val[1]], every, self.selection.spared)
        kept, start = {}, 0
        for draw, candidates in of_draw.items():
            classes, here, sites = self._classes(draw), slice(start, start + len(candidates)), list(candidates)
            bypass, induce = ablation[here, classes.positive].mean(1), addition[here, classes.negative].mean(1)
            estimates = [Estimates(*pair) for pair in zip(bypass.tolist(), induce.tolist(), strict=True)]
            kept[draw] = {sites[i]: candidates[sites[i]] for i in screened(estimates, n)}
            start += len(candidates)
        return kept

    def refit(self, draw: int, candidates: Differences) -> Refit | None:
        """The refit of a draw; None without validation prompts or candidates."""
        sequences, classes = [*self.val[0], *self.val[1]], self._classes(draw)
        if not (classes.positive and classes.negative):
            return None
        positive, negative = ([sequences[i] for i in some] for some in classes)
        return self.selection.select(candidates, _equally_weighted(self.selection.scorer, positive, negative))

    def _classes(self, draw: int) -> PseudoClasses:
        return PseudoClasses.of((len(self.val[0]), len(self.val[1])), draw, self.prompts, self.seed)


def _equally_weighted(scorer: Scorer, positive: Sequences, negative: Sequences) -> Validation:
    weights = (torch.full((len(s),), 1 / len(s)) for s in (positive, negative))
    return Validation(positive, negative, scorer.baseline(negative), *weights)


# -- resampled prompts: the stability of the selection ----------------------------------------------------------------


class Resampled(NamedTuple):
    """The data of all bootstrap refits."""

    differences: Float[Tensor, "refit position layer d_model"]
    val: tuple[Sequences, Sequences]
    baseline: Float[Tensor, "negative vocab"]
    weights: list[tuple[Float[Tensor, " positive"], Float[Tensor, " negative"]]]
    """Weights of the validation prompts of either class, for every refit."""


def resample(
    scorer: Scorer,
    train: tuple[Sequences, Sequences],
    val: tuple[Sequences, Sequences],
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
    selection: RefitSelection,
    sites: Sequence[Site],
    positions: Sequence[Position],
    resampled: Resampled,
    direction: Direction,
    *,
    refits: Sequence[int],
) -> tuple[list[BootstrapRefit], float | None]:
    """Some of the refits, each selected among `sites`.

    Also the mean cosine between two of all refits at the site of the direction.
    """
    at = resampled.differences[:, list(positions).index(direction.position), direction.layer]
    here = torch.nn.functional.normalize(at)
    rows = []
    for refit in refits:
        validation = Validation(*resampled.val, resampled.baseline, *resampled.weights[refit])
        selected = selection.select(at_sites(resampled.differences[refit], sites, positions), validation)
        cosine = float(here[refit] @ direction.vector)
        if selected is not None and selected.passed:
            rows.append(BootstrapRefit(selected.position, selected.layer, cosine))
        else:
            rows.append(BootstrapRefit(None, None, cosine))
    gram, n = here @ here.T, len(here)
    between = float((gram.sum() - gram.trace()) / (n * (n - 1))) if n > 1 else None
    return rows, between
