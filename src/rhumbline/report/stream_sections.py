"""Sections on what is read from the stream: geometry, base model, monitor; and the small words that sections share.

Each takes the record of its analysis, how positions are written, and where to draw. Decides nothing.
"""

from collections.abc import Mapping
from typing import Any

from rhumbline.report import analysis_figures as charts
from rhumbline.report import page
from rhumbline.report.figures import LIGHT, printable
from rhumbline.report.page import Html

Record = Mapping[str, Any]


def ci(record: Record, key: str, digits: int = 2) -> str:
    """A number and its interval, as text."""
    numbers = (page.number(record[k], digits) for k in (key, "low", "high"))
    return "{} [{}, {}]".format(*numbers)


def site_of(record: Record) -> str:
    """Where a record was read."""
    site = record.get("site") or record.get("read_at")
    return "" if site is None else f"seed {record['seed']}, position {site['position']}, layer {site['layer']}"


def ends(record: Record) -> dict[str, Any]:
    """The ends of an interval alone."""
    return {"low": record["low"], "high": record["high"]}


def _count(n: Record) -> str:
    return f"n = {n['positive']} + {n['negative']}"


def mean(record: Record) -> str:
    """A mean and its interval, signed."""
    return f"{record['mean']:+.2f} [{record['low']:+.2f}, {record['high']:+.2f}]"


# -- geometry ---------------------------------------------------------------------------------------------------------


def geometry(record: Record, labels: Mapping, draw: page.Canvas) -> Html:
    """How candidates and classes lie to each other."""
    at, grid = record["read_at"], record["grid"]
    shown = {p: text for p, text in labels.items() if p in {r["position"] for r in grid}}
    here = [r for r in grid if r["position"] == at["position"]]
    layers = [str(r["layer"]) for r in here]
    drift = [
        {"series": name, "x": r["layer"], "y": r[key]}
        for key, name in (
            ("cosine", "with the one at the site"),
            ("next", "with the next layer"),
            ("ceiling", "two halves"),
        )
        for r in here
    ]
    separation = [
        {"series": "AUROC", "x": r["layer"], "y": r["auroc"], "low": r["low"], "high": r["high"]} for r in here
    ]
    separation += [
        {"series": "silhouette", "x": r["layer"], "y": r["mean"], "low": r["low"], "high": r["high"]}
        for r in record["silhouette"]
    ]
    means = [
        {"series": c, "x": r["layer"], "y": r[c]["mean"], "low": r[c]["low"], "high": r[c]["high"]}
        for c in ("positive", "negative")
        for r in here
    ]
    parts = record["components"]
    share = [f"{100 * v:.0f} %" for v in parts["explained"][:2]] + ["", ""]
    x, y = (f"component {k + 1} ({share[k]} of the variance)" for k in (0, 1))
    where = f"position {at['position']}"
    drawn = draw(
        [
            charts.matrix(
                "geometry-layers", f"Cosines between layers, {where}", record["between_layers"], layers, "layer"
            ),
            charts.grid("geometry-site", "Cosine with the direction at the site", grid, shown, "cosine", (-1.0, 1.0)),
            charts.curves("geometry-drift", f"Drift over layers, {where}", drift, "layer (resid_pre)", "cosine"),
            charts.curves(
                "geometry-separation", f"Separation, validation ({_count(record['n']['val'])}), {where}", separation,
                "layer (resid_pre)", "AUROC, silhouette",
            ),
            charts.curves(
                "geometry-means", f"Class means of the projection, {where}", means, "layer (resid_pre)", "projection",
                colours={c: LIGHT[c] for c in ("positive", "negative")},
            ),
            charts.scatter("geometry-components", "Prompts on the main axes of training", parts["points"], x, y),
        ]
    )  # fmt: skip
    cosines = ", ".join(page.number(abs(v)) for v in parts["cosine"])
    n = record["n"]
    note = page.note(
        f"{site_of({**record, 'site': at})}. n: train {n['train']['positive']} + {n['train']['negative']}, validation "
        f"{n['val']['positive']} + {n['val']['negative']}. Separation is measured on validation prompts, which no "
        "direction was fitted to; bands are 95 % intervals. Two halves: the mean cosine of directions fitted on two "
        "halves of the training prompts, above which no cosine between fitted directions can be expected. Two random "
        f"directions have |cosine| {record['random']:.2f} on average. |cosine| of the main axes with the direction: "
        f"{cosines}. Circles are training prompts, dots validation prompts. All of this is description, not cause."
    )
    return page.section("Geometry", drawn, note)


# -- base model -------------------------------------------------------------------------------------------------------


