"""Stability of the selection: bootstrap refits -> how often they select each site, and their cosines.

The cosines between groups of positives, which are descriptive, are summarised here too.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rhumbline.evidence.statistics import finite_or_none
from rhumbline.records.effect_results import MeanInterval, SiteShare, Spread, StabilitySummary
from rhumbline.records.seed_files import GroupCosines, Stability


def stability_summary(stability: Stability) -> StabilitySummary:
    """The sites that the refits select, and the cosines of the refitted directions with the selected one."""
    refits, n = stability.refits, len(stability.refits)
    sites = Counter(
        (refit.position, refit.layer) for refit in refits if refit.position is not None and refit.layer is not None
    )
    cosines = [refit.cosine for refit in refits]
    return StabilitySummary(
        refits=n,
        sites=stability.sites,
        chosen=tuple(SiteShare(position, layer, count / n) for (position, layer), count in sites.most_common()),
        none=sum(refit.layer is None for refit in refits) / n if n else None,
        cosine=_mean_and_range(cosines),
        between=stability.between,
    )


def spread_summary(cosines: GroupCosines | None) -> Spread | None:
    """The cosines between groups of positives beside those of a null with one shift; None if not measured."""
    if cosines is None:
        return None
    return Spread(_mean_and_range(cosines.halves), _mean_and_range(cosines.one_shift), len(cosines.halves))


def _mean_and_range(values: Sequence[float]) -> MeanInterval:
    """The mean, and the interval that contains 95 % of the values."""
    if not values:
        return MeanInterval(None, None, None)
    low, high = np.quantile(values, [0.025, 0.975])
    return MeanInterval(*(finite_or_none(float(x)) for x in (math.fsum(values) / len(values), low, high)))
