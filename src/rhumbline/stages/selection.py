"""Candidates in, a table of their scores out: bypass, induce and kl on validation prompts, as many as a rule needs.

Promises: the choice that the table allows (choosing.py) is the full grid's; comparisons that rounding could turn are
scored again in one batch shape. Sees validation prompts only.
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
from rhumbline.evidence.selection_rules import (
    SelectionResult,
    SelectionRule,
    choose,
    why_discarded,
)
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import Metric, kl_divergence, own_tokens
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.selection_files import Candidate

log = logging.getLogger("rhumbline")


Cell = tuple[Position, int]
"""Position and layer of a candidate."""
Score = Literal["bypass", "induce", "kl"]
Values = Callable[[Score, Sequence[Cell]], list[float]]
"""One score of some cells."""


def score_candidates(
    runner: Runner,
    candidates: Candidates,
    positions: Sequence[Position],
    positive: Sequence[TokenIds],
    negative: Sequence[TokenIds],
    metric: Metric,
    rule: SelectionRule,
    *,
    full_grid: bool = True,
    values: Values | None = None,
) -> list[Candidate]:
    """Bypass, induce and kl of every candidate that the rule's layer cut leaves, on validation prompts.

    `candidates` are the un-normalised differences in means. Arditi et al. 2024, section 2.3 and appendix C. Without
    `full_grid` only what can decide the choice is scored: induce of all, bypass of those that pass it, kl in order of
    the rule's criterion until one passes (and of its ties). The choice is the full grid's. `values` scores many cells
    at once elsewhere (as `Grid.values` does here).
    """
    grid = Grid(runner, candidates, positions, positive, negative, metric, rule, values)
    table = {(row.position, row.layer): row for row in grid.rows()}
    grid.score(table, "induce", _open(table))
    grid.score(table, "bypass", [c for c in _open(table) if full_grid or grid.passes(table[c])])
    if full_grid:
        grid.score(table, "kl", _open(table))
    else:
        grid.score_kl_in_order(table)
    grid.rescore_near_ties(table)
    return list(table.values())


Table = dict[Cell, Candidate]


def _open(table: Table) -> list[Cell]:
    return [cell for cell, row in table.items() if row.discarded is None]


@dataclass(frozen=True)
class Grid:
    """The scores of candidates on one pair of validation sets."""

    runner: Runner
    candidates: Candidates
    positions: Sequence[Position]
    positive: Sequence[TokenIds]
    negative: Sequence[TokenIds]
    metric: Metric
    rule: SelectionRule
    elsewhere: Values | None = None

    def rows(self) -> Iterator[Candidate]:
        """The table without scores; what will never be scored has its reason."""
        cut = self.rule.first_cut_layer(self.runner.model.n_layers)
        norms = self.candidates.norm(dim=-1)
        # Post-instruction tokens that every prompt shares have equal activations at layer 0: zero, not noise.
        floor = 1e-6 * float(norms[norms.isfinite()].max()) if bool(norms.isfinite().any()) else 0.0
        for p, position in enumerate(self.positions):
            for layer in range(self.runner.model.n_layers):
                norm = float(norms[p, layer])
                reason = None
                if layer >= cut:
                    reason = Discard.TOO_LATE
                elif not math.isfinite(norm):
                    reason = Discard.NOT_FINITE
                elif norm <= floor:
                    reason = Discard.NO_DIFFERENCE
                yield Candidate(position, layer, None, None, None, norm, reason)

    def passes(self, row: Candidate) -> bool:
        """Whether the scores known so far leave the candidate in the race."""
        reason = why_discarded(row, self.runner.model.n_layers, self.rule)
        return reason in (None, Discard.NOT_SCORED)

    def direction(self, cell: Cell) -> Direction:
        """The candidate of a cell."""
        return Direction.from_vector(self.candidates[self.positions.index(cell[0]), cell[1]], *cell)

    def score(self, table: Table, name: Score, cells: Sequence[Cell]) -> None:
        """Fill in one score of some cells; a single one is not worth a way."""
        compute = self.values if self.elsewhere is None or len(cells) < 2 else self.elsewhere
        values = compute(name, cells)
        for cell, value in zip(cells, values, strict=True):
            table[cell] = replace(table[cell], **{name: value})

    def values(self, name: Score, cells: Sequence[Cell]) -> list[float]:
        """One score of some cells."""
        return self._values(self.runner, name, cells)

    def _values(self, runner: Runner, name: Score, cells: Sequence[Cell]) -> list[float]:
        if not cells:
            return []
        if isinstance(self.metric, PairedLogOdds) and name != "kl":
            made = [Add(self.direction(c)) if name == "induce" else Ablate(self.direction(c)) for c in cells]
            some = self.negative if name == "induce" else self.positive
            found = self.metric.read(runner, some, [Arm(name, (intervention,)) for intervention in made])
            return found.mean(1).tolist()
        if name == "induce":
            at: dict[int, list[Cell]] = {}
            for cell in cells:
                at.setdefault(cell[1], []).append(cell)
            arms = {layer: [Arm("addition", (Add(self.direction(c)),)) for c in some] for layer, some in at.items()}
            assert not isinstance(self.metric, PairedLogOdds)
            found = runner.readings_from(self.negative, arms, self.metric)
            means = {c: float(found[layer][i].mean()) for layer, some in at.items() for i, c in enumerate(some)}
            return [means[cell] for cell in cells]
        arms = [Arm("ablation", (Ablate(self.direction(cell)),)) for cell in cells]
        sequences = self.positive if name == "bypass" else self.negative
        values = torch.zeros(len(arms), len(sequences), dtype=torch.float64)
        for rows, logits in runner.last_logits(sequences, arms):
            if name == "bypass":
                assert not isinstance(self.metric, PairedLogOdds)
                values[rows.arm, rows.prompt] = self.metric(logits).double().cpu()
            else:
                before = self.baseline[rows.prompt.to(self.baseline.device)]
                values[rows.arm, rows.prompt] = kl_divergence(before, logits, self.without).cpu()
        return values.mean(1).tolist()

    @property
    def without(self) -> Sequence[int]:
        """The tokens that kl leaves out."""
        return own_tokens(self.metric) if self.rule.kl_outside else ()

    @cached_property
    def baseline(self) -> Float[Tensor, "prompt vocab"]:
        """Logits of the negatives without intervention."""
        found: Tensor | None = None
        for rows, logits in self.runner.last_logits(self.negative):
            if found is None:
                found = logits.new_zeros(len(self.negative), logits.shape[-1])
            found[rows.prompt.to(logits.device)] = logits
        assert found is not None
        return found

    def score_kl_in_order(self, table: Table) -> None:
        """kl of the best candidates until one passes, and of those that tie with it."""
        racing = [cell for cell in _open(table) if self.passes(table[cell])]
        racing.sort(key=lambda cell: (self.rule.criterion_of(table[cell]), *cell))
        best: float | None = None
        for cell in racing:
            merit = self.rule.criterion_of(table[cell])
            if best is not None and merit - best > self.rule.tie_margin:
                table[cell] = replace(table[cell], discarded=Discard.NOT_NEEDED)
                continue
            self.score(table, "kl", [cell])
            if best is None and self.passes(table[cell]):
                best = merit

    def rescore_near_ties(self, table: Table) -> None:
        """Score again, padded and in one batch shape, the candidates whose comparison is closer than rounding."""
        choice = choose(list(table.values()), self.runner.model.n_layers, self.rule)
        noise = NOISE if self.runner.model.dtype == torch.float32 else NOISE_16_BIT
        close = _close(choice, self.rule, noise)
        if len(close) < 2 and not any(_at_a_bound(table[cell], self.rule, noise) for cell in close):
            return
        log.info("%d candidates decide within rounding and are scored again in one batch shape", len(close))
        model = self.runner.model
        padded = replace(model, proof=replace(model.proof, packed=False))
        plain = Runner(padded, self.runner.tokens_per_forward, self.runner.tick)
        for cell in close:
            for name in ("induce", "bypass", "kl"):
                if getattr(table[cell], name) is not None:
                    (value,) = self._values(plain, name, [cell])
                    table[cell] = replace(table[cell], **{name: value}, rescored=True)


NOISE, NOISE_16_BIT = 2e-5, 0.05
"""How far a score moves with the shape of its batch: measured for float32, an upper guess at 16 bits."""


def _at_a_bound(row: Candidate, rule: SelectionRule, noise: float) -> bool:
    bounds = ((row.kl, rule.max_kl), (row.induce, rule.min_induce))
    return any(v is not None and b is not None and abs(v - b) <= noise for v, b in bounds)


def _close(choice: SelectionResult, rule: SelectionRule, noise: float) -> list[Cell]:
    """The candidates of which rounding could change what the rule makes."""
    best = choice.selected
    return [
        (row.position, row.layer)
        for row in choice.candidates
        if _at_a_bound(row, rule, noise)
        or (row.discarded is None and best is not None and rule.criterion_of(row) - rule.criterion_of(best) <= noise)
    ]
