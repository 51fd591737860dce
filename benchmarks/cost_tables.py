"""The tables of the cost calibration: error rates by protocol, and the decisions that the cheaper protocols change.

`cost_calibration.py show` prints them. A decision is the selected candidate, the verdict, or the state of one claim.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rhumbline.evidence.statistics import exact_interval

Row = dict[str, Any]
PROTOCOLS = ("old", "new", "quick")
ANY_VECTOR = "any vector moves it"
"""The kind of model in which every direction has the effect."""


def show(path: Path) -> None:
    """Print every table."""
    models: dict[str, dict[str, Row]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        models.setdefault(row["name"], {})[row["protocol"]] = row
    whole = [m for m in models.values() if all(name in m for name in PROTOCOLS)]
    _errors(whole)
    _decisions(whole)
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
    nothing, several, one = (
        [m for m in models if m["old"]["group"] == group] for group in ("null", "several", "power")
    )
    any_vector = [m for m in several if m["old"]["kind"] == ANY_VECTOR]
    axes = [m for m in several if m["old"]["kind"] != ANY_VECTOR]
    kinds: list[tuple[str, list[Mapping[str, Row]], Callable[[Row], bool]]] = [
        ("nothing to find: confirmed (wrong)", nothing, _is_single),
        ("any vector has the effect: confirmed (wrong)", any_vector, _is_single),
        ("several axes: *unique* shown (wrong)", axes, lambda row: _claim(row, "unique") == "shown"),
        ("several axes: confirmed, by the other claims", axes, _is_single),
        ("one axis: refuted (wrong)", one, lambda row: row["verdict"] == "NOT-SINGLE-DIRECTION"),
        ("one axis: undecided", one, lambda row: row["verdict"] == "INCONCLUSIVE"),
        ("one axis: confirmed", one, _is_single),
        ("all: undecided", list(models), lambda row: row["verdict"] == "INCONCLUSIVE"),
        ("all: not tested", list(models), lambda row: row["verdict"] == "NOT-TESTED"),
    ]
    rows = [[name, *(_rate(sum(of(m[p]) for m in some), len(some)) for p in PROTOCOLS)] for name, some, of in kinds]
    _table(["Models", *PROTOCOLS], rows)


def _is_single(row: Row) -> bool:
    return row["verdict"] == "SINGLE-DIRECTION-REPRODUCES"


def _claim(row: Row, name: str) -> str | None:
    """The state of a claim; None without claims."""
    return row.get("claims", {}).get(name, [None])[0]


def decisions(row: Row) -> dict[str, str]:
    """Every decision of a run, and its outcome."""
    claims = {f"claim *{kind.replace('-', ' ')}*": state for kind, (state, *_) in row.get("claims", {}).items()}
    return {"selected candidate": str(row.get("site")), "verdict": row["verdict"], **claims}


def _decisions(models: Sequence[Mapping[str, Row]]) -> None:
    """Decisions that are equal, and claims that are shown by one protocol and refuted by the other."""
    known = {p: [decisions(m[p]) for m in models] for p in PROTOCOLS}
    rows = []
    for name in dict.fromkeys(name for some in known.values() for decided in some for name in decided):
        cells = [name]
        for other in PROTOCOLS[1:]:
            pairs = [
                {a[name], b[name]}
                for a, b in zip(known["old"], known[other], strict=True)
                if {name} <= a.keys() & b.keys()
            ]
            cells += [_rate(sum(len(pair) == 1 for pair in pairs), len(pairs)), str(pairs.count({"shown", "refuted"}))]
        rows.append(cells)
    _table(["Decision", "new as old", "opposite", "quick as old", "opposite"], rows)


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
