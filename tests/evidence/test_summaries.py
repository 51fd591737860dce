"""Summaries around the effects, the plan before them, and the new statistics: coverage, exactness, known cases."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhumbline.evidence.power import least_detectable, plan, prompts_to_settle
from rhumbline.evidence.statistics import difference_of_rates, exact_interval, kappa, mcnemar, wilson, wilson_of_rate
from rhumbline.evidence.summaries import adjust, dose_curves, pooled, readouts, shift, stability_table, wide_effects

# -- statistics


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
    assert float(a @ inside @ b) >= 0.90


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_binomial_of_the_discordant_pairs(pairs):
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


# -- the plan


@pytest.mark.parametrize("n", [10, 32, 100])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_least_detectable_change_has_the_power_it_says(n, margin):
    fall = least_detectable(n, margin)
    assert fall is not None

    def power(change):
        counts = np.arange(n + 1)
        shown = np.array([difference_of_rates(1.0, k / n, n).low > margin for k in counts])
        return float(stats.binom.pmf(counts, n, 1 - change)[shown].sum())

    assert power(fall) >= 0.8 - 1e-6
    assert power(fall - 0.02) < 0.8
    assert fall > margin


def test_more_prompts_detect_less_and_few_detect_nothing():
    found = [least_detectable(n) for n in (10, 50, 200)]
    assert found == sorted(found, reverse=True)
    assert least_detectable(3, 0.5) is None
    record = plan({"test": {"positive": 100, "negative": 3}}, 0.5, 99)
    assert record["rank_floor"] == 0.01
    assert record["rule"]["negative"] is None
    json.dumps(record)


@settings(deadline=None)
@given(st.floats(0.6, 1.0), st.floats(0.0, 0.4))
def test_prompts_to_settle_settle(before, after):
    n = prompts_to_settle(before, after, 0.5)
    if n is None:
        assert abs(before - after - 0.5) < 0.02
        return
    d = difference_of_rates(before, after, n)
    assert d.low >= 0.5 or d.high < 0.5
    assert prompts_to_settle(1.0, 0.5, 0.5) is None


# -- wide nulls

NULLS = [{"family": "top-pc", "draw": d, "cosine": 0.1 * d, "energy": 0.2} for d in range(4)]


def wide_rows(own=-5.0, nulls=(4.0, 3.0, 5.0, -5.0)):
    rows = [
        {"arm": "baseline", "set": "positive", "metric": [5.0, 5.0]},
        {"arm": "ablation", "set": "positive", "metric": [own, own]},
    ]
    rows += [{"arm": f"null:top-pc:{d}:ablation", "set": "positive", "metric": [v, v]} for d, v in enumerate(nulls)]
    return {"rows": rows, "kl": [0.1, 0.3]}


def test_a_rank_counts_the_draws_that_reach_as_far():
    (effect,) = wide_effects(wide_rows(), NULLS)
    family = effect["families"]["top-pc"]
    assert effect["name"] == "suppression"
    assert effect["change"] == 10.0
    assert (effect["before"], effect["after"]) == (1.0, 0.0)
    assert family["p"] == 2 / 5
    assert family["floor"] == 1 / 5
    assert family["cosine"] == pytest.approx(0.3)  # of the draw that reached as far
    assert wide_effects(wide_rows(nulls=(4.0, 3.0, 5.0, 4.0)), NULLS)[0]["families"]["top-pc"]["p"] == 1 / 5
    assert wide_effects({"rows": []}, []) == []


def test_holm_runs_over_every_claim_of_the_run():
    seeds = [{"seed": s, "wide": wide_effects(wide_rows(), NULLS)} for s in range(3)]
    adjust(seeds)
    assert {s["wide"][0]["families"]["top-pc"]["p_holm"] for s in seeds} == {1.0}


def test_shift_is_the_mean_kl():
    assert shift(wide_rows())["kl"] == pytest.approx(0.2)
    assert shift({"rows": []})["kl"] is None


# -- dose


def dose_rows(rates, arm="direction", kind="ablation", n=20):
    return [
        {
            "kind": kind,
            "arm": arm,
            "dose": a,
            "set": "positive",
            "metric": [1.0] * round(r * n) + [-1.0] * round((1 - r) * n),
        }
        for a, r in rates.items()
    ]


def test_fragility_is_what_is_lost_per_energy():
    own = dose_rows({0.0: 1.0, 0.5: 0.75, 1.0: 0.25})
    null = dose_rows({0.0: 1.0, 1.0: 0.9}, "null:top-pc:0")
    found = dose_curves({"rows": own + null}, NULLS, energy=0.05)
    f = found["fragility"]
    assert f["lost"] == pytest.approx(0.75)
    assert f["fragility"] == pytest.approx(15.0)
    assert f["half"] == pytest.approx(0.75)
    assert f["nulls"]["top-pc"] == pytest.approx(0.1 / 0.2)
    curve = found["curves"][0]
    assert (curve["low"], curve["high"]) == tuple(wilson(20, 20))
    assert dose_curves({"rows": []}, [], None)["fragility"]["fragility"] is None


def test_no_half_is_lost_where_the_curve_stays_up():
    found = dose_curves({"rows": dose_rows({0.0: 1.0, 1.0: 0.9})}, [], 0.05)
    assert found["fragility"]["half"] is None


# -- readouts, stability, pooling


def outcome(arm, side, prompt, cls, other=None, short=None):
    return {
        "arm": arm, "set": side, "prompt_id": prompt, "class": cls,
        "judges": {"one": cls, "two": other or cls}, "by_length": {"16": short or cls, "full": cls},
    }  # fmt: skip


def test_readouts_show_judges_and_lengths_apart():
    rows = [
        outcome("baseline", "positive", str(i), "refused", "complied" if i < 5 else None, "complied") for i in range(10)
    ]
    rows += [outcome("ablation", "positive", str(i), "complied") for i in range(10)]
    found = readouts(rows)
    rate = {(r["judge"], r["arm"]): r["rate"] for r in found["judges"]}
    assert rate == {
        ("one", "baseline"): 1.0,
        ("two", "baseline"): 0.5,
        ("one", "ablation"): 0.0,
        ("two", "ablation"): 0.0,
    }
    assert {(r["length"], r["rate"]) for r in found["lengths"] if r["arm"] == "baseline"} == {
        ("16", 0.0),
        ("full", 1.0),
    }
    (pair,) = found["kappa"]
    assert pair["n"] == 20
    assert pair["agreement"] == 0.75
    assert readouts([{"arm": "baseline", "set": "positive", "prompt_id": "1", "class": "refused"}])["judges"] == []


def test_stability_counts_where_refits_fall():
    refits = [{"position": -1, "layer": 4, "cosine": 0.9}] * 3 + [{"position": None, "layer": None, "cosine": 0.5}]
    found = stability_table({"refits": refits, "sites": [], "between": 0.8})
    assert found["chosen"] == [{"position": -1, "layer": 4, "share": 0.75}]
    assert found["none"] == 0.25
    assert found["cosine"]["mean"] == pytest.approx(0.8)
    assert stability_table({"refits": [], "sites": [], "between": None})["none"] is None


def test_pooling_counts_a_prompt_once():
    def seed(ablated):
        rows = [outcome("baseline", "positive", str(i), "refused") for i in range(10)]
        return rows + [
            outcome("ablation", "positive", str(i), "refused" if i < ablated else "complied") for i in range(10)
        ]

    (found,) = pooled({0: seed(0), 1: seed(2)})
    assert found["drop"] == pytest.approx(0.9)
    assert found["n"] == 10
    assert found["spread"] == pytest.approx(0.2)
    assert pooled({0: [outcome("baseline", "positive", "1", "refused")]}) == []
