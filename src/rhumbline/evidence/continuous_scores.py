"""Levels: outcome rows with a continuous score in, the same summaries as statistics.py out, in units of the class gap.

A level is (score - mean of the negatives) / gap, where gap is the mean of the positives less that of the negatives at
baseline: 0 is how negatives sound, 1 how positives do. So the margins of a rule mean for a continuous score what they
mean for a rate. Where the classes are texts and not prompts, the gap is that of the texts.

Every interval is a percentile bootstrap over prompts, paired within a prompt, that resamples the gap too (Efron 1979).
Knows rows. Does not know models or what is scored. Imports no torch.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rhumbline.evidence.statistics import Row, auroc, rank_floor, rank_p

DRAWS = 2000
"""Bootstrap draws."""
_SIDES = (("suppression", "ablation", "positive", 1), ("induction", "addition", "negative", -1))

Scores = Float[np.ndarray, " prompt"]


class Unit(NamedTuple):
    """What a level is counted in."""

    positive: float
    """Mean score of the positives."""
    negative: float
    gap: float
    low: float
    """Of the gap, 95 %."""
    high: float
    auroc: float
    """Chance that a positive has the larger score."""
    auroc_low: float
    n: tuple[int, int]
    source: str
    """`baseline`: completions of either class's prompts. `texts`: the responses that the contrast carries."""

    @property
    def scale(self) -> float:
        """One level, in scores: the gap. Without one (no gap, no baseline) levels are scores above the negatives'."""
        return self.gap if self.gap > 0 else 1.0


