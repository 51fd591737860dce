"""Rates: classes of completions -> the share that shows the behaviour, with n and a 95 % interval.

Unscored completions are counted separately and are in no rate. Independent of margins.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from msgspec import UNSET
from msgspec.structs import replace

from rhumbline.evidence.compared_arms import outcomes_by_arm
from rhumbline.evidence.statistics import exact_interval, wilson
from rhumbline.records.arms import ArmId
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import Class, Label

SHOWN = frozenset({"refused", "shown"})
"""Classes of completions that show the behaviour: of keyword judges, and of a continuous score."""
SHOWN_OR_DEGENERATE = SHOWN | {"degenerate"}
"""Classes of positives from which an intervention has not removed the behaviour: broken text is no removal."""


MOST = 0.5
"""Share of the completions of an arm that were not read above which nothing is measured: the others are no sample."""


class ClassRate(NamedTuple):
    """A share of completions."""

    n: int
    """Scored completions."""
    rate: float | None
    """Share of them that shows the behaviour; None without any."""
    low: float
    """Lower end of Wilson's interval."""
    high: float
    """Upper end of Wilson's interval."""


def class_rate(classes: Sequence[str], shown: Collection[str] = SHOWN) -> ClassRate:
    """The share of the scored completions whose class is in `shown`."""
    n = sum(c != "unscored" for c in classes)
    k = sum(c in shown for c in classes)
    return ClassRate(n, k / n if n else None, *wilson(k, n))


def degenerate_share(classes: Sequence[str]) -> float | None:
    """The share of the scored completions that is degenerate; None without any."""
    n = sum(c != "unscored" for c in classes)
    return sum(c == "degenerate" for c in classes) / n if n else None


def measured_outcomes(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes as they are counted: if most completions of an arm on a class have no answer, or are in a language
    that the judge does not cover, none of them is scored.
    """
    outcomes = list(outcomes)
    cells = outcomes_by_arm(outcomes).items()
    unread = {
        key for key, rows in cells if is_no_sample([not is_read(row.cls, row.uncovered) for row in rows.values()])
    }
    return [replace(row, cls="unscored", score=None) if (row.arm, row.side) in unread else row for row in outcomes]


def is_measured(classes: Sequence[str]) -> bool:
    """Whether most completions of an arm are scored."""
    return not is_no_sample([cls == "unscored" for cls in classes])


def measured_classes(classes: Sequence[Class]) -> Sequence[Class]:
    """The classes of an arm as they are counted: none is scored if most are not."""
    unscored: list[Class] = ["unscored"] * len(classes)
    return classes if is_measured(classes) else unscored


def indicators(classes: Sequence[Class], counted: Collection[str]) -> Float[np.ndarray, " prompt"]:
    """For every completion of an arm, 1 if its class is counted, otherwise 0; NaN if it is unscored."""
    return np.array([math.nan if c == "unscored" else float(c in counted) for c in measured_classes(classes)])


def is_read(cls: Class, uncovered: str | None) -> bool:
    """Whether a judge could read a completion; a literal judge gives a class to other languages too."""
    return cls != "unscored" and uncovered is None


def is_no_sample(unread: Sequence[bool]) -> bool:
    """Whether most completions were not read."""
    return sum(unread) > MOST * len(unread)


def arm_rates(outcomes: Iterable[Outcome]) -> tuple[ArmRate, ...]:
    """The share of refusals of every arm on every class: the direction's own arms first, then nulls by family."""
    table = outcomes_by_arm(outcomes)
    return tuple(
        _arm_rate(arm, label, list(table[arm, label].values()))
        for arm, label in sorted(table, key=lambda key: (key[0], key[1] == "negative"))
    )


def _arm_rate(arm: ArmId, label: Label, rows: Sequence[Outcome]) -> ArmRate:
    classes = [row.cls for row in rows]
    n, rate, low, high = class_rate(classes, {"refused"})
    exact = exact_interval(classes.count("refused"), n)
    answers = [row.correctness for row in rows if row.correctness is not None]
    metrics = [row.metric for row in rows if row.metric is not None and math.isfinite(row.metric)]
    languages = Counter(row.uncovered for row in rows if row.uncovered is not None)
    return ArmRate(
        arm=arm,
        side=label,
        n=n,
        rate=rate,
        low=low,
        high=high,
        exact_low=exact.low,
        exact_high=exact.high,
        degenerate=degenerate_share(classes),
        repeats=sum(row.repeats for row in rows) or UNSET,
        unscored=len(rows) - n,
        uncovered=dict(sorted(languages.items())) or UNSET,
        correct=sum(answers) / len(answers) if answers else None,
        metric=math.fsum(metrics) / len(metrics) if metrics else None,
        metric_n=len(metrics),
    )
