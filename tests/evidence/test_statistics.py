import math
import random
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhumbline.errors import InputError
from rhumbline.evidence.statistics import (
    Interval,
    auroc,
    auroc_interval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_share,
    decision_threshold,
    difference_of_rates,
    exact_interval,
    holm,
    kappa,
    mcnemar,
    paired_difference,
    rank_floor,
    rank_p,
    wilson,
    wilson_of_rate,
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


def test_without_prompts_the_interval_is_everything():
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
    assert coverage(wilson).min() < 0.95  # average coverage only


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


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=40))
def test_a_difference_to_several_draws_is_paired(rows):
    """The interval holds its mean, changes sign with its arguments, and is that of one draw if all draws are equal."""
    before, after = np.array([b for b, _ in rows], float), np.array([k / 4 for _, k in rows])
    found, back = paired_difference(before, after), paired_difference(after, before)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert paired_difference(before, np.mean([before] * 3, 0)) == paired_difference(before > 0, before > 0)


def test_pairs_that_agree_narrow_the_interval_of_several_draws():
    before = np.repeat([1.0, 0.0], 20)
    draws = np.concatenate([np.full(20, 0.75), np.zeros(20)])
    paired, crossed = paired_difference(before, draws), paired_difference(before, draws[::-1].copy())
    independent = difference_of_rates(0.5, 0.375, 40)
    assert paired.mean == crossed.mean == independent.mean
    assert paired.high - paired.low < 0.7 * (independent.high - independent.low) < 0.7 * (crossed.high - crossed.low)


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
    assert max(coverage) < 0.995  # and the interval is not too wide


def test_pairing_narrows_the_interval():
    before, after = pairs_of(30, 10, 0, 24)
    shuffled = np.concatenate([after[40:], after[:40]])
    paired, broken = paired_difference(before, after), paired_difference(before, shuffled)
    assert paired.mean == pytest.approx(broken.mean)
    assert paired.high - paired.low < 0.8 * (broken.high - broken.low)


# -- tests


def test_mcnemar_is_the_sign_test_of_the_discordant_pairs():
    assert mcnemar(*pairs_of(5, 10, 2, 7)) == pytest.approx(stats.binomtest(2, 12).pvalue)
    assert mcnemar(*pairs_of(5, 10, 2, 7)) == mcnemar(*pairs_of(50, 2, 10, 0))  # concordant pairs do not count
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


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=30))
def test_a_decision_threshold_is_the_nearest_to_zero_within_a_standard_error(rows):
    values, shows = (np.array(column) for column in zip(*rows, strict=True))

    def errors(t):
        return int(((values > t) != shows).sum())

    distinct = np.unique(values)
    best = min(map(errors, [0.0, *(distinct[1:] + distinct[:-1]) / 2]))
    bound = best + math.sqrt(best * (1 - best / len(rows)))
    found = decision_threshold(values, shows)
    assert errors(found) <= bound
    for t in np.linspace(0, found, 40, endpoint=False):  # a nearer one is as good only within the same gap
        assert errors(t) > bound or not ((values > min(t, found)) & (values <= max(t, found))).any()


def test_a_decision_threshold_moves_only_for_more_than_noise():
    values, shows = np.linspace(-2, 1, 31), np.linspace(-2, 1, 31) > -1.05
    assert decision_threshold(values, shows) == pytest.approx(-1.05)
    assert decision_threshold(values, values > 0.45) == pytest.approx(0.45)
    assert decision_threshold(values, np.where(np.arange(31) < 2, True, values > 0.15)) == 0.0
    assert decision_threshold(np.array([math.nan, 1.0]), np.array([True, True])) == 0.0


def test_auroc_needs_values_and_keeps_nan():
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


