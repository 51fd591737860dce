"""Apply a selection rule to a table of scores: the selected candidate, its ties, and why each other one was discarded.

A rule is a pure function of the table, so a stored table gives the same selection again. Every discarded candidate has
a reason. No surviving candidate is a valid outcome. Independent of models and prompts.
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from rhumbline.arguments import check_fields, checked
from rhumbline.errors import ProtocolError
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.seed_files import Candidate, Estimates, Selection
from rhumbline.records.user_files import read_json

MOST_LAYERS, MOST_POSITIONS = 100_000, 100_000
"""Of a table of scores in a file."""


@dataclass(frozen=True)
class SelectionRule:
    """How one candidate is selected from the table of scores."""

    name: str
    criterion: Literal["lowest-bypass", "largest-swing", "most-moved"]
    """`largest-swing` maximises induce - bypass. `most-moved` maximises the change of the score of whole validation
    completions, the smaller of suppression and induction."""
    max_layer_share: float | None = 0.8
    """Candidates at layer int(share * L) and above are discarded (None: no cut)."""
    max_kl: float | None = 0.1
    """Candidates with a larger KL score are discarded (nats)."""
    max_kl_otherwise: float | None = None
    """The bound on the KL score if it is larger and no candidate is selected with `max_kl` (None: then none is)."""
    min_induce: float | None = 0.0
    """Candidates with a smaller induce score are discarded."""
    min_content: float | None = None
    """Candidates that leave a smaller share of the content of baseline completions on validation prompts, under
    ablation or under addition, are discarded (None: content is not measured)."""
    above_noise: bool = False
    """Whether a candidate is discarded if the interval of its swing contains 0 (`Candidate.swing_low`)."""
    kl_outside: bool = False
    """Whether the KL score excludes the tokens of the behaviour. Use it if negatives have some of the behaviour: its
    loss is then an effect, not damage."""
    tie_margin: float = 0.05
    """Survivors within this distance of the selected one (in units of the criterion) are tied."""

    def __post_init__(self):
        check_fields(self)
        faults = []
        if self.criterion not in ("lowest-bypass", "largest-swing", "most-moved"):
            faults.append(f"criterion {self.criterion!r} is unknown; use lowest-bypass, largest-swing or most-moved")
        if self.max_layer_share is not None and not 0 < self.max_layer_share <= 1:
            faults.append(f"max_layer_share {self.max_layer_share} must be in (0, 1]")
        if self.max_kl is not None and not self.max_kl > 0:
            faults.append(f"max_kl {self.max_kl} must be positive")
        if self.max_kl_otherwise is not None and not 0 < self.max_kl_otherwise < math.inf:
            faults.append(f"max_kl_otherwise {self.max_kl_otherwise} must be positive")
        if not self.tie_margin >= 0:
            faults.append(f"tie_margin {self.tie_margin} must not be negative")
        if faults:
            raise ProtocolError(f"selection rule {self.name!r}: {'; '.join(faults)}.")

    def metric_only(self) -> "SelectionRule":
        """The rule without the criteria that need completions."""
        criterion = "largest-swing" if self.criterion == "most-moved" else self.criterion
        return replace(self, criterion=criterion, min_content=None)

    def without_induce_and_kl(self) -> "SelectionRule":
        """The rule without the induce and KL criteria, for negatives that show the behaviour as positives do."""
        return replace(self, max_kl=None, max_kl_otherwise=None, min_induce=None)

    def attempts(self) -> "tuple[SelectionRule, ...]":
        """The rules that are applied one after the other until one of them selects a candidate."""
        first, otherwise = replace(self, max_kl_otherwise=None), self.max_kl_otherwise
        if self.max_kl is None or otherwise is None or otherwise <= self.max_kl:
            return (first,)
        return first, replace(first, max_kl=otherwise)

    def needed(self) -> tuple[str, ...]:
        """The scores without which a candidate cannot be selected."""
        swing = self.criterion != "lowest-bypass"
        wanted = {"bypass": True, "induce": swing or self.min_induce is not None, "kl": self.max_kl is not None}
        return tuple(name for name, is_needed in wanted.items() if is_needed)

    def first_cut_layer(self, n_layers: int) -> int:
        """The lowest layer that is discarded for its depth."""
        # int(), as in the authors' code: a literal layer < 0.8 L changes the published selection of Yi-6B.
        return n_layers if self.max_layer_share is None else int(self.max_layer_share * n_layers)

    def criterion_of(self, row: Candidate) -> float:
        """The criterion of a scored candidate that the rule minimises."""
        assert row.bypass is not None
        if self.criterion == "lowest-bypass":
            return row.bypass
        if self.criterion == "most-moved":
            assert row.moved is not None
            return -row.moved
        assert row.induce is not None
        return row.bypass - row.induce


ARDITI2024 = SelectionRule("arditi2024", "lowest-bypass")
RHUMBLINE = replace(ARDITI2024, name="rhumbline", max_kl_otherwise=0.2)
"""The paper's rule. If it discards every candidate, those are selected that the verdict's bound on the KL divergence
permits (`max_kl` of the rule of the verdict), which is measured again on test prompts."""
BLOG2026 = SelectionRule(
    "blog2026", "largest-swing", max_layer_share=None, max_kl=None, min_induce=None, above_noise=True
)
STYLE = SelectionRule("style", "most-moved", min_content=0.9, kl_outside=True)
"""The paper's three criteria discard candidates. Ablation of a style often has the same metric at many layers, so whole
validation completions select among the others: the largest change of their score both ways that leaves the content."""


@dataclass(frozen=True)
class SelectionResult:
    """The result of a rule applied to a table."""

    selected: Candidate | None
    """None: every candidate is discarded."""
    survivors: int
    """Candidates that are not discarded."""
    tied: tuple[Candidate, ...]
    """Other survivors within the tie margin of the rule, nearest first."""
    candidates: tuple[Candidate, ...]
    """The table by position and layer; every discarded candidate has its reason."""

    @property
    def reason(self) -> NoCandidate | None:
        """Why nothing was selected; None if a candidate was."""
        return NoCandidate.ALL_DISCARDED if self.selected is None else None


@checked
def choose(table: Sequence[Candidate], n_layers: int, rule: SelectionRule) -> SelectionResult:
    """Apply `rule` to a table of scores. Ties go to the earliest position, then to the lowest layer."""
    results = (_choose(table, n_layers, attempt) for attempt in rule.attempts())
    result = next(results)
    for other in results:
        result = result if result.selected is not None else other
    return result


def rule_applied(selection: Selection, n_layers: int, rule: SelectionRule) -> SelectionRule:
    """The attempt of a rule from which the recorded selection follows; the last one without a selected candidate."""
    first, *others = rule.attempts()
    is_first = not others or choose_again(selection, n_layers, first).selected is not None
    return first if is_first else others[-1]


def _choose(table: Sequence[Candidate], n_layers: int, rule: SelectionRule) -> SelectionResult:
    rows = [replace(row, discarded=why_discarded(row, n_layers, rule)) for row in table]
    rows.sort(key=lambda row: (row.position, row.layer))
    alive = [row for row in rows if row.discarded is None]
    if not alive:
        return SelectionResult(None, 0, (), tuple(rows))
    best = min(alive, key=lambda row: (rule.criterion_of(row), row.position, row.layer))
    limit = rule.criterion_of(best)
    near = [row for row in alive if row is not best and rule.criterion_of(row) - limit <= rule.tie_margin]
    return SelectionResult(best, len(alive), tuple(sorted(near, key=rule.criterion_of)), tuple(rows))


def choose_again(selection: Selection, n_layers: int, rule: SelectionRule) -> SelectionResult:
    """Apply a rule to the recorded scores of a run."""
    if not selection.induction_is_testable:
        rule = rule.without_induce_and_kl()
    # The layer cut is the rule's own; other reasons (no difference, not needed) were recorded while scoring.
    rows = [
        replace(r, discarded=r.discarded if None in (r.bypass, r.induce, r.kl) else None) for r in selection.candidates
    ]
    return choose(rows, n_layers, rule)


def screened(estimates: Sequence[Estimates | None], n: int) -> list[int]:
    """The indices of the n best first-order estimates, in ascending order; without estimates, a candidate is not one.

    Two orders take turns: the lowest bypass, and the largest induce - bypass. The first alone would keep candidates
    that mainly break the model, which the rule discards.
    """
    known = {i: e for i, e in enumerate(estimates) if e is not None and math.isfinite(e.bypass + e.induce)}
    by_bypass = sorted(known, key=lambda i: known[i].bypass)
    by_swing = sorted(known, key=lambda i: known[i].bypass - known[i].induce)
    turns = (i for pair in zip(by_bypass, by_swing, strict=True) for i in pair)
    return sorted(list(dict.fromkeys(turns))[:n])


# -- why a candidate is discarded -------------------------------------------------------------------------------------


def why_discarded(row: Candidate, n_layers: int, rule: SelectionRule) -> Discard | None:
    """The first reason for which the rule discards this candidate; None: it survives."""
    if row.layer >= rule.first_cut_layer(n_layers):
        return Discard.TOO_LATE
    if row.discarded is not None:
        return row.discarded
    if any(value is not None and not math.isfinite(value) for value in (row.bypass, row.induce, row.kl)):
        return Discard.NOT_FINITE
    if rule.max_kl is not None and row.kl is not None and row.kl > rule.max_kl:
        return Discard.KL_TOO_LARGE
    if rule.min_induce is not None and row.induce is not None and row.induce < rule.min_induce:
        return Discard.DOES_NOT_INDUCE
    if rule.min_content is not None and row.content is not None and row.content < rule.min_content:
        return Discard.LOSES_CONTENT
    if rule.above_noise and row.swing_low is not None and row.swing_low <= 0:
        return Discard.WITHIN_NOISE
    return Discard.NOT_SCORED if _missing(row, rule) else None


def describe_discard(row: Candidate, n_layers: int, rule: SelectionRule) -> str:
    """Why a candidate was discarded, with its numbers, such as `kl too large (0.23 > 0.1)`; empty for a survivor."""
    numbers = ""
    match row.discarded:
        case None:
            return ""
        case Discard.TOO_LATE:
            numbers = f"layer {row.layer} >= {rule.first_cut_layer(n_layers)}"
        case Discard.NO_DIFFERENCE if row.norm is not None:
            numbers = f"norm {row.norm:.2g}"
        case Discard.KL_TOO_LARGE if row.kl is not None and rule.max_kl is not None:
            numbers = f"{row.kl:.3g} > {rule.max_kl:g}"
        case Discard.DOES_NOT_INDUCE if row.induce is not None and rule.min_induce is not None:
            numbers = f"{row.induce:.3g} < {rule.min_induce:g}"
        case Discard.LOSES_CONTENT if row.content is not None and rule.min_content is not None:
            numbers = f"{row.content:.2f} < {rule.min_content:g}"
        case Discard.WITHIN_NOISE if row.swing_low is not None:
            numbers = f"lower end {row.swing_low:.2g} <= 0"
        case Discard.NOT_SCORED:
            numbers = ", ".join(_missing(row, rule))
    return f"{row.discarded} ({numbers})" if numbers else str(row.discarded)


def count_discards(candidates: Sequence[Candidate]) -> dict[Discard, int]:
    """Number of candidates for each reason, by reason in alphabetical order."""
    reasons = sorted(row.discarded for row in candidates if row.discarded is not None)
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def _missing(row: Candidate, rule: SelectionRule) -> tuple[str, ...]:
    """Names of the scores that the rule needs and that were not computed."""
    if rule.criterion == "most-moved" and row.moved is None:
        return ("moved",)
    return tuple(name for name in rule.needed() if getattr(row, name) is None)


# -- tables that a user passes ----------------------------------------------------------------------------------------


@checked
def read_scores(path: str | Path) -> tuple[list[Candidate], int]:
    """A table of scores and the number of layers, from a JSON file.

    Form: {"n_layers", "candidates": [{"position", "layer", "bypass", "induce", "kl"}]}. ProtocolError lists every fault
    at once.
    """
    form = 'an object with "n_layers" and a list "candidates"'
    content = read_json(path, ProtocolError, form)
    if not isinstance(content, dict) or not isinstance(content.get("candidates"), list) or not content["candidates"]:
        raise ProtocolError(f"{path}: expected {form} with at least one entry.")
    n_layers = content.get("n_layers")
    if not (_is_count(n_layers) and 0 < n_layers <= MOST_LAYERS):
        raise ProtocolError(f"{path}: n_layers is {n_layers!r}, expected the number of layers.")
    faults: list[str] = []
    rows = []
    for index, entry in enumerate(content["candidates"]):
        wrong = _row_faults(entry, n_layers)
        faults += [f"candidate {index}: {fault}" for fault in wrong]
        if not wrong:
            bypass, induce, kl = (None if entry.get(k) is None else float(entry[k]) for k in ("bypass", "induce", "kl"))
            rows.append(Candidate(Position(entry["position"]), entry["layer"], bypass, induce, kl, entry.get("norm")))
    sites = Counter((int(row.position), row.layer) for row in rows)
    twice = sorted(site for site, n in sites.items() if n > 1)
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
    if not (_is_count(entry.get("position")) and -MOST_POSITIONS <= entry["position"] < 0):
        faults.append(f"position is {entry.get('position')!r}, expected a negative index")
    layer = entry.get("layer")
    if not (_is_count(layer) and 0 <= layer < n_layers):
        faults.append(f"layer is {layer!r}, expected 0..{n_layers - 1}")
    for name in ("bypass", "induce", "kl"):
        value = entry.get(name)
        is_huge = isinstance(value, int) and abs(value) > sys.float_info.max
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or is_huge):
            faults.append(f"{name} is {value!r}, expected a number or null")
    return faults
