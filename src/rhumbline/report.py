"""The report: a run directory in, one self-contained page and its figures out.

Reads the JSON files of schema 1 and nothing else: no tensors, no models, no network. It decides nothing; every number
on the page is a number of the files, and `figures.py` draws them. The page loads nothing from anywhere, its scripts are
admitted by hash, and every text that came from a model, a path or a prompt is escaped.

    build(run_dir)            results.json of `run`            -> RUN/report.html, RUN/figures/*
    build_discover(run_dir)   discover.json of `discover`      -> the same, smaller
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from rhumbline import evidence_report, figures, page, style_report
from rhumbline.errors import OutputError
from rhumbline.figures import Row, arm_of, printable

# -- files ----------------------------------------------------------------------------------------------

_MAYBE, _TEXT, _POSITION = (int, float, NoneType), (str, NoneType), (int, str)
_COUNTS = {"positive": int, "negative": int}
_MODEL = {"name": str, "n_layers": int, "mode?": str}
_INTERVAL = {"low": _MAYBE, "high": _MAYBE}
_ARM = _INTERVAL | {"arm": str, "set": str, "n": int, "rate": _MAYBE, "degenerate": _MAYBE, "metric?": _MAYBE}
_EFFECT = _INTERVAL | {"name": str, "drop": _MAYBE, "gap": dict, "p": dict, "null?": dict}
_NULL = {"family": str, "draw": int, "cosine": _MAYBE}
_SITE = {"position": _POSITION, "layer": int}
_GRID = [_SITE | {"auroc": _MAYBE, "cosine": _MAYBE, "norm": _MAYBE}]
_SCORES = {"bypass": _MAYBE, "induce": _MAYBE, "kl": _MAYBE, "norm": _MAYBE, "discarded": _TEXT}
_OPTIONAL_SITE = (_SITE, None)
_SEED = {
    "seed": int,
    "verdict": str,
    "selected": _OPTIONAL_SITE,
    "arms": [_ARM],
    "effects": [_EFFECT],
    "nulls": [_NULL],
    "n": {"train?": _COUNTS, "val?": _COUNTS, "test?": _COUNTS},
    "refusal_tokens?": [{"id": int, "text": str}],
    "near_duplicates?": dict,
}
_RULE = {"min_baseline?": _MAYBE, "min_drop?": _MAYBE, "min_gap?": _MAYBE, "families?": [str]}
_SHAPES: dict[str, Any] = {
    "protocol.json": {
        "preset": str,
        "behaviour": str,
        "model": _MODEL,
        "chat": {"positions": [_POSITION], "suffix_tokens": [str]},
        "contrast": {"name": str},
        "sizes": dict,
        "selection": dict,
        "rule": _RULE,
    },
    "results.json": {
        "protocol_sha256": str,
        "verdict": str,
        "sentence": str,
        "rule": _RULE,
        "model": _MODEL,
        "seeds": [_SEED],
        "environment": dict,
        "timings": {"stages?": [dict]},
    },
    "selection.json": {
        "protocol_sha256": str,
        "selected": _OPTIONAL_SITE,
        "survivors": int,
        "tied?": [_SITE],
        "candidates": [_SITE | _SCORES],
    },
    "separation.json": {
        "protocol_sha256": str,
        "n": _COUNTS,
        "grid": _GRID,
        "projections": [{"label": str, "projection": _MAYBE}],
    },
    "discover.json": {
        "protocol_sha256": str,
        "model": _MODEL,
        "train": _COUNTS,
        "split": str,
        "n": _COUNTS,
        "grid": _GRID,
    },
}
"""What the page relies on; files may hold more. A key that ends in `?` may be absent; (shape, None) may be null."""


def _faults(value: Any, shape: Any, where: str) -> list[str]:
    """Everything in which `value` departs from `shape`."""
    if isinstance(shape, tuple) and shape[-1] is None:
        return [] if value is None else _faults(value, shape[0], where)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where} is not an object"]
        faults = []
        for name, inner in shape.items():
            key = name.removesuffix("?")
            if key in value:
                faults += _faults(value[key], inner, f"{where}.{key}")
            elif key == name:
                faults.append(f"{where}.{key} is missing")
        return faults
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is not a list"]
        return [fault for k, item in enumerate(value) for fault in _faults(item, shape[0], f"{where}[{k}]")]
    return [] if isinstance(value, shape) else [f"{where} is {json.dumps(value)[:40]}"]


def _read(path: Path) -> Row:
    """One JSON file of the run, checked; NaN and infinities become null."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError as error:
        raise OutputError(f"{path} is missing: is {path.parent} a finished run?") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read as JSON: {error}") from error
    faults = _faults(value, _SHAPES[path.name], path.stem)
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise OutputError(f"{path} is malformed: {'; '.join(faults[:5])}{more}. Run `rhumbline verify {path.parent}`.")
    return value


