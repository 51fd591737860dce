"""Stability of the selection: bootstrap refits -> how often they select each site, and their cosines."""

import math
from collections import Counter

import numpy as np

from rhumbline.evidence.statistics import finite_or_none
from rhumbline.records.effect_results import MeanInterval, SiteShare, StabilitySummary
from rhumbline.records.seed_files import Stability


def stability_summary(stability: Stability) -> StabilitySummary:
    """The sites that the refits select, and the cosines of the refitted directions with the selected one."""
    refits, n = stability.refits, len(stability.refits)
    sites = Counter(
        (refit.position, refit.layer) for refit in refits if refit.position is not None and refit.layer is not None
    )
    cosines = [refit.cosine for refit in refits]
    low, high = np.quantile(cosines, [0.025, 0.975]) if cosines else (math.nan, math.nan)
    return StabilitySummary(
        refits=n,
        sites=stability.sites,
        chosen=tuple(SiteShare(position, layer, count / n) for (position, layer), count in sites.most_common()),
        none=sum(refit.layer is None for refit in refits) / n if n else None,
        cosine=MeanInterval(
            finite_or_none(math.fsum(cosines) / n) if n else None,
            finite_or_none(float(low)),
            finite_or_none(float(high)),
        ),
        between=stability.between,
    )
