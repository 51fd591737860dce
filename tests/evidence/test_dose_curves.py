import pytest

from rhumbline.evidence.dose_curves import dose_curves
from rhumbline.evidence.statistics import wilson
from rhumbline.records.arms import ArmId
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import DoseRow, Doses
from rhumbline.records.shared import ByLabel, NullDirection

NULLS = [NullDirection("top-pc", 0, cosine=0.0, energy=0.2, position=Position(-1), layer=4)]


def doses(*curves, n=20):
    """Curves of ablation: an arm, and its rate at every strength."""
    rows = [
        DoseRow(
            kind="ablation",
            arm=ArmId.parse(arm),
            dose=strength,
            side="positive",
            metric=(1.0,) * round(rate * n) + (-1.0,) * round((1 - rate) * n),
        )
        for arm, rates in curves
        for strength, rate in rates.items()
    ]
    return Doses(ByLabel((), ()), tuple(rows))


def test_fragility_is_the_share_removed_per_energy():
    curves = ("direction", {0.0: 1.0, 0.5: 0.75, 1.0: 0.25}), ("null:top-pc:0", {0.0: 1.0, 1.0: 0.9})
    dose = dose_curves(doses(*curves), NULLS, energy=0.05)
    assert dose.fragility.lost == pytest.approx(0.75)
    assert dose.fragility.fragility == pytest.approx(15.0)
    assert dose.fragility.half == pytest.approx(0.75)
    assert dose.fragility.nulls["top-pc"] == pytest.approx(0.1 / 0.2)
    assert (dose.curves[0].low, dose.curves[0].high) == tuple(wilson(20, 20))
    assert dose_curves(doses(), [], None).fragility.fragility is None


def test_a_curve_that_stays_above_half_has_no_half_dose():
    dose = dose_curves(doses(("direction", {0.0: 1.0, 1.0: 0.9})), [], 0.05)
    assert dose.fragility.half is None