@dataclass(frozen=True)
class _Run:
    """What the files of a run say."""

    path: Path
    protocol: Row
    results: Row
    selections: Mapping[int, Row] = field(default_factory=dict)
    """By seed; a seed that ended before has none."""
    separations: Mapping[int, Row] = field(default_factory=dict)

    @property
    def seeds(self) -> list[Row]:
        return self.results["seeds"]

    @property
    def labels(self) -> dict:
        chat = self.protocol["chat"]
        return figures.position_labels(chat["positions"], chat["suffix_tokens"])

    def site(self, site: Row | None) -> str:
        """A position and a layer, as text."""
        return "none" if site is None else f"({site['position']}, {site['layer']})"


def _load(path: Path) -> _Run:
    protocol, results = _read(path / "protocol.json"), _read(path / "results.json")
    found: dict[str, dict[int, Row]] = {"selection.json": {}, "separation.json": {}}
    for seed in results["seeds"]:
        early = seed["verdict"].startswith("NO-BASELINE")
        for name, needed in (("selection.json", not early), ("separation.json", seed["selected"] is not None)):
            file = path / f"seed-{seed['seed']}" / name
            if not needed and not file.exists():
                continue
            value = found[name][seed["seed"]] = _read(file)
            if value["protocol_sha256"] != results["protocol_sha256"]:
                raise OutputError(
                    f"{file} belongs to another protocol than {path / 'results.json'}: rerun into a new directory."
                )
    return _Run(path, protocol, results, found["selection.json"], found["separation.json"])


# -- sections -------------------------------------------------------------------------------------------

_BADGES = {
    "SINGLE-DIRECTION-REPRODUCES": ("yes", "●"),
    "NOT-SINGLE-DIRECTION": ("no", "○"),
    "DAMAGED": ("no", "✕"),
}


def _badge(verdict: str, class_: str = "badge") -> page.Html:
    kind, glyph = _BADGES.get(verdict, ("open", "◌"))
    return page.tag("span", page.tag("i", glyph), " ", verdict, class_=f"{class_} {kind}")


def _heading(kicker: str, model: Row, facts: Iterable[tuple[str, Any]]) -> page.Html:
    listed = page.join(page.tag("div", page.tag("dt", key), page.tag("dd", value)) for key, value in facts if value)
    return page.tag(
        "header",
        page.tag("p", f"rhumbline {kicker}", class_="kicker"),
        page.tag("h1", model["name"]),
        page.tag("dl", listed),
    )


def _header(run: _Run) -> page.Html:
    results, protocol = run.results, run.protocol
    facts = [
        ("Behaviour", protocol["behaviour"]),
        ("Contrast", protocol["contrast"]["name"]),
        ("Preset", protocol["preset"]),
        ("Judge", protocol.get("judge")),
        ("Model", _model_line(results["model"])),
        ("Seeds", ", ".join(str(seed["seed"]) for seed in run.seeds)),
        ("Started", results["environment"].get("started")),
        ("Protocol", f"sha256 {results['protocol_sha256'][:12]}"),
    ]
    question = f"·  Is {protocol['behaviour']} mediated by a single direction in the residual stream?"
    return _heading(question, results["model"], facts)


def _model_line(model: Row) -> str:
    width = f" × {model['d_model']}" if "d_model" in model else ""
    return f"{model.get('class', 'model')}, {model['n_layers']} layers{width}, {model.get('dtype', '')}".rstrip(", ")


def _verdict(run: _Run) -> page.Html:
    results = run.results
    # The sentence of a run quotes those of its seeds: one paragraph each, in smaller type when there is much to say.
    parts = re.split(r"\s+(?=Seed \d+: )", results["sentence"])
    said = [page.tag("p", part, class_="sentence" if len(part) < 160 else "sentence long") for part in parts]
    reason = page.tag("p", results["reason"], class_="reason") if results.get("reason") else ""
    return page.tag("div", _badge(results["verdict"]), *said, reason, class_="verdict")


def _meaning(run: _Run) -> page.Html:
    verdict, behaviour = run.results["verdict"], run.protocol["behaviour"]
    if len({seed["verdict"] for seed in run.seeds}) > 1:
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


