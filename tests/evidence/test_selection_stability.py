import pytest

from rhumbline.evidence.selection_stability import stability_summary
from rhumbline.records.effect_results import SiteShare
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import BootstrapRefit, Stability


def test_refits_are_counted_by_the_site_that_they_select():
    refits = (BootstrapRefit(Position(-1), 4, 0.9),) * 3 + (BootstrapRefit(None, None, 0.5),)
    summary = stability_summary(Stability((), refits, between=0.8))
    assert summary.chosen == (SiteShare(Position(-1), 4, 0.75),)
    assert summary.none == 0.25
    assert summary.cosine.mean == pytest.approx(0.8)
    assert summary.between == 0.8


def test_without_refits_nothing_is_known():
    summary = stability_summary(Stability((), (), between=None))
    assert (summary.refits, summary.none, summary.cosine.mean, summary.cosine.low) == (0, None, None, None)
