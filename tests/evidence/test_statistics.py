import math
import random
from collections.abc import Mapping
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhumbline.errors import InputError, VerificationError
from rhumbline.evidence.statistics import (
    Interval,
    arm_rates,
    auroc,
    bootstrap_mean,
    effects,
    exact_interval,
    holm,
    mcnemar,
    paired_difference,
    rank_floor,
    rank_p,
    wilson,
)

# -- intervals


def test_wilson_is_its_closed_form():
    z = stats.norm.ppf(0.975)
    for k, n in ((0, 10), (3, 10), (10, 10), (1, 1), (63, 64)):
        p = k / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        assert wilson(k, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_published_example():
    # Newcombe 1998, Stat Med 17:857, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for (k, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(k, n) == pytest.approx(expected, abs=5e-5)


def test_exact_interval_inverts_the_binomial_tails():
    low, high = exact_interval(7, 20)
    assert stats.binom.sf(6, 20, low) == pytest.approx(0.025, rel=1e-6)
    assert stats.binom.cdf(7, 20, high) == pytest.approx(0.025, rel=1e-6)
    assert exact_interval(0, 20).low == 0
    assert exact_interval(20, 20).high == 1


def test_of_nothing_nothing_is_known():
    assert wilson(0, 0) == exact_interval(0, 0) == Interval(0.0, 1.0)
    nothing = paired_difference(np.zeros(0, bool), np.zeros(0, bool))
    assert math.isnan(nothing.mean)
    assert nothing[1:] == (-1.0, 1.0, 0)


@pytest.mark.parametrize(("k", "n", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0), (1, 5, 95.0)])
def test_impossible_intervals_are_refused(k, n, level):
    for interval in (wilson, exact_interval):
        with pytest.raises(InputError, match=f"{k} out of {n}"):
            interval(k, n, level)


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_contain_the_rate_mirror_and_nest(counts):
    k, n = counts
    for interval in (wilson, exact_interval):
        low, high = interval(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)
        wide = interval(k, n, 0.99)
        assert wide.low <= low
        assert high <= wide.high


def test_wilson_covers_on_average_and_exact_always():
    n, rates = 64, np.linspace(0.01, 0.99, 99)
    outcomes = np.arange(n + 1)
    weight = stats.binom.pmf(outcomes, n, rates[:, None])

    def coverage(interval):
        low, high = np.array([interval(int(k), n) for k in outcomes]).T
        inside = (low <= rates[:, None]) & (rates[:, None] <= high)
        return (weight * inside).sum(1)

    assert abs(coverage(wilson).mean() - 0.95) < 0.01
    assert coverage(exact_interval).min() >= 0.95
    assert coverage(wilson).min() < 0.95  # what "on average" costs


# -- paired differences


def pairs_of(both, only_before, only_after, neither):
    """The two arrays of a paired table."""
    cells = [(1, 1)] * both + [(1, 0)] * only_before + [(0, 1)] * only_after + [(0, 0)] * neither
    before, after = np.array(cells, bool).reshape(-1, 2).T
    return before, after


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Newcombe 1998 (Stat Med 17:2635), the example of its table with cells 36, 12, 2, 0: method 10.
        ((36, 12, 2, 0), (0.2000, 0.0569, 0.3404)),
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
        ((1, 1, 7, 12), (-0.2857, -0.507, -0.026)),
        # The same chapter; output printed by the test suite of its R package contingencytables.
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),
        # Armitage and Berry's two media, as analysed in the manual of StatsDirect.
        ((20, 12, 2, 16), (0.2, 0.056156, 0.329207)),
    ],
)
def test_newcombes_method_10_published_examples(table, expected):
    found = paired_difference(*pairs_of(*table))
    assert found.n == sum(table)
    digits = [len(str(x).split(".")[1]) for x in expected]
    assert [round(x, d) for x, d in zip(found[:3], digits, strict=True)] == list(expected)


def test_paired_difference_of_a_clean_effect():
    found = paired_difference(*pairs_of(0, 64, 0, 0))
    assert found.mean == 1.0
    assert found.high == 1.0
    assert 0.9 < found.low < 0.95
    same = paired_difference(*pairs_of(30, 0, 0, 34))
    assert same.mean == 0.0
    assert same.low < 0 < same.high


table_counts = st.tuples(*[st.integers(0, 40)] * 4).filter(any)