def base(record: Record, labels: Mapping, draw: page.Canvas) -> Html:
    """The direction in the base model."""
    del labels
    shown, rows = [], []
    series = {
        "chat_in_base": "chat's direction, base",
        "base_in_base": "base's own, base",
        "chat_in_chat": "chat's, chat",
    }
    for name, condition in record["conditions"].items():
        layers = condition["layers"]
        lines = [
            {"series": text, "x": r["layer"], "y": r[key]["value"], "low": r[key]["low"], "high": r[key]["high"]}
            for key, text in series.items()
            for r in layers
        ]
        lines += [
            {"series": "best null draw", "x": r["layer"], "y": max(f["auroc"]["max"] for f in r["nulls"].values())}
            for r in layers
        ]
        cosines = [{"series": "cosine", "x": r["layer"], "y": r["cosine"]} for r in layers]
        cosines += [
            {"series": f"{family}, largest", "x": r["layer"], "y": r["nulls"][family]["cosine"]["max"]}
            for family in layers[0]["nulls"]
            for r in layers
        ]
        title = {"template": "same chat tokens", "plain": "instruction alone"}[name]
        auroc = f"AUROC on test prompts ({_count(record['n']['test'])}), {title}"
        shown.append(charts.curves(f"base-auroc-{name}", auroc, lines, "layer", "AUROC"))
        shown.append(
            charts.curves(f"base-cosine-{name}", f"Cosine of chat and base, {title}", cosines, "layer", "cosine")
        )
        site = record["site"]
        if site is not None:
            r = layers[site["layer"]]
            worst = max(f["auroc"]["p"] for f in r["nulls"].values())
            rows.append(
                [
                    title,
                    site["layer"],
                    page.number(r["cosine"]),
                    *(ci(r[k], "value") for k in series),
                    page.number(worst, 3),
                ]
            )
    head = ["Fed to both", "Layer", "Cosine", *(f"AUROC: {text}" for text in series.values()), "Rank p, worst null"]
    tokens = record["tokens"]
    said = "The same token ids were fed to both models." if tokens["same"] else (
        "The tokenizers differ: the same text was fed to both, each in its own tokens, and the last token was read."
    )  # fmt: skip
    if tokens["untrained"]:
        odd = ", ".join(repr(printable(t)) for t in tokens["untrained"])
        said += f" Template tokens whose embedding has an unusual length in the base model: {odd}."
    n = record["n"]["test"]
    answer = record["finding"]
    note = page.note(
        f"Base model: {record['base']['name']}. {said} Test prompts: {n['positive']} + {n['negative']}; bands are 95 % "
        "intervals. Nulls: directions of the chat model that know nothing of the behaviour, read in the base in either "
        "sign. The selected layer is the headline; the others are description. A direction that separates in the base "
        "model was readable there; it says nothing of what the base model would do with it."
    )
    finding = page.tag("p", page.tag("b", answer["answer"]), f": {answer['reason']}.")
    return page.section("Base model", finding, draw(shown), page.table(head, rows) if rows else "", note)


# -- monitor ----------------------------------------------------------------------------------------------------------


def monitor(record: Record, labels: Mapping, draw: page.Canvas) -> Html:
    """The projection as a detector."""
    del labels
    conditions = record["conditions"]
    head = [
        "Test prompts with",
        "AUROC [95 %]",
        "Positives flagged",
        "Negatives flagged",
        "Mean, positives",
        "negatives",
    ]
    rows = [
        [
            c["name"],
            ci(c["auroc"], "value", 3),
            f"{ci(c['tpr'], 'rate')} of {c['tpr']['n']}",
            f"{ci(c['fpr'], 'rate')} of {c['fpr']['n']}",
            *(page.number(c["means"][k]) for k in ("positive", "negative")),
        ]
        for c in conditions
    ]
    texts = [[c["name"], ", ".join(repr(printable(t, 60)) for t in c["texts"])] for c in conditions if c["texts"]]
    nulls = "; ".join(
        f"{f} {v['mean']:.2f} (largest {v['max']:.2f}, p {v['p']:.3f})" for f, v in record["nulls"].items()
    )
    note = page.note(
        f"{site_of(record)}. Threshold {record['threshold']:.3g}, chosen on {record['n']['val']['negative']} "
        f"validation negatives so that at most {record['parameters']['fpr']:.1%} of them lie above it (they resolve "
        f"no rate finer than {record['finest_fpr']:.3f}); everything here is measured on test prompts. AUROC of null "
        f"directions at the same site, the better sign of each: {nulls}. A detector of what separates these two sets "
        "of prompts: on prompts of another kind its threshold means nothing."
    )
    fold = page.fold("The suffixes", page.table(["", "Texts"], texts, left=2)) if texts else ""
    return page.section(
        "Monitor",
        draw([charts.roc("monitor-roc", f"ROC, test ({_count(record['n']['test'])})", conditions)]),
        page.table(head, rows),
        note,
        fold,
    )
