"""Candidates in, one direction out: bypass, induce and kl on validation prompts, and the rules that choose.

Promises: a rule is a pure function of the table of scores, so a table can be re-read by anyone; every discarded
candidate has its reason; nobody surviving is an outcome. Sees validation prompts only.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates, Logits
from rhumbline.batching import TokenIds
from rhumbline.errors import ProtocolError
from rhumbline.interventions import Ablate, Add, Arm, Direction
from rhumbline.judging import kl_divergence, refusal_metric
from rhumbline.log_odds import PairedLogOdds
from rhumbline.running import Runner

log = logging.getLogger("rhumbline")


@dataclass(frozen=True)
class SelectionRule:
    """How one candidate is chosen from the table of scores."""

    name: str
    criterion: Literal["lowest-bypass", "largest-swing", "most-moved"]
    """`largest-swing` maximises induce - bypass: how far the metric can be moved both ways on validation. `most-moved`
    maximises how far the score of whole validation completions is moved, the lesser of both ways."""
    max_layer_share: float | None = 0.8
    """Candidates at layer int(share * L) and above are discarded (None: no cut)."""
    max_kl: float | None = 0.1
    """Candidates whose ablation moves harmless next-token distributions further are discarded (nats)."""
    min_induce: float | None = 0.0
    """Candidates whose addition leaves the metric on harmless prompts below this are discarded."""
    min_content: float | None = None
    """The chosen candidate must leave this share of the content that validation completions have at baseline, under its
    ablation and under its addition; where it does not, the next one is asked (None: content is not looked at)."""
    kl_outside: bool = False
    """Whether kl leaves out the behaviour's own tokens: negatives may have some of the behaviour, and losing it is the
    effect and no damage."""
    tie_margin: float = 0.05
    """Survivors this close to the chosen one (in the criterion's units) are reported as tied."""

    def __post_init__(self):
        faults = []
        if self.criterion not in ("lowest-bypass", "largest-swing", "most-moved"):
            faults.append(f"criterion {self.criterion!r} is unknown; use lowest-bypass, largest-swing or most-moved")
        if self.max_layer_share is not None and not 0 < self.max_layer_share <= 1:
            faults.append(f"max_layer_share {self.max_layer_share} must be in (0, 1]")
        if self.max_kl is not None and not self.max_kl > 0:
            faults.append(f"max_kl {self.max_kl} must be positive")
        if not self.tie_margin >= 0:
            faults.append(f"tie_margin {self.tie_margin} must not be negative")
        if faults:
            raise ProtocolError(f"selection rule {self.name!r}: {'; '.join(faults)}.")

    def fast(self) -> "SelectionRule":
        """The rule without what needs completions: for refits, and to know whom to complete for."""
        criterion = "largest-swing" if self.criterion == "most-moved" else self.criterion
        return replace(self, criterion=criterion, min_content=None)

    def without_room(self) -> "SelectionRule":
        """The rule where negatives show the behaviour as positives do: losing it there is no damage, and adding it says
        nothing."""
        return replace(self, max_kl=None, min_induce=None)

    def needed(self) -> tuple[str, ...]:
        """The scores without which a candidate cannot be chosen."""
        swing = self.criterion != "lowest-bypass"
        wanted = {"bypass": True, "induce": swing or self.min_induce is not None, "kl": self.max_kl is not None}
        return tuple(name for name, is_needed in wanted.items() if is_needed)

    def first_cut_layer(self, n_layers: int) -> int:
        """The lowest layer that is discarded for its depth."""
        # int(), as the authors' code has it: a literal layer < 0.8 L changes the published choice of Yi-6B.
        return n_layers if self.max_layer_share is None else int(self.max_layer_share * n_layers)


ARDITI2024 = SelectionRule("arditi2024", "lowest-bypass")
BLOG2026 = SelectionRule("blog2026", "largest-swing", max_layer_share=None, max_kl=None, min_induce=None)
STYLE = SelectionRule("style", "most-moved", min_content=0.9, kl_outside=True)
"""The three criteria of the paper say who is in question; ablation of a style often reads the same at many layers, so
that whole validation completions choose: what moves their score furthest both ways, and leaves the content."""


@dataclass(frozen=True)
class ScoredCandidate:
    """One cell of the table. A score that was not computed is None and `discarded` says why."""

    position: int
    layer: int
    bypass: float | None
    """Mean metric on positives under ablation; lower is better."""
    induce: float | None
    """Mean metric on negatives under addition; higher is better."""
    kl: float | None
    """Mean KL(baseline || ablated) of negatives' next-token distributions, nats."""
    norm: float | None = None
    discarded: str | None = None
    content: float | None = None
    """Smallest share of the baseline's content under ablation and addition; None where nobody had to ask."""
    moved: float | None = None
    """How far whole completions were moved, the lesser of both ways, in units of the gap between the classes."""
    rescored: bool = False
    """Scored a second time, in one batch shape, because a comparison was closer than rounding."""


@dataclass(frozen=True)
class Choice:
    """What a rule made of a table."""

    selected: ScoredCandidate | None
    survivors: int
    tied: tuple[ScoredCandidate, ...]
    """Other survivors within the rule's tie margin, nearest first."""
    candidates: tuple[ScoredCandidate, ...]
    """The table in reading order, every discarded row with its reason."""

    @property
    def reason(self) -> str | None:
        """Why nobody was chosen, with the counts; None when somebody was."""
        if self.selected is not None:
            return None
        counts: dict[str, int] = {}
        for row in self.candidates:
            kind = (row.discarded or "").split(" (")[0]
            counts[kind] = counts.get(kind, 0) + 1
        return "no candidate passed: " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))


