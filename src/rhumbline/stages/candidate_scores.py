"""Scores of candidates by the metric: bypass, induce and KL on validation prompts, as many as the rule needs.

The table gives the same selection as the full grid. Comparisons that are closer than rounding are scored again in one
batch shape. Validation prompts only.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates, TokenIds
from rhumbline.evidence.selection_rules import SelectionResult, SelectionRule, choose, why_discarded
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.scorer import Scorer
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.seed_files import Candidate
from rhumbline.records.shared import Site

log = logging.getLogger("rhumbline")

ScoreName = Literal["bypass", "induce", "kl"]
Compute = Callable[[ScoreName, Sequence[Site]], list[float]]
"""One score of several candidates."""
Table = dict[Site, Candidate]


@dataclass(frozen=True)
class ScoreGrid:
    """The scores of candidates on one pair of validation sets. Arditi et al. 2024, section 2.3 and appendix C."""

    scorer: Scorer
    candidates: Candidates
    """Differences in means, not normalised."""
    positions: Sequence[Position]
    positive: Sequence[TokenIds]
    negative: Sequence[TokenIds]
    rule: SelectionRule
    elsewhere: Compute | None = None
    """Computes a score of several candidates at once, for example on workers; None: `values`."""

    def rows(self) -> Iterator[Candidate]:
        """The table without scores. A candidate that is never scored has its reason."""
        cut = self.rule.first_cut_layer(self.n_layers)
        norms = self.candidates.norm(dim=-1)
        # Post-instruction tokens that every prompt shares have equal activations at layer 0: zero, not noise.
        floor = 1e-6 * float(norms[norms.isfinite()].max()) if bool(norms.isfinite().any()) else 0.0
        for p, position in enumerate(self.positions):
            for layer in range(self.n_layers):
                norm = float(norms[p, layer])
                reason = None
                if layer >= cut:
                    reason = Discard.TOO_LATE
                elif not math.isfinite(norm):
                    reason = Discard.NOT_FINITE
                elif norm <= floor:
                    reason = Discard.NO_DIFFERENCE
                yield Candidate(position, layer, None, None, None, norm, reason)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.scorer.runner.model.n_layers

    def passes(self, row: Candidate) -> bool:
        """Whether the scores computed so far do not discard the candidate."""
        return why_discarded(row, self.n_layers, self.rule) in (None, Discard.NOT_SCORED)

    def score(self, table: Table, name: ScoreName, sites: Sequence[Site]) -> None:
        """Fill in one score of some candidates. A single one is computed here."""
        compute = self.values if self.elsewhere is None or len(sites) < 2 else self.elsewhere
        for site, value in zip(sites, compute(name, sites), strict=True):
            table[site] = replace(table[site], **{name: value})

    def values(self, name: ScoreName, sites: Sequence[Site]) -> list[float]:
        """One score of some candidates."""
        return self._values(self.scorer, name, sites)

    def _values(self, scorer: Scorer, name: ScoreName, sites: Sequence[Site]) -> list[float]:
        if not sites:
            return []
        directions = [self._direction(site) for site in sites]
        ablations = [Arm("ablation", (Ablate(d),)) for d in directions]
        match name:
            case "bypass":
                values = scorer.read(self.positive, ablations).metric
            case "induce":
                values = scorer.read(self.negative, [Arm("addition", (Add(d),)) for d in directions]).metric
            case "kl":
                values = scorer.kl(self.negative, ablations, self.baseline)
        return values.mean(1).tolist()

    def _direction(self, site: Site) -> Direction:
        vector = self.candidates[list(self.positions).index(site.position), site.layer]
        return Direction.from_vector(vector, site.position, site.layer)

    @cached_property
    def baseline(self) -> Float[Tensor, "prompt vocab"]:
        """Logits of the negatives without intervention."""
        return self.scorer.baseline(self.negative)

    def score_kl_in_order(self, table: Table) -> None:
        """KL of the best candidates until one passes, and of those that tie with it."""
        sites = [site for site in _open(table) if self.passes(table[site])]
        sites.sort(key=lambda site: (self.rule.criterion_of(table[site]), site.position, site.layer))
        best: float | None = None
        for site in sites:
            value = self.rule.criterion_of(table[site])
            if best is not None and value - best > self.rule.tie_margin:
                table[site] = replace(table[site], discarded=Discard.NOT_NEEDED)
                continue
            self.score(table, "kl", [site])
            if best is None and self.passes(table[site]):
                best = value

    def rescore_near_ties(self, table: Table) -> None:
        """Score again, padded and in one batch shape, the candidates whose comparison is closer than rounding."""
        result = choose(list(table.values()), self.n_layers, self.rule)
        runner = self.scorer.runner
        noise = NOISE if runner.model.dtype == torch.float32 else NOISE_16_BIT
        close = _close(result, self.rule, noise)
        if len(close) < 2 and not any(_at_a_bound(table[site], self.rule, noise) for site in close):
            return
        log.info("%d candidates are within rounding of each other or of a bound and are scored again", len(close))
        padded = replace(runner.model, proof=replace(runner.model.proof, packing_is_exact=False))
        scorer = replace(self.scorer, runner=Runner(padded, runner.tokens_per_forward, runner.tick))
        for site in close:
            for name in ("induce", "bypass", "kl"):
                if getattr(table[site], name) is not None:
                    (value,) = self._values(scorer, name, [site])
                    table[site] = replace(table[site], **{name: value}, rescored=True)


def score_candidates(grid: ScoreGrid, *, full_grid: bool = True) -> list[Candidate]:
    """Bypass, induce and KL of every candidate that the layer cut of the rule leaves.

    Without `full_grid` only scores that can change the selection are computed: induce of all, bypass of those that pass
    it, and KL in the order of the criterion until one passes, and of its ties.
    """
    table = {row.site: row for row in grid.rows()}
    grid.score(table, "induce", _open(table))
    grid.score(table, "bypass", [site for site in _open(table) if full_grid or grid.passes(table[site])])
    if full_grid:
        grid.score(table, "kl", _open(table))
    else:
        grid.score_kl_in_order(table)
    grid.rescore_near_ties(table)
    return list(table.values())


def _open(table: Table) -> list[Site]:
    """Candidates without a reason to discard them."""
    return [site for site, row in table.items() if row.discarded is None]


NOISE, NOISE_16_BIT = 2e-5, 0.05
"""Change of a score with the shape of its batch: measured in float32, an upper bound in 16 bits."""


def _at_a_bound(row: Candidate, rule: SelectionRule, noise: float) -> bool:
    bounds = ((row.kl, rule.max_kl), (row.induce, rule.min_induce))
    return any(v is not None and b is not None and abs(v - b) <= noise for v, b in bounds)


def _close(result: SelectionResult, rule: SelectionRule, noise: float) -> list[Site]:
    """The candidates for which rounding can change the selection."""
    best = result.selected
    return [
        row.site
        for row in result.candidates
        if _at_a_bound(row, rule, noise)
        or (row.discarded is None and best is not None and rule.criterion_of(row) - rule.criterion_of(best) <= noise)
    ]
