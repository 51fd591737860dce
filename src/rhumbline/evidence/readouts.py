"""Readouts: the classes by other keyword judges and by shorter readings -> rates and agreement of the judges.

Shows how much a rate depends on the judge and on the number of tokens read. Independent of margins.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from rhumbline.evidence.class_rates import class_rate, degenerate_share, measured_classes
from rhumbline.evidence.statistics import finite_or_none, kappa
from rhumbline.records.arms import ArmId
from rhumbline.records.effect_results import JudgeRate, LengthRate, Readouts
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import Class, KappaPair, Label


def readouts(outcomes: Sequence[Outcome]) -> Readouts:
    """Rates of the direction's own arms by judge and by length; empty if the outcomes have one class each."""
    own = [row for row in outcomes if row.arm.is_own and row.judges]
    cells: dict[tuple[ArmId, Label], list[int]] = {}
    for i, row in enumerate(own):
        cells.setdefault((row.arm, row.side), []).append(i)
    by_judge, by_length = _columns([row.judges for row in own]), _columns([row.by_length for row in own])
    judges = [
        JudgeRate(judge=name, arm=arm, side=side, **class_rate(some)._asdict(), degenerate=degenerate_share(some))
        for (arm, side), members in cells.items()
        for name, classes in by_judge.items()
        for some in [measured_classes([classes[i] for i in members])]
    ]
    lengths = [
        LengthRate(length=name, arm=arm, side=side, **class_rate(some)._asdict(), degenerate=degenerate_share(some))
        for (arm, side), members in cells.items()
        for name, classes in by_length.items()
        for some in [measured_classes([classes[i] for i in members])]
    ]
    pairs = [agreement_of((a, b), by_judge[a], by_judge[b]) for a, b in combinations(by_judge, 2)]
    return Readouts(tuple(judges), tuple(pairs), tuple(lengths))


def _columns(rows: Sequence[Mapping[str, Class] | None]) -> dict[str, list[Class]]:
    """The classes of all rows by the names that the first row has."""
    return {name: [(row or {})[name] for row in rows] for name in (rows[0] or {} if rows else ())}


def agreement_of(judges: tuple[str, str], one: Sequence[str], other: Sequence[str]) -> KappaPair:
    """How far two judges agree on the same completions, of which there is at least one; unscored ones do not count."""
    scored = [(a, b) for a, b in zip(one, other, strict=True) if "unscored" not in (a, b)]
    if not scored:
        return KappaPair(judges, kappa=None, agreement=0.0, n=0)
    first, second = zip(*scored, strict=True)
    same = sum(a == b for a, b in scored)
    return KappaPair(judges, kappa=finite_or_none(kappa(first, second)), agreement=same / len(scored), n=len(scored))
