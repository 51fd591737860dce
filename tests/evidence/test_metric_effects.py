from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, structs
from scipy import stats

from rhumbline.evidence.metric_effects import (
    families_below_bound,
    ineffective_arms,
    mean_kl,
    wide_effects,
    with_adjusted_p,
)
from rhumbline.evidence.verdict_rules import BLOG2026, RHUMBLINE
from rhumbline.records.arms import ABLATION, BASELINE, ArmId, ArmKind
from rhumbline.records.codec import convert, to_json
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import WideNulls, WideRow
from rhumbline.records.shared import NOT_FINITE, NullDirection

NULLS = [NullDirection("top-pc", d, cosine=0.1 * d, energy=0.2, position=Position(-1), layer=4) for d in range(4)]


def wide(own=-5.0, nulls=(4.0, 3.0, 5.0, -5.0)):
    """Two positives: the metric at baseline is 5, and the given value under each arm."""
    arms = {BASELINE: 5.0, ABLATION: own}
    arms |= {ArmId.null("top-pc", d, ArmKind.ABLATION): value for d, value in enumerate(nulls)}
    rows = tuple(WideRow(arm=arm, side="positive", metric=(value, value)) for arm, value in arms.items())
    return WideNulls({"positive": ("a", "b")}, rows, kl=(0.1, None, 0.3))


def test_a_rank_counts_the_draws_that_reach_the_effect():
    (effect,) = wide_effects(wide(), NULLS)
    family = effect.families["top-pc"]
    assert effect.name == "suppression"
    assert effect.change == 10.0
    assert (effect.before, effect.after) == (1.0, 0.0)
    assert (family.p, family.beaten, family.comparable) == (2 / 5, 1, 4)
    assert family.floor == 1 / 5
    assert family.cosine == pytest.approx(0.3)  # of the draw that reaches the effect
    (none_reaches,) = wide_effects(wide(nulls=(4.0, 3.0, 5.0, 4.0)), NULLS)
    assert none_reaches.families["top-pc"].p == 1 / 5
    assert none_reaches.families["top-pc"].cosine is None
    assert wide_effects(WideNulls({}, ()), []) == ()


def test_an_aligned_draw_leaves_both_counts_of_the_rank():
    (effect,) = wide_effects(wide(), NULLS, same_cosine=0.25)
    family = effect.families["top-pc"]
    assert (family.p, family.beaten, family.comparable, family.draws, family.floor) == (1 / 4, 0, 3, 4, 1 / 4)
    (far,) = wide_effects(wide(), NULLS, same_cosine=0.35)
    assert far.families["top-pc"].p == 2 / 5


def test_a_draw_in_which_nothing_was_selected_reaches_nothing_and_is_counted():
    none = [replace(null, passed=False) for null in NULLS]
    (effect,) = wide_effects(wide(nulls=(-9.0,) * 4), none)
    family = effect.families["top-pc"]
    assert (family.p, family.beaten, family.comparable) == (1 / 5, 0, 4)
    (selected,) = wide_effects(wide(nulls=(-9.0,) * 4), NULLS)
    assert selected.families["top-pc"].p == 1.0


def test_an_aligned_draw_in_which_nothing_was_selected_is_counted():
    """Alignment leaves out draws that found the direction again; one without a candidate found none."""
    aligned = [replace(null, cosine=0.9, passed=null.draw > 1) for null in NULLS]
    (effect,) = wide_effects(wide(nulls=(-9.0,) * 4), aligned, same_cosine=0.5)
    assert (effect.families["top-pc"].comparable, effect.families["top-pc"].beaten) == (2, 0)


@pytest.mark.parametrize(("own", "p"), [(5.5, 1.0), (5.0, 1.0), (4.9, 0.05)])
def test_a_draw_that_counts_as_no_change_reaches_a_direction_that_changes_nothing(own, p):
    """The direction moves the metric the wrong way, not at all, or the right way; no draw found a direction."""
    none = [NullDirection("top-pc", d, 0.0, 0.2, Position(-1), 4, passed=False) for d in range(19)]
    (effect,) = wide_effects(wide(own=own, nulls=(-9.0,) * 19), none, least_draws=19)
    assert effect.families["top-pc"].p == p