# -- rates of several arms, agreement


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_of_a_rate_is_wilson_of_its_count(pair):
    k, n = pair
    ours, theirs = wilson_of_rate(k / n, n), stats.binomtest(k, n).proportion_ci(method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("n", [8, 30, 100])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
def test_rates_are_covered_by_enumeration(n, p):
    """Exact: at least 95 % for every rate. Wilson: near it on average, and not far below it at any."""
    weight = stats.binom.pmf(np.arange(n + 1), n, p)
    exact = [exact_interval(k, n) for k in range(n + 1)]
    score = [wilson(k, n) for k in range(n + 1)]
    assert sum(w for w, i in zip(weight, exact, strict=True) if i.low <= p <= i.high) >= 0.95 - 1e-9
    assert sum(w for w, i in zip(weight, score, strict=True) if i.low <= p <= i.high) >= 0.85


@settings(deadline=None, max_examples=30)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.sampled_from([10, 20, 40]))
def test_differences_of_rates_are_covered_by_enumeration(p1, p2, n):
    a, b = stats.binom.pmf(np.arange(n + 1), n, p1), stats.binom.pmf(np.arange(n + 1), n, p2)
    found = [[difference_of_rates(i / n, j / n, n) for j in range(n + 1)] for i in range(n + 1)]
    inside = np.array([[d.low <= p1 - p2 <= d.high for d in row] for row in found])
    assert float(a @ inside @ b) >= 0.87  # the least on a grid of rates is 0.879, for 10 prompts near 0 and 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_of_any_table_is_the_binomial_of_the_discordant_pairs(pairs):
    before, after = (np.array(x) for x in zip(*pairs, strict=True))
    b, c = int((before & ~after).sum()), int((~before & after).sum())
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(before, after) == pytest.approx(expected)


def test_kappa_of_known_tables():
    # Two raters, 50 items: 20 both yes, 15 both no, 5 and 10 apart: agreement 0.70, chance 0.50.
    one = ["y"] * 25 + ["n"] * 25
    other = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert kappa(one, other) == pytest.approx((0.7 - 0.5) / 0.5)
    assert kappa(one, one) == 1.0
    assert math.isnan(kappa(["y"] * 3, ["y"] * 3))
    assert math.isnan(kappa([], []))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.integers(1, 5))
def test_the_ratio_over_documents_of_one_size_is_an_ordinary_mean(values, size):
    sums = np.array(values) * size
    ours = bootstrap_ratio(sums, np.full(len(values), float(size)), np.random.default_rng(0), draws=200)
    plain = bootstrap_mean(np.array(values), np.random.default_rng(0), draws=200)
    assert ours == pytest.approx(plain)


def test_without_documents_there_is_no_ratio():
    ratio = bootstrap_ratio(np.zeros(0), np.zeros(0), np.random.default_rng(0))
    assert ratio.n == 0
    assert math.isnan(ratio.mean)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.integers(2, 200), st.integers(2, 200))
def test_auroc_intervals_contain_the_value_and_have_a_width(value, m, n):
    low, high = auroc_interval(value, m, n)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0
    assert auroc_interval(1 - value, m, n) == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_auroc_intervals_cover():
    rng, truth, n, inside = np.random.default_rng(0), 0.8413447, 30, 0  # P(N(sqrt 2, 1) > N(0, 1))
    for _ in range(300):
        low, high = auroc_interval(auroc(rng.normal(2**0.5, 1, n), rng.normal(0, 1, n)), n, n)
        inside += low <= truth <= high
    assert inside >= 0.92 * 300


@pytest.mark.parametrize("n", [8, 12, 24])
def test_the_share_of_a_difference_is_covered_where_the_difference_varies(n):
    """A change that is the same for every prompt has no variance; the difference that it is a share of has."""
    rng, inside, fixed = np.random.default_rng(0), 0, 0
    for _ in range(300):
        upper, lower = rng.normal(4, 2.5, n), rng.normal(0, 2.5, n)
        change = np.full(n, 2.4) + rng.normal(0, 0.1, n)
        share = bootstrap_share(change, upper, lower, np.random.default_rng(0), of_upper=True, draws=400)
        plain = bootstrap_mean(change / (upper.mean() - lower.mean()), np.random.default_rng(0), draws=400)
        inside += share.low <= 0.6 <= share.high
        fixed += plain.low <= 0.6 <= plain.high
    assert inside >= 0.85 * 300
    assert fixed < 0.4 * 300


def test_the_share_of_few_prompts_or_of_no_difference_has_no_interval():
    some, rng = np.arange(1.0, 9.0), np.random.default_rng(0)
    assert math.isnan(bootstrap_share(some[:7], some[:7], some - 9, rng, of_upper=True).low)
    assert math.isnan(bootstrap_share(some, some, some + 9, rng, of_upper=True).high)
    assert bootstrap_share(some, some, some - 9, rng, of_upper=False).low > 0
