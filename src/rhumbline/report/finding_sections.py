"""The sections of the report that say what was found: verdict, meaning, arms, selection, separation, nulls.

Every number is a number of the run's files; nothing is decided here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rhumbline.report import arm_figures, page, site_figures
from rhumbline.report.arm_figures import arm_of
from rhumbline.report.figures import Row
from rhumbline.report.run_record import Run

_BADGES = {
    "SINGLE-DIRECTION-REPRODUCES": ("yes", "●"),
    "NOT-SINGLE-DIRECTION": ("no", "○"),
    "DAMAGED": ("no", "✕"),
}


def _badge(verdict: str, class_: str = "badge") -> page.Html:
    kind, glyph = _BADGES.get(verdict, ("open", "◌"))
    return page.tag("span", page.tag("i", glyph), " ", verdict, class_=f"{class_} {kind}")


def heading(kicker: str, model: Row, facts: Iterable[tuple[str, Any]]) -> page.Html:
    """The title block: what this is, of which model, and its facts."""
    listed = page.join(page.tag("div", page.tag("dt", key), page.tag("dd", value)) for key, value in facts if value)
    return page.tag(
        "header",
        page.tag("p", f"rhumbline {kicker}", class_="kicker"),
        page.tag("h1", model["name"]),
        page.tag("dl", listed),
    )


def header(run: Run) -> page.Html:
    """The title block of a run."""
    results, protocol = run.results, run.protocol
    facts = [
        ("Behaviour", protocol["behaviour"]),
        ("Contrast", protocol["contrast"]["name"]),
        ("Preset", protocol["preset"]),
        ("Judge", protocol.get("judge")),
        ("Model", model_line(results["model"])),
        ("Seeds", ", ".join(str(seed["seed"]) for seed in run.seeds)),
        ("Started", results["environment"].get("started")),
        ("Protocol", f"sha256 {results['protocol_sha256'][:12]}"),
    ]
    question = f"·  Is {protocol['behaviour']} mediated by a single direction in the residual stream?"
    return heading(question, results["model"], facts)


def model_line(model: Row) -> str:
    """The model in one line: architecture, layers, width, mode."""
    width = f" × {model['d_model']}" if "d_model" in model else ""
    return f"{model.get('class', 'model')}, {model['n_layers']} layers{width}, {model.get('dtype', '')}".rstrip(", ")


def verdict(run: Run) -> page.Html:
    """The verdict, its reason and each seed's sentence."""
    results = run.results
    # The sentence of a run quotes those of its seeds: one paragraph each, in smaller type when there is much to say.
    parts = re.split(r"\s+(?=Seed \d+: )", results["sentence"])
    said = [page.tag("p", part, class_="sentence" if len(part) < 160 else "sentence long") for part in parts]
    reason = page.tag("p", results["reason"], class_="reason") if results.get("reason") else ""
    return page.tag("div", _badge(results["verdict"]), *said, reason, class_="verdict")