def with_kl(evidence, *kl):
    """The same with the KL divergence of the draws, by draw."""
    of = {ArmId.null("top-pc", d, ArmKind.ABLATION): value for d, value in enumerate(kl)}
    return replace(evidence, rows=tuple(structs.replace(row, kl=of.get(row.arm, UNSET)) for row in evidence.rows))


def test_a_draw_that_damages_the_model_reaches_nothing_and_is_counted():
    reached = wide(nulls=(4.0, -6.0, -6.0, -6.0))
    (effect,) = wide_effects(with_kl(reached, UNSET, 0.5, 0.1, 3.0), NULLS, max_kl=0.2)
    family = effect.families["top-pc"]
    assert (family.p, family.beaten, family.comparable, family.damaging) == (2 / 5, 1, 4, 2)
    assert family.cosine == pytest.approx(0.2)  # of the draw that reaches the effect without the damage
    for unknown in (reached, with_kl(reached, UNSET, None, None, None)):
        (effect,) = wide_effects(unknown, NULLS, max_kl=0.2)
        assert (effect.families["top-pc"].beaten, effect.families["top-pc"].damaging) == (3, UNSET)
    (published,) = wide_effects(with_kl(reached, UNSET, 0.5, 0.1, 3.0), NULLS)  # a rule without a bound
    assert published.families["top-pc"].beaten == 3
    worse = replace(with_kl(reached, UNSET, 0.5, 0.1, 3.0), kl=(0.6, 0.6))  # the direction damages the model itself
    (effect,) = wide_effects(worse, NULLS, max_kl=0.2)
    assert effect.families["top-pc"].beaten == 2


@pytest.mark.parametrize(("low", "own", "damaging"), [
    (0.3, 0.1, 4), (0.15, 0.1, 0), (None, 0.1, 0), (NOT_FINITE, 0.1, 4), (0.3, 0.4, 0), (UNSET, 0.1, 4)
])  # fmt: skip
def test_a_draw_damages_if_the_interval_of_its_kl_is_above_the_bound_and_the_direction(low, own, damaging):
    """All four draws have a mean of 0.5 nats. Runs before the interval was measured have the mean only."""
    reached = with_kl(wide(nulls=(-6.0,) * 4), 0.5, 0.5, 0.5, 0.5)
    rows = tuple(structs.replace(row, kl_low=low) if row.arm.is_null else row for row in reached.rows)
    assert len(ineffective_arms(replace(reached, rows=rows, kl=(own,) * 16), NULLS, 0.2)) == damaging


def test_an_ablation_whose_logits_are_not_finite_damages_the_model():
    """Its metric is unknown, too, which would count as reaching the effect; an unknown KL alone is no damage."""
    nan = float("nan")
    broken = with_kl(wide(nulls=(4.0, nan, nan, -6.0)), UNSET, NOT_FINITE, None, 0.1)
    (effect,) = wide_effects(broken, NULLS, max_kl=0.2)
    family = effect.families["top-pc"]
    assert (family.beaten, family.comparable, family.damaging) == (2, 4, 1)
    assert ineffective_arms(broken, NULLS, 0.2) == {ArmId.null("top-pc", 1, ArmKind.ABLATION)}
    (published,) = wide_effects(broken, NULLS)  # a rule without a bound
    assert published.families["top-pc"].beaten == 3
    as_broken = replace(broken, kl=(0.1, NOT_FINITE))  # no draw damages the model more than the direction
    (effect,) = wide_effects(as_broken, NULLS, max_kl=0.2)
    assert effect.families["top-pc"].beaten == 3


