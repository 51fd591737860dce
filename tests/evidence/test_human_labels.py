"""Corrected rates, effects and accuracies: what they correct, and how often their intervals cover the truth."""

from itertools import islice

import numpy as np
import pytest
from scipy import optimize, stats

from rhumbline.evidence import human_labels
from rhumbline.evidence.human_labels import RowLabel, corrected_change, corrected_rate, judge_accuracy, next_strata
from rhumbline.evidence.statistics import wilson


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(human_labels, "DRAWS", 1000)


def stratum(shown, absent=0, unclear=0, prompts=None):
    """Labels of one stratum, on numbered prompts."""
    rows = [(1.0, 1.0)] * shown + [(0.0, 1.0)] * absent + [(0.0, 0.0)] * unclear
    return [RowLabel(str(i) if prompts is None else prompts[i], *row) for i, row in enumerate(rows)]


def labels_of(sizes, n):
    """Labels of each stratum in a sheet of `n` rows."""
    labelled = [0] * len(sizes)
    for s in islice(next_strata(sizes), max(n, sum(map(bool, sizes)))):
        labelled[s] += 1
    return labelled


def sheet(shares, shown, unclear, n, labels, rng):
    """Sizes and labels of a run of `n` completions; the judge puts `shares` into its classes, `shown` of each truly."""
    sizes = rng.multinomial(n, shares).tolist()
    strata = []
    for m, h, u in zip(labels_of(sizes, labels), shown, unclear, strict=True):
        lost = rng.binomial(m, u)
        k = rng.binomial(m - lost, h)
        strata.append(stratum(k, m - lost - k, lost))
    return sizes, strata


def covers(estimate, truth):
    return estimate.low - 1e-9 <= truth <= estimate.high + 1e-9


# -- points -----------------------------------------------------------------------------------------------------------


def test_a_judge_without_errors_keeps_its_rate_and_a_blind_one_is_corrected(rng):
    right = corrected_rate([60, 40], [stratum(30), stratum(0, 30)], rng)
    assert (right.value, right.n, right.labelled) == (pytest.approx(0.6), 100, 60)
    assert right.low < 0.6 < right.high
    blind = corrected_rate([10, 90], [stratum(10), stratum(30, 15)], rng)
    assert blind.value == pytest.approx(0.1 + 0.9 * 30 / 45)
    assert blind.low > wilson(10, 100).high  # the judge's own interval excludes the truth


def test_labels_weigh_as_much_as_their_stratum(rng):
    even = judge_accuracy([50, 50], [stratum(9, 1), stratum(1, 9)], [True, False], rng)
    assert (even.sensitivity.value, even.specificity.value) == (pytest.approx(0.9), pytest.approx(0.9))
    rare = judge_accuracy([10, 90], [stratum(10), stratum(1, 9)], [True, False], rng)
    assert rare.sensitivity.value == pytest.approx(10 / 19)
    assert rare.specificity.value == 1


def test_an_unclear_label_is_in_no_rate(rng):
    # Half of the second class is clear, so it counts half.
    assert corrected_rate([50, 50], [stratum(4), stratum(0, 2, 2)], rng).value == pytest.approx(2 / 3)
    assert corrected_rate([50, 50], [stratum(4), stratum(0, 0, 2)], rng).value == 1
    assert corrected_rate([50, 50], [stratum(0, 0, 4), stratum(0, 0, 2)], rng).value is None


def test_annotators_who_differ_count_in_fractions(rng):
    halves = [RowLabel("a", 0.5, 1.0), RowLabel("b", 0.5, 0.5)]  # refused and complied; refused and unclear
    assert corrected_rate([10], [halves], rng).value == pytest.approx(1.0 / 1.5)
    thirds = [RowLabel("a", 1 / 3 + 1 / 3 + 1 / 3, 1.0)] * 3
    assert corrected_rate([10], [thirds], rng).value == pytest.approx(1)


