"""A table of scores and a rule in, one candidate out, or the reason why none: read from disk or scored just now.

Promises: a rule is a pure function of the table, so a table can be re-read by anyone; every discarded candidate has its
reason; nobody surviving is an outcome. Knows scores. Does not know models or prompts, and imports no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from rhumbline.errors import ProtocolError
from rhumbline.records.files import read_given

NOT_NEEDED = "not needed"
"""Why a lazy grid left a score out: the choice does not depend on it."""


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
    rows = [replace(row, discarded=why_discarded(row, n_layers, rule)) for row in table]
    rows.sort(key=lambda row: (row.position, row.layer))
    alive = [row for row in rows if row.discarded is None]
    if not alive:
        return Choice(None, 0, (), tuple(rows))
    best = min(alive, key=lambda row: (merit_of(row, rule), row.position, row.layer))
    near = [row for row in alive if row is not best and merit_of(row, rule) - merit_of(best, rule) <= rule.tie_margin]
    return Choice(best, len(alive), tuple(sorted(near, key=lambda row: merit_of(row, rule))), tuple(rows))


def merit_of(row: ScoredCandidate, rule: SelectionRule) -> float:
    """What the rule minimises."""
    assert row.bypass is not None
    if rule.criterion == "lowest-bypass":
        return row.bypass
    if rule.criterion == "most-moved":
        assert row.moved is not None
        return -row.moved
    assert row.induce is not None
    return row.bypass - row.induce


def why_discarded(row: ScoredCandidate, n_layers: int, rule: SelectionRule) -> str | None:
    """The first reason for which the rule discards this row, or None: it is a candidate for the choice."""
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


def read_scores(path: str | Path) -> tuple[list[ScoredCandidate], int]:
    """A table of scores, {"n_layers", "candidates": [{"position", "layer", "bypass", "induce", "kl"}]}, and its depth.

    ProtocolError lists every fault at once.
    """
    form = 'an object with "n_layers" and a list "candidates"'
    content = read_given(Path(path), ProtocolError, form)
    if not isinstance(content, dict) or not isinstance(content.get("candidates"), list):
        raise ProtocolError(f"{path}: expected {form}.")
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