@pytest.mark.parametrize("place", [BASELINE, ABLATION])
def test_a_metric_that_is_not_finite_has_no_rank(place):
    """One prompt of the baseline or of the direction; before, every draw reached its unknown change."""
    evidence = wide(nulls=(4.0,) * 4)
    rows = (structs.replace(row, metric=(5.0, None)) if row.arm == place else row for row in evidence.rows)
    (effect,) = wide_effects(replace(evidence, rows=tuple(rows)), NULLS)
    assert (effect.change, effect.families["top-pc"].p, effect.families["top-pc"].comparable) == (None, None, 4)
    (known,) = wide_effects(evidence, NULLS)
    assert known.families["top-pc"].p == 1 / 5


def test_a_divergence_that_is_not_finite_is_written_and_read():
    evidence = replace(with_kl(wide(), NOT_FINITE, 0.5, None), kl=(NOT_FINITE, 0.5, None))
    assert convert(to_json(evidence), WideNulls) == evidence


def test_the_ineffective_arms_are_ablations_that_damage_the_model_and_all_of_draws_without_a_candidate():
    def arms(kind, *draws):
        return {ArmId.null("top-pc", d, kind) for d in draws}

    nulls = [replace(null, passed=null.draw != 0) for null in NULLS]
    without = arms(ArmKind.ABLATION, 0) | arms(ArmKind.ADDITION, 0)
    evidence = with_kl(wide(nulls=(4.0, -6.0, -6.0, -6.0)), UNSET, 0.5, 0.1, 3.0)
    assert ineffective_arms(evidence, nulls, 0.2) == without | arms(ArmKind.ABLATION, 1, 3)
    assert ineffective_arms(evidence, nulls, None) == without
    assert ineffective_arms(replace(evidence, kl=(0.6, 0.6)), NULLS, 0.2) == arms(ArmKind.ABLATION, 3)
    assert ineffective_arms(WideNulls({}, ()), nulls, 0.2) == without


def test_aligned_draws_that_all_reach_the_effect_give_no_p():
    nulls = [replace(NULLS[0], draw=d, cosine=0.9) for d in range(19)]
    (effect,) = wide_effects(wide(nulls=(-6.0,) * 19), nulls, same_cosine=0.5, least_draws=19)
    family = effect.families["top-pc"]
    assert (family.p, family.comparable, family.draws) == (None, 0, 19)  # 0.05 in version 4
    (one_more,) = wide_effects(wide(nulls=(4.0,) * 18), nulls[:18], least_draws=19)
    assert one_more.families["top-pc"].p is None
    (enough,) = wide_effects(wide(nulls=(4.0,) * 19), nulls, least_draws=19)
    assert enough.families["top-pc"].p == 0.05


def test_an_unknown_p_is_not_adjusted():
    effects = wide_effects(wide(), NULLS, least_draws=19)
    assert with_adjusted_p({0: effects})[0][0].families["top-pc"].p_holm is None


def test_holm_runs_over_all_effects_of_the_run():
    seeds = {seed: wide_effects(wide(), NULLS) for seed in range(3)}
    adjusted = with_adjusted_p(seeds)
    assert {effects[0].families["top-pc"].p_holm for effects in adjusted.values()} == {1.0}
    alone = with_adjusted_p({0: seeds[0]})
    assert alone[0][0].families["top-pc"].p_holm == 2 / 5


def test_the_kl_is_a_mean_over_the_negatives_that_have_one():
    assert mean_kl(wide()).kl == pytest.approx(0.2)
    assert mean_kl(wide()).n == 2
    assert mean_kl(WideNulls({}, ())).kl is None
    broken = mean_kl(WideNulls({}, (), kl=(0.1, NOT_FINITE, None, NOT_FINITE)))
    assert (broken.kl, broken.low, broken.n, broken.not_finite) == (None, None, 3, 2)


def test_a_few_negatives_give_a_kl_without_an_interval():
    few, enough = (mean_kl(WideNulls({}, (), kl=(0.1, 0.3) * n)) for n in (3, 4))
    assert (few.kl, few.low, few.high, few.n) == (pytest.approx(0.2), None, None, 6)
    assert enough.low < enough.kl < enough.high


