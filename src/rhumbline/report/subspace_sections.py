"""Sections on suffixes and on several directions: what a record says, drawn and tabulated. Decides nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rhumbline.report import analysis_figures as charts
from rhumbline.report import page
from rhumbline.report.figures import LIGHT, Chart, Row, printable
from rhumbline.report.page import Html
from rhumbline.report.stream_sections import Record, ci, ends, mean, site_of

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""The head of a table and its rows."""
FAMILIES = ("isotropic", "energy-matched")
"""Of random spans."""

# -- suffix -----------------------------------------------------------------------------------------------------------


def suffix(record: Record, labels: Mapping, draw: page.Canvas) -> Html:
    """What suffixes do, and what writes along the direction."""
    del labels
    conditions, effects = _suffix_conditions(record), _suffix_effects(record)
    texts = [[c["name"], ", ".join(repr(printable(t, 60)) for t in c["texts"])] for c in record["conditions"]]
    return page.section(
        "Suffixes",
        draw(_suffix_charts(record)),
        page.table(*conditions),
        page.table(*effects, left=2) if effects[1] else "",
        page.fold("What writes along the direction, by the difference of the classes", page.table(*_written(record))),
        page.fold("The suffixes", page.table(["", "Texts"], [row for row in texts if row[1]], left=2)),
        page.note(_suffix_note(record)),
    )


def _suffix_charts(record: Record) -> list[Chart | None]:
    conditions = record["conditions"]
    colours = {c: LIGHT[c] for c in ("positive", "negative")} | {
        c["name"]: LIGHT[f"null-{'abcdef'[k % 6]}"] for k, c in enumerate(conditions[2:])
    }
    cosines = [
        {"series": c["name"], "x": r["layer"], "y": r["mean"], **ends(r)} for c in conditions for r in c["cosine"]
    ]
    title = f"Cosine with the direction over layers (n = {record['n']})"
    at = "layer (resid_pre)"
    drawn: list[Chart | None] = [charts.curves("suffix-cosine", title, cosines, at, "cosine", colours=colours)]
    if record["heads"]:
        written, looked = _head_contributions(record), _head_attention(record)
        title, n = "What the heads write along the direction", f"(n = {record['n']})"
        drawn.append(charts.bars("suffix-heads", f"{title} {n}", written, "contribution", colours=colours))
        drawn.append(
            charts.bars(
                "suffix-attention", f"Where those heads look {n}", looked, "share of attention", colours=colours
            )
        )
    return drawn


def _head_contributions(record: Record) -> list[Row]:
    return [
        {"what": f"layer {h['layer']}, head {h['head']}", "series": name, "value": v["mean"], **ends(v)}
        for h in record["heads"]
        for name, v in h["contribution"].items()
    ]


def _head_attention(record: Record) -> list[Row]:
    return [
        {
            "what": f"layer {h['layer']}, head {h['head']}",
            "series": name,
            "mark": f"to the {region}",
            "value": v["mean"],
            **ends(v),
        }
        for h in record["heads"]
        for name, regions in h["attention"].items()
        if name not in ("positive", "negative")
        for region, v in regions.items()
        if region in ("instruction", "suffix")
    ]


def _suffix_conditions(record: Record) -> Table:
    rows = [
        [c["name"], *(ci(c[k], "mean") for k in ("projection", "metric", "rate")), c["projection"]["n"]]
        for c in record["conditions"]
    ]
    return ["Test prompts", "Projection at the site", "Metric (log-odds)", "Rate", "n"], rows


def _suffix_effects(record: Record) -> Table:
    rows = [
        [f"suffix {e['suffix']}", what, *(mean(e[what][k]) for k in ("drop", "random", "beyond_random"))]
        for e in record["effects"]
        for what in ("projection", "metric")
    ]
    return ["", "of the", "Drop", "Drop, random suffixes", "Beyond random"], rows


def _written(record: Record) -> Table:
    names = [c["name"] for c in record["conditions"]]
    parts = sorted(record["attribution"]["parts"], key=lambda p: -abs(p["positive"] - p["negative"]))
    return ["", *names], [[part_name(p), *(page.number(p[n], signed=True) for n in names)] for p in parts[:24]]


def _suffix_note(record: Record) -> str:
    whole = record["attribution"]["whole"]
    reasons = "; ".join(f"layer {w['layer']} {w['module']}: {w['reason']}" for w in whole[:6])
    return (
        f"{site_of(record)}; n = {record['n']} test prompts. Random suffixes have as many tokens as theirs. "
        "Contributions: the residual's projection at the site, split into all that wrote it; the parts sum to it "
        f"up to rounding (largest relative error {record['attribution']['error']:.1e}). Heads: those that differ most "
        "between the classes on validation prompts. A suffix that lowers the projection on these was not shown "
        "to do so on others, and a lowered projection is no refusal lifted: read the metric beside it."
        + (f" Not split into heads: {reasons}." if whole else "")
    )


def part_name(part: Record) -> str:
    """A term of the attribution, as text."""
    if part["kind"] == "embedding":
        return "embedding"
    what = {"head": f"head {part['head']}", "bias": "output bias", "writer": ""}[part["kind"]]
    return f"layer {part['layer']} {part['module']} {what}".strip()


# -- several directions -----------------------------------------------------------------------------------------------