def _agreement(run: _Run) -> str:
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


def _limits(run: _Run) -> list[str]:
    protocol, model = run.protocol, run.results["model"]
    tokens = protocol.get("max_new_tokens") or protocol.get("generation", {}).get("max_new_tokens")
    read = f", from at most {tokens} generated tokens" if tokens else ""
    coarse = (
        f"The readout is coarse: the judge {protocol.get('judge', '')} assigns each completion a class{read}. Trust "
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


def _key_numbers(run: _Run) -> page.Html:
    families = list(dict.fromkeys(family for seed in run.seeds for effect in seed["effects"] for family in effect["p"]))
    head = ["Seed", "Site", "Norm", "Survivors", "Test", "Baseline → direction", "Drop or rise [95 %]", "n"]
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
            "whose draws moved the rate most, and the gap to it (the effect less their mean effect). Wide p, worst: "
            "the largest rank p by the fast metric among the families of the rule. Every family is in the sections "
            "below."
        )
    return page.section("Key numbers", page.table(head, rows, left=2, key=True), note)


def _family_head(run: _Run, family: str) -> page.Html:
    draws = [e.get("null", {}).get(family, {}).get("draws") for s in run.seeds for e in s["effects"]]
    count = max((d for d in draws if d is not None), default=None)
    detail = f"{page.count(count, 'draw')}, p ≥ {1 / (count + 1):.3g}" if count else "gap, p"
    return page.join([f"vs {family}", page.tag("small", detail)])


def _seed_rows(run: _Run, seed: Row, families: Sequence[str]) -> list[list[Any]]:
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
        arm, which, _ = figures.PANELS.get(effect["name"], ("", "", 1))
        arms = (arm_of(seed["arms"], name, which) for name in ("baseline", arm))
        rates = [row["rate"] if row else None for row in arms]
        against = [_against(effect, family) for family in families]
        if len(families) > MANY_FAMILIES:
            against = _nearest(effect, run.results["rule"].get("families", []))
        test = [
            effect["name"],
            f"{page.number(rates[0])} → {page.number(rates[1])}",
            page.interval(effect, "drop"),
            effect.get("n"),
        ]
        rows.append([*(start if not rows else [""] * 4), *test, *against])
    if not rows:
        baseline = arm_of(seed["arms"], "baseline", "positive")
        rate = page.join([page.interval(baseline, "rate"), " → —"]) if baseline else "—"
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


def _arms_figure(run: _Run, draw: page.Canvas) -> page.Html:
    charts, rule = figures.arms(run.seeds, run.results["rule"]), run.results["rule"]
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


def _selection(run: _Run, draw: page.Canvas) -> page.Html:
    rule = run.protocol["selection"]
    if not run.selections:
        return page.section("Selection", page.note("No candidate was scored: the run ended before selection."))
    parts = []
    for seed, selection in run.selections.items():
        charts = figures.selection(seed, selection, run.labels, rule.get("max_kl"))
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


def _outcome(run: _Run, selection: Row) -> str:
    chosen = "none" if selection["selected"] is None else run.site(selection["selected"])
    return f"{chosen} selected; {selection['survivors']} of {len(selection['candidates'])} candidates passed"


def _selection_text(run: _Run, selection: Row) -> page.Html:
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


def _separation(run: _Run, draw: page.Canvas) -> page.Html:
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
        charts = [figures.projections(f"{name}-projections", separation["projections"])]
        if separation["grid"]:
            charts.insert(0, figures.auroc_map(f"{name}-auroc", separation["grid"], run.labels, site))
        parts.append((title, [draw(charts)]))
    note = page.note(
        "AUROC of the projection on each candidate; held-out test prompts, no intervention. Classes that separate are "
        "no evidence that a direction moves the behaviour: the arms are."
    )
    return page.section("Separation on test prompts", _seed_parts(parts), note)


def _key(site: Row | None) -> tuple | None:
    return (site["position"], site["layer"]) if site else None


