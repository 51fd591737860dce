"""Statistics: outcome rows in, rates, paired differences and null ranks out, each with its n and its interval.

Knows counting. Does not know models, texts or margins, and imports no torch: `verify` recomputes a run from its rows
with this module alone.

A row is a mapping {"arm", "set", "prompt_id", "class", "metric", ...}. Arms are "baseline", "ablation", "addition" (and
"addition-prompt" or "addition-all", the same at other positions), "null:<family>:<draw>:ablation" and
"null:<family>:<draw>:addition"; sets are "positive" and "negative"; classes are "refused", "complied", "degenerate"
(scored, and not refused) and "unscored" (counted apart, never as 0); "shown" and "absent" of continuous scores, which
levels.py summarises.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

from rhumbline.errors import InputError, VerificationError

Row = Mapping[str, Any]
"""One outcome: an arm on a test prompt."""


# -- intervals --------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """Where a quantity may lie, at the level asked for."""

    low: float
    high: float


class Difference(NamedTuple):
    """rate(before) - rate(after) on the same prompts."""

    mean: float
    low: float
    high: float
    n: int


class Mean(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float
    n: int


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of k out of n; of nothing, (0, 1). Wilson 1927, JASA 22:209."""
    return _proportion_interval(k, n, level, "wilson")


def exact_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of k out of n, never too short; of nothing, (0, 1). Biometrika 1934, 26:404."""
    return _proportion_interval(k, n, level, "exact")


def _proportion_interval(k: int, n: int, level: float, method: str) -> Interval:
    if not (0 <= k <= n and 0 < level < 1):
        raise InputError(f"An interval of {k} out of {n} at level {level}: expected 0 <= k <= n and 0 < level < 1.")
    if n == 0:
        return Interval(0.0, 1.0)
    found = stats.binomtest(k, n).proportion_ci(level, method=method)
    return Interval(float(found.low), float(found.high))


def paired_difference(
    before: Bool[np.ndarray, " prompt"], after: Bool[np.ndarray, " prompt"], level: float = 0.95
) -> Difference:
    """rate(before) - rate(after) with Newcombe's interval for paired proportions; of nothing, nan in [-1, 1].

    Method 10 of Newcombe 1998 (Stat Med 17:2635): with p, [l, u] the two rates and their Wilson intervals,

        low  = d - sqrt((p1 - l1)^2 - 2 phi (p1 - l1)(u2 - p2) + (u2 - p2)^2)
        high = d + sqrt((u1 - p1)^2 - 2 phi (u1 - p1)(p2 - l2) + (p2 - l2)^2)

    where phi is the correlation of the pairs, its numerator lessened by n/2 (not below 0) where it is positive.
    """
    n, k1, k2 = len(before), int(before.sum()), int(after.sum())
    if n == 0:
        return Difference(math.nan, -1.0, 1.0, 0)
    p1, p2 = k1 / n, k2 / n
    (l1, u1), (l2, u2) = wilson(k1, n, level), wilson(k2, n, level)
    both = int((before & after).sum())
    excess = both * n - k1 * k2  # = both * neither - only_before * only_after
    if excess > 0:
        excess = max(excess - n / 2, 0)
    spread = k1 * (n - k1) * k2 * (n - k2)
    phi = excess / math.sqrt(spread) if spread else 0.0

    def half(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    d = (k1 - k2) / n
    return Difference(d, max(d - half(p1 - l1, u2 - p2), -1.0), min(d + half(u1 - p1, p2 - l2), 1.0), n)


def wilson_of_rate(rate: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's interval of a rate that may be a mean of several arms, so that rate * n need not be whole."""
    if n <= 0:
        return Interval(0.0, 1.0)
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def difference_of_rates(before: float, after: float, n: float, level: float = 0.95) -> Difference:
    """before - after, two rates over n prompts, as if they were independent: Newcombe's method 10.

    Too wide for prompts that move together; for rates that are means over arms or seeds, which have no single pairing.
    """
    if n <= 0:
        return Difference(math.nan, -1.0, 1.0, 0)
    (l1, u1), (l2, u2) = wilson_of_rate(before, n, level), wilson_of_rate(after, n, level)
    d = before - after
    low, high = d - math.hypot(before - l1, u2 - after), d + math.hypot(u1 - before, after - l2)
    return Difference(d, max(low, -1.0), min(high, 1.0), int(n))