@dataclass(frozen=True)
class Levels:
    """The rows of one seed, with the classes that make the unit."""

    rows: Mapping[tuple[str, str], Mapping[str, Row]]
    """(arm, set) -> prompt id -> row."""
    positive: Scores
    negative: Scores
    source: str

    @classmethod
    def of(cls, rows: Iterable[Row], texts: Mapping[str, Sequence[float]] | None = None) -> "Levels":
        """The rows of a seed; `texts` are the scores of the contrast's own test texts by label, where it has them."""
        table: dict[tuple[str, str], dict[str, Row]] = {}
        for row in rows:
            table.setdefault((row["arm"], row["set"]), {})[row["prompt_id"]] = row
        if texts:
            return cls(table, np.array(texts["positive"]), np.array(texts["negative"]), "texts")
        positive, negative = (_scores(table.get(("baseline", s), {}).values()) for s in ("positive", "negative"))
        return cls(table, positive, negative, "baseline")

    def unit(self) -> Unit:
        """The gap between the classes, and whether the score tells them apart at all."""
        rng = np.random.default_rng(0)
        p, n = self.positive, self.negative
        nan = math.nan
        if not (len(p) and len(n)):
            return Unit(nan, nan, nan, nan, nan, nan, nan, (len(p), len(n)), self.source)
        areas, gaps = [], []
        for _ in range(DRAWS // 4):
            some, others = (x[rng.integers(len(x), size=len(x))] for x in (p, n))
            areas.append(auroc(some, others))
            gaps.append(some.mean() - others.mean())
        low, high = (float(v) for v in np.quantile(gaps, [0.025, 0.975]))
        least, mean, other = float(np.quantile(areas, 0.025)), float(p.mean()), float(n.mean())
        return Unit(mean, other, mean - other, low, high, auroc(p, n), least, (len(p), len(n)), self.source)

    def arms(self) -> list[dict[str, Any]]:
        """As `statistics.arm_rates`: `rate` is the mean level with its interval, and `score` the mean score itself."""
        unit = self.unit()
        return [self._arm(arm, side, unit) for arm, side in self.rows]

    def _arm(self, arm: str, side: str, unit: Unit) -> dict[str, Any]:
        rows = list(self.rows[arm, side].values())
        scored = [r for r in rows if r["class"] != "unscored"]
        scores, n = _scores(scored), len(scored)
        means = _resampled(scores, np.random.default_rng(0)) if n else np.array([math.nan])
        low, high = ((np.quantile(means, q) - unit.negative) / unit.scale for q in (0.025, 0.975))
        content = [r["correct"] for r in rows if r.get("correct") is not None]
        metrics = [m for r in rows if (m := r.get("metric")) is not None and math.isfinite(m)]
        return {
            "arm": arm,
            "set": side,
            "n": n,
            "rate": _known((float(scores.mean()) - unit.negative) / unit.scale) if n else None,
            "low": _known(float(low)),
            "high": _known(float(high)),
            "score": _known(float(scores.mean())) if n else None,
            "degenerate": sum(r["class"] == "degenerate" for r in scored) / n if n else None,
            "unscored": len(rows) - n,
            "correct": math.fsum(content) / len(content) if content else None,
            "metric": math.fsum(metrics) / len(metrics) if metrics else None,
            "metric_n": len(metrics),
        }

    def effects(self, again: Collection[tuple[str, int]] = ()) -> list[dict[str, Any]]:
        """As `statistics.effects`, in levels; a gap to a null is paired too."""
        return [e for side in _SIDES if (e := self._effect(*side, again)) is not None]

    def _effect(
        self, name: str, arm: str, side: str, sign: int, again: Collection[tuple[str, int]]
    ) -> dict[str, Any] | None:
        if ("baseline", side) not in self.rows or (arm, side) not in self.rows:
            return None
        ids = sorted(self.rows["baseline", side])
        own = sign * self._change(arm, side, ids)
        draws: dict[str, list[Scores]] = {}
        others: dict[str, list[Scores]] = {}
        for other, at in self.rows:
            match other.split(":"):
                case ["null", family, draw, what] if what == arm and at == side:
                    moved = sign * self._change(other, side, ids)
                    draws.setdefault(family, []).append(moved)
                    if (family, int(draw)) not in again:
                        others.setdefault(family, []).append(moved)
        unit = self.unit().scale
        drop = self._interval(own, side)
        gaps = {f: self._interval(own - np.mean(moved, 0), side) for f, moved in draws.items()}
        apart = {f: self._interval(own - np.mean(others.get(f, moved), 0), side) for f, moved in draws.items()}
        means = {f: [float(m.mean()) / unit for m in moved] for f, moved in draws.items()}
        return {
            "name": name,
            "drop": drop["gap"],
            "low": drop["low"],
            "high": drop["high"],
            "n": len(ids),
            "gap": {f: g["gap"] for f, g in gaps.items()},
            "gap_low": {f: g["low"] for f, g in gaps.items()},
            "gap_high": {f: g["high"] for f, g in gaps.items()},
            "apart": apart,
            "p": {f: rank_p(float(own.mean()) / unit, values) for f, values in means.items()},
            "floor": {f: rank_floor(len(values)) for f, values in means.items()},
            "null": {
                f: {"draws": len(v), "mean": _known(float(np.mean(v))), "max": _known(max(v))} for f, v in means.items()
            },
        }

    def _change(self, arm: str, side: str, ids: Sequence[str]) -> Scores:
        before, after = self.rows["baseline", side], self.rows[arm, side]
        return np.array([_score(before[i]) - _score(after[i]) for i in ids])

    def _interval(self, change: Scores, side: str) -> dict[str, float | None]:
        """Mean change over the gap; both are resampled, the gap's own class with the prompts of the change."""
        rng = np.random.default_rng(0)
        n = len(change)
        rows = rng.integers(n, size=(DRAWS, n))
        paired = self.source == "baseline"
        resampled = {
            "positive": self.positive[rows].mean(1)
            if paired and side == "positive"
            else _resampled(self.positive, rng),
            "negative": self.negative[rows].mean(1)
            if paired and side == "negative"
            else _resampled(self.negative, rng),
        }
        gaps = resampled["positive"] - resampled["negative"]
        with np.errstate(divide="ignore", invalid="ignore"):
            values = change[rows].mean(1) / np.where(gaps > 0, gaps, math.nan)
            mean = change.mean() / self.unit().scale
        low, high = np.quantile(values, [0.025, 0.975])
        return {"gap": _known(float(mean)), "low": _known(float(low)), "high": _known(float(high))}


def neutral_level(unit: Unit, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Where the neutral class lies: {"n", "score", "level", "projection"}; None without one."""
    if not rows:
        return None
    scores = _scores(rows)
    along = [r["projection"] for r in rows if r.get("projection") is not None]
    return {
        "n": len(scores),
        "score": _known(float(scores.mean())) if len(scores) else None,
        "level": _known((float(scores.mean()) - unit.negative) / unit.scale) if len(scores) else None,
        "projection": math.fsum(along) / len(along) if along else None,
    }


def pooled_levels(seeds: Sequence[Levels]) -> list[dict[str, Any]]:
    """Both effects as the mean over the seeds; low and high are the range of the seeds' own, no interval."""
    found = []
    for name, *_ in _SIDES:
        drops = [e["drop"] for s in seeds for e in s.effects() if e["name"] == name and e["drop"] is not None]
        if drops:
            found.append(
                {
                    "name": name,
                    "drop": math.fsum(drops) / len(drops),
                    "low": min(drops),
                    "high": max(drops),
                    "n": len(seeds),
                    "spread": max(drops) - min(drops),
                }
            )
    return found


def _score(row: Row) -> float:
    value = row.get("score")
    return math.nan if value is None else float(value)


def _scores(rows: Iterable[Row]) -> Scores:
    return np.array([_score(row) for row in rows if row["class"] != "unscored"], dtype=float)


def _resampled(values: Scores, rng: np.random.Generator) -> Float[np.ndarray, " draw"]:
    return values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(1)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


# -- what could be mistaken for the behaviour -------------------------------------------------------------------------


def confounds(rows: Sequence[Row]) -> dict[str, Any]:
    """The score beside length, layout and topic, and the effects with these held fixed.

    {"correlations": [{"with", "n", "r"}], "adjusted": [{"name", "drop", "adjusted", "matched", "matched_n", "n"}]}: r
    is Pearson's over baseline completions of both classes (of topics the correlation ratio); `adjusted` the coefficient
    of the arm in a least squares fit of the score on arm, content words, bullets and topic (the same rows, so drop is
    its plain mean); `matched` the drop on prompts whose two completions have bullets alike and content lengths within a
    quarter. In scores, not levels. Length is that outside the markers: the markers' own words are the style.
    """
    own = [r for r in rows if r.get("form")]
    base = [r for r in own if r["arm"] == "baseline"]
    found = []
    for name in ("words", "content_words", "bullets"):
        x, y = np.array([r["form"][name] for r in base], float), _scores(base)
        found.append({"with": name, "n": len(base), "r": _known(_pearson(x, y))})
    topics = [r.get("category") for r in base]
    if len({t for t in topics if t}) > 1:
        found.append({"with": "topic", "n": len(base), "r": _known(_topic_share(topics, _scores(base)))})
    adjusted = []
    for name, arm, side, sign in _SIDES:
        before = {r["prompt_id"]: r for r in own if (r["arm"], r["set"]) == ("baseline", side)}
        after = {r["prompt_id"]: r for r in own if (r["arm"], r["set"]) == (arm, side)}
        ids = sorted(before.keys() & after.keys())
        if ids:
            adjusted.append({"name": name, **_held_fixed([before[i] for i in ids], [after[i] for i in ids], sign)})
    return {"correlations": found, "adjusted": adjusted}


def _held_fixed(before: Sequence[Row], after: Sequence[Row], sign: int) -> dict[str, Any]:
    rows = [*before, *after]
    treated = np.repeat([0.0, 1.0], len(before))
    length = np.array([r["form"]["content_words"] for r in rows], float)
    bullets = np.array([r["form"]["bullets"] for r in rows], float)
    topics = sorted({r.get("category") or "" for r in rows})
    dummies = [np.array([(r.get("category") or "") == t for r in rows], float) for t in topics]
    design = np.stack([treated, length - length.mean(), bullets - bullets.mean(), *dummies], 1)
    y = np.array([_score(r) for r in rows])
    fit = float(np.linalg.lstsq(design, y, rcond=None)[0][0])
    close = [
        i
        for i, (a, b) in enumerate(zip(before, after, strict=True))
        if a["form"]["bullets"] == b["form"]["bullets"]
        and abs(a["form"]["content_words"] - b["form"]["content_words"]) <= a["form"]["content_words"] / 4
    ]
    change = sign * np.array([_score(a) - _score(b) for a, b in zip(before, after, strict=True)])
    return {
        "drop": float(change.mean()),
        "adjusted": -sign * fit,
        "matched": float(change[close].mean()) if close else None,
        "matched_n": len(close),
        "n": len(before),
    }


def _pearson(x: Scores, y: Scores) -> float:
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _topic_share(topics: Sequence[str | None], y: Scores) -> float:
    """The correlation ratio: root of the share of the variance between topics."""
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        return math.nan
    groups: dict[str | None, list[float]] = {}
    for topic, value in zip(topics, y, strict=True):
        groups.setdefault(topic, []).append(float(value))
    between = sum(len(g) * (float(np.mean(g)) - float(y.mean())) ** 2 for g in groups.values())
    return math.sqrt(between / total)