def meaning(run: Run) -> page.Html:
    """What the verdict says and what it does not."""
    verdict, behaviour = run.results["verdict"], run.protocol["behaviour"]
    if len({seed["verdict"] for seed in run.seeds}) > 1 and verdict == "INCONCLUSIVE":
        shows = ["Some seeds reproduce the direction and some do not decide: more prompts, or more seeds, would."]
    elif len({seed["verdict"] for seed in run.seeds}) > 1:
        shows = ["A result that a new sample of prompts undoes: it was not reproduced."]
    elif verdict == "SINGLE-DIRECTION-REPRODUCES":
        shows = [
            f"One direction is sufficient to move {behaviour} on this model, contrast and judge: taking it out of the "
            "residual stream suppresses the behaviour, adding it induces the behaviour.",
            "Both effects pass the margins that were fixed before the first forward pass, against the baseline and "
            "against the null families of the rule.",
        ]
    elif verdict.startswith("NO-BASELINE"):
        shows = [
            "The model shows the behaviour on too few positive prompts for its suppression to be measurable.",
            "That is a statement about this pairing of model, prompts and judge. It says nothing about whether a "
            "direction exists.",
        ]
    elif verdict == "NOT-SINGLE-DIRECTION":
        shows = [
            f"No direction that this procedure could select moved {behaviour} both ways by the margins of the rule.",
            "Another position, layer, extraction, coefficient or judge might: a failure to find is not a proof of "
            "absence.",
        ]
    elif verdict == "DAMAGED":
        shows = [
            "The intervention broke more than the behaviour: completions, or the predictions on negative prompts. "
            f"What it did to {behaviour} cannot be told from that damage.",
            "A smaller coefficient, or an addition at prompt positions only, may do less harm.",
        ]
    elif verdict == "INCONCLUSIVE" and all("induction has no room" in seed["reason"] for seed in run.seeds):
        shows = [
            f"Taking one direction out of the residual stream suppresses {behaviour} on this model and contrast.",
            f"Whether adding it induces {behaviour} was not tested: the negatives' prompts show it already. It takes "
            "negatives that do not.",
        ]
    elif verdict == "INCONCLUSIVE":
        shows = [
            "The intervals of this sample hold a margin of the rule inside: it decides neither for nor against one "
            "direction. The reason says how many prompts would.",
        ]
    else:
        shows = ["The evidence does not decide the question; the reason is given above and the numbers below."]
    shows.append(_agreement(run))
    columns = (("What this shows", shows), ("What it does not show", _limits(run)))
    return page.tag(
        "div",
        page.join(page.tag("div", page.tag("h3", title), page.bullets(items)) for title, items in columns),
        class_="meaning",
    )


def _agreement(run: Run) -> str:
    total = len(run.seeds)
    if total == 1:
        return "One seed only: nothing here says how far the result depends on the sample of prompts."
    verdicts = Counter(seed["verdict"] for seed in run.seeds)
    sites = Counter(run.site(seed["selected"]) for seed in run.seeds if seed["selected"])
    said = f"{'Both' if total == 2 else f'All {total}'} seeds reach this verdict."
    if len(verdicts) > 1:
        said = f"The seeds disagree: {', '.join(f'{n} of {total} {v}' for v, n in verdicts.most_common())}."
    if not sites:
        return said
    where = ", ".join(site if len(sites) == 1 else f"{site} × {n}" for site, n in sites.most_common())
    return f"{said} Selected (position, layer): {where}."


def _limits(run: Run) -> list[str]:
    protocol, model = run.protocol, run.results["model"]
    tokens = protocol.get("max_new_tokens") or protocol.get("generation", {}).get("max_new_tokens")
    read = f", from at most {tokens} generated tokens" if tokens else ""
    given = "score" if arm_figures.measure(run.seeds) == "level" else "class"
    coarse = (
        f"The readout is coarse: the judge {protocol.get('judge', '')} assigns each completion a {given}{read}. Trust "
        "large shifts that beat the nulls; read nothing into small ones."
    )
    if run.results["verdict"].startswith("NO-BASELINE"):
        return ["Whether a direction mediates the behaviour in this model: it could not be tested.", coarse]
    limits = [
        "Sufficient to move a behaviour is not the same as the behaviour being one direction: several distinct "
        "directions can act as one control.",
        "One direction is fitted by construction; whether a second would add anything is not asked here.",
        coarse,
    ]
    draws = max((protocol.get("nulls", {}).get(key) or 0 for key in ("draws", "wide")), default=0)
    if draws and run.results["verdict"] == "SINGLE-DIRECTION-REPRODUCES":
        floor = f"With {page.count(draws, 'draw')} per null family no p-value can be below {1 / (draws + 1):.3g}"
        limits.append(f"{floor}: p says how many draws the direction beat, no more.")
    if model.get("mode") == "coarse":
        limits.append(
            "Coarse mode: the writers of this model's residual stream were not proved, so ablation acts at the inputs "
            "and outputs of blocks only."
        )
    treated = [row for seed in run.seeds for row in seed["arms"] if row["arm"] in ("ablation", "addition")]
    degenerate = max((row["degenerate"] or 0 for row in treated), default=0)
    if degenerate > 0:
        said = f"Up to {degenerate:.0%} of the completions under an intervention were degenerate"
        limits.append(f"{said}: neither the behaviour nor its absence.")
    return limits