def choose(table: Sequence[ScoredCandidate], n_layers: int, rule: SelectionRule) -> Choice:
    """Apply `rule` to a table of scores. Ties go to the earliest position, then to the lowest layer."""
    rows = [replace(row, discarded=_discarded(row, n_layers, rule)) for row in table]
    rows.sort(key=lambda row: (row.position, row.layer))
    alive = [row for row in rows if row.discarded is None]
    if not alive:
        return Choice(None, 0, (), tuple(rows))
    best = min(alive, key=lambda row: (_merit(row, rule), row.position, row.layer))
    near = [row for row in alive if row is not best and _merit(row, rule) - _merit(best, rule) <= rule.tie_margin]
    return Choice(best, len(alive), tuple(sorted(near, key=lambda row: _merit(row, rule))), tuple(rows))


def _merit(row: ScoredCandidate, rule: SelectionRule) -> float:
    """What the rule minimises."""
    assert row.bypass is not None
    if rule.criterion == "lowest-bypass":
        return row.bypass
    if rule.criterion == "most-moved":
        assert row.moved is not None
        return -row.moved
    assert row.induce is not None
    return row.bypass - row.induce


def _discarded(row: ScoredCandidate, n_layers: int, rule: SelectionRule) -> str | None:
    cut = rule.first_cut_layer(n_layers)
    if row.layer >= cut:
        return f"too late (layer {row.layer} >= {cut})"
    if row.discarded is not None:
        return row.discarded
    scores = {"bypass": row.bypass, "induce": row.induce, "kl": row.kl}
    broken = [name for name, value in scores.items() if value is not None and not math.isfinite(value)]
    if broken:
        return f"not finite ({', '.join(broken)})"
    if rule.max_kl is not None and row.kl is not None and row.kl > rule.max_kl:
        return f"kl too large ({row.kl:.3g} > {rule.max_kl:g})"
    if rule.min_induce is not None and row.induce is not None and row.induce < rule.min_induce:
        return f"does not induce ({row.induce:.3g} < {rule.min_induce:g})"
    if rule.min_content is not None and row.content is not None and row.content < rule.min_content:
        return f"loses content ({row.content:.2f} < {rule.min_content:g})"
    if rule.criterion == "most-moved" and row.moved is None:
        return "not scored (moved)"
    missing = [name for name in rule.needed() if scores[name] is None]
    return f"not scored ({', '.join(missing)})" if missing else None


@dataclass(frozen=True)
class TokenMetric:
    """The log-odds that the next token is one of these (`judging.refusal_metric`)."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Logits) -> Float[Tensor, " row"]:
        """Of every row."""
        return refusal_metric(logits, self.tokens)


Metric = Callable[[Logits], Float[Tensor, " row"]] | PairedLogOdds
"""What the fast metric reads: the next token's logits, or two responses to the same prompt."""


def own_tokens(metric: Metric) -> Sequence[int]:
    """The tokens of the behaviour itself: those that a metric reads, or those that open positive responses."""
    match metric:
        case TokenMetric():
            return metric.tokens
        case PairedLogOdds():
            return metric.own
    return ()


Cell = tuple[int, int]
Score = Literal["bypass", "induce", "kl"]
Values = Callable[[Score, Sequence[Cell]], list[float]]
"""One score of some cells."""