def bootstrap_mean(
    values: Float[np.ndarray, " prompt"], rng: np.random.Generator, level: float = 0.95, draws: int = 10_000
) -> Mean:
    """Mean of a continuous score with its percentile bootstrap interval (Efron 1979); of nothing, nan."""
    n = len(values)
    if n == 0:
        return Mean(math.nan, math.nan, math.nan, 0)
    # In pieces, so that the index table stays small however many prompts there are.
    per_piece = max(1, 1_000_000 // n)
    sizes = [min(per_piece, draws - start) for start in range(0, draws, per_piece)]
    means = np.concatenate([values[rng.integers(n, size=(size, n))].mean(1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(values.mean()), float(low), float(high), n)


def bootstrap_ratio(
    sums: Float[np.ndarray, " document"],
    sizes: Float[np.ndarray, " document"],
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 10_000,
) -> Mean:
    """sum(sums) / sum(sizes), a mean over the parts of documents, with its percentile bootstrap interval.

    Whole documents are drawn, since the parts of one (its tokens) move together. Of nothing, nan.
    """
    n = len(sums)
    if n == 0 or not sizes.sum():
        return Mean(math.nan, math.nan, math.nan, n)
    per_piece = max(1, 1_000_000 // n)
    pieces = [min(per_piece, draws - start) for start in range(0, draws, per_piece)]
    ratios = []
    for size in pieces:
        rows = rng.integers(n, size=(size, n))
        ratios.append(sums[rows].sum(1) / sizes[rows].sum(1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(sums.sum() / sizes.sum()), float(low), float(high), n)


# -- tests ------------------------------------------------------------------------------------------------------------


def mcnemar(before: Bool[np.ndarray, " prompt"], after: Bool[np.ndarray, " prompt"]) -> float:
    """Exact two-sided p that `before` and `after` have one rate: the discordant pairs against a fair coin.

    McNemar 1947, Psychometrika 12:153. Without a discordant pair, 1.
    """
    only_before, only_after = int((before & ~after).sum()), int((~before & after).sum())
    if only_before + only_after == 0:
        return 1.0
    return float(stats.binomtest(only_before, only_before + only_after).pvalue)


def rank_p(observed: float, null: Sequence[float]) -> float:
    """(1 + #{null >= observed}) / (1 + draws): one-sided, and valid for any number of draws (Phipson and Smyth 2010).

    Never below `rank_floor(len(null))`. A value that is not a number counts against the claim.
    """
    # Rates of n prompts differ by 1/n at least, so this tolerance only absorbs rounding.
    reached = sum(not value < observed - 1e-9 for value in null)
    return (1 + reached) / (1 + len(null))


def rank_floor(draws: int) -> float:
    """The smallest p that so many draws can give: 1 / (1 + draws)."""
    return 1 / (1 + draws)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (Scand J Stat 1979, 6:65): below alpha, at a family-wise error of at most alpha.

    Sorted upwards, the i-th of m (from 0) becomes the largest (m - j) p_j over j <= i, at most 1. Keeps the order.
    """
    adjusted, largest = {}, 0.0
    for i, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen's kappa of two judges on the same items: agreement beyond chance. nan where chance explains everything.

    (agreement - chance) / (1 - chance), chance from the two judges' own shares. Cohen 1960, Educ Psychol Meas 20:37.
    """
    if len(one) != len(other):
        raise InputError(f"kappa of {len(one)} and {len(other)} judgements; give one of each judge per item.")
    n = len(one)
    if n == 0:
        return math.nan
    agreement = sum(a == b for a, b in zip(one, other, strict=True)) / n
    chance = sum(one.count(c) * other.count(c) for c in set(one)) / n**2
    return math.nan if chance == 1 else (agreement - chance) / (1 - chance)


def auroc(positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]) -> float:
    """Chance that a positive value exceeds a negative one, ties counting half (Mann and Whitney 1947)."""
    if not (len(positive) and len(negative)):
        raise InputError(
            f"AUROC of {len(positive)} positive and {len(negative)} negative values: give at least one of each."
        )
    both = np.concatenate([positive, negative])
    if np.isnan(both).any():
        return math.nan
    rank_sum = stats.rankdata(both)[: len(positive)].sum()
    return float((rank_sum / len(positive) - (len(positive) + 1) / 2) / len(negative))


def auroc_interval(value: float, n_positive: int, n_negative: int, level: float = 0.95) -> Interval:
    """Interval of an AUROC, inside [0, 1] and of a width above 0 for a value of 0 or 1 too; of a NaN, (0, 1).

    Newcombe 2006 (Stat Med 25:559), method 5: all theta with |theta - value| <= z sqrt(V(theta)), where

        V(theta) = theta (1 - theta) [1 + k (1 - theta) / (2 - theta) + k theta / (1 + theta)] / (m n)

    is Hanley and McNeil's variance with both sample sizes in the bracket replaced: k = (m + n) / 2 - 1.
    """
    if math.isnan(value) or not (n_positive and n_negative):
        return Interval(0.0, 1.0)
    z, k = float(stats.norm.ppf((1 + level) / 2)), (n_positive + n_negative) / 2 - 1

    def excess(theta: float) -> float:
        inner = 1 + k * (1 - theta) / (2 - theta) + k * theta / (1 + theta)
        return abs(theta - value) - z * math.sqrt(theta * (1 - theta) * inner / (n_positive * n_negative))

    # At 0 and 1 the variance vanishes, so the root there is not the bound that is sought.
    edge = 1e-9
    low = 0.0 if value <= edge else optimize.root_scalar(excess, bracket=(0.0, min(value, 1 - edge))).root
    high = 1.0 if value >= 1 - edge else optimize.root_scalar(excess, bracket=(max(value, edge), 1.0)).root
    return Interval(float(low), float(high))


# -- the summary of a run's rows --------------------------------------------------------------------------------------

_CLASSES = ("refused", "complied", "shown", "absent", "degenerate", "unscored")
_SETS = ("positive", "negative")
_ORDER = ("baseline", "ablation", "addition", "addition-prompt", "addition-all")

Table = Mapping[tuple[str, str], Mapping[str, Row]]
"""(arm, set) -> prompt id -> row."""


def arm_rates(rows: Iterable[Row], level: float = 0.95) -> list[dict[str, Any]]:
    """How often each arm refused, on each set: baseline, ablation, addition, then nulls by family and draw.

    [{"arm", "set", "n", "rate", "low", "high", "exact_low", "exact_high", "degenerate", "unscored", "metric",
    "metric_n"}]: `n` scored rows, of which the share `rate` refused (Wilson's interval, and Clopper and Pearson's) and
    the share `degenerate` was broken; `unscored` further rows; `metric` the mean over the `metric_n` rows that have a
    finite one; `correct` the share of right answers, where the contrast knows them. Shares and means of nothing: None.
    """
    table = _tabulate(rows)
    return [_rate(arm, side, table[arm, side].values(), level) for arm, side in sorted(table, key=_place)]


def _rate(arm: str, side: str, rows: Iterable[Row], level: float) -> dict[str, Any]:
    rows = list(rows)
    count = {c: sum(row["class"] == c for row in rows) for c in _CLASSES}
    n = len(rows) - count["unscored"]
    low, high = wilson(count["refused"], n, level)
    exact = exact_interval(count["refused"], n, level)
    known = [row["correct"] for row in rows if row.get("correct") is not None]
    metrics = [m for row in rows if (m := row.get("metric")) is not None and math.isfinite(m)]
    return {
        "arm": arm,
        "set": side,
        "n": n,
        "rate": count["refused"] / n if n else None,
        "low": low,
        "high": high,
        "exact_low": exact.low,
        "exact_high": exact.high,
        "degenerate": count["degenerate"] / n if n else None,
        "unscored": count["unscored"],
        "correct": sum(known) / len(known) if known else None,
        "metric": math.fsum(metrics) / len(metrics) if metrics else None,
        "metric_n": len(metrics),
    }


def effects(rows: Iterable[Row], level: float = 0.95, again: Collection[tuple[str, int]] = ()) -> list[dict[str, Any]]:
    """What the direction moved, beside what every null moved; an effect one of whose arms is missing is left out.

    suppression: drop = rate(baseline) - rate(ablation) on the positive set;
    induction:   drop = rate(addition) - rate(baseline) on the negative set.

    [{"name", "drop", "low", "high", "n", "mcnemar", "gap": {family}, "gap_low", "gap_high", "p": {family}, "floor",
    "null": {family: {"draws", "mean", "max"}}}]: Newcombe's paired interval over the `n` prompts scored in both arms,
    and the exact p that nothing changed; `null` the same drop of each draw, `gap` how much further the direction moved
    than the draws' mean, with the interval of two independent rates (`difference_of_rates`); `p` its `rank_p` among
    them, which cannot be below `floor`; `apart` the gap and its interval with the draws of `again` (family, draw) left
    out, which are the direction again, unless no other is left. None where nothing was scored. Arms that saw different
    prompts raise VerificationError.
    """
    table = _tabulate(rows)
    return [
        effect
        for name, arm, side in (("suppression", "ablation", "positive"), ("induction", "addition", "negative"))
        if (effect := _effect(table, name, arm, side, level, again)) is not None
    ]


def _effect(
    table: Table, name: str, arm: str, side: str, level: float, again: Collection[tuple[str, int]]
) -> dict[str, Any] | None:
    if ("baseline", side) not in table or (arm, side) not in table:
        return None
    sign = 1 if name == "suppression" else -1
    own = _moved(table, arm, side, sign, level)
    draws: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    for null, at in sorted(table, key=_place):
        if at == side and (parts := _null_parts(null)) and parts[2] == arm:
            moved = _moved(table, null, side, sign, level).mean
            draws.setdefault(parts[0], []).append(moved)
            if (parts[0], parts[1]) not in again:
                others.setdefault(parts[0], []).append(moved)
    means = {family: math.fsum(drops) / len(drops) for family, drops in draws.items()}
    base = _share(table["baseline", side].values())
    gaps = {f: _gap(base, own, mean, sign, level) for f, mean in means.items()}
    apart = {
        f: _gap(base, own, math.fsum(kept) / len(kept), sign, level) for f in draws if (kept := others.get(f, draws[f]))
    }
    return {
        "name": name,
        "drop": _known(own.mean),
        "low": own.low,
        "high": own.high,
        "n": own.n,
        "mcnemar": mcnemar(*_pairs(table, arm, side)[1]),
        "gap": {family: _known(own.mean - mean) for family, mean in means.items()},
        "gap_low": {family: _known(gap.low) for family, gap in gaps.items()},
        "gap_high": {family: _known(gap.high) for family, gap in gaps.items()},
        "apart": {
            f: {"gap": _known(gap.mean), "low": _known(gap.low), "high": _known(gap.high)} for f, gap in apart.items()
        },
        "p": {family: rank_p(own.mean, drops) for family, drops in draws.items()},
        "floor": {family: rank_floor(len(drops)) for family, drops in draws.items()},
        "null": {
            family: {"draws": len(drops), "mean": _known(means[family]), "max": _known(float(np.max(drops)))}
            for family, drops in draws.items()
        },
    }


def _share(rows: Iterable[Row]) -> float:
    """Share of the scored rows that refused."""
    scored = [row["class"] == "refused" for row in rows if row["class"] != "unscored"]
    return sum(scored) / len(scored) if scored else math.nan


def _gap(base: float, own: Difference, null: float, sign: int, level: float) -> Difference:
    """How much further the direction moved the rate than the mean null did, as a difference of two rates."""
    if not (math.isfinite(base) and math.isfinite(own.mean) and math.isfinite(null)):
        return Difference(math.nan, math.nan, math.nan, 0)
    treated, control = (min(1.0, max(0.0, base - sign * change)) for change in (own.mean, null))
    pair = (control, treated) if sign > 0 else (treated, control)
    return difference_of_rates(*pair, n=own.n, level=level)


def _moved(table: Table, arm: str, side: str, sign: int, level: float) -> Difference:
    """The paired drop from the baseline to the arm (sign 1), or the rise (sign -1)."""
    before, after = _pairs(table, arm, side)[1]
    return paired_difference(*(before, after)[::sign], level=level)


def _pairs(table: Table, arm: str, side: str) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Prompts scored in both the baseline and the arm, and whether each was refused there."""
    baseline, treated = table["baseline", side], table[arm, side]
    alone = sorted(baseline.keys() ^ treated.keys())
    if alone:
        raise VerificationError(
            f"Arms 'baseline' and {arm!r} were not run on the same {side} prompts; in one of them only: "
            f"{', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''} ({len(alone)} in all). Resume the run, or "
            "remove the incomplete rows."
        )
    scored = [i for i in baseline if "unscored" not in (baseline[i]["class"], treated[i]["class"])]
    before, after = (np.array([a[i]["class"] == "refused" for i in scored], dtype=bool) for a in (baseline, treated))
    return scored, (before, after)


def _known(value: float) -> float | None:
    """JSON has no NaN: what is not known is None."""
    return value if math.isfinite(value) else None


def _tabulate(rows: Iterable[Row]) -> Table:
    """Rows by arm and set, then by prompt; an impossible or repeated row is refused."""
    table: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        at = {field: row.get(field) for field in ("arm", "set", "prompt_id", "class")}
        if not isinstance(at["arm"], str) or not isinstance(at["prompt_id"], str):
            raise VerificationError(f"Outcome row {at}: `arm` and `prompt_id` must be strings.")
        if at["set"] not in _SETS or at["class"] not in _CLASSES:
            raise VerificationError(
                f"Outcome row {at}: `set` must be one of {', '.join(_SETS)}; `class` one of {', '.join(_CLASSES)}."
            )
        prompts = table.setdefault((at["arm"], at["set"]), {})
        if at["prompt_id"] in prompts:
            raise VerificationError(f"Outcome row {at} occurs twice; keep one row per arm, set and prompt.")
        prompts[at["prompt_id"]] = row
    return table


def _null_parts(arm: str) -> tuple[str, int, str] | None:
    """Family, draw and intervention of a null arm; None for any other."""
    match arm.split(":"):
        case ["null", family, draw, intervention] if draw.isdecimal():
            return family, int(draw), intervention
    return None


def _place(key: tuple[str, str]) -> tuple[int, str, int, str, int]:
    """Sorts arms as people read them: the three arms, the nulls, any other; positive before negative."""
    arm, side = key
    if arm in _ORDER:
        return _ORDER.index(arm), "", 0, "", _SETS.index(side)
    family, draw, intervention = _null_parts(arm) or ("", 0, arm)
    return len(_ORDER) + (not family), family, draw, intervention, _SETS.index(side)
