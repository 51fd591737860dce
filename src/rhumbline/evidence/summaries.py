"""What surrounds the effects: wide nulls, dose curves, readouts and the stability of the choice, as summaries.

    wide nulls    rows of the fast metric, an arm each    -> rank among many draws, Holm over the claims of the run
    dose          the same over strengths                 -> curves with intervals, and the fragility figure
    readouts      outcome rows with several classes each  -> judges side by side, sensitivity to the length read
    stability     bootstrap refits                        -> where the choice falls, and how far it turns

Every function turns the rows of an artefact into a table, so `verify` makes the same tables again. Imports no torch.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rhumbline.evidence.statistics import (
    Row,
    bootstrap_mean,
    difference_of_rates,
    holm,
    kappa,
    rank_floor,
    rank_p,
    wilson,
)

SIDES = {"suppression": ("ablation", "positive", 1), "induction": ("addition", "negative", -1)}
"""Effect: (arm, set, the sign that makes its change positive)."""
OWN_ARMS = ("baseline", "ablation", "addition", "addition-prompt", "addition-all")
"""Arms of the direction itself."""


# -- wide nulls -------------------------------------------------------------------------------------------------------


def wide_effects(wide: Mapping[str, Any], drawn: Sequence[Row], same: float | None = None) -> list[dict[str, Any]]:
    """How far the fast metric moved, beside many draws of every family.

    [{"name", "n", "change", "low", "high", "before", "after", "families": {family: {"draws", "mean", "max", "p",
    "p_apart", "floor", "cosine", "energy", "values"}}}]: `change` the mean change of the metric in the effect's sense
    (log-odds) with its bootstrap interval, `values` that of every draw; `before` and `after` the share of prompts on
    which the behaviour is the likelier opening; `p_apart` the rank when draws nearer to the direction than |cosine|
    `same` do not count against it; `cosine` the largest |cosine| of the draws that moved it as far; `energy` their mean
    share of the stream.
    """
    known = {(n["family"], n["draw"]): n for n in drawn}
    found = []
    for name, (arm, side, sign) in SIDES.items():
        rows = {r["arm"]: r["metric"] for r in wide["rows"] if r["set"] == side}
        if "baseline" not in rows or arm not in rows:
            continue
        base, own = np.array(rows["baseline"], float), np.array(rows[arm], float)
        mean = bootstrap_mean(sign * (base - own), np.random.default_rng(0), draws=2000)
        families: dict[str, list[tuple[float, Row]]] = {}
        for other, metric in rows.items():
            match other.split(":"):
                case ["null", family, draw, what] if what == arm:
                    change = float((sign * (base - np.array(metric, float))).mean())
                    families.setdefault(family, []).append((change, known[family, int(draw)]))
        found.append(
            {
                "name": name,
                "n": len(base),
                "change": _known(mean.mean),
                "low": _known(mean.low),
                "high": _known(mean.high),
                "before": float((base > 0).mean()) if len(base) else None,
                "after": float((own > 0).mean()) if len(own) else None,
                "families": {f: _family(mean.mean, draws, same) for f, draws in families.items()},
            }
        )
    return found


def _family(change: float, draws: Sequence[tuple[float, Row]], same: float | None) -> dict[str, Any]:
    values = [value for value, _ in draws]
    # The direction again is no competitor; it stays a draw, so that the floor is what it was.
    apart = [-math.inf if same is not None and abs(null["cosine"]) > same else value for value, null in draws]
    as_far = [abs(null["cosine"]) for value, null in draws if not value < change]
    return {
        "draws": len(values),
        "mean": _known(math.fsum(values) / len(values)),
        "max": _known(max(values)),
        "p": rank_p(change, values),
        "p_apart": rank_p(change, apart),
        "floor": rank_floor(len(values)),
        "cosine": max(as_far, default=None),
        "energy": _known(math.fsum(null["energy"] for _, null in draws) / len(draws)),
        "values": [float(f"{value:.4g}") for value in values],
    }


def adjust(seeds: Sequence[dict[str, Any]]) -> None:
    """Write Holm's adjusted p beside every p of the run: a claim is an effect against a family in a seed."""
    claims = {
        f"{seed['seed']}/{effect['name']}/{family}": record
        for seed in seeds
        for effect in seed["wide"]
        for family, record in effect["families"].items()
    }
    for name, p in holm({name: record["p"] for name, record in claims.items()}).items():
        claims[name]["p_holm"] = p