@settings(deadline=None)
@given(table_counts)
def test_paired_difference_contains_its_mean_and_changes_sign_with_its_arguments(table):
    before, after = pairs_of(*table)
    found, back = paired_difference(before, after), paired_difference(after, before)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert found.mean == pytest.approx(before.mean() - after.mean())
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_paired_difference_covers():
    n = 16

    @cache
    def interval(a, b, c):
        return paired_difference(*pairs_of(a, b, c, n - a - b - c))

    tables = [t for t in product(range(n + 1), repeat=3) if sum(t) <= n]
    low, high = np.array([[d.low, d.high] for d in (interval(*t) for t in tables)]).T
    counts = np.array([(*t, n - sum(t)) for t in tables])
    coverage = []
    for cells in ((0.25, 0.25, 0.25, 0.25), (0.4, 0.1, 0.1, 0.4), (0.6, 0.3, 0.02, 0.08), (0.05, 0.85, 0.02, 0.08)):
        weight = stats.multinomial.pmf(counts, n, cells)
        truth = cells[1] - cells[2]
        coverage.append(weight[(low <= truth) & (truth <= high)].sum())
    assert min(coverage) > 0.93
    assert max(coverage) < 0.995  # and is not covering by being wide


def test_pairing_narrows_the_interval():
    before, after = pairs_of(30, 10, 0, 24)
    shuffled = np.concatenate([after[40:], after[:40]])
    paired, broken = paired_difference(before, after), paired_difference(before, shuffled)
    assert paired.mean == pytest.approx(broken.mean)
    assert paired.high - paired.low < 0.8 * (broken.high - broken.low)


# -- tests


def test_mcnemar_is_the_sign_test_of_the_discordant_pairs():
    assert mcnemar(*pairs_of(5, 10, 2, 7)) == pytest.approx(stats.binomtest(2, 12).pvalue)
    assert mcnemar(*pairs_of(5, 10, 2, 7)) == mcnemar(*pairs_of(50, 2, 10, 0))  # concordant pairs say nothing
    assert mcnemar(*pairs_of(5, 0, 0, 7)) == 1.0
    assert mcnemar(*pairs_of(0, 64, 0, 0)) == pytest.approx(2**-63)


def test_rank_p_has_a_floor_and_counts_ties():
    assert rank_p(0.9, [0.1] * 19) == rank_floor(19) == 0.05
    assert rank_p(0.5, [0.5, 0.1, 0.9]) == 3 / 4
    assert rank_p(0.7 - 0.2, [0.5]) == 1.0  # a tie in spite of rounding
    assert rank_p(0.0, [0.5] * 9) == 1.0
    assert rank_p(0.9, []) == rank_floor(0) == 1.0
    assert rank_p(math.nan, [0.1] * 19) == 1.0
    assert rank_p(0.9, [0.1, math.nan]) == 2 / 3


def test_rank_p_is_valid_under_the_null():
    rng = random.Random(0)
    p = [rank_p(rng.random(), [rng.random() for _ in range(9)]) for _ in range(4000)]
    for alpha in (0.1, 0.2, 0.5):
        assert sum(x <= alpha + 1e-12 for x in p) / len(p) == pytest.approx(alpha, abs=0.03)


def test_holm_steps_down():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert list(holm({"z": 0.5, "a": 0.9})) == ["z", "a"]
    assert holm({"z": 0.5, "a": 0.9}) == {"z": 1.0, "a": 1.0}
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni(values):
    raw = {str(i): p for i, p in enumerate(values)}
    adjusted = holm(raw)
    for name, p in raw.items():
        assert p <= adjusted[name] <= min(1, len(raw) * p) + 1e-12
    order = sorted(raw, key=lambda name: raw[name])
    assert [adjusted[n] for n in order] == sorted(adjusted.values())


values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=15).map(np.array)


@settings(deadline=None)
@given(values, values)
def test_auroc_is_the_share_of_won_pairs_and_scipys(positive, negative):
    won = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert auroc(positive, negative) == pytest.approx(won)
    statistic = stats.mannwhitneyu(positive, negative).statistic
    assert auroc(positive, negative) == pytest.approx(statistic / (len(positive) * len(negative)))
    assert auroc(positive, negative) + auroc(negative, positive) == pytest.approx(1)


def test_auroc_of_nothing_and_of_nan():
    with pytest.raises(InputError, match="0 positive and 2 negative"):
        auroc(np.zeros(0), np.zeros(2))
    assert math.isnan(auroc(np.array([math.nan]), np.zeros(2)))


def test_bootstrap_mean_agrees_with_the_normal_interval():
    x = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = bootstrap_mean(x, np.random.default_rng(1))
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert found.mean == pytest.approx(x.mean())
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)
    assert found.n == 400
    assert found == bootstrap_mean(x, np.random.default_rng(1))
    assert found != bootstrap_mean(x, np.random.default_rng(2))
    assert bootstrap_mean(np.ones(5), np.random.default_rng(0))[:3] == (1.0, 1.0, 1.0)
    assert bootstrap_mean(np.zeros(0), np.random.default_rng(0)).n == 0