def key_numbers(run: Run) -> page.Html:
    """Effects with their intervals, beside the nulls."""
    shows = arm_figures.measure(run.seeds)
    families = list(dict.fromkeys(family for seed in run.seeds for effect in seed["effects"] for family in effect["p"]))
    head = [
        "Seed",
        "Site",
        "Norm",
        "Survivors",
        "Test",
        f"{shows.capitalize()}: baseline → direction",
        "Drop or rise [95 %]",
        "n",
    ]
    many = len(families) > MANY_FAMILIES
    head += ["Nearest null", "Wide p, worst"] if many else [_family_head(run, family) for family in families]
    rows = [row for seed in run.seeds for row in _seed_rows(run, seed, families)]
    layers = run.results["model"]["n_layers"]
    note = page.note(
        f"Site: position and layer of the selected direction, out of {layers} layers. Under each family: the gap (the "
        "effect less the mean effect of its draws) and p (the rank of the direction among them, at least "
        "1 / (draws + 1))."
    )
    if many:
        note = page.note(
            f"Site: position and layer of the selected direction, out of {layers} layers. Nearest null: the family "
            f"whose draws moved the {shows} most, and the gap to it (the effect less their mean effect). Wide p, "
            "worst: the largest rank p by the fast metric among the families of the rule. Every family is in the "
            "sections below."
        )
    unit = page.note(_LEVEL) if shows == "level" else ""
    return page.section("Key numbers", page.table(head, rows, left=2, key=True), note, unit)


_LEVEL = (
    "A level is a score in units of the gap between the classes: 0 is how negatives score at baseline, 1 how positives "
    "do."
)


def _family_head(run: Run, family: str) -> page.Html:
    draws = [e.get("null", {}).get(family, {}).get("draws") for s in run.seeds for e in s["effects"]]
    count = max((d for d in draws if d is not None), default=None)
    detail = f"{page.count(count, 'draw')}, p ≥ {1 / (count + 1):.3g}" if count else "gap, p"
    return page.join([f"vs {family}", page.tag("small", detail)])


def _seed_rows(run: Run, seed: Row, families: Sequence[str]) -> list[list[Any]]:
    site = seed["selected"]
    disagree = len({other["verdict"] for other in run.seeds}) > 1
    verdict = _badge(seed["verdict"], "mini") if disagree else ""
    start = [
        page.join([page.tag("b", seed["seed"]), " ", verdict]),
        run.site(site) if site else "none selected",
        page.number(site.get("norm")) if site else "—",
        seed.get("survivors"),
    ]
    rows = []
    for effect in seed["effects"]:
        arm, which, _ = arm_figures.PANELS.get(effect["name"], ("", "", 1))
        arms = (arm_of(seed["arms"], name, which) for name in ("baseline", arm))
        rates = [row["rate"] if row else None for row in arms]
        against = [_against(effect, family) for family in families]
        if len(families) > MANY_FAMILIES:
            against = _nearest(effect, run.results["rule"].get("families", []))
        test = [
            effect["name"],
            f"{page.number(rates[0])} → {page.number(rates[1])}",
            page.interval(effect["drop"], effect["low"], effect["high"]),
            effect.get("n"),
        ]
        rows.append([*(start if not rows else [""] * 4), *test, *against])
    if not rows:
        baseline = arm_of(seed["arms"], "baseline", "positive")
        rate = (
            page.join([page.interval(baseline["rate"], baseline["low"], baseline["high"]), " → —"]) if baseline else "—"
        )
        empty = ["—"] * (2 if len(families) > MANY_FAMILIES else len(families))
        rows.append([*start, "baseline only", rate, "—", baseline["n"] if baseline else "—", *empty])
    return rows


MANY_FAMILIES = 3
"""Families that have room for a column each."""


def _nearest(effect: Row, families: Sequence[str]) -> list[Any]:
    """The family that the direction exceeds least, and its worst rank among the wide nulls of the rule's families."""
    gaps = {f: gap for f, gap in effect["gap"].items() if gap is not None}
    nearest = min(gaps, key=lambda f: gaps[f], default=None)
    wide = effect.get("wide") or {}
    ranks = [p for f in families if (p := wide.get(f, {}).get("p_apart")) is not None]
    gap = "—" if nearest is None else page.join([page.number(gaps[nearest], signed=True), " ", nearest])
    return [gap, page.number(max(ranks), 3) if ranks else "—"]