def _nulls(run: _Run, draw: page.Canvas) -> page.Html:
    charts = {seed["seed"]: figures.nulls(seed) for seed in run.seeds if seed["selected"]}
    parts = [(f"Seed {seed}", [draw(found)]) for seed, found in charts.items() if found]
    if not parts:
        return page.section("Nulls", page.note("No null was drawn: no direction was selected."))
    note = page.note(
        "Each open mark is one null draw: how far it points along the direction, and how far it moves the rate the way "
        "the rule asks. A null that works and has a large cosine is the direction again, not a competitor."
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


def _arms_table(run: _Run) -> page.Html:
    head = ["Seed", "Arm", "Set", "n", "Rate", "Low", "High", "Degenerate", "Unscored", "Mean metric"]
    rows = [(row["arm"].startswith("null:"), _arm_row(seed, row)) for seed in run.seeds for row in seed["arms"]]
    main, nulls = ([cells for is_null, cells in rows if is_null is kind] for kind in (False, True))
    folds = [page.fold(f"Baseline, ablation and addition ({len(main)} rows)", page.table(head, main, left=3))]
    if nulls:
        folds.append(page.fold(f"Null draws ({len(nulls)} rows)", page.table(head, nulls, left=3)))
    note = page.note(
        "Ablation on negative prompts is the side-effect arm. Intervals: 95 %. Degenerate: share of completions."
    )
    return page.section("Every arm", *folds, note)


def _rule_sentence(rule: Row, families: Sequence[str]) -> str:
    least, drop, gap = (rule.get(key) for key in ("min_baseline", "min_drop", "min_gap"))
    against = " and ".join(families) or "none"
    said = [f"Rule {rule.get('name', '')}, fixed before the first forward pass:"]
    if least is not None:
        said.append(f"no baseline if fewer than {least:.0%} of the positive prompts show the behaviour;")
    if drop is not None:
        said.append(
            "otherwise a single direction reproduces if ablation lowers the rate on positive prompts and addition"
        )
        said.append(f"raises it on negative ones, both by at least {page.number(drop)} against the baseline")
    if gap is not None:
        said.append(f"and by at least {page.number(gap)} more than the null families ({against});")
    if rule.get("reads") == "interval":
        said.append("with the whole 95 % interval (an interval with a margin inside is inconclusive);")
    if rule.get("max_p") is not None:
        said.append(f"and if the direction ranks among the wide nulls of every family with p <= {rule['max_p']:g}")
        near = rule.get("same_cosine")
        said.append("" if near is None else f"(draws with a |cosine| above {near:g} are the direction again);")
    if rule.get("min_group_cosine") is not None:
        said.append(f"and if two groups of positives have directions of a cosine >= {rule['min_group_cosine']:g};")
    bounds = {
        "max_degenerate": "degenerate completions",
        "max_kl": "KL on negatives",
        "max_accuracy_loss": "lost answers",
    }
    limits = [f"{text} up to {rule[key]:g}" for key, text in bounds.items() if rule.get(key) is not None]
    if limits:
        said.append(f"damaged beyond {', '.join(limits)};")
    said.append("otherwise not.")
    told = {
        "name",
        "min_baseline",
        "min_drop",
        "min_gap",
        "families",
        "reads",
        "max_p",
        "same_cosine",
        "min_group_cosine",
        *bounds,
    }
    others = {k: v for k, v in rule.items() if k not in told and v is not None}
    if others:
        said.append("Also: " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in others.items()) + ".")
    return " ".join(said)


def _data_table(run: _Run) -> page.Html:
    requested, rows = run.protocol["sizes"], []
    for seed in run.seeds:
        for split, n in seed["n"].items():
            rows.append([seed["seed"], split, requested.get(split), n.get("positive"), n.get("negative")])
    return page.table(["Seed", "Split", "Requested per class", "Positive", "Negative"], rows, left=2)


def _tokens_table(run: _Run) -> page.Html:
    rows = []
    for seed in run.seeds:
        tokens = ", ".join(f'"{printable(t["text"])}" ({t["id"]})' for t in seed.get("refusal_tokens") or [])
        near = seed.get("near_duplicates") or {}
        rows.append(
            [
                seed["seed"],
                tokens or "none",
                page.number(seed.get("token_auroc"), 3),
                near.get("found"),
                near.get("dropped"),
            ]
        )
    return page.table(["Seed", "Refusal tokens (id)", "AUROC on train", "Near-duplicates", "Dropped"], rows, left=2)


def _timings(run: _Run) -> page.Html:
    timings = run.results["timings"]
    rows = [
        [s.get("stage"), s.get("seed"), page.number(s.get("seconds"), 1), page.number(s.get("peak_memory_mb"), 0)]
        for s in timings.get("stages", [])
    ]
    rows.append(["total", "", page.number(timings.get("total_seconds"), 1), ""])
    return page.table(["Stage", "Seed", "Seconds", "Peak memory, MB"], rows)