def test_the_upper_end_of_the_kl_covers_skewed_divergences_more_often_than_a_bootstrap():
    rng = np.random.default_rng(0)
    samples = rng.lognormal(0, 1, (400, 16))
    ends = [mean_kl(WideNulls({}, (), kl=tuple(values.tolist()))) for values in samples]
    older = [mean_kl(WideNulls({}, (), kl=tuple(values.tolist())), least=1) for values in samples]
    missed, missed_before = (np.mean([shift.high < np.exp(0.5) for shift in some]) for some in (ends, older))
    assert missed < 0.75 * missed_before
    assert np.mean([shift.low > np.exp(0.5) for shift in ends]) < 0.04
    assert np.median([shift.high for shift in ends]) < 1.25 * np.median([shift.high for shift in older])


def test_the_interval_of_the_kl_is_finite_and_has_no_negative_end():
    largest = np.exp(stats.t.ppf(0.975, 7))
    for values in ((0.0,) * 8, (-1e-9, 1e-9) * 4, (0.0,) * 7 + (0.4,), (0.1,) * 8):
        shift = mean_kl(WideNulls({}, (), kl=values))
        assert 0 <= shift.low <= shift.kl <= shift.high <= shift.kl * largest + 1e-12
    assert mean_kl(WideNulls({}, (), kl=(0.1,) * 8)).high == pytest.approx(0.1)


def many(reached, draws=20, effect=10.0):
    """`draws` draws of a family, of which the first `reached` reach the effect of the direction."""
    drawn = [NullDirection("top-pc", d, 0.0, 0.2, Position(-1), 4) for d in range(draws)]
    return wide(own=5.0 - effect, nulls=tuple(-9.0 if d < reached else 4.0 for d in range(draws))), drawn


@pytest.mark.parametrize(("reached", "stops"), [(0, False), (1, False), (2, True), (20, True)])
def test_a_family_stops_only_if_no_remaining_draw_can_change_the_decision(reached, stops):
    evaluated, drawn = many(reached)
    stopped = families_below_bound(evaluated, drawn, RHUMBLINE, {"top-pc": 39})
    assert [(s.family, s.effect, s.draws) for s in stopped] == ([("top-pc", "suppression", 20)] if stops else [])
    # The most favourable remaining draws, and the p that the rule would read then.
    whole, drawn = many(reached, draws=39)
    p = wide_effects(whole, drawn, RHUMBLINE.same_cosine)[0].families["top-pc"].p
    assert (p > RHUMBLINE.max_p) == stops
    if stops:
        now = wide_effects(evaluated, many(reached)[1], RHUMBLINE.same_cosine)[0].families["top-pc"]
        assert now.p > RHUMBLINE.max_p


def test_a_family_does_not_stop_before_its_p_is_known():
    evaluated, drawn = many(20)
    aligned = [replace(null, cosine=0.9) if null.draw < 2 else null for null in drawn]
    assert families_below_bound(evaluated, aligned, RHUMBLINE, {"top-pc": 39}) == ()  # 18 draws are compared
    assert families_below_bound(evaluated, drawn, RHUMBLINE, {"top-pc": 20}) == ()  # nothing is left to stop
    assert families_below_bound(evaluated, drawn, BLOG2026, {"top-pc": 39}) == ()  # the rule reads no rank


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_stopping_gives_the_decision_of_all_draws(seed, shift):
    rng = np.random.default_rng(seed)
    values = tuple((5.0 - rng.standard_normal(39)).tolist())
    drawn = [NullDirection("top-pc", d, float(rng.uniform(-0.6, 0.6)), 0.2, Position(-1), 4) for d in range(39)]

    def met(n):
        effect = wide_effects(wide(own=5.0 - shift, nulls=values[:n]), drawn, RHUMBLINE.same_cosine)[0]
        return effect.families["top-pc"].p <= RHUMBLINE.max_p

    early = wide(own=5.0 - shift, nulls=values[:20])
    if families_below_bound(early, drawn, RHUMBLINE, {"top-pc": 39}):
        assert not met(20)
        assert not met(39)
