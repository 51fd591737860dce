"""The records of analyses that belong to no single run, as files: JSON, a figure and a small page in one directory.

Knows the records of dissociation.py, robustness.py and flinch.py, and how they are drawn. Computes nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from rhumbline.errors import OutputError
from rhumbline.records.files import write_json
from rhumbline.report import page
from rhumbline.report.figures import LIGHT, NULL_COLOURS, Chart, finished, palette, printable, tips, where

Record = Mapping[str, Any]


def write(record: Record, out: Path) -> Path:
    """Write `<analysis>.json`, the figures and `report.html`; an earlier one of the same analysis is replaced."""
    name = record["analysis"]
    if out.is_dir() and any(out.iterdir()) and not (out / f"{name}.json").is_file():
        raise OutputError(f"{out} is not empty and holds no {name}.json. Give another --out.")
    write_json(out / f"{name}.json", record)
    draw = page.Canvas()
    title, facts, body = _SHEETS[name](record, draw)
    head = page.tag(
        "header",
        page.tag("p", f"rhumbline {name}", class_="kicker"),
        page.tag("h1", title),
        page.tag("dl", page.join(page.tag("div", page.tag("dt", k), page.tag("dd", v)) for k, v in facts)),
    )
    said = page.tag("div", page.tag("p", record["sentence"], class_="sentence"), class_="verdict")
    return page.publish(out, f"{name}: {title}", [head, said, *body], draw.drawings)


# -- robustness -------------------------------------------------------------------------------------------------------


def _robustness(record: Record, draw: page.Canvas) -> tuple[str, list[tuple[str, Any]], list[Any]]:
    models = record["models"]
    head = [
        "Model",
        "Access",
        "n",
        "Baseline",
        "Rank 1",
        "Energy",
        "Highest rank",
        "Energy",
        "Fragility",
        "Prompts only",
    ]
    rows = []
    for m in models:
        first, last = m["ranks"][0], m["ranks"][-1]
        fragile = m["fragility"]
        rows.append(
            [
                m["model"],
                m["access"],
                m["n"]["test"]["positive"],
                _rate(m["baseline"]),
                _rate(first),
                page.number(first["energy"], 3),
                page.join([_rate(last), f" at {last['rank']}"]),
                page.number(last["energy"], 3),
                page.interval(fragile["value"], fragile["low"], fragile["high"]),
                _rate(m["prompts"]),
            ]
        )
    note = (
        "Rate of the behaviour on test positives, read from the whole completion, with Wilson's intervals. Energy: "
        "share of the residual stream's squared norm that is removed at the chosen site. Fragility: share of the "
        "behaviour lost at rank 1 over that energy. Access: the least with which half of the behaviour was seen to "
        "go; that none of those tried suffices does not mean that none exists."
    )
    body = [
        page.section("The table", page.table(head, rows, left=2), page.note(note)),
        page.section("As more is removed", draw(robustness_charts(record))),
    ]
    facts = [("models", len(models)), ("judge", record["plan"]["judge"]), ("ranks", record["plan"]["ranks"])]
    return "How much is left as more is removed?", facts, body


def _rate(row: Record) -> page.Html:
    return page.interval(row["rate"], row["low"], row["high"])


def robustness_charts(record: Record) -> list[Chart]:
    """The rate over the rank and over the strength, a line for each model, random subspaces in thin lines."""
    names = [printable(m["model"], 28) for m in record["models"]]
    ranks, strengths = [], []
    for name, m in zip(names, record["models"], strict=True):
        base = {k: m["baseline"][k] for k in ("rate", "low", "high")}
        ranks.append({"model": name, "kind": "own", "x": 0, **base})
        ranks.append({"model": name, "kind": "null", "x": 0, **base})
        strengths.append({"model": name, "kind": "own", "x": 0.0, **base})
        for row in m["ranks"]:
            own = {k: row[k] for k in ("rate", "low", "high")}
            ranks.append({"model": name, "kind": "own", "x": row["rank"], **own})
            ranks.append({"model": name, "kind": "null", "x": row["rank"], "rate": row["null"]["mean"]})
        for row in m["strengths"]:
            strengths.append(
                {"model": name, "kind": "own", "x": row["strength"], **{k: row[k] for k in ("rate", "low", "high")}}
            )
    n = " and ".join(str(k) for k in dict.fromkeys(m["n"]["test"]["positive"] for m in record["models"]))
    first = "Rate of the behaviour as the rank grows (dashed: random subspaces of the main axes)"
    second = "Rate of the behaviour over the strength of the ablation of the first direction"
    by_rank = _lines(names, "rank of what is removed", "d", sorted({r["x"] for r in ranks}))
    by_strength = _lines(names, "strength of the ablation", ".1f", sorted({r["x"] for r in strengths}))
    return [
        finished("robustness-rank", first, by_rank, f"By rank (n = {n}; dashed: random)", ranks),
        finished("robustness-strength", second, by_strength, f"By strength (n = {n})", strengths),
    ]


def _lines(names: Sequence[str], title: str, form: str, ticks: Sequence[float]) -> Any:
    x = alt.X("x:Q", axis=alt.Axis(title=title, grid=False, format=form, values=list(ticks)))
    y = alt.Y("rate:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="rate", tickCount=5))
    colour = alt.Color("model:N", scale=palette(names, NULL_COLOURS), legend=alt.Legend(title=None, orient="bottom"))
    own, null = where("datum.kind == 'own'"), where("datum.kind == 'null'")
    return alt.layer(
        null.mark_line(strokeDash=[4, 3], strokeWidth=1.2, opacity=0.8).encode(x=x, y=y, color=colour),
        own.mark_rule(strokeWidth=1.4).encode(x=x, y="low:Q", y2="high:Q", color=colour),
        own.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        own.mark_point(filled=True, size=42, opacity=1).encode(x=x, y=y, color=colour, tooltip=tips("model", x=form,
        rate=".2f")), ).properties(width=300, height=210)  # fmt: skip


# -- dissociation -----------------------------------------------------------------------------------------------------


def _dissociation(record: Record, draw: page.Canvas) -> tuple[str, list[tuple[str, Any]], list[Any]]:
    rows = [
        [
            r["behaviour"],
            r["ablated"],
            r["n"],
            page.number(r["level"]),
            "—" if r["ablated"] == "baseline" else page.interval(r["drop"], r["low"], r["high"], signed=True),
        ]
        for r in record["table"]
    ]
    head = ["Behaviour", "Ablated", "n", "Level", "Drop below the baseline"]
    note = (
        "Levels: 0 is how the negatives of that run are at baseline, 1 how its positives are; of a rate they are 0 "
        f"and 1. Taken: the interval of the drop lies above {record['margins']['taken']}; left: "
        f"below {record['margins']['left']}."
    )
    cosine = record["cosine"]
    said = f"Cosine of the two selected directions: {cosine['selected']:.2f}."
    body = [
        page.section("Each direction on each behaviour", page.table(head, rows, left=2), page.note(note)),
        page.section("The two directions", page.tag("p", said), draw(dissociation_charts(record))),
    ]
    behaviours = " and ".join(record["behaviours"])
    facts = [("model", record["model"]), ("behaviours", behaviours), ("finding", record["finding"])]
    return "Do two behaviours hang on different directions?", facts, body


def dissociation_charts(record: Record) -> list[Chart]:
    """The drops, and the cosine of the candidates layer by layer."""
    rows = [
        {"behaviour": f"on {r['behaviour']}", "ablated": r["ablated"], **{k: r[k] for k in ("drop", "low", "high")}}
        for r in record["table"]
        if r["ablated"] != "baseline"
    ]
    order = list(dict.fromkeys(r["ablated"] for r in rows))
    y = alt.Y("ablated:N", sort=order, axis=alt.Axis(title=None, labelLimit=200))
    axis = alt.Axis(title="drop below the baseline", tickCount=5)
    x = alt.X("drop:Q", axis=axis)
    colour = alt.Color(
        "behaviour:N",
        legend=alt.Legend(title=None, orient="bottom"),
        scale=palette(list(dict.fromkeys(r["behaviour"] for r in rows)), NULL_COLOURS),
    )
    shift = alt.YOffset("behaviour:N")
    bars = alt.layer(
        alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(x=alt.XDatum(0)),
        alt.Chart().mark_rule(strokeWidth=1.6).encode(x="low:Q", x2="high:Q", y=y, yOffset=shift, color=colour),
        alt.Chart().mark_point(filled=True, size=60, opacity=1).encode(
            x=x, y=y, yOffset=shift, color=colour, tooltip=tips("ablated", "behaviour", drop=".2f")
        ),
    ).properties(width=280, height=alt.Step(22))  # fmt: skip
    n = " and ".join(str(k) for k in dict.fromkeys(r["n"] for r in record["table"]))
    title = f"What each ablation takes (n = {n} positives)"
    charts = [finished("dissociation-drops", "Drop of each behaviour under each ablation", bars, title, rows)]
    by_layer = [
        {"layer": r["layer"], "cosine": r["cosine"]} for r in record["cosine"]["by_layer"] if r["cosine"] is not None
    ]
    if by_layer:
        line = alt.layer(
            alt.Chart().mark_rule(color=LIGHT["hairline"]).encode(y=alt.YDatum(0)),
            alt.Chart().mark_line(color=LIGHT["direction"], strokeWidth=2).encode(
                x=alt.X("layer:Q", axis=alt.Axis(title="layer", grid=False, format="d", tickMinStep=1)),
                y=alt.Y("cosine:Q", scale=alt.Scale(domain=[min(0, *(r["cosine"] for r in by_layer)), 1]),
                axis=alt.Axis(title="cosine", tickCount=5)), ),
            alt.Chart().mark_point(color=LIGHT["direction"], filled=True, size=42, opacity=1).encode(
                x="layer:Q", y="cosine:Q", tooltip=tips(layer="d", cosine=".2f")
            ),
        ).properties(width=280, height=190)  # fmt: skip
        title = f"Cosine of the two candidates, position {record['cosine']['position']}"
        charts.append(finished("dissociation-cosine", f"{title}, by layer", line, title, by_layer))
    return charts


# -- flinch -----------------------------------------------------------------------------------------------------------


def _flinch(record: Record, draw: page.Canvas) -> tuple[str, list[tuple[str, Any]], list[Any]]:
    rows = [
        [
            r["term"],
            page.number(r["base"]),
            page.number(r["chat"]),
            page.number(r["gap"], signed=True),
            page.number(r["control_gap"], signed=True),
            page.interval(r["flinch"], r["low"], r["high"], signed=True),
            page.number(r["p_holm"], 3),
            ", ".join(r["controls"]),
        ]
        for r in record["terms"]
    ]
    head = ["Term", "Base", "Chat", "Gap", "Controls' gap", "Flinch", "p (Holm)", "Controls"]
    note = (
        "Log-probabilities per token, nats, teacher-forced in the same contexts on the same tokens. Flinch: the gap "
        "less that of the controls which the base model finds about as likely; intervals over contexts, p among "
        "the controls."
    )
    n = record["n"]
    facts = [*record["models"].items(), *n.items(), ("finding", record["finding"])]
    body = [page.section("Term by term", draw(flinch_charts(record)), page.table(head, rows), page.note(note))]
    return "Does the chat model avoid words that its base model uses?", facts, body


def flinch_charts(record: Record) -> list[Chart]:
    """Every term's flinch with its interval, the lowest first."""
    rows = [
        {"term": printable(r["term"], 24), **{k: r[k] for k in ("flinch", "low", "high")}}
        for r in sorted(record["terms"], key=lambda r: r["flinch"])[:40]
    ]
    y = alt.Y("term:N", sort=[r["term"] for r in rows], axis=alt.Axis(title=None, labelLimit=180))
    blue = LIGHT["direction"]
    body = alt.layer(
        alt.Chart().mark_rule(color=LIGHT["muted"]).encode(x=alt.XDatum(0)),
        alt.Chart().mark_rule(color=blue, strokeWidth=1.6).encode(x="low:Q", x2="high:Q", y=y),
        alt.Chart().mark_point(color=blue, filled=True, size=50, opacity=1).encode(
            x=alt.X("flinch:Q", axis=alt.Axis(title="nats per token, against matched controls", tickCount=6)),
            y=y, tooltip=tips("term", flinch=".2f", low=".2f", high=".2f"),
        ),
    ).properties(width=420, height=alt.Step(20))  # fmt: skip
    title = f"Flinch of each term ({record['n']['contexts']} contexts)"
    return [finished("flinch", "How far the chat model avoids each term", body, title, rows)]


_SHEETS = {"robustness": _robustness, "dissociation": _dissociation, "flinch": _flinch}