def _protocol(run: _Run) -> page.Html:
    results = run.results
    environment = [[key, value] for key, value in results["environment"].items()]
    families = results["rule"].get("families", [])
    pairs = (
        ("Data", _data_table(run)),
        ("Tokens and duplicates", _tokens_table(run)),
        ("Environment", page.table(["", ""], environment, left=2)),
        ("Time and memory", _timings(run)),
    )
    boxes = page.tag(
        "div", page.join(page.tag("div", page.tag("h3", title), body) for title, body in pairs), class_="grid"
    )
    fold = page.fold(f"protocol.json, sha256 {results['protocol_sha256']}", page.pretty(run.protocol))
    return page.section("Protocol", page.tag("p", _rule_sentence(results["rule"], families)), boxes, fold)


def _cite(run: _Run) -> page.Html:
    results = run.results
    version = results["environment"].get("rhumbline", "")
    text = (
        f"{results['model']['name']}, {run.protocol['behaviour']}: {results['verdict']}. Seeds: {len(run.seeds)}. "
        f"rhumbline {version}, preset {run.protocol['preset']}, protocol sha256 {results['protocol_sha256']}."
    )
    command = f"rhumbline verify {run.path.name}"
    said = (
        "recomputes the verdict from the per-prompt rows and the hashes from the files; it exits with 0 if they hold."
    )
    method = (
        "Method: Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction, arXiv 2406.11717."
    )
    return page.section(
        "Verify and cite", page.tag("p", page.tag("code", command), " ", said), page.tag("pre", text), page.note(method)
    )


# -- the page -------------------------------------------------------------------------------------------


def build(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a finished run, and return the page's path."""
    run, draw = _load(run_dir), page.Canvas()
    warnings = run.results.get("warnings") or []
    body = [
        _header(run),
        _verdict(run),
        page.tag("div", page.tag("h3", "Warnings"), page.bullets(warnings), class_="warnings") if warnings else "",
        _meaning(run),
        _key_numbers(run),
        _arms_figure(run, draw),
        _selection(run, draw),
        _separation(run, draw),
        _nulls(run, draw),
        style_report.section(run.protocol, run.results["seeds"]),
        *evidence_report.sections(run.protocol, run.results, draw),
        _arms_table(run),
        _protocol(run),
        _cite(run),
    ]
    return page.publish(run_dir, f"{run.results['model']['name']}: {run.protocol['behaviour']}", body, draw.drawings)


def build_discover(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a `discover` run, and return the page's path."""
    protocol, found = _read(run_dir / "protocol.json"), _read(run_dir / "discover.json")
    draw, model, chat = page.Canvas(), found["model"], protocol["chat"]
    labels = figures.position_labels(chat["positions"], chat["suffix_tokens"])
    facts = [
        ("Behaviour", protocol["behaviour"]),
        ("Contrast", protocol["contrast"]["name"]),
        ("Model", _model_line(model)),
        ("Protocol", f"sha256 {found['protocol_sha256'][:12]}"),
    ]
    caution = (
        "Extraction only: nothing was generated and nothing was intervened on. Classes that separate are no evidence "
        "that a direction moves the behaviour."
    )
    known = sorted((row for row in found["grid"] if row["auroc"] is not None), key=lambda row: -row["auroc"])
    best = [
        [
            labels.get(r["position"], r["position"]),
            r["layer"],
            page.number(r["auroc"], 3),
            page.number(r["cosine"], 3),
            page.number(r["norm"]),
        ]
        for r in known[:8]
    ]
    splits = [("train", found["train"]), (found["split"], found["n"])]
    sizes = [[split, n.get("positive"), n.get("negative")] for split, n in splits]
    note = page.note(
        f"AUROC of the projection of {found['split']} prompts on the difference in means of train prompts."
    )
    charts = figures.discover(found["grid"], labels) if found["grid"] else []
    sizes_table = page.table(["Split", "Positive", "Negative"], sizes)
    body = [
        _heading("discover  ·  Where do the classes separate in the residual stream?", model, facts),
        page.tag("div", page.tag("p", caution, class_="sentence"), class_="verdict"),
        page.section("Separation per layer and position", draw(charts[:1]), draw(charts[1:]), note),
        page.section("Highest AUROC", page.table(["Position", "Layer", "AUROC", "Cosine of means", "Norm"], best)),
        page.section("Protocol", sizes_table, page.fold("protocol.json", page.pretty(protocol))),
    ]
    return page.publish(run_dir, f"{model['name']}: discover", body, draw.drawings)
