"""Tables and figures of the calibration study."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from rhumbline.evidence.statistics import exact_interval
from rhumbline.evidence.verdict_rules import RHUMBLINE
from rhumbline.report.figures import LIGHT, ChartRow, draw, finished, tips

SINGLE = "SINGLE-DIRECTION-REPRODUCES"
WIDTH = 420
"""Width of a figure in pixels."""


def share(rows: Sequence[ChartRow], condition: Callable[[ChartRow], bool]) -> tuple[int, int, float, float]:
    """Number of rows that satisfy a condition, number of rows, and the exact 95 % interval of the share."""
    k = sum(map(condition, rows))
    low, high = exact_interval(k, len(rows))
    return k, len(rows), low, high


def as_text(part: tuple[int, int, float, float]) -> str:
    k, n, low, high = part
    return f"{k} of {n} ({100 * k / n:.1f} %, [{100 * low:.1f}, {100 * high:.1f}])" if n else "-"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, head)) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]) + "\n"


def default(row: ChartRow) -> bool:
    return row["verdict"] == SINGLE


def blog(row: ChartRow) -> bool:
    return row["blog2026"] == SINGLE


def by(rows: Iterable[ChartRow], key: Callable[[ChartRow], Any]) -> dict[Any, list[ChartRow]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(sorted(groups.items()))


def show(folder: Path) -> None:
    """Print all tables, and write all figures into the folder of the runs."""
    studies = {name: _read(folder / f"{name}.jsonl") for name in ("runs", "nulls", "spread", "narrow", "power")}
    rows = [row for study in studies.values() for row in study]
    groups = by(rows, lambda r: r["group"])
    several, cones, fragile, narrow = (groups.get(g, []) for g in ("several", "cone", "fragile", "narrow"))
    # The power of version 4 of the rule is reported on separate seeds.
    power, full = studies["power"], [r for r in studies["narrow"] if r["group"] == "full"]
    # The second study is reported in parts, because one version of the code computed it; the first one as a whole.
    nulls, earlier = studies["nulls"], [r for r in studies["runs"] if r["group"] == "null"]
    print("## False positives\n")
    head = ["Model", "Runs", "Default rule returns SINGLE", "blog2026 returns SINGLE", "Verdicts of the default rule"]
    at_stake = [r for r in nulls if _at_stake(r)]
    lines = [("all", nulls), ("those with a baseline and a candidate", at_stake)]
    print(table(head, [_line(kind, rs) for kind, rs in [*lines, *by(nulls, lambda r: r["kind"]).items()]]))
    print(table(["Prompts per class", *head[1:]], [_line(n, rs) for n, rs in by(nulls, lambda r: r["n"]).items()]))
    print(table(["First study", *head[1:]], [_line("all, on the engine before packed passes", earlier)]))
    _show_power(power, full)
    print("## Several directions\n")
    print(table(head, [_line(kind, rs) for kind, rs in [("all", several), *by(several, lambda r: r["kind"]).items()]]))
    print("Narrow cones compared with one axis (`groups`: median group cosine):\n")
    print(table([*head, "groups"], _with_groups(narrow)))
    print("Wider cones, by version 3 of the rule (no band between spread and one direction):\n")
    print(table([*head, "groups"], _with_groups(cones)))
    print("## Models in which any vector has an effect\n")
    print(table(head, [_line(f"n = {n}", rs) for n, rs in by(fragile, lambda r: r["n"]).items()]))
    print(table(["Reason (a run can have several)", "Runs"], _reasons(fragile)))
    print("## Each family alone\n")
    wrong = [r for r in cones if r["spec"]["overlap"] < 0.5]
    print(table(*_alone(nulls, fragile, [*several, *wrong], power)))
    print(table(*_can_fail([r for r in rows if r["group"] not in ("fragile", "narrow")])))
    for chart in (_false_positives(nulls), _power_chart(power), _cosines(power)):
        (folder / f"{chart.name}.svg").write_text(draw(chart).svg)


def _with_groups(rows: Sequence[ChartRow]) -> list[list[Any]]:
    return [[*_line(kind, rs), _middle(rs, "groups")] for kind, rs in by(rows, lambda r: r["kind"]).items()]


def _read(path: Path) -> list[ChartRow]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _at_stake(row: ChartRow) -> bool:
    """Whether the run has a baseline and a selected direction, so that only the rule can prevent SINGLE."""
    return row["verdict"] not in ("NO-VERDICT", "NO-BASELINE-REFUSAL") and "no candidate" not in row["reason"]


def _middle(rows: Sequence[ChartRow], field: str) -> str:
    known = sorted(r[field] for r in rows if r.get(field) is not None)
    return f"{known[len(known) // 2]:.2f}" if known else "-"


def _reasons(rows: Sequence[ChartRow]) -> list[tuple[str, int]]:
    reasons = Counter(part.strip() for r in rows if not default(r) for part in r["reason"].split(";"))
    return reasons.most_common(12)


def _show_power(power: Sequence[ChartRow], full: Sequence[ChartRow]) -> None:
    print("## Power\n")
    for name, key in (("Effect", "effect"), ("Noise", "noise"), ("Width", "d_model")):
        lines = [_power_line(v, rs) for v, rs in by(power, lambda r, key=key: r["spec"][key]).items()]
        print(table([name, "Runs", "Default", "blog2026", "Median cosine"], lines))
    lines = [_power_line(n, rs) for n, rs in by(power, lambda r: r["n"]).items()]
    print(table(["Prompts per class", "Runs", "Default", "blog2026", "Median cosine"], lines))
    print(_surface(power))
    print(table(["Effect 0.85 and more, noise up to 1", "default", "blog2026"], _regions(power, 1.0)))
    print(table(["Effect 0.85 and more, noise up to 2", "default", "blog2026"], _regions(power, 2.0)))
    chosen = [r for r in power if r["cosine"] is not None]
    print(f"Runs in which a candidate passed the selection: {as_text(share(chosen, default))}\n")
    true = [r for r in chosen if r["cosine"] >= 0.9 and default(r)]
    low = sorted(r["cosine"] for r in chosen if default(r))
    print(
        f"Runs that return SINGLE with a |cosine| of 0.9 or more with the truth: {len(true)} of {len(low)}; "
        f"least {low[0]}\n"
    )
    lines = [_power_line(f"n = {n}", rs) for n, rs in by(full, lambda r: r["n"]).items()]
    head = ["Default draws: effect 1-1.5, noise 1, width 64-128", "Runs", "Default", "blog2026", "Median cosine"]
    print(table(head, lines))
    for r in full:
        if not default(r):
            print(f"{r['name']}: {r['verdict']}, {r['reason']}\n")
    print("## Why power runs fail\n")
    misses = Counter(_why(r) for r in power if not default(r))
    print(table(["Reason", "Runs"], misses.most_common()))


def _line(kind: Any, rows: Sequence[ChartRow]) -> list[Any]:
    verdicts = ", ".join(f"{v} {k}" for v, k in Counter(r["verdict"] for r in rows).most_common())
    return [kind, len(rows), as_text(share(rows, default)), as_text(share(rows, blog)), verdicts]


def _power_line(value: Any, rows: Sequence[ChartRow]) -> list[Any]:
    return [value, len(rows), as_text(share(rows, default)), as_text(share(rows, blog)), _median(rows)]


def _median(rows: Sequence[ChartRow]) -> str:
    known = sorted(r["cosine"] for r in rows if r["cosine"] is not None)
    return f"{known[len(known) // 2]:.3f} (n = {len(known)})" if known else "-"


def _surface(power: Sequence[ChartRow]) -> str:
    effects, noises = (sorted({r["spec"][k] for r in power}) for k in ("effect", "noise"))
    cells = by(power, lambda r: (r["spec"]["effect"], r["spec"]["noise"]))
    lines = [
        [e, *(f"{sum(map(default, c))} of {len(c)}" if (c := cells.get((e, x))) else "-" for x in noises)]
        for e in effects
    ]
    return table(["Effect \\ noise", *noises], lines)


def _regions(power: Sequence[ChartRow], noise: float) -> list[list[Any]]:
    lines = []
    kept = [r for r in power if r["spec"]["effect"] >= 0.85 and r["spec"]["noise"] <= noise]
    for name, wide in (("width 16-32", False), ("width 64 and more", True)):
        for n, rs in by([r for r in kept if (r["spec"]["d_model"] >= 64) is wide], lambda r: r["n"]).items():
            lines.append([f"{name}, n = {n}", as_text(share(rs, default)), as_text(share(rs, blog))])
    return lines


def _why(row: ChartRow) -> str:
    reason = row["reason"]
    if row["verdict"] == "INCONCLUSIVE" and reason.startswith("one direction or"):
        return "INCONCLUSIVE: one direction or a narrow cone, and no other reason"
    if row["verdict"] == "INCONCLUSIVE":
        return f"INCONCLUSIVE: the interval of {'an effect' if 'undecided' in reason else 'a gap'} contains its margin"
    if "NOT-SEPARATED" in reason:
        return "NOT-SEPARATED-FROM-NULL"
    if row["verdict"] in ("DAMAGED", "NO-BASELINE-REFUSAL"):
        return row["verdict"]
    return f"{row['verdict']}: {reason.split(':')[0].split(' (')[0][:40]}"


def _alone(*groups: Sequence[ChartRow]) -> tuple[list[str], list[list[Any]]]:
    head = ["SINGLE if this were the only family of the rule", "no direction", "any vector has an effect",
            "several axes", "one axis"]  # fmt: skip
    lines = []
    for family in (*RHUMBLINE.families, "all (the rule)"):
        is_single = default if family.startswith("all") else lambda r, f=family: r["alone"].get(f) == SINGLE
        lines.append([family, *(as_text(share(rows, is_single)) for rows in groups)])
    return head, lines


def _can_fail(rows: Sequence[ChartRow]) -> tuple[list[str], list[list[Any]]]:
    """Runs in which the ablation of some null draw changes the rate by 0.25, by family and width."""
    lines = []
    for family in RHUMBLINE.families:
        known = [r for r in rows if family in r["effects"].get("suppression", {}).get("null_max", {})]
        narrow = [r for r in known if (r.get("spec") or {}).get("d_model", 96) <= 32]
        wide = [r for r in known if (r.get("spec") or {}).get("d_model", 96) > 32]

        def moved(r: ChartRow, family: str = family) -> bool:
            return (r["effects"]["suppression"]["null_max"][family] or 0) >= 0.25

        energy = [r["null_energy"][family] / r["energy"] for r in known if r["energy"] and r["null_energy"][family]]
        middle = f"{sorted(energy)[len(energy) // 2]:.2f}" if energy else "-"
        lines.append([family, as_text(share(narrow, moved)), as_text(share(wide, moved)), middle])
    head = [
        "Family",
        "width 16-32: a draw's ablation changes the rate by 0.25",
        "width 64-4096: the same",
        "Energy, draw / direction",
    ]
    return head, lines


# -- figures ----------------------------------------------------------------------------------------------------------


def _rates(rows: Sequence[ChartRow], key: Callable[[ChartRow], Any]) -> list[ChartRow]:
    rates = []
    for value, members in by(rows, key).items():
        for name, is_single in (("default rule", default), ("blog2026", blog)):
            k, n, low, high = share(members, is_single)
            rates.append({"x": value, "rule": name, "rate": k / n, "low": low, "high": high, "n": n})
    return rates


def _chart(name: str, title: str, axis: str, rows: list[ChartRow], domain: Sequence[float] = (0, 1)) -> Any:
    colour = alt.Color(
        "rule:N",
        scale=alt.Scale(domain=["default rule", "blog2026"], range=[LIGHT["direction"], LIGHT["orange"]]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    x = alt.X("x:O", axis=alt.Axis(title=axis, labelAngle=0), scale=alt.Scale(type="band", padding=0))
    scale = alt.Scale(domain=list(domain))
    # An offset is counted from the left edge of a band; the tick is in its middle.
    middle = WIDTH / len({row["x"] for row in rows}) / 2
    places = [middle - 6, middle + 6]
    offset = alt.XOffset("rule:N", scale=alt.Scale(domain=["default rule", "blog2026"], range=places))
    base = alt.Chart().encode(x=x, color=colour, xOffset=offset)
    body = alt.layer(
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale, title="share of runs"), y2="high:Q"),
        base.mark_circle(size=70, opacity=1).encode(y="rate:Q", tooltip=tips("rule", rate=".3f", n="d")),
    ).properties(width=WIDTH, height=220)
    return finished(name, title, body, title, rows)


def _false_positives(nulls: Sequence[ChartRow]) -> Any:
    rows = _rates(nulls, lambda r: r["n"])
    return _chart("false-positives", "Runs without a direction that return SINGLE", "prompts per class", rows, (0, 0.5))


def _power_chart(power: Sequence[ChartRow]) -> Any:
    kept = [r for r in power if r["spec"]["noise"] <= 2 and r["spec"]["effect"] >= 0.85 and r["spec"]["d_model"] >= 64]
    title = "Runs with one planted axis that return SINGLE: effect from 0.85, noise to 2, width from 64"
    return _chart("power", title, "prompts per class", _rates(kept, lambda r: r["n"]))


def _cosines(power: Sequence[ChartRow]) -> Any:
    rows: list[Mapping[str, Any]] = [
        {"noise": r["spec"]["noise"], "cosine": r["cosine"], "verdict": "SINGLE" if default(r) else "other"}
        for r in power
        if r["cosine"] is not None
    ]
    colours = alt.Scale(domain=["SINGLE", "other"], range=[LIGHT["direction"], LIGHT["orange"]])
    body = (
        alt.Chart()
        .mark_tick(thickness=1.4, opacity=0.8)
        .encode(
            x=alt.X("cosine:Q", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("noise:O", title="noise"),
            color=alt.Color("verdict:N", scale=colours, legend=alt.Legend(title=None, orient="bottom")),
        )
        .properties(width=WIDTH, height=alt.Step(30))
    )
    return finished("cosine", "cosine to truth", body, "|cosine| of the selected direction to the truth", rows)
