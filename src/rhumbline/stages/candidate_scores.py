"""Scores of candidates by the metric: bypass, induce and KL on validation prompts, as many as the rule needs.

The table gives the same selection as the full grid. Candidates that rounding could make the selected one are scored
again in one batch shape. Validation prompts only.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates, TokenIds
from rhumbline.evidence.rounding import (
    SMALLEST,
    can_survive,
    contenders,
    criterion_bound,
    rounding_bound,
    surely_survives,
)
from rhumbline.evidence.selection_rules import SelectionRule, choose, screened
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.scorer import Scorer
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.seed_files import Candidate, Estimates, Rounding
from rhumbline.records.shared import Site

log = logging.getLogger("rhumbline")

ScoreName = Literal["bypass", "induce", "kl"]
Compute = Callable[[ScoreName, Sequence[Site]], list[float]]
"""One score of several candidates."""
Table = dict[Site, Candidate]
SCORES: tuple[ScoreName, ...] = ("induce", "bypass", "kl")
FLOAT32_ROUNDING = 1e-4
"""Bound on the change of a float32 score with the shape of its batch, before it is measured (1.5e-5 was seen)."""
PROBES, PROBE_PROMPTS = 2, 8
"""Candidates, and prompts of each class, from which the rounding bound of a score is measured."""


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
    spared: int = 0
    """Tokens at the start of a prompt that ablations do not edit."""
    coefficient: float = 1.0
    """Of the additions, in differences in means."""
    elsewhere: Compute | None = None
    """Computes a score of several candidates at once, for example on workers; None: `values`."""
    computed: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Results by what they depend on apart from the fields."""

    def under(self, rule: SelectionRule) -> "ScoreGrid":
        """The same grid with another rule, which computes again only what depends on it."""
        other = replace(self, rule=rule)
        other.computed.update(self.computed)
        return other

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        if key not in self.computed:
            self.computed[key] = compute()
        return self.computed[key]

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

    def score(self, table: Table, name: ScoreName, sites: Sequence[Site]) -> None:
        """Fill in one score of some candidates. A single one is computed here."""
        compute = self.values if self.elsewhere is None or len(sites) < 2 else self.elsewhere
        values = self._once((name, *sites), lambda: compute(name, sites))
        for site, value in zip(sites, values, strict=True):
            table[site] = replace(table[site], **{name: value})

    def values(self, name: ScoreName, sites: Sequence[Site]) -> list[float]:
        """One score of some candidates."""
        return self.by_prompt(name, sites).mean(1).tolist() if sites else []

    def by_prompt(
        self, name: ScoreName, sites: Sequence[Site], scorer: Scorer | None = None
    ) -> Float[Tensor, "candidate prompt"]:
        """One score of some candidates on every prompt."""
        scorer, sequences = scorer or self.scorer, self.sequences(name)
        directions = [self._direction(site) for site in sites]
        match name:
            case "bypass":
                return scorer.read(
                    sequences, [Arm("ablation", (Ablate(d, spared=self.spared),)) for d in directions]
                ).metric
            case "induce":
                return scorer.read(sequences, [Arm("addition", (Add(d),)) for d in directions]).metric
            case "kl":
                return scorer.kl(
                    sequences, [Arm("ablation", (Ablate(d, spared=self.spared),)) for d in directions], self.baseline
                )

    def in_one_shape(self, name: ScoreName, sites: Sequence[Site]) -> list[float]:
        """One score of some candidates, each alone in packs of the same prompts, so equal ones have equal scores."""
        whole = replace(self.scorer, resumes=False)

        def score(site: Site) -> float:
            return float(self.by_prompt(name, [site], whole).mean())

        return [self._once(("in one shape", name, site), partial(score, site)) for site in sites]

    def rounding_of(self, name: ScoreName, sites: Sequence[Site]) -> float:
        """The rounding bound of a score, from a few candidates in two shapes: as in the grid, and padded."""
        return self._once(("rounding", name, *sites), lambda: self._rounding_of(name, sites)) if sites else SMALLEST

    def _rounding_of(self, name: ScoreName, sites: Sequence[Site]) -> float:
        few = replace(self, positive=self.positive[:PROBE_PROMPTS], negative=self.negative[:PROBE_PROMPTS])
        runner = self.scorer.runner
        padded = replace(runner.model, proof=replace(runner.model.proof, packing_is_exact=False))
        other = Runner(padded, max(1, runner.tokens_per_forward // 2), runner.tick)
        changes = few.by_prompt(name, sites) - few.by_prompt(name, sites, replace(self.scorer, runner=other))
        return rounding_bound(changes.numpy(), len(self.sequences(name)))

    def sequences(self, name: ScoreName) -> Sequence[TokenIds]:
        """The prompts of a score: positives for bypass, negatives for the others."""
        return self.positive if name == "bypass" else self.negative

    def _direction(self, site: Site) -> Direction:
        vector = self.candidates[list(self.positions).index(site.position), site.layer]
        return Direction.from_vector(self.coefficient * vector, site.position, site.layer)

    @property
    def baseline(self) -> Float[Tensor, "prompt vocab"]:
        """Logits of the negatives without intervention."""
        return self._once(("baseline",), lambda: self.scorer.baseline(self.negative))

    def screen(self, table: Table, n: int) -> list[Site]:
        """Discard all but the n candidates with the best first-order estimates; returns the discarded ones."""
        sites = _open(table)
        if len(sites) <= n or isinstance(self.scorer.metric, PairedLogOdds):
            return []
        for site, estimates in zip(
            sites, self._once(("estimates", *sites), lambda: self._estimates(sites)), strict=True
        ):
            table[site] = replace(table[site], estimates=estimates)
        kept = {sites[i] for i in screened([table[site].estimates for site in sites], n)}
        discarded = [site for site in sites if site not in kept]
        for site in discarded:
            table[site] = replace(table[site], discarded=Discard.SCREENED)
        return discarded

    def _estimates(self, sites: Sequence[Site]) -> list[Estimates]:
        """First-order estimates of candidates."""
        directions = [self._direction(site) for site in sites]
        bypass, induce = (
            getattr(self.scorer.estimates(sequences, directions, self.spared), kind).mean(1).tolist()
            for kind, sequences in (("ablation", self.positive), ("addition", self.negative))
        )
        return [Estimates(*estimate) for estimate in zip(bypass, induce, strict=True)]

    @property
    def assumed_rounding(self) -> float | None:
        """Bound on rounding before it is measured; None: it is measured at once, as 16 bits need it."""
        return FLOAT32_ROUNDING if self.scorer.runner.model.dtype == torch.float32 else None

    def update_rounding(self, table: Table, rounding: Rounding, name: ScoreName) -> Rounding:
        """The bounds with that of one score measured, unless a bound is assumed."""
        return rounding if self.assumed_rounding is not None else self.measure_rounding(table, rounding, name)

    def measure_rounding(self, table: Table, rounding: Rounding, name: ScoreName) -> Rounding:
        """The bounds with that of one score, measured on the candidates for which it matters most."""
        scored = [row for row in table.values() if row.discarded is None and getattr(row, name) is not None]
        bound = {"bypass": None, "induce": self.rule.min_induce, "kl": self.rule.max_kl}[name]
        if bound is not None:
            scored.sort(key=lambda row: abs(getattr(row, name) - bound))
        elif all(self._has_criterion(row) for row in scored):
            scored.sort(key=lambda row: self.criterion.criterion_of(row))
        return replace(rounding, **{name: self.rounding_of(name, [row.site for row in scored[:PROBES]])})

    def score_kl_in_order(self, table: Table, rounding: Rounding) -> Rounding:
        """KL of the best candidates until one surely passes, and of those that tie with it; returns the bounds."""
        sites = [site for site in _open(table) if self.can_survive(table[site], rounding)]
        sites.sort(key=lambda site: (self.criterion.criterion_of(table[site]), site.position, site.layer))
        reach = max(self.rule.tie_margin, 2 * criterion_bound(self.criterion, rounding))
        limit = math.inf
        for site in sites:
            value = self.criterion.criterion_of(table[site])
            if value > limit:
                table[site] = replace(table[site], discarded=Discard.NOT_NEEDED)
                continue
            self.score(table, "kl", [site])
            if limit == math.inf and self.can_survive(table[site], rounding):
                rounding = self.update_rounding(table, rounding, "kl")
                if surely_survives(table[site], self.n_layers, self.criterion, rounding):
                    limit = value + reach
        return rounding

    def can_survive(self, row: Candidate, rounding: Rounding) -> bool:
        """Whether the scores so far leave the candidate, or would if they changed by rounding."""
        given = replace(row, **{name: 0.0 for name in ("bypass", "induce", "kl") if getattr(row, name) is None})
        rule = replace(
            self.criterion,
            max_kl=None if row.kl is None else self.rule.max_kl,
            min_induce=None if row.induce is None else self.rule.min_induce,
        )
        return can_survive(given, self.n_layers, rule, rounding)

    @property
    def criterion(self) -> SelectionRule:
        """The rule as far as the metric decides it."""
        return self.rule.metric_only()

    def _has_criterion(self, row: Candidate) -> bool:
        return row.bypass is not None and (row.induce is not None or self.criterion.criterion == "lowest-bypass")

    def rescore(self, table: Table, rounding: Rounding) -> Rounding:
        """Score again, in one shape, the candidates that rounding could make the selected one; returns the bounds."""
        close = self._contenders(table, rounding)
        if close and self.assumed_rounding is not None:
            for name in SCORES:
                rounding = self.measure_rounding(table, rounding, name)
            close = self._contenders(table, rounding)
        if close:
            log.info("%d candidates are within rounding of the selection and are scored again", len(close))
        for name in SCORES:
            some = [site for site in close if getattr(table[site], name) is not None]
            for site, value in zip(some, self.in_one_shape(name, some), strict=True):
                table[site] = replace(table[site], **{name: value}, rescored=True)
        return rounding

    def _contenders(self, table: Table, rounding: Rounding) -> list[Site]:
        return [row.site for row in contenders(list(table.values()), self.n_layers, self.rule, rounding)]


class ScoredCandidates(NamedTuple):
    """The table of scores, and the rounding bounds by which some of them were computed again."""

    table: list[Candidate]
    rounding: Rounding


def score_candidates(grid: ScoreGrid, *, full_grid: bool = True, screen: int = 0) -> ScoredCandidates:
    """Bypass, induce and KL of every candidate that the layer cut of the rule leaves.

    Without `full_grid` only scores that can change the selection are computed: induce of all, bypass of those that pass
    it, and KL in the order of the criterion until one passes, and of its ties. With a `screen` this holds for so many
    candidates with the best first-order estimates; if none of them passes, for all.
    """
    table, rounding = {row.site: row for row in grid.rows()}, Rounding(*[grid.assumed_rounding or 0.0] * 3)
    screened_out = grid.screen(table, screen) if screen and not full_grid else []
    rounding = _score(grid, table, rounding, full_grid)
    if screened_out and choose(list(table.values()), grid.n_layers, grid.criterion).selected is None:
        log.info("no candidate of the screen passes, so %d others are scored too", len(screened_out))
        scored = {site: row for site, row in table.items() if site not in screened_out}
        others = {site: replace(table[site], discarded=None) for site in screened_out}
        rounding = _score(grid, others, rounding, full_grid)
        table |= scored | others
    rounding = grid.rescore(table, rounding)
    return ScoredCandidates(list(table.values()), rounding)


def _score(grid: ScoreGrid, table: Table, rounding: Rounding, full_grid: bool) -> Rounding:
    """Fill in the scores of the open candidates of a table; returns the bounds on their rounding."""
    grid.score(table, "induce", _open(table))
    rounding = grid.update_rounding(table, rounding, "induce")
    passing = [site for site in _open(table) if full_grid or grid.can_survive(table[site], rounding)]
    grid.score(table, "bypass", passing)
    rounding = grid.update_rounding(table, rounding, "bypass")
    if not full_grid:
        return grid.score_kl_in_order(table, rounding)
    grid.score(table, "kl", _open(table))
    return grid.update_rounding(table, rounding, "kl")


def _open(table: Table) -> list[Site]:
    """Candidates without a reason to discard them."""
    return [site for site, row in table.items() if row.discarded is None]