# -- the summary of a run's rows

CODE: Mapping[str, str] = {"r": "refused", "c": "complied", "d": "degenerate", "u": "unscored"}


def rows_of(arm, side, classes, metric=None):
    """One row per letter of `classes`."""
    return [
        {"arm": arm, "set": side, "prompt_id": f"{side}-{i}", "class": CODE[c], "metric": metric}
        for i, c in enumerate(classes)
    ]


RUN = [
    *rows_of("baseline", "positive", "rrrrrrrrrc", 2.0),
    *rows_of("baseline", "negative", "cccccccccr", -3.0),
    *rows_of("ablation", "positive", "ccccccccdr"),
    *rows_of("addition", "negative", "rrrrrrrdcc"),
    *rows_of("null:isotropic:0:ablation", "positive", "rrrrrrrrrc"),
    *rows_of("null:isotropic:1:ablation", "positive", "rrrrrrrrcc"),
    *rows_of("null:shuffled:0:ablation", "positive", "ccccccccrc"),
    *rows_of("null:isotropic:0:addition", "negative", "rccccccccr"),
    *rows_of("null:isotropic:1:addition", "negative", "cccccccccc"),
]


def test_arm_rates_count_and_order():
    extra = [*rows_of("null:isotropic:10:ablation", "positive", "r"), *rows_of("dose:0.5", "negative", "c")]
    shuffled = random.Random(0).sample(RUN + extra, len(RUN) + len(extra))
    table = arm_rates(shuffled)
    assert [(row["arm"], row["set"]) for row in table] == [
        ("baseline", "positive"),
        ("baseline", "negative"),
        ("ablation", "positive"),
        ("addition", "negative"),
        ("null:isotropic:0:ablation", "positive"),
        ("null:isotropic:0:addition", "negative"),
        ("null:isotropic:1:ablation", "positive"),
        ("null:isotropic:1:addition", "negative"),
        ("null:isotropic:10:ablation", "positive"),
        ("null:shuffled:0:ablation", "positive"),
        ("dose:0.5", "negative"),
    ]
    low, high = wilson(9, 10)
    assert table[0] == {
        "arm": "baseline", "set": "positive", "n": 10, "rate": 0.9, "low": low, "high": high,
        "exact_low": exact_interval(9, 10).low, "exact_high": exact_interval(9, 10).high, "correct": None,
        "degenerate": 0.0, "unscored": 0, "metric": 2.0, "metric_n": 10,
    }  # fmt: skip
    assert table[3]["rate"] == 0.7
    assert table[3]["degenerate"] == 0.1
    assert table[3]["metric"] is None


def test_unscored_rows_are_counted_apart_and_degenerate_ones_are_not_refusals():
    (row,) = arm_rates(rows_of("baseline", "positive", "rrduu"))
    assert (row["n"], row["unscored"], row["rate"], row["degenerate"]) == (3, 2, 2 / 3, 1 / 3)
    (row,) = arm_rates(rows_of("baseline", "positive", "uu"))
    assert (row["n"], row["unscored"], row["rate"], row["degenerate"]) == (0, 2, None, None)
    assert (row["low"], row["high"]) == (0.0, 1.0)


def test_the_mean_metric_is_over_the_rows_that_have_one():
    rows = rows_of("baseline", "positive", "rrrr")
    for row, metric in zip(rows, (1.0, None, math.nan, 4.0), strict=True):
        row["metric"] = metric
    del rows[1]["metric"]
    (found,) = arm_rates(rows)
    assert (found["metric"], found["metric_n"], found["n"]) == (2.5, 2, 4)


def test_effects_are_paired_and_beside_their_nulls():
    suppression, induction = effects(RUN)
    assert suppression["name"] == "suppression"
    assert suppression["drop"] == pytest.approx(0.8)
    expected = paired_difference(np.array([1] * 9 + [0], bool), np.array([0] * 9 + [1], bool))
    assert (suppression["low"], suppression["high"], suppression["n"]) == expected[1:]
    assert suppression["null"] == {
        "isotropic": pytest.approx({"draws": 2, "mean": 0.05, "max": 0.1}),
        "shuffled": pytest.approx({"draws": 1, "mean": 0.8, "max": 0.8}),
    }
    assert suppression["gap"] == pytest.approx({"isotropic": 0.75, "shuffled": 0.0})
    assert suppression["p"] == {"isotropic": 1 / 3, "shuffled": 1.0}
    assert induction["name"] == "induction"
    assert induction["drop"] == pytest.approx(0.6)
    assert induction["low"] < 0.6 < induction["high"]
    assert induction["null"] == {"isotropic": pytest.approx({"draws": 2, "mean": 0.0, "max": 0.1})}
    assert induction["gap"] == pytest.approx({"isotropic": 0.6})