def test_a_class_without_labels_is_not_measured_but_a_class_without_completions_is_not_missed(rng):
    lacking = corrected_rate([50, 50], [stratum(10), stratum(0)], rng)
    assert (lacking.value, lacking.low, lacking.high, lacking.labelled) == (None, None, None, 10)
    assert corrected_rate([50, 0], [stratum(10), stratum(0)], rng).value == 1
    accuracy = judge_accuracy([50, 50], [stratum(10), stratum(0)], [True, False], rng)
    assert accuracy.sensitivity.value is None
    assert accuracy.specificity.value is None
    assert corrected_change(np.full((2, 1), 5.0), [stratum(2), []], [stratum(2)], rng).value is None


def test_an_accuracy_without_a_case_is_not_measured(rng):
    found = judge_accuracy([50, 50], [stratum(0, 5), stratum(0, 5)], [True, False], rng)
    assert found.sensitivity.value is None
    assert found.specificity.value == pytest.approx(0.5)


def test_a_class_that_the_judge_never_gave_leaves_room_for_an_error(rng):
    always = judge_accuracy([20], [stratum(5)], [True], rng).sensitivity
    assert always.value == 1
    assert 0.7 < always.low < 1
    both = judge_accuracy([200], [stratum(5)], [True], rng).sensitivity
    assert both.low > always.low


