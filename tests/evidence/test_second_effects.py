import pytest

from rhumbline.evidence.second_effects import second_summary
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId, ArmKind
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import SecondDirection, WideNulls, WideRow
from rhumbline.records.shared import NullDirection, Survivor

SITE = Position(-1), 4
NULLS = [NullDirection("top-pc", d, 0.9 if d == 0 else 0.1, 0.2, *SITE) for d in range(20)]


def rows(positive: tuple[float, float], negative: tuple[float, float], n: int) -> tuple[WideRow, ...]:
    """The metric before and after, on n prompts of each class."""
    arms = (
        *((arm, "positive", x) for arm, x in zip((BASELINE, ABLATION), positive, strict=True)),
        *((arm, "negative", x) for arm, x in zip((BASELINE, ADDITION), negative, strict=True)),
    )
    return tuple(WideRow(arm=arm, side=side, metric=(x,) * n) for arm, side, x in arms)


def summary(positive=(3.0, -2.0), negative=(-3.0, -3.0)):
    second = SecondDirection(
        selected=Survivor(*SITE, norm=1.0, bypass=-2.0), survivors=1, candidates=(),
        rows=rows(positive, negative, 24), ranked=rows(positive, negative, 4),
    )  # fmt: skip
    drawn = [ArmId.null("top-pc", null.draw, ArmKind.ABLATION) for null in NULLS]
    nulls = [WideRow(arm=arm, side="positive", metric=(0.0 if i else -9.0,) * 4) for i, arm in enumerate(drawn)]
    wide = WideNulls({}, (*rows((3.0, -5.0), (-3.0, 5.0), 4), *nulls))
    return second_summary(second, wide, NULLS, same_cosine=0.5, least_draws=19)


def test_the_effects_of_the_second_direction_are_relative_and_ranked():
    suppression, induction = summary().effects
    assert (suppression.name, suppression.relative.value, suppression.relative.n) == ("suppression", 1.0, 24)
    assert suppression.relative.low > 0.5
    # 19 comparable draws change the metric by 3, less than 5; the aligned one is not compared.
    assert suppression.p == {"top-pc": pytest.approx(1 / 20)}
    assert (induction.name, induction.relative.value, induction.p) == ("induction", 0.0, {})
    smaller, _ = summary(positive=(3.0, 0.5)).effects
    assert (smaller.relative.value, smaller.p) == (0.0, {"top-pc": 1.0})


def test_a_metric_that_is_not_finite_has_no_rank():
    suppression, _ = summary(positive=(3.0, float("nan"))).effects
    assert suppression.p == {"top-pc": None}


def test_without_a_survivor_nothing_is_measured():
    nothing = SecondDirection(selected=None, survivors=0, candidates=())
    assert second_summary(nothing, WideNulls({}, ()), []).effects == ()
