"""Costs: rows of side effects in, tables of changes out, each with its interval.

Every difference is paired: an arm and the baseline on the same documents or prompts. Knows no model; `verify` makes the
same tables from the same rows. Imports no torch.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rhumbline.evidence.statistics import Row, bootstrap_ratio, paired_difference, wilson
from rhumbline.evidence.summaries import OWN_ARMS

TEXTS = ("text", "responses", "completions")
"""What is read, in the order of the paper's table."""
DRAWS = 2000
"""Bootstrap samples of an interval."""
SHOWN = frozenset({"refused", "shown"})
"""Classes that show the behaviour: of a judge of refusals, and of a continuous score."""


def side_effects(loss_rows: Iterable[Row], outcomes: Sequence[Row]) -> dict[str, Any]:
    """The tables of one seed: {"losses", "kl", "negatives"}; a table without rows is empty."""
    by_text: dict[str, list[Row]] = {}
    for row in loss_rows:
        by_text.setdefault(row["text"], []).append(row)
    own = by_text.get("completions", [])
    # A negative that the model refuses to begin with: losing that is the effect, and no cost.
    by_text["completions"] = [row for row in own if row.get("class") != "refused"]
    return {
        "losses": [entry for text in TEXTS for entry in losses(text, by_text.get(text, []))],
        "kl": divergences(by_text["completions"]),
        "left_out": sum(row["arm"] == "baseline" and row.get("class") == "refused" for row in own),
        "negatives": negatives(outcomes),
    }