def test_one_class_with_all_labels_has_the_mid_p_interval(rng):
    for k, n in ((0, 20), (3, 20), (10, 20), (40, 40)):
        estimate = corrected_rate([n], [stratum(k, n - k)], rng)

        def tail(p, k=k, n=n):
            return stats.binom.sf(k, n, p) + 0.5 * stats.binom.pmf(k, n, p)

        low = 0.0 if k == 0 else optimize.brentq(lambda p: tail(p) - 0.025, 1e-9, 1 - 1e-9)
        high = 1.0 if k == n else optimize.brentq(lambda p: tail(p) - 0.975, 1e-9, 1 - 1e-9)
        assert estimate.value == pytest.approx(k / n)
        assert (estimate.low, estimate.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


# -- coverage ---------------------------------------------------------------------------------------------------------

WORLDS = {
    "fair judge": ((0.6, 0.4), (0.95, 0.1)),
    "rare behaviour": ((0.02, 0.98), (0.9, 0.02)),
    "rate near 1": ((0.98, 0.02), (1.0, 0.5)),
    "three classes": ((0.5, 0.3, 0.2), (0.9, 0.05, 0.4)),
    "poor judge": ((0.1, 0.9), (0.5, 0.3)),
    "no errors": ((0.6, 0.4), (1.0, 0.0)),
    "rate 0": ((0.02, 0.98), (0.0, 0.0)),
    "rate 1": ((0.98, 0.02), (1.0, 1.0)),
    "one class": ((0.0, 1.0), (0.5, 0.2)),
}
SIZES = {"some labels": (100, 20), "few labels": (20, 6), "all labels": (60, 60), "small share": (1000, 30)}
RUNS = 150
LEAST = 0.9
"""Of 150 intervals with a coverage of 95 %, fewer than 90 % cover the truth once in 200 times."""


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_of_rates_and_accuracies_cover(world, size):
    rng, (shares, shown), (n, labels) = np.random.default_rng(1), WORLDS[world], SIZES[size]
    p, h = np.array(shares), np.array(shown)
    finds = [s == 0 for s in range(len(p))]
    truths = [
        p @ h,
        (p * h)[0] / (p @ h) if p @ h else None,
        (p * (1 - h))[1:].sum() / (p @ (1 - h)) if p @ (1 - h) else None,
    ]
    covered: list[list[bool]] = [[], [], []]
    for _ in range(RUNS):
        sizes, strata = sheet(shares, shown, [0.0] * len(p), n, labels, rng)
        estimates = corrected_rate(sizes, strata, rng), *judge_accuracy(sizes, strata, finds, rng)
        for found, estimate, truth in zip(covered, estimates, truths, strict=True):
            if estimate.value is not None and truth is not None:
                found.append(covers(estimate, truth))
    assert np.mean(covered[0]) >= LEAST
    # Where a case is labelled in few sheets only, those sheets are a selection.
    assert all(np.mean(found) >= LEAST for found in covered[1:] if len(found) > 0.9 * RUNS)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("unclear", [(0.3, 0.0), (0.2, 0.1)])
def test_intervals_cover_where_labels_are_unclear(unclear):
    rng, p, h, c = np.random.default_rng(2), np.array([0.5, 0.5]), np.array([0.95, 0.1]), 1 - np.array(unclear)
    truth = (p * c * h).sum() / (p * c).sum()
    sheets = [sheet(p, h, unclear, 100, 20, rng) for _ in range(RUNS)]
    assert np.mean([covers(corrected_rate(*s, rng), truth) for s in sheets]) >= LEAST


def pairs(kind, n, rng):
    """Truth and judgement of `n` prompts before and after, and the true change."""
    u = rng.random(n)
    never = np.zeros(n, dtype=bool)
    if kind == "judge fails after":
        before, after = u < 0.9, u < 0.5
        return before, before, after, after & (rng.random(n) < 0.2), 0.4
    if kind == "the whole rate":
        return ~never, ~never, never, never, 1.0
    if kind == "nothing changes":
        before, wrong = u < 0.3, rng.random(n) < 0.1
        return before, before ^ wrong, before, before ^ wrong, 0.0
    assert kind == "opposite, unseen by the judge"
    return u < 0.5, never, u >= 0.5, never, 0.0


KINDS = ["judge fails after", "the whole rate", "nothing changes", "opposite, unseen by the judge"]


def effect(kind, labels, rng, *, linked=True):
    """The estimated change, and the truth; `linked`: the prompts link the labels of both arms."""
    n = 100
    y_before, j_before, y_after, j_after, truth = pairs(kind, n, rng)
    order, arms = rng.permutation(n), []
    for name, y, j in (("a", y_before, j_before), ("b", y_after, j_after)):
        members = [[i for i in order if j[i] == cls] for cls in (True, False)]
        counts = labels_of([len(some) for some in members], labels)
        prefix = "" if linked else name
        arms.append(
            [[RowLabel(f"{prefix}{i}", float(y[i])) for i in some[:m]] for some, m in zip(members, counts, strict=True)]
        )
    sizes = np.array([[float(((j_before == a) & (j_after == b)).sum()) for b in (True, False)] for a in (True, False)])
    return corrected_change(sizes, *arms, rng), truth


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("labels", [10, 30, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_effects_cover(kind, labels):
    rng = np.random.default_rng(3)
    assert np.mean([covers(*effect(kind, labels, rng)) for _ in range(RUNS)]) >= LEAST


def test_arms_that_tend_to_be_opposite_widen_the_interval():
    def width(kind, *, linked):
        found = effect(kind, 30, np.random.default_rng(4), linked=linked)[0]
        return found.high - found.low

    opposite = "opposite, unseen by the judge"
    assert width(opposite, linked=True) > 1.2 * width(opposite, linked=False)
    assert width("nothing changes", linked=True) == pytest.approx(width("nothing changes", linked=False))


def test_prompts_that_the_judge_reads_alike_in_both_arms_add_no_variance(rng):
    labels = [stratum(200), stratum(0, 200)]
    alike = corrected_change(np.array([[200.0, 0.0], [0.0, 200.0]]), labels, labels, rng)
    mixed = corrected_change(np.full((2, 2), 100.0), labels, labels, rng)
    assert alike.value == mixed.value == 0
    assert alike.high - alike.low < 0.5 * (mixed.high - mixed.low)


# -- which completions are labelled -----------------------------------------------------------------------------------


def test_labels_are_allotted_to_every_class_and_in_proportion():
    assert labels_of([100, 100], 20) == [10, 10]
    assert labels_of([97, 3, 0], 20)[2] == 0
    assert min(labels_of([970, 3], 20)) >= 1
    assert labels_of([75, 25], 40) == [30, 10]
    assert list(next_strata([2, 0, 1])) == [0, 2, 0]
    assert list(next_strata([])) == []


def test_a_larger_sheet_contains_a_smaller_one():
    whole = list(next_strata([40, 7, 1]))
    assert len(whole) == 48
    assert list(islice(next_strata([40, 7, 1]), 20)) == whole[:20]