def several(record: Record, labels: Mapping, draw: page.Canvas) -> Html:
    """Whether one direction is enough."""
    del labels
    sources, verdict = record["sources"], record["verdict"]
    first = next(iter(sources.values()))["ranks"][0]
    negatives = f"negatives (n = {first['kl']['n']})"
    rate = f"Rate on positives, span ablated (n = {record['baseline']['n']})"
    kl, cone = f"Side effect: KL on {negatives}", f"Rate on {negatives}, a direction of the cone added"
    drawn = draw(
        [
            charts.intervals("directions-rate", rate, _rates_by_rank(sources), "rank", "rate", domain=(0, 1)),
            charts.intervals("directions-kl", kl, _kl_by_rank(sources), "rank", "nats"),
            charts.intervals("directions-cone", cone, _by_cone(sources), "members", "rate", domain=(0, 1)),
        ]
    )
    folds = [page.fold(title, page.table(*table, left=2)) for title, table in _details(sources).items()]
    said = page.tag("p", page.tag("b", verdict["answer"]), f": {verdict['reason']}.")
    chosen = page.table(*_chosen(sources))
    return page.section("Several directions", said, drawn, chosen, *folds, page.note(_several_note(record)))


def _rates_by_rank(sources: Mapping[str, Record]) -> list[Row]:
    """The rate that is left with its interval; of the random spans the mean over the sources."""
    rows: list[Row] = []
    for name, source in sources.items():
        for r in source["ranks"]:
            rate, drop = r["suppression"]["rate"], r["suppression"]["drop"]
            # The interval of the rate is that of the drop: the baseline is the same for every rank.
            base = rate + drop["mean"]
            reach = {"low": max(0.0, base - drop["high"]), "high": min(1.0, base - drop["low"])}
            rows.append({"series": name, "x": r["rank"], "y": rate, **reach})
    return rows + _random_by_rank(sources, lambda r: r["suppression"]["rate"])


def _kl_by_rank(sources: Mapping[str, Record]) -> list[Row]:
    rows: list[Row] = [
        {"series": name, "x": r["rank"], "y": r["kl"]["mean"], **ends(r["kl"])}
        for name, source in sources.items()
        for r in source["ranks"]
    ]
    return rows + _random_by_rank(sources, lambda r: r["kl"]["mean"])


def _random_by_rank(sources: Mapping[str, Record], value: Callable[[Record], float]) -> list[Row]:
    found: dict[tuple[str, int], list[float]] = {}
    for family in FAMILIES:
        for source in sources.values():
            for r in source["ranks"]:
                if family in r["random"]:
                    found.setdefault((family, r["rank"]), []).append(value(r["random"][family]))
    return [{"series": f"{f} random", "x": k, "y": sum(v) / len(v)} for (f, k), v in found.items()]


def _by_cone(sources: Mapping[str, Record]) -> list[Row]:
    return [
        {"series": name, "x": k, "y": cone["induced"]["mean"], **ends(cone["induced"])}
        for name, source in sources.items()
        for k, cone in enumerate(source["cone"], 1)
    ]


def _chosen(sources: Mapping[str, Record]) -> Table:
    """What every source adds at the rank that validation prefers."""
    head = ["Source", "Rank", "Gain over rank 1 [95 %]", "Beyond isotropic", "Beyond energy-matched", "KL", "n"]
    rows = []
    for name, source in sources.items():
        c = source["chosen"]
        if c is None:
            rows.append([name, "nothing to add", *["—"] * (len(head) - 2)])
            continue
        gaps = (mean(c["beyond_random"][f]) for f in FAMILIES)
        rows.append([name, c["rank"], mean(c["gain"]), *gaps, page.number(c["kl"]["mean"], 3), c["gain"]["n"]])
    return head, rows


def _details(sources: Mapping[str, Record]) -> dict[str, Table]:
    """Titles and tables of what is measured beside the rule."""
    steps, alone, cones, turned = [], [], [], []
    for name, source in sources.items():
        for g in source["gains"]:
            steps.append([name, f"{g['from']} → {g['to']}", mean(g), mean(g["metric"])])
        for m in source["members"]:
            rates = (ci(m[k], "rate") for k in ("suppressed", "induced"))
            alone.append([name, m["rank"], page.number(m["cosine"]), *rates])
        for c in source["cone"]:
            own = (page.number(c[k][v]) for k in ("suppressed", "induced") for v in ("mean", "worst"))
            cones.append([name, c["members"], *own, page.number(c["random"]["induced"]["mean"])])
        for i in source["independence"]:
            turned.append([name, i["ablated"], i["read"], page.number(i["change"], 3)])
    return {
        "The gain of each further direction, given those before": (["Source", "Rank", "Gain", "of the metric"], steps),
        "Every member alone, ablated on positives and added on negatives": (
            ["Source", "Member", "Cosine with the first", "Rate, ablated", "Rate, added"], alone
        ),
        "Directions drawn in the cone of the members": (
            ["Source", "Members", "Rate, ablated", "worst", "Rate, added", "worst", "Added, random cone"], cones
        ),
        "Representational independence: mean |change| of the cosine": (["Source", "Ablated", "Read", "Change"], turned),
    }  # fmt: skip


def _several_note(record: Record) -> str:
    rule, baseline = record["parameters"]["rule"], record["baseline"]
    return (
        f"{site_of(record)}. Baseline rate {baseline['rate']:.2f}, n = {baseline['n']} test "
        "positives, by the fast metric; bars are 95 % intervals, of random spans the mean over all draws is drawn. "
        "Members were found on training prompts, order and rank on validation prompts. "
        f"Rule, fixed beforehand: MORE-HELPS if the source that validation prefers takes {rule['margin']:g} of the "
        "rate more with its whole interval, more than random spans of its rank, at a mean KL of at most "
        f"{rule['max_kl']:g}; ONE-IS-ENOUGH if the first direction takes {rule['min_drop']:g} and no source takes "
        f"{rule['margin']:g} more, again by whole intervals; otherwise undetermined. Enough for this readout, among "
        "these sources: one that was not tried may find more. Members that move the behaviour alone are no second "
        "mechanism: any direction near the first one does."
    )
