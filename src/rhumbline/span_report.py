"""Sections on suffixes and on several directions: what a record says, drawn and tabulated. Decides nothing."""

from collections.abc import Mapping

from rhumbline import analyses_figures as charts
from rhumbline import page
from rhumbline.figures import LIGHT, printable
from rhumbline.page import Html
from rhumbline.reading_report import Record, ci, ends, mean, site_of

# -- suffix -----------------------------------------------------------------------------------------------------------


def suffix(record: Record, labels: Mapping, draw: page.Canvas) -> Html:
    """What suffixes do, and what writes along the direction."""
    del labels
    conditions = record["conditions"]
    lines = [
        {"series": c["name"], "x": r["layer"], "y": r["mean"], "low": r["low"], "high": r["high"]}
        for c in conditions
        for r in c["cosine"]
    ]
    colours = {c: LIGHT[c] for c in ("positive", "negative")} | {
        c["name"]: LIGHT[f"null-{'abcdef'[k % 6]}"] for k, c in enumerate(conditions[2:])
    }
    names = [c["name"] for c in conditions]
    heads = [
        {
            "what": f"layer {h['layer']}, head {h['head']}",
            "series": n,
            "value": v["mean"],
            "low": v["low"],
            "high": v["high"],
        }
        for h in record["heads"]
        for n, v in h["contribution"].items()
    ]
    looks = [
        {"what": f"layer {h['layer']}, head {h['head']}", "series": f"{n}: {region}", "value": v["mean"], **ends(v)}
        for h in record["heads"]
        for n, regions in h["attention"].items()
        if n not in ("positive", "negative")
        for region, v in regions.items()
        if region in ("instruction", "suffix")
    ]
    drawn = [
        charts.curves(
            "suffix-cosine",
            "Cosine with the direction over layers",
            lines,
            "layer (resid_pre)",
            "cosine",
            colours=colours,
        )
    ]
    if heads:
        drawn.append(
            charts.bars(
                "suffix-heads", "What the heads write along the direction", heads, "contribution", colours=colours
            )
        )
        drawn.append(charts.bars("suffix-attention", "Where those heads look", looks, "share of attention"))
    rows = [
        [
            c["name"],
            *(f"{c[k]['mean']:.2f} [{c[k]['low']:.2f}, {c[k]['high']:.2f}]" for k in ("projection", "metric", "rate")),
            c["projection"]["n"],
        ]
        for c in conditions
    ]
    effects = [
        [f"suffix {e['suffix']}", what, *(mean(e[what][k]) for k in ("drop", "random", "beyond_random"))]
        for e in record["effects"]
        for what in ("projection", "metric")
    ]
    parts = sorted(record["attribution"]["parts"], key=lambda p: -abs(p["positive"] - p["negative"]))
    table = [[part_name(p), *(page.number(p[n], signed=True) for n in names)] for p in parts[:24]]
    whole = record["attribution"]["whole"]
    reasons = "; ".join(f"layer {w['layer']} {w['module']}: {w['reason']}" for w in whole[:6])
    note = page.note(
        f"{site_of(record)}; n = {record['n']} test prompts. Random suffixes have as many tokens as theirs. "
        "Contributions: the residual's projection at the site, split into all that wrote it; the parts sum to it "
        f"up to rounding (largest relative error {record['attribution']['error']:.1e}). Heads: those that differ most "
        "between the classes on validation prompts. A suffix that lowers the projection on these was not shown "
        "to do so on others, and a lowered projection is no refusal lifted: read the metric beside it."
        + (f" Not split into heads: {reasons}." if whole else "")
    )
    texts = [[c["name"], ", ".join(repr(printable(t, 60)) for t in c["texts"])] for c in conditions if c["texts"]]
    return page.section(
        "Suffixes",
        draw(drawn),
        page.table(["Test prompts", "Projection at the site", "Metric (log-odds)", "Rate", "n"], rows),
        page.table(["", "of the", "Drop", "Drop, random suffixes", "Beyond random"], effects, left=2)
        if effects
        else "",
        page.fold("What writes along the direction, by the difference of the classes", page.table(["", *names], table)),
        page.fold("The suffixes", page.table(["", "Texts"], texts, left=2)),
        note,
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
    sources, verdict, rule = record["sources"], record["verdict"], record["parameters"]["rule"]
    suppressed, side, induced = [], [], []
    for name, source in sources.items():
        for r in source["ranks"]:
            rate, drop = r["suppression"]["rate"], r["suppression"]["drop"]
            # The interval of the rate is that of the drop: the baseline is the same for every rank.
            base = rate + drop["mean"]
            reach = {"low": max(0.0, base - drop["high"]), "high": min(1.0, base - drop["low"])}
            suppressed.append({"series": name, "x": r["rank"], "y": rate, **reach})
            side.append({"series": name, "x": r["rank"], "y": r["kl"]["mean"], **ends(r["kl"])})
        for k, cone in enumerate(source["cone"], 1):
            induced.append({"series": name, "x": k, "y": cone["induced"]["mean"], **ends(cone["induced"])})
    for family in ("isotropic", "energy-matched"):
        by_rank: dict[int, list[Record]] = {}
        for source in sources.values():
            for r in source["ranks"]:
                if family in r["random"]:
                    by_rank.setdefault(r["rank"], []).append(r["random"][family])
        for k, found in by_rank.items():
            rates, kls = ([f["suppression"]["rate"] for f in found], [f["kl"]["mean"] for f in found])
            suppressed.append({"series": f"{family} random", "x": k, "y": sum(rates) / len(rates)})
            side.append({"series": f"{family} random", "x": k, "y": sum(kls) / len(kls)})
    drawn = draw(
        [
            charts.curves(
                "directions-rate", "Rate on positives, span ablated", suppressed, "rank", "rate", domain=(0, 1)
            ),
            charts.curves("directions-kl", "Side effect: KL on negatives", side, "rank", "nats"),
            charts.curves(
                "directions-cone",
                "Rate on negatives, a direction of the cone added",
                induced,
                "members",
                "rate",
                domain=(0, 1),
            ),
        ]
    )
    head = ["Source", "Rank", "Gain over rank 1 [95 %]", "Beyond isotropic", "Beyond energy-matched", "KL", "n"]
    rows = []
    for name, source in sources.items():
        c = source["chosen"]
        if c is None:
            rows.append([name, "nothing to add", *["—"] * (len(head) - 2)])
            continue
        gaps = (mean(c["beyond_random"][f]) for f in ("isotropic", "energy-matched"))
        rows.append([name, c["rank"], mean(c["gain"]), *gaps, page.number(c["kl"]["mean"], 3), c["gain"]["n"]])
    steps = [
        [name, f"{g['from']} → {g['to']}", mean(g), mean(g["metric"])]
        for name, s in sources.items()
        for g in s["gains"]
    ]
    alone = [
        [name, m["rank"], page.number(m["cosine"]), *(ci(m[k], "rate") for k in ("suppressed", "induced"))]
        for name, source in sources.items()
        for m in source["members"]
    ]
    cones = [
        [
            name,
            c["members"],
            *(page.number(c[k][v]) for k in ("suppressed", "induced") for v in ("mean", "worst")),
            page.number(c["random"]["induced"]["mean"]),
        ]
        for name, source in sources.items()
        for c in source["cone"]
    ]
    turned = [
        [name, i["ablated"], i["read"], page.number(i["change"], 3)]
        for name, source in sources.items()
        for i in source["independence"]
    ]
    said = page.tag("p", page.tag("b", verdict["answer"]), f": {verdict['reason']}.")
    note = page.note(
        f"{site_of(record)}. Baseline rate {record['baseline']['rate']:.2f}, n = {record['baseline']['n']} test "
        "positives, by the fast metric. Members were found on training prompts, order and rank on validation prompts. "
        f"Rule, fixed beforehand: MORE-HELPS if the source that validation prefers takes {rule['margin']:g} of the "
        "rate more with its whole interval, more than random spans of its rank, at a mean KL of at most "
        f"{rule['max_kl']:g}; ONE-IS-ENOUGH if the first direction takes {rule['min_drop']:g} and no source takes "
        f"{rule['margin']:g} more, again by whole intervals; otherwise undetermined. Enough for this readout, among "
        "these sources: one that was not tried may find more. Members that move the behaviour alone are no second "
        "mechanism: any direction "
        "near the first one does."
    )
    tables = {
        "The gain of each further direction, given those before": (["Source", "Rank", "Gain", "of the metric"], steps),
        "Every member alone, ablated on positives and added on negatives": (
            ["Source", "Member", "Cosine with the first", "Rate, ablated", "Rate, added"], alone
        ),
        "Directions drawn in the cone of the members": (
            ["Source", "Members", "Rate, ablated", "worst", "Rate, added", "worst", "Added, random cone"], cones
        ),
        "Representational independence: mean |change| of the cosine": (["Source", "Ablated", "Read", "Change"], turned),
    }  # fmt: skip
    folds = [page.fold(title, page.table(columns, body, left=2)) for title, (columns, body) in tables.items()]
    return page.section("Several directions", said, drawn, page.table(head, rows), *folds, note)