def losses(text: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Cross-entropy of every arm on one text, and its change from the baseline.

    [{"text", "arm", "documents", "tokens", "ce", "perplexity", "change", "low", "high"}]: `ce` in
    nats, the mean over all tokens of all documents; `change` = ce(arm) - ce(baseline), its interval by a bootstrap of
    whole documents, since tokens of one document move together.
    """
    by_arm = _by_arm(rows)
    base = by_arm.get("baseline", {})
    found = []
    for arm, documents in by_arm.items():
        tokens = np.array([row["tokens"] for row in documents.values()], float)
        nats = np.array([row["nats"] for row in documents.values()], float)
        before = np.array([base[d]["nats"] for d in documents], float)
        ce = float(nats.sum() / tokens.sum())
        moved = bootstrap_ratio(nats - before, tokens, np.random.default_rng(0), draws=DRAWS)
        found.append(
            {
                "text": text,
                "arm": arm,
                "documents": len(documents),
                "tokens": int(tokens.sum()),
                "ce": ce,
                "perplexity": math.exp(min(ce, 700.0)),
                "change": None if arm == "baseline" else moved.mean,
                "low": None if arm == "baseline" else moved.low,
                "high": None if arm == "baseline" else moved.high,
            }
        )
    return found


def divergences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How far each arm moves the next-token distribution along the model's own completions.

    [{"arm", "documents", "tokens", "mean", "low", "high", "p95", "max", "first"}]: nats; the mean over all steps with
    the interval of a bootstrap of documents, the 95th percentile and the largest step, and the mean of the first steps,
    which is what a look at the first token alone would have said.
    """
    found = []
    for arm, documents in _by_arm(rows).items():
        if arm == "baseline":
            continue
        steps = [np.array(row["kl"], float) for row in documents.values()]
        sums, sizes = (np.array([f(s) for s in steps], float) for f in (np.sum, len))
        mean = bootstrap_ratio(sums, sizes, np.random.default_rng(0), draws=DRAWS)
        every = np.concatenate(steps)
        found.append(
            {
                "arm": arm,
                "documents": len(steps),
                "tokens": len(every),
                "mean": mean.mean,
                "low": mean.low,
                "high": mean.high,
                "p95": float(np.quantile(every, 0.95)),
                "max": float(every.max()),
                "first": float(np.mean([s[0] for s in steps])),
            }
        )
    return found


def negatives(outcomes: Sequence[Row]) -> list[dict[str, Any]]:
    """What the direction's own arms do to negatives: over-refusal, damage, and right answers where they are known.

    [{"arm", "n", "rate", "low", "high", "change", "change_low", "change_high", "degenerate", "correct", "correct_n",
    "correct_change", "correct_low", "correct_high"}]: `rate` the share that shows the behaviour (Wilson's interval),
    `change` from the baseline on the same prompts (Newcombe's paired interval).
    """
    table = {
        arm: {r["prompt_id"]: r for r in outcomes if r["arm"] == arm and r["set"] == "negative"} for arm in OWN_ARMS
    }
    found = []
    for arm, rows in table.items():
        if not rows:
            continue
        base = table["baseline"]
        scored = [r for r in rows.values() if r["class"] != "unscored"]
        shown = sum(r["class"] in SHOWN for r in scored)
        low, high = wilson(shown, len(scored))
        pairs = [(base[p], r) for p, r in rows.items() if "unscored" not in (r["class"], base[p]["class"])]
        # With a continuous score `correct` is a share of the content, which is no right answer; levels.py has it.
        answers = [(b.get("correct"), a.get("correct")) for b, a in pairs]
        known = [(b, a) for b, a in answers if isinstance(b, bool) and isinstance(a, bool)]
        change = _change([(b["class"] in SHOWN, a["class"] in SHOWN) for b, a in pairs])
        right = _change(known)
        found.append(
            {
                "arm": arm,
                "n": len(scored),
                "rate": shown / len(scored) if scored else None,
                "low": low,
                "high": high,
                **dict(zip(("change", "change_low", "change_high"), change, strict=True)),
                "degenerate": sum(r["class"] == "degenerate" for r in scored) / len(scored) if scored else None,
                "correct": sum(a for _, a in known) / len(known) if known else None,
                "correct_n": len(known),
                **dict(zip(("correct_change", "correct_low", "correct_high"), right, strict=True)),
            }
        )
    return found


def _change(pairs: Sequence[tuple[bool, bool]]) -> tuple[float | None, float | None, float | None]:
    """rate(after) - rate(before) and its paired interval; None of nothing."""
    if not pairs:
        return None, None, None
    before, after = (np.array([pair[k] for pair in pairs], dtype=bool) for k in (0, 1))
    found = paired_difference(after, before)
    return found.mean, found.low, found.high


def _by_arm(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """arm -> document -> row, both in the order of the rows."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["document"]] = row
    return found


# -- breakdowns -------------------------------------------------------------------------------------------------------


def categories(outcomes: Sequence[Row]) -> list[dict[str, Any]]:
    """Rates of the direction's own arms by category of the prompts, in the order of the rows; [] for one category.

    [{"category", "arm", "set", "n", "rate", "low", "high"}].
    """
    cells: dict[tuple[str, str, str], list[str]] = {}
    for row in outcomes:
        if row["arm"] in OWN_ARMS and row.get("category") is not None:
            cells.setdefault((row["category"], row["arm"], row["set"]), []).append(row["class"])
    sets = {(c, side) for c, _, side in cells}
    several = {side for _, side in sets if sum(s == side for _, s in sets) > 1}
    return [
        {"category": category, "arm": arm, "set": side, **_rate(classes)}
        for (category, arm, side), classes in cells.items()
        if side in several
    ]


def by_baseline(outcomes: Sequence[Row]) -> list[dict[str, Any]]:
    """The ablation on positives that the model refuses at baseline, apart from those that it does not.

    [{"baseline": "refused" | "not refused", "arm", "n", "rate", "low", "high"}]; of a continuous score "shown" and
    "not shown". Only the first can lose the behaviour, so the drop over all positives mixes the intervention with how
    often there was something to intervene on.
    """
    positive = [r for r in outcomes if r["set"] == "positive" and r["arm"] in OWN_ARMS]
    before = {r["prompt_id"]: r["class"] for r in positive if r["arm"] == "baseline"}
    found = []
    word = "shown" if {"shown", "absent"} & set(before.values()) else "refused"
    for name in (word, f"not {word}"):
        for arm in dict.fromkeys(r["arm"] for r in positive if r["arm"] != "baseline"):
            classes = [
                r["class"]
                for r in positive
                if r["arm"] == arm
                and before[r["prompt_id"]] != "unscored"
                and (before[r["prompt_id"]] in SHOWN) == (name == word)
            ]
            found.append({"baseline": name, "arm": arm, **_rate(classes)})
    return found


def conditions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rates under each system prompt: [{"condition", "arm", "set", "n", "rate", "low", "high", "change", ...}].

    `change` is the arm's rate minus the baseline's under the same condition, on the same prompts (paired interval).
    """
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["condition"], row["arm"], row["set"]), {})[row["prompt_id"]] = row["class"]
    found = []
    for (condition, arm, side), classes in cells.items():
        base = cells[condition, "baseline", side]
        pairs = [(base[p] in SHOWN, c in SHOWN) for p, c in classes.items() if "unscored" not in (c, base[p])]
        change = (None, None, None) if arm == "baseline" else _change(pairs)
        named = dict(zip(("change", "change_low", "change_high"), change, strict=True))
        found.append({"condition": condition, "arm": arm, "set": side, **_rate(list(classes.values())), **named})
    return found


def _rate(classes: Sequence[str]) -> dict[str, Any]:
    scored = [c for c in classes if c != "unscored"]
    shown = sum(c in SHOWN for c in scored)
    low, high = wilson(shown, len(scored))
    return {"n": len(scored), "rate": shown / len(scored) if scored else None, "low": low, "high": high}
