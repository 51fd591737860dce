"""Dose curves: the metric over strengths of an intervention -> rates with intervals, and the fragility.

The rate at a strength is the share of prompts on which the behaviour is the more probable first token. Independent of
margins.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from rhumbline.evidence.statistics import finite_or_none, wilson
from rhumbline.records.arms import DIRECTION, ArmId
from rhumbline.records.effect_results import Dose, DoseFragility, DosePoint
from rhumbline.records.seed_files import DoseRow, Doses
from rhumbline.records.shared import NullDirection


def dose_curves(doses: Doses, nulls: Sequence[NullDirection], energy: float | None) -> Dose:
    """The curves of the direction and of some nulls, and the fragility of the behaviour."""
    curves = tuple(_point(row) for row in doses.rows)
    return Dose(curves, _fragility(curves, nulls, energy))


def _point(row: DoseRow) -> DosePoint:
    values = np.array([metric for metric in row.metric if metric is not None], float)
    n, shown = len(values), int((values > 0).sum())
    low, high = wilson(shown, n)
    return DosePoint(
        kind=row.kind,
        arm=row.arm,
        dose=row.dose,
        n=n,
        rate=shown / n if n else None,
        low=low,
        high=high,
        metric=finite_or_none(float(values.mean())) if n else None,
    )


def _fragility(curves: Sequence[DosePoint], nulls: Sequence[NullDirection], energy: float | None) -> DoseFragility:
    """Share of the behaviour that full ablation removes, divided by the energy that it removes."""
    rates: dict[ArmId, dict[float, float]] = {}
    for point in curves:
        if point.kind == "ablation" and point.rate is not None:
            rates.setdefault(point.arm, {})[point.dose] = point.rate
    own = rates.get(DIRECTION, {})
    lost = _share_removed(own, 1.0)
    energies = {null.null_draw: null.energy for null in nulls}
    ratios: dict[str, list[float]] = {}
    for arm, by_dose in rates.items():
        share = _share_removed(by_dose, 1.0)
        removed = energies.get(arm.null_draw) if arm.null_draw is not None else None
        if arm.family is not None and share is not None and removed:
            ratios.setdefault(arm.family, []).append(share / removed)
    return DoseFragility(
        lost=lost,
        energy=energy,
        fragility=lost / energy if lost is not None and energy else None,
        half=_half_dose(own),
        nulls={family: math.fsum(values) / len(values) for family, values in ratios.items()},
    )


def _share_removed(rates: Mapping[float, float], dose: float) -> float | None:
    """Share of the rate at dose 0 that the dose removes; None without a rate at either dose, or a rate of 0."""
    start, end = rates.get(0.0), rates.get(dose)
    return (start - end) / start if start and end is not None else None


def _half_dose(rates: Mapping[float, float]) -> float | None:
    """The smallest strength that removes half of the behaviour, by linear interpolation; None if none does."""
    for a, b in pairwise(sorted(rates)):
        before, after = _share_removed(rates, a), _share_removed(rates, b)
        if before is not None and after is not None and before < 0.5 <= after:
            return a + (b - a) * (0.5 - before) / (after - before)
    return None