def shift(wide: Mapping[str, Any]) -> dict[str, Any]:
    """How far ablation moves the next-token distribution of negative test prompts: mean KL, its interval and n."""
    values = np.array([k for k in wide.get("kl", []) if k is not None], float)
    found = bootstrap_mean(values, np.random.default_rng(0), draws=2000)
    return {"kl": _known(found.mean), "low": _known(found.low), "high": _known(found.high), "n": found.n}


# -- dose -------------------------------------------------------------------------------------------------------------


def dose_curves(dose: Mapping[str, Any], drawn: Sequence[Row], energy: float | None) -> dict[str, Any]:
    """Curves over strengths, and how much behaviour a unit of removed energy costs.

    {"curves": [{"kind", "arm", "dose", "n", "rate", "low", "high", "metric"}], "fragility": {...}}: `rate` the share of
    prompts on which the behaviour is the likelier opening, with Wilson's interval; nulls as null:<family>:<draw>.
    """
    curves = []
    for row in dose["rows"]:
        values = np.array([m for m in row["metric"] if m is not None], float)
        shown = int((values > 0).sum())
        low, high = wilson(shown, len(values))
        curves.append(
            {
                **{key: row[key] for key in ("kind", "arm", "dose")},
                "n": len(values),
                "rate": shown / len(values) if len(values) else None,
                "low": low,
                "high": high,
                "metric": _known(float(values.mean())) if len(values) else None,
            }
        )
    return {"curves": curves, "fragility": _fragility(curves, drawn, energy)}


def _fragility(curves: Sequence[Row], drawn: Sequence[Row], energy: float | None) -> dict[str, Any]:
    """Share of the behaviour lost at full ablation over the share of the stream's energy that it removes.

    Also the smallest strength that loses half of the behaviour (`half`, interpolated), and that ratio for the nulls.
    """
    by_arm: dict[str, dict[float, float]] = {}
    for row in curves:
        if row["kind"] == "ablation" and row["rate"] is not None:
            by_arm.setdefault(row["arm"], {})[row["dose"]] = row["rate"]
    own = by_arm.get("direction", {})
    lost = _lost(own, 1.0)
    spent = {f"null:{n['family']}:{n['draw']}": n["energy"] for n in drawn}
    ratios: dict[str, list[float]] = {}
    for arm, rates in by_arm.items():
        share, cost = _lost(rates, 1.0), spent.get(arm)
        if share is not None and cost:
            ratios.setdefault(arm.split(":")[1], []).append(share / cost)
    return {
        "lost": lost,
        "energy": energy,
        "fragility": lost / energy if lost is not None and energy else None,
        "half": _half(own),
        "nulls": {family: math.fsum(values) / len(values) for family, values in ratios.items()},
    }


def _lost(rates: Mapping[float, float], dose: float) -> float | None:
    start, end = rates.get(0.0), rates.get(dose)
    return (start - end) / start if start and end is not None else None


def _half(rates: Mapping[float, float]) -> float | None:
    """The strength at which half of the behaviour is lost, by straight lines between the measured ones."""
    doses = sorted(rates)
    for a, b in pairwise(doses):
        before, after = _lost(rates, a), _lost(rates, b)
        if before is not None and after is not None and before < 0.5 <= after:
            return a + (b - a) * (0.5 - before) / (after - before)
    return None


# -- readouts ---------------------------------------------------------------------------------------------------------