def _against(effect: Row, family: str) -> page.Html:
    p = effect["p"].get(family)
    shown = "p —" if p is None else f"p {p:.3f}"
    return page.join([page.number(effect["gap"].get(family), signed=True), " ", page.tag("span", shown, class_="ci")])


def arms_figure(run: Run, draw: page.Canvas) -> page.Html:
    """The rates or levels of every arm, as a figure."""
    charts, rule = arm_figures.arms(run.seeds, run.results["rule"]), run.results["rule"]
    if not charts:
        return page.section("Arms", page.note("No arm was measured."))
    marks = "■ baseline, with its 95 % interval. "
    lines = f"Dashed line: the lowest baseline that the rule accepts ({page.number(rule.get('min_baseline'))}). "
    floor = lines
    if any(seed["selected"] for seed in run.seeds):
        marks = (
            "■ baseline and ● direction, each with its 95 % interval; open marks: one null draw each, ❙ the mean of "
            "their family. "
        )
        lines = (
            f"Dashed line: the baseline moved by the rule's margin ({page.number(rule.get('min_drop'))}); brackets: "
            f"the mean of a family moved by its margin ({page.number(rule.get('min_gap'))}). Shaded: where the rule "
            "asks the direction to be. "
        )
    if run.results["verdict"].startswith("NO-BASELINE"):
        lines = floor
    return page.section("Arms", draw(charts), page.note(marks, lines, "Point at a mark for its numbers."))


def selection(run: Run, draw: page.Canvas) -> page.Html:
    """Every candidate's scores and why it was discarded."""
    rule = run.protocol["selection"]
    if not run.selections:
        return page.section("Selection", page.note("No candidate was scored: the run ended before selection."))
    parts = []
    for seed, selection in run.selections.items():
        charts = site_figures.selection(seed, selection, run.labels, rule.get("max_kl"))
        parts.append((f"Seed {seed}: {_outcome(run, selection)}", [_selection_text(run, selection), draw(charts)]))
    settings = ", ".join(f"{key} = {value}" for key, value in rule.items() if key != "name" and value is not None)
    note = page.note(
        f"Rule {rule.get('name', '')}: {settings}. bypass: mean metric on positive validation prompts with the "
        "candidate ablated; induce: on negative ones with it added; kl: change of the next-token distribution on "
        "negative ones under ablation. Full cells passed; small cells were discarded; empty cells were not scored; the "
        "framed cell is the selected one. Point at a cell for its scores and its reason."
    )
    return page.section("Selection on validation prompts", _seed_parts(parts), note)


def _seed_parts(parts: Sequence[tuple[str, Sequence[Any]]]) -> page.Html:
    """One part a seed; from three seeds on, only the first lies open."""
    opened = len(parts) if len(parts) <= 2 else 1
    shown = [
        page.tag("div", page.tag("h3", title), *content) if k < opened else page.fold(title, *content, class_="seed")
        for k, (title, content) in enumerate(parts)
    ]
    return page.join(shown)


def _outcome(run: Run, selection: Row) -> str:
    chosen = "none" if selection["selected"] is None else run.site(selection["selected"])
    return f"{chosen} selected; {selection['survivors']} of {len(selection['candidates'])} candidates passed"


def _selection_text(run: Run, selection: Row) -> page.Html:
    # A reason carries its own number in parentheses; what is counted is the kind.
    reasons = Counter(_kind(row["discarded"]) for row in selection["candidates"] if row["discarded"])
    listed = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(6))
    sentences = []
    if selection.get("reason"):
        sentences.append(f"{selection['reason'][:1].upper()}{selection['reason'][1:].rstrip('.')}.")
    if listed:
        sentences.append(f"Discarded: {listed}.")
    others = [row for row in selection.get("tied") or [] if _key(row) != _key(selection["selected"])]
    if others:
        near = ", ".join(f"{run.site(row)} {page.number(row.get('bypass'), signed=True)}" for row in others[:8])
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        sentences.append(f"Tied with it (bypass): {near}{more}; the choice among them is fragile.")
    baseline = selection.get("baseline") or {}
    if baseline:
        positive, negative = (page.number(baseline.get(key), signed=True) for key in ("positive", "negative"))
        sentences.append(
            f"Metric without intervention: {positive} on positive, {negative} on negative prompts{_of(selection)}."
        )
    return page.tag("p", " ".join(sentences))