NOT_NEEDED = "not needed"
"""Why a lazy grid left a score out: the choice does not depend on it."""


def score_candidates(
    runner: Runner,
    candidates: Candidates,
    positions: Sequence[int],
    positive: Sequence[TokenIds],
    negative: Sequence[TokenIds],
    metric: Metric,
    rule: SelectionRule,
    *,
    full_grid: bool = True,
    values: Values | None = None,
) -> list[ScoredCandidate]:
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


Table = dict[Cell, ScoredCandidate]


def _open(table: Table) -> list[Cell]:
    return [cell for cell, row in table.items() if row.discarded is None]


@dataclass(frozen=True)
class Grid:
    """The scores of candidates on one pair of validation sets."""

    runner: Runner
    candidates: Candidates
    positions: Sequence[int]
    positive: Sequence[TokenIds]
    negative: Sequence[TokenIds]
    metric: Metric
    rule: SelectionRule
    elsewhere: Values | None = None

    def rows(self) -> Iterator[ScoredCandidate]:
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
                    reason = f"too late (layer {layer} >= {cut})"
                elif not math.isfinite(norm):
                    reason = "not finite (direction)"
                elif norm <= floor:
                    reason = f"no difference (norm {norm:.2g})"
                yield ScoredCandidate(position, layer, None, None, None, norm, reason)

    def passes(self, row: ScoredCandidate) -> bool:
        """Whether the scores known so far leave the candidate in the race."""
        reason = _discarded(row, self.runner.model.n_layers, self.rule)
        return reason is None or reason.startswith("not scored")

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
        racing.sort(key=lambda cell: (_merit(table[cell], self.rule), *cell))
        best: float | None = None
        for cell in racing:
            merit = _merit(table[cell], self.rule)
            if best is not None and merit - best > self.rule.tie_margin:
                table[cell] = replace(table[cell], discarded=NOT_NEEDED)
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


def _at_a_bound(row: ScoredCandidate, rule: SelectionRule, noise: float) -> bool:
    bounds = ((row.kl, rule.max_kl), (row.induce, rule.min_induce))
    return any(v is not None and b is not None and abs(v - b) <= noise for v, b in bounds)


def _close(choice: Choice, rule: SelectionRule, noise: float) -> list[Cell]:
    """The candidates of which rounding could change what the rule makes."""
    best = choice.selected
    return [
        (row.position, row.layer)
        for row in choice.candidates
        if _at_a_bound(row, rule, noise)
        or (row.discarded is None and best is not None and _merit(row, rule) - _merit(best, rule) <= noise)
    ]


def read_scores(path: str | Path) -> tuple[list[ScoredCandidate], int]:
    """A table of scores, {"n_layers", "candidates": [{"position", "layer", "bypass", "induce", "kl"}]}, and its depth.

    ProtocolError lists every fault at once.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProtocolError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ProtocolError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("candidates"), list):
        raise ProtocolError(f'{path}: expected an object with "n_layers" and a list "candidates".')
    n_layers = content.get("n_layers")
    if not (_is_count(n_layers) and n_layers > 0):
        raise ProtocolError(f"{path}: n_layers is {n_layers!r}, expected the number of layers.")
    faults: list[str] = []
    rows = []
    for index, entry in enumerate(content["candidates"]):
        wrong = _row_faults(entry, n_layers)
        faults += [f"candidate {index}: {fault}" for fault in wrong]
        if not wrong:
            bypass, induce, kl = (None if entry.get(k) is None else float(entry[k]) for k in ("bypass", "induce", "kl"))
            rows.append(ScoredCandidate(entry["position"], entry["layer"], bypass, induce, kl, entry.get("norm")))
    cells = [(row.position, row.layer) for row in rows]
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    faults += [f"position {position}, layer {layer} occurs twice" for position, layer in twice]
    if faults:
        shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise ProtocolError(f"{path}: {shown}.")
    return rows, n_layers


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _row_faults(entry: Any, n_layers: int) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{entry!r} is not an object"]
    faults = []
    if not (_is_count(entry.get("position")) and entry["position"] < 0):
        faults.append(f"position is {entry.get('position')!r}, expected a negative index")
    layer = entry.get("layer")
    if not (_is_count(layer) and 0 <= layer < n_layers):
        faults.append(f"layer is {layer!r}, expected 0..{n_layers - 1}")
    for name in ("bypass", "induce", "kl"):
        value = entry.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            faults.append(f"{name} is {value!r}, expected a number or null")
    return faults