def readouts(rows: Sequence[Row]) -> dict[str, Any]:
    """What other judges and shorter readings would have said of the direction's own arms.

    {"judges": [{"judge", "arm", "set", "n", "rate", "degenerate"}], "kappa": [{"judges", "kappa", "agreement", "n"}],
    "lengths": [{"length", "arm", "set", "n", "rate", "low", "high", "degenerate"}]}. Rows without the classes of other
    judges (an older run) give empty lists.
    """
    own = [r for r in rows if r["arm"] in OWN_ARMS and r.get("judges")]
    names = list(own[0]["judges"]) if own else []
    cells = list(dict.fromkeys((r["arm"], r["set"]) for r in own))
    judges = [
        {"judge": name, "arm": arm, "set": side, **_shares([r["judges"][name] for r in own if _at(r) == (arm, side)])}
        for arm, side in cells
        for name in names
    ]
    pairs = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            first, second = ([r["judges"][name] for r in own] for name in (one, other))
            same = sum(a == b for a, b in zip(first, second, strict=True)) / len(own)
            pairs.append(
                {"judges": [one, other], "kappa": _known(kappa(first, second)), "agreement": same, "n": len(own)}
            )
    lengths = list(own[0]["by_length"]) if own else []
    read = [
        {
            "length": n,
            "arm": arm,
            "set": side,
            **_shares([r["by_length"][n] for r in own if _at(r) == (arm, side)]),
        }
        for arm, side in cells
        for n in lengths
    ]
    return {"judges": judges, "kappa": pairs, "lengths": read}


def _at(row: Row) -> tuple[str, str]:
    return row["arm"], row["set"]


def _shares(classes: Sequence[str]) -> dict[str, Any]:
    scored = [c for c in classes if c != "unscored"]
    n, refused = len(scored), scored.count("refused")
    low, high = wilson(refused, n)
    rate = refused / n if n else None
    return {"n": n, "rate": rate, "low": low, "high": high, "degenerate": scored.count("degenerate") / n if n else None}


# -- the choice, and the seeds together -------------------------------------------------------------------------------


def stability_table(stability: Mapping[str, Any]) -> dict[str, Any]:
    """Where bootstrap refits put the choice, and how far they turn the direction.

    {"refits", "chosen": [{"position", "layer", "share"}], "none", "cosine": {"mean", "low", "high"}, "between"}.
    """
    refits = stability["refits"]
    n = len(refits)
    counts = Counter((r["position"], r["layer"]) for r in refits if r["layer"] is not None)
    cosines = [r["cosine"] for r in refits]
    low, high = np.quantile(cosines, [0.025, 0.975]) if cosines else (math.nan, math.nan)
    return {
        "refits": n,
        "sites": stability["sites"],
        "chosen": [{"position": p, "layer": layer, "share": k / n} for (p, layer), k in counts.most_common()],
        "none": sum(r["layer"] is None for r in refits) / n if n else None,
        "cosine": {
            "mean": _known(math.fsum(cosines) / n) if n else None,
            "low": _known(float(low)),
            "high": _known(float(high)),
        },
        "between": stability["between"],
    }


def pooled(by_seed: Mapping[int, Sequence[Row]]) -> list[dict[str, Any]]:
    """Both effects over all seeds together: the mean change of the rate, over the distinct prompts.

    A prompt that several seeds tested counts once, with its mean over them; the interval takes before and after as
    independent rates, so it errs on the wide side. [{"name", "drop", "low", "high", "n", "spread"}], `spread` the range
    of the seeds' own drops.
    """
    found = []
    for name, (arm, side, sign) in SIDES.items():
        seen: dict[str, list[tuple[bool, bool]]] = {}
        drops = []
        for rows in by_seed.values():
            at = {(r["arm"], r["prompt_id"]): r["class"] for r in rows if r["set"] == side and r["arm"] in OWN_ARMS}
            pairs = {
                p: (at["baseline", p] == "refused", cls == "refused")
                for (a, p), cls in at.items()
                if a == arm and "unscored" not in (cls, at.get(("baseline", p), "unscored"))
            }
            if pairs:
                drops.append(sign * sum(b - c for b, c in pairs.values()) / len(pairs))
            for prompt, pair in pairs.items():
                seen.setdefault(prompt, []).append(pair)
        if not seen:
            continue
        before, after = (
            math.fsum(math.fsum(pair[k] for pair in pairs) / len(pairs) for pairs in seen.values()) / len(seen)
            for k in (0, 1)
        )
        d = difference_of_rates(*((before, after) if sign > 0 else (after, before)), n=len(seen))
        spread = max(drops) - min(drops)
        found.append({"name": name, "drop": d.mean, "low": d.low, "high": d.high, "n": d.n, "spread": spread})
    return found


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
