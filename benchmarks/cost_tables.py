"""The tables of the cost calibration: error rates by protocol, and the decisions that the cheaper protocols change.

`cost_calibration.py show` prints them. A decision is one comparison of a rule with its margin: the selected candidate,
an effect, a gap to a null family, a rank p, the cosine of groups, the damage. Independent of how verdicts combine them.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rhumbline.evidence.statistics import exact_interval

Row = dict[str, Any]
PROTOCOLS = ("old", "new", "quick")
MIN_DROP, MIN_GAP, MAX_P, MIN_GROUPS, ONE_GROUP, MAX_KL = 0.5, 0.25, 0.05, 0.5, 0.85, 0.2
"""Margins of the rule `rhumbline`."""
REFUTED = ("NOT-SINGLE-DIRECTION", "DAMAGED", "NO-BASELINE-REFUSAL")


def show(path: Path) -> None:
    """Print every table."""
    models: dict[str, dict[str, Row]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        models.setdefault(row["name"], {})[row["protocol"]] = row
    whole = [m for m in models.values() if all(name in m for name in PROTOCOLS)]
    _errors(whole)
    _decisions(whole)
    _ranks(whole)
    _costs(whole)


def _rate(k: int, n: int) -> str:
    if not n:
        return "-"
    low, high = exact_interval(k, n)
    return f"{k} of {n} ({100 * k / n:.1f} %, [{100 * low:.1f}, {100 * high:.1f}])"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def _errors(models: Sequence[Mapping[str, Row]]) -> None:
    """Wrong confirmations where there is no single direction; wrong refutations and power where there is one."""
    without = [m for m in models if m["old"]["group"] != "power"]
    one = [m for m in models if m["old"]["group"] == "power"]
    kinds: list[tuple[str, list[Mapping[str, Row]], Callable[[Row], bool]]] = [
        ("nothing to find: confirmed (wrong)", [m for m in without if m["old"]["group"] == "null"], _is_single),
        ("several directions, or any vector: confirmed (wrong)", [m for m in without if m["old"]["group"] == "several"],
         _is_single),
        ("one axis: refuted (wrong)", one, lambda row: row["verdict"] in REFUTED),
        ("one axis: undecided", one, lambda row: row["verdict"] == "INCONCLUSIVE"),
        ("one axis: confirmed", one, _is_single),
        ("all: undecided", list(models), lambda row: row["verdict"] == "INCONCLUSIVE"),
    ]  # fmt: skip
    rows = [[name, *(_rate(sum(of(m[p]) for m in some), len(some)) for p in PROTOCOLS)] for name, some, of in kinds]
    _table(["Models", *PROTOCOLS], rows)


def _is_single(row: Row) -> bool:
    return row["verdict"] == "SINGLE-DIRECTION-REPRODUCES"


def _state(interval: Sequence[float | None], margin: float) -> str:
    _, low, high = interval
    if low is None or high is None:
        return "unknown"
    return "met" if low >= margin else "failed" if high < margin else "undecided"


def decisions(row: Row) -> Iterator[tuple[str, str, str]]:
    """Every decision of a run: its kind, which one, and its outcome."""
    yield "selected candidate", "", str(row.get("site"))
    yield "verdict of rule version 4", "", row["verdict"]
    if row.get("site") is None:
        return
    groups, kl = row["groups"], row["kl"]
    band = "unknown" if groups is None else "one" if groups >= ONE_GROUP else "several" if groups < MIN_GROUPS else "-"
    yield "cosine of groups", "", band
    yield "KL of the ablation", "", str(kl is not None and kl > MAX_KL)
    for name, effect in row["effects"].items():
        yield "effect against its margin", name, _state(effect["drop"], MIN_DROP)
        for family, gap in effect["gap"].items():
            yield "gap to a null family", f"{name} {family}", _state(gap, MIN_GAP)
        for family, p in effect["p"].items():
            yield "rank p against 0.05", f"{name} {family}", str(p is not None and p <= MAX_P + 1e-9)


def _decisions(models: Sequence[Mapping[str, Row]]) -> None:
    """Decisions that are equal, and those that are opposite: met and failed."""
    tables = []
    for other in PROTOCOLS[1:]:
        counts: dict[str, list[int]] = {}
        for model in models:
            old, new = ({(kind, which): value for kind, which, value in decisions(model[p])} for p in ("old", other))
            for key in old.keys() & new.keys():
                count = counts.setdefault(key[0], [0, 0, 0])
                count[0] += old[key] == new[key]
                count[1] += {old[key], new[key]} in ({"met", "failed"}, {"True", "False"}, {"one", "several"})
                count[2] += 1
        tables.append(counts)
    rows = []
    for kind in sorted({kind for counts in tables for kind in counts}):
        cells = [kind]
        for counts in tables:
            equal, opposite, n = counts.get(kind, [0, 0, 0])
            cells += [_rate(equal, n), str(opposite)]
        rows.append(cells)
    _table(["Decision", "new as old", "opposite", "quick as old", "opposite"], rows)


def _ranks(models: Sequence[Mapping[str, Row]]) -> None:
    """Ranks at the level 0.05 by family, both effects together."""
    families = sorted({f for m in models for e in m["old"].get("effects", {}).values() for f in e["p"]})
    rows = []
    for group, title in (("null", "nothing to find"), ("several", "several, or any vector"), ("power", "one axis")):
        for family in families:
            cells = [title, family]
            for protocol in PROTOCOLS:
                runs = [m[protocol] for m in models if m["old"]["group"] == group]
                values = [e["p"][family] for r in runs for e in r.get("effects", {}).values() if family in e["p"]]
                cells.append(_rate(sum(v is not None and v <= MAX_P + 1e-9 for v in values), len(values)))
            rows.append(cells)
    _table(["Models", "Rank p at most 0.05", *PROTOCOLS], rows)


def _costs(models: Sequence[Mapping[str, Row]]) -> None:
    rows = []
    for name, of in (
        ("processor seconds, mean", lambda row: row["cpu_seconds"]),
        ("rows, mean", lambda row: sum(row["rows"].values())),
        ("median cosine with the truth, one axis", None),
    ):
        cells = [name]
        for protocol in PROTOCOLS:
            if of is not None:
                cells.append(f"{statistics.mean(of(m[protocol]) for m in models):,.1f}")
                continue
            cosines = [m[protocol].get("cosine") for m in models if m["old"]["group"] == "power"]
            known = [c for c in cosines if c is not None]
            cells.append(f"{statistics.median(known):.3f} (n = {len(known)})" if known else "-")
        rows.append(cells)
    _table(["Cost", *PROTOCOLS], rows)