def _kind(reason: str) -> str:
    return reason.split(" (")[0]


def _of(record: Row) -> str:
    n = record.get("n") or {}
    return f" (n = {n['positive']} and {n['negative']})" if "positive" in n and "negative" in n else ""


def separation(run: Run, draw: page.Canvas) -> page.Html:
    """Where the classes separate on held-out prompts."""
    if not run.separations:
        return page.section("Separation", page.note("Not measured: no direction was selected."))
    parts = []
    for seed in run.seeds:
        separation = run.separations.get(seed["seed"])
        if separation is None:
            continue
        site, name = seed["selected"], f"separation-seed-{seed['seed']}"
        aurocs = {_key(row): row["auroc"] for row in separation["grid"]}
        title = (
            f"Seed {seed['seed']}: AUROC {page.number(aurocs.get(_key(site)), 3)} at {run.site(site)}{_of(separation)}"
        )
        charts = [site_figures.projections(f"{name}-projections", separation["projections"])]
        if separation["grid"]:
            charts.insert(0, site_figures.auroc_map(f"{name}-auroc", separation["grid"], run.labels, site))
        parts.append((title, [draw(charts)]))
    note = page.note(
        "AUROC of the projection on each candidate; held-out test prompts, no intervention. Classes that separate are "
        "no evidence that a direction moves the behaviour: the arms are."
    )
    return page.section("Separation on test prompts", _seed_parts(parts), note)


def _key(site: Row | None) -> tuple | None:
    return (site["position"], site["layer"]) if site else None


def nulls(run: Run, draw: page.Canvas) -> page.Html:
    """Each null draw: its cosine and its effect."""
    charts = {seed["seed"]: arm_figures.nulls(seed) for seed in run.seeds if seed["selected"]}
    parts = [(f"Seed {seed}", [draw(found)]) for seed, found in charts.items() if found]
    if not parts:
        return page.section("Nulls", page.note("No null was drawn: no direction was selected."))
    note = page.note(
        "Each open mark is one null draw: how far it points along the direction, and how far it moves the "
        f"{arm_figures.measure(run.seeds)} the way the rule asks. A null that works and has a large cosine is the "
        "direction again, not a competitor."
    )
    return page.section("Null draws beside the direction", _seed_parts(parts), note)


def _arm_row(seed: Row, row: Row) -> list[Any]:
    numbers = [page.number(row[key], 3) for key in ("rate", "low", "high", "degenerate")]
    return [
        seed["seed"],
        row["arm"],
        row["set"],
        row["n"],
        *numbers,
        row.get("unscored"),
        page.number(row.get("metric"), 3),
    ]


def arms_table(run: Run) -> page.Html:
    """Every arm as a table."""
    head = [
        "Seed",
        "Arm",
        "Set",
        "n",
        arm_figures.measure(run.seeds).capitalize(),
        "Low",
        "High",
        "Degenerate",
        "Unscored",
        "Mean metric",
    ]
    rows = [(row["arm"].startswith("null:"), _arm_row(seed, row)) for seed in run.seeds for row in seed["arms"]]
    main, nulls = ([cells for is_null, cells in rows if is_null is kind] for kind in (False, True))
    folds = [page.fold(f"Baseline, ablation and addition ({len(main)} rows)", page.table(head, main, left=3))]
    if nulls:
        folds.append(page.fold(f"Null draws ({len(nulls)} rows)", page.table(head, nulls, left=3)))
    note = page.note(
        "Ablation on negative prompts is the side-effect arm. Intervals: 95 %. Degenerate: share of completions."
    )
    return page.section("Every arm", *folds, note)