def test_the_order_of_the_rows_changes_nothing():
    shuffled = random.Random(1).sample(RUN, len(RUN))
    assert effects(shuffled) == effects(RUN)
    assert arm_rates(shuffled) == arm_rates(RUN)


def test_a_pair_that_is_unscored_in_either_arm_is_left_out():
    rows = rows_of("baseline", "positive", "urrrr") + rows_of("ablation", "positive", "ruccr")
    (effect,) = effects(rows)
    assert effect["n"] == 3
    assert effect["drop"] == pytest.approx(2 / 3)
    # As an empty string of zeros it would have been 0.4: never let unscored become "not refused".
    assert effect["drop"] != pytest.approx(4 / 5 - 2 / 5)


def test_an_effect_of_which_nothing_was_scored_is_unknown():
    rows = rows_of("baseline", "positive", "rr") + rows_of("ablation", "positive", "uu")
    rows += rows_of("null:isotropic:0:ablation", "positive", "cc")
    (effect,) = effects(rows)
    assert (effect["drop"], effect["low"], effect["high"], effect["n"]) == (None, -1.0, 1.0, 0)
    assert effect["gap"] == {"isotropic": None}
    assert effect["p"] == {"isotropic": 1.0}


def test_a_null_of_which_nothing_was_scored_leaves_the_gap_unknown():
    rows = rows_of("baseline", "positive", "rr") + rows_of("ablation", "positive", "cc")
    rows += rows_of("null:isotropic:0:ablation", "positive", "uu")
    rows += rows_of("null:isotropic:1:ablation", "positive", "rr")
    (effect,) = effects(rows)
    assert effect["gap"] == {"isotropic": None}
    assert effect["null"] == {"isotropic": {"draws": 2, "mean": None, "max": None}}
    assert effect["p"] == {"isotropic": 2 / 3}


@pytest.mark.parametrize("absent", ["baseline", "ablation", "addition"])
def test_a_missing_arm_leaves_its_effect_out(absent):
    left = {"baseline": [], "ablation": ["induction"], "addition": ["suppression"]}[absent]
    assert [e["name"] for e in effects([row for row in RUN if row["arm"] != absent])] == left


@pytest.mark.parametrize("arm", ["ablation", "null:shuffled:0:ablation"])
def test_arms_on_different_prompts_are_refused(arm):
    at = next(i for i, row in enumerate(RUN) if row["arm"] == arm)
    with pytest.raises(VerificationError, match=rf"{arm}.*positive prompts.*positive-0 \(1 in all\)"):
        effects(RUN[:at] + RUN[at + 1 :])
    changed = [{**row, "prompt_id": "other"} if i == at else row for i, row in enumerate(RUN)]
    with pytest.raises(VerificationError, match=r"other, positive-0 \(2 in all\)"):
        effects(changed)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"class": "refusal"}, "refused, complied, shown, absent, degenerate, unscored"),
        ({"set": "harmful"}, "positive, negative"),
        ({"arm": None}, "must be strings"),
        ({"prompt_id": 3}, "must be strings"),
        ({}, "occurs twice"),
    ],
)
def test_impossible_rows_are_refused(row, message):
    for summary in (arm_rates, effects):
        with pytest.raises(VerificationError, match=message):
            summary([*RUN, {**RUN[0], **row}])


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from("rcdu")] * 3), min_size=1, max_size=30))
def test_rates_and_effects_agree_where_everything_is_scored(classes):
    baseline, ablation, null = ("".join(column) for column in zip(*classes, strict=True))
    rows = rows_of("baseline", "positive", baseline) + rows_of("ablation", "positive", ablation)
    rows += rows_of("null:isotropic:0:ablation", "positive", null)
    rate = {row["arm"]: row["rate"] for row in arm_rates(rows)}
    (effect,) = effects(rows)
    if "u" not in baseline + ablation + null:
        assert effect["drop"] == pytest.approx(rate["baseline"] - rate["ablation"])
        assert effect["gap"]["isotropic"] == pytest.approx(rate["null:isotropic:0:ablation"] - rate["ablation"])
    assert effect["n"] == sum("u" not in pair for pair in zip(baseline, ablation, strict=True))
