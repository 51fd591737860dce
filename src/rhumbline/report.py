"""The report: a run directory in, one self-contained page and its figures out.

Reads the JSON files of schema 1 and nothing else: no tensors, no models, no network. It decides nothing; every number
on the page is a number of the files, and `figures.py` draws them. The page loads nothing from anywhere, its scripts are
admitted by hash, and every text that came from a model, a path or a prompt is escaped.

    build(run_dir)            results.json of `run`            -> RUN/report.html, RUN/figures/*
    build_discover(run_dir)   discover.json of `discover`      -> the same, smaller
"""

import base64
import hashlib
import html
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import vl_convert

from rhumbline import figures
from rhumbline.errors import OutputError
from rhumbline.figures import Chart, Drawing, Row, arm_of, printable

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


def _write(path: Path, content: str | bytes) -> None:
    """Beside it first, then in its place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error}") from error


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


# -- markup ---------------------------------------------------------------------------------------------


class _Html(str):
    """Text that is markup already; everything else is escaped."""


def _h(value: Any) -> str:
    if isinstance(value, _Html):
        return value
    text = "—" if value is None else str(value)
    return html.escape("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def _tag(name: str, *content: Any, **attributes: Any) -> _Html:
    """<name attributes>content</name>; `class_` is class and `aria_label` is aria-label."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value
    )
    return _Html(f"<{name}{written}>{''.join(_h(item) for item in content)}</{name}>")


def _join(items: Iterable[Any], between: str = "") -> _Html:
    return _Html(between.join(_h(item) for item in items))


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]], left: int = 1, key: bool = False) -> _Html:
    """A table in a box that scrolls by itself; the first `left` columns hold text, the others numbers.

    On a phone the rows of a `key` table become cards, in which every cell says its column.
    """
    side = ["l" if k < left else "" for k in range(len(head))]
    titles = _join(_tag("th", cell, class_=s, scope="col") for cell, s in zip(head, side, strict=True))
    labels = [re.sub("<.*", "", cell) if key else "" for cell in head]
    body = _join(
        (
            _tag(
                "tr", _join(_tag("td", cell, class_=s, data_h=h) for cell, s, h in zip(row, side, labels, strict=True))
            )
            for row in rows
        ),
        "\n",
    )
    table = _tag("table", _tag("thead", _tag("tr", titles)), _tag("tbody", body), class_="key" if key else "")
    return _tag("div", table, class_="scroll")


def _fold(summary: Any, *content: Any, class_: str = "") -> _Html:
    return _tag("details", _tag("summary", summary), *content, class_=class_)


def _section(title: str, *content: Any) -> _Html:
    return _tag("section", _tag("h2", title), *content)


def _note(*content: Any) -> _Html:
    return _tag("p", *content, class_="note")


def _bullets(items: Iterable[Any]) -> _Html:
    return _tag("ul", _join(_tag("li", item) for item in items))


def _f(value: float | None, digits: int = 2, signed: bool = False) -> str:
    return "—" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _interval(row: Mapping, key: str, signed: bool = False) -> _Html:
    span = f"[{_f(row['low'])}, {_f(row['high'])}]"
    return _join([_tag("b", _f(row[key], signed=signed)), " ", _tag("span", span, class_="ci")])


def _pretty(value: Any) -> _Html:
    return _tag("pre", json.dumps(value, indent=2, ensure_ascii=False))


class _Canvas:
    """Draws charts once, remembers them for the folder of figures, and hands out their markup."""

    def __init__(self) -> None:
        self.drawings: list[Drawing] = []

    def __call__(self, charts: Iterable[Chart | None]) -> _Html:
        shown = [self._one(chart) for chart in charts if chart is not None]
        widest = max((drawing.width for drawing in self.drawings[len(self.drawings) - len(shown) :]), default=0)
        columns = "narrow" if widest < 450 else "middle" if widest < 600 else ""
        return _tag("div", _join(shown), class_=f"charts {columns}".strip())

    def _one(self, chart: Chart) -> _Html:
        drawing = figures.draw(chart)
        self.drawings.append(drawing)
        # `<` never appears raw, so that no text in the data can end the script element.
        spec = json.dumps(drawing.inline_spec, separators=(",", ":")).replace("<", "\\u003c")
        data = _Html(f'<script type="application/json">{spec}</script>')
        still = _tag("div", _Html(drawing.inline_svg), class_="still")
        wide = "chart wide" if drawing.width > 700 else "chart"
        return _tag("figure", still, data, class_=wide, id=f"fig-{chart.name}", role="img", aria_label=chart.summary)


# -- sections -------------------------------------------------------------------------------------------

_BADGES = {"SINGLE-DIRECTION-REPRODUCES": ("yes", "●"), "NOT-SINGLE-DIRECTION": ("no", "○")}


def _badge(verdict: str, class_: str = "badge") -> _Html:
    kind, glyph = _BADGES.get(verdict, ("open", "◌"))
    return _tag("span", _tag("i", glyph), " ", verdict, class_=f"{class_} {kind}")


def _heading(kicker: str, model: Row, facts: Iterable[tuple[str, Any]]) -> _Html:
    listed = _join(_tag("div", _tag("dt", key), _tag("dd", value)) for key, value in facts if value)
    return _tag(
        "header", _tag("p", f"rhumbline {kicker}", class_="kicker"), _tag("h1", model["name"]), _tag("dl", listed)
    )


def _header(run: _Run) -> _Html:
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


def _verdict(run: _Run) -> _Html:
    results = run.results
    # The sentence of a run quotes those of its seeds: one paragraph each, in smaller type when there is much to say.
    parts = re.split(r"\s+(?=Seed \d+: )", results["sentence"])
    said = [_tag("p", part, class_="sentence" if len(part) < 160 else "sentence long") for part in parts]
    reason = _tag("p", results["reason"], class_="reason") if results.get("reason") else ""
    return _tag("div", _badge(results["verdict"]), *said, reason, class_="verdict")


def _meaning(run: _Run) -> _Html:
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
    else:
        shows = ["The evidence does not decide the question; the reason is given above and the numbers below."]
    shows.append(_agreement(run))
    columns = (("What this shows", shows), ("What it does not show", _limits(run)))
    return _tag(
        "div", _join(_tag("div", _tag("h3", title), _bullets(items)) for title, items in columns), class_="meaning"
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
    draws = protocol.get("nulls", {}).get("draws")
    if draws and run.results["verdict"] == "SINGLE-DIRECTION-REPRODUCES":
        floor = f"With {_count(draws, 'draw')} per null family no p-value can be below {1 / (draws + 1):.3g}"
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


def _key_numbers(run: _Run) -> _Html:
    families = list(dict.fromkeys(family for seed in run.seeds for effect in seed["effects"] for family in effect["p"]))
    head = ["Seed", "Site", "Norm", "Survivors", "Test", "Baseline → direction", "Drop or rise [95 %]", "n"]
    head += [_family_head(run, family) for family in families]
    rows = [row for seed in run.seeds for row in _seed_rows(run, seed, families)]
    layers = run.results["model"]["n_layers"]
    note = _note(
        f"Site: position and layer of the selected direction, out of {layers} layers. Under each family: the gap (the "
        "effect less the mean effect of its draws) and p (the rank of the direction among them, at least "
        "1 / (draws + 1))."
    )
    return _section("Key numbers", _table(head, rows, left=2, key=True), note)


def _family_head(run: _Run, family: str) -> _Html:
    draws = [e.get("null", {}).get(family, {}).get("draws") for s in run.seeds for e in s["effects"]]
    count = max((d for d in draws if d is not None), default=None)
    detail = f"{_count(count, 'draw')}, p ≥ {1 / (count + 1):.3g}" if count else "gap, p"
    return _join([f"vs {family}", _tag("small", detail)])


def _seed_rows(run: _Run, seed: Row, families: Sequence[str]) -> list[list[Any]]:
    site = seed["selected"]
    disagree = len({other["verdict"] for other in run.seeds}) > 1
    verdict = _badge(seed["verdict"], "mini") if disagree else ""
    start = [
        _join([_tag("b", seed["seed"]), " ", verdict]),
        run.site(site) if site else "none selected",
        _f(site.get("norm")) if site else "—",
        seed.get("survivors"),
    ]
    rows = []
    for effect in seed["effects"]:
        arm, which, _ = figures.PANELS.get(effect["name"], ("", "", 1))
        arms = (arm_of(seed["arms"], name, which) for name in ("baseline", arm))
        rates = [row["rate"] if row else None for row in arms]
        against = [_against(effect, family) for family in families]
        test = [effect["name"], f"{_f(rates[0])} → {_f(rates[1])}", _interval(effect, "drop"), effect.get("n")]
        rows.append([*(start if not rows else [""] * 4), *test, *against])
    if not rows:
        baseline = arm_of(seed["arms"], "baseline", "positive")
        rate = _join([_interval(baseline, "rate"), " → —"]) if baseline else "—"
        rows.append([*start, "baseline only", rate, "—", baseline["n"] if baseline else "—", *("—" for _ in families)])
    return rows


def _against(effect: Row, family: str) -> _Html:
    p = effect["p"].get(family)
    shown = "p —" if p is None else f"p {p:.3f}"
    return _join([_f(effect["gap"].get(family), signed=True), " ", _tag("span", shown, class_="ci")])


def _arms_figure(run: _Run, draw: _Canvas) -> _Html:
    charts, rule = figures.arms(run.seeds, run.results["rule"]), run.results["rule"]
    if not charts:
        return _section("Arms", _note("No arm was measured."))
    marks = "■ baseline, with its 95 % interval. "
    lines = f"Dashed line: the lowest baseline that the rule accepts ({_f(rule.get('min_baseline'))}). "
    floor = lines
    if any(seed["selected"] for seed in run.seeds):
        marks = (
            "■ baseline and ● direction, each with its 95 % interval; open marks: one null draw each, ❙ the mean of "
            "their family. "
        )
        lines = (
            f"Dashed line: the baseline moved by the rule's margin ({_f(rule.get('min_drop'))}); brackets: the mean of "
            f"a family moved by its margin ({_f(rule.get('min_gap'))}). Shaded: where the rule asks the direction to "
            "be. "
        )
    if run.results["verdict"].startswith("NO-BASELINE"):
        lines = floor
    return _section("Arms", draw(charts), _note(marks, lines, "Point at a mark for its numbers."))


def _selection(run: _Run, draw: _Canvas) -> _Html:
    rule = run.protocol["selection"]
    if not run.selections:
        return _section("Selection", _note("No candidate was scored: the run ended before selection."))
    parts = []
    for seed, selection in run.selections.items():
        charts = figures.selection(seed, selection, run.labels, rule.get("max_kl"))
        parts.append((f"Seed {seed}: {_outcome(run, selection)}", [_selection_text(run, selection), draw(charts)]))
    settings = ", ".join(f"{key} = {value}" for key, value in rule.items() if key != "name" and value is not None)
    note = _note(
        f"Rule {rule.get('name', '')}: {settings}. bypass: mean metric on positive validation prompts with the "
        "candidate ablated; induce: on negative ones with it added; kl: change of the next-token distribution on "
        "negative ones under ablation. Full cells passed; small cells were discarded; empty cells were not scored; the "
        "framed cell is the selected one. Point at a cell for its scores and its reason."
    )
    return _section("Selection on validation prompts", _seed_parts(parts), note)


def _seed_parts(parts: Sequence[tuple[str, Sequence[Any]]]) -> _Html:
    """One part a seed; from three seeds on, only the first lies open."""
    opened = len(parts) if len(parts) <= 2 else 1
    shown = [
        _tag("div", _tag("h3", title), *content) if k < opened else _fold(title, *content, class_="seed")
        for k, (title, content) in enumerate(parts)
    ]
    return _join(shown)


def _outcome(run: _Run, selection: Row) -> str:
    chosen = "none" if selection["selected"] is None else run.site(selection["selected"])
    return f"{chosen} selected; {selection['survivors']} of {len(selection['candidates'])} candidates passed"


def _selection_text(run: _Run, selection: Row) -> _Html:
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
        near = ", ".join(f"{run.site(row)} {_f(row.get('bypass'), signed=True)}" for row in others[:8])
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        sentences.append(f"Tied with it (bypass): {near}{more}; the choice among them is fragile.")
    baseline = selection.get("baseline") or {}
    if baseline:
        positive, negative = (_f(baseline.get(key), signed=True) for key in ("positive", "negative"))
        sentences.append(
            f"Metric without intervention: {positive} on positive, {negative} on negative prompts{_of(selection)}."
        )
    return _tag("p", " ".join(sentences))


def _kind(reason: str) -> str:
    return reason.split(" (")[0]


def _of(record: Row) -> str:
    n = record.get("n") or {}
    return f" (n = {n['positive']} and {n['negative']})" if "positive" in n and "negative" in n else ""


def _separation(run: _Run, draw: _Canvas) -> _Html:
    if not run.separations:
        return _section("Separation", _note("Not measured: no direction was selected."))
    parts = []
    for seed in run.seeds:
        separation = run.separations.get(seed["seed"])
        if separation is None:
            continue
        site, name = seed["selected"], f"separation-seed-{seed['seed']}"
        aurocs = {_key(row): row["auroc"] for row in separation["grid"]}
        title = f"Seed {seed['seed']}: AUROC {_f(aurocs.get(_key(site)), 3)} at {run.site(site)}{_of(separation)}"
        charts = [figures.projections(f"{name}-projections", separation["projections"])]
        if separation["grid"]:
            charts.insert(0, figures.auroc_map(f"{name}-auroc", separation["grid"], run.labels, site))
        parts.append((title, [draw(charts)]))
    note = _note(
        "AUROC of the projection on each candidate; held-out test prompts, no intervention. Classes that separate are "
        "no evidence that a direction moves the behaviour: the arms are."
    )
    return _section("Separation on test prompts", _seed_parts(parts), note)


def _key(site: Row | None) -> tuple | None:
    return (site["position"], site["layer"]) if site else None


def _nulls(run: _Run, draw: _Canvas) -> _Html:
    charts = {seed["seed"]: figures.nulls(seed) for seed in run.seeds if seed["selected"]}
    parts = [(f"Seed {seed}", [draw(found)]) for seed, found in charts.items() if found]
    if not parts:
        return _section("Nulls", _note("No null was drawn: no direction was selected."))
    note = _note(
        "Each open mark is one null draw: how far it points along the direction, and how far it moves the rate the way "
        "the rule asks. A null that works and has a large cosine is the direction again, not a competitor."
    )
    return _section("Null draws beside the direction", _seed_parts(parts), note)


def _arm_row(seed: Row, row: Row) -> list[Any]:
    numbers = [_f(row[key], 3) for key in ("rate", "low", "high", "degenerate")]
    return [seed["seed"], row["arm"], row["set"], row["n"], *numbers, row.get("unscored"), _f(row.get("metric"), 3)]


def _arms_table(run: _Run) -> _Html:
    head = ["Seed", "Arm", "Set", "n", "Rate", "Low", "High", "Degenerate", "Unscored", "Mean metric"]
    rows = [(row["arm"].startswith("null:"), _arm_row(seed, row)) for seed in run.seeds for row in seed["arms"]]
    main, nulls = ([cells for is_null, cells in rows if is_null is kind] for kind in (False, True))
    folds = [_fold(f"Baseline, ablation and addition ({len(main)} rows)", _table(head, main, left=3))]
    if nulls:
        folds.append(_fold(f"Null draws ({len(nulls)} rows)", _table(head, nulls, left=3)))
    note = _note(
        "Ablation on negative prompts is the side-effect arm. Intervals: 95 %. Degenerate: share of completions."
    )
    return _section("Every arm", *folds, note)


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
        said.append(f"raises it on negative ones, both by at least {_f(drop)} against the baseline")
    if gap is not None:
        said.append(f"and by at least {_f(gap)} more than the null families ({against});")
    said.append("otherwise not.")
    others = {k: v for k, v in rule.items() if k not in ("name", "min_baseline", "min_drop", "min_gap", "families")}
    if others:
        said.append("Also: " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in others.items()) + ".")
    return " ".join(said)


def _data_table(run: _Run) -> _Html:
    requested, rows = run.protocol["sizes"], []
    for seed in run.seeds:
        for split, n in seed["n"].items():
            rows.append([seed["seed"], split, requested.get(split), n.get("positive"), n.get("negative")])
    return _table(["Seed", "Split", "Requested per class", "Positive", "Negative"], rows, left=2)


def _tokens_table(run: _Run) -> _Html:
    rows = []
    for seed in run.seeds:
        tokens = ", ".join(f'"{printable(t["text"])}" ({t["id"]})' for t in seed.get("refusal_tokens") or [])
        near = seed.get("near_duplicates") or {}
        rows.append(
            [seed["seed"], tokens or "none", _f(seed.get("token_auroc"), 3), near.get("found"), near.get("dropped")]
        )
    return _table(["Seed", "Refusal tokens (id)", "AUROC on train", "Near-duplicates", "Dropped"], rows, left=2)


def _timings(run: _Run) -> _Html:
    timings = run.results["timings"]
    rows = [
        [s.get("stage"), s.get("seed"), _f(s.get("seconds"), 1), _f(s.get("peak_memory_mb"), 0)]
        for s in timings.get("stages", [])
    ]
    rows.append(["total", "", _f(timings.get("total_seconds"), 1), ""])
    return _table(["Stage", "Seed", "Seconds", "Peak memory, MB"], rows)


def _protocol(run: _Run) -> _Html:
    results = run.results
    environment = [[key, value] for key, value in results["environment"].items()]
    families = results["rule"].get("families", [])
    pairs = (
        ("Data", _data_table(run)),
        ("Tokens and duplicates", _tokens_table(run)),
        ("Environment", _table(["", ""], environment, left=2)),
        ("Time and memory", _timings(run)),
    )
    boxes = _tag("div", _join(_tag("div", _tag("h3", title), body) for title, body in pairs), class_="grid")
    fold = _fold(f"protocol.json, sha256 {results['protocol_sha256']}", _pretty(run.protocol))
    return _section("Protocol", _tag("p", _rule_sentence(results["rule"], families)), boxes, fold)


def _cite(run: _Run) -> _Html:
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
    return _section("Verify and cite", _tag("p", _tag("code", command), " ", said), _tag("pre", text), _note(method))


# -- the page -------------------------------------------------------------------------------------------


def build(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a finished run, and return the page's path."""
    run, draw = _load(run_dir), _Canvas()
    warnings = run.results.get("warnings") or []
    body = [
        _header(run),
        _verdict(run),
        _tag("div", _tag("h3", "Warnings"), _bullets(warnings), class_="warnings") if warnings else "",
        _meaning(run),
        _key_numbers(run),
        _arms_figure(run, draw),
        _selection(run, draw),
        _separation(run, draw),
        _nulls(run, draw),
        _arms_table(run),
        _protocol(run),
        _cite(run),
    ]
    return _publish(run_dir, f"{run.results['model']['name']}: {run.protocol['behaviour']}", body, draw.drawings)


def build_discover(run_dir: Path) -> Path:
    """Write `report.html` and `figures/` of a `discover` run, and return the page's path."""
    protocol, found = _read(run_dir / "protocol.json"), _read(run_dir / "discover.json")
    draw, model, chat = _Canvas(), found["model"], protocol["chat"]
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
        [labels.get(r["position"], r["position"]), r["layer"], _f(r["auroc"], 3), _f(r["cosine"], 3), _f(r["norm"])]
        for r in known[:8]
    ]
    splits = [("train", found["train"]), (found["split"], found["n"])]
    sizes = [[split, n.get("positive"), n.get("negative")] for split, n in splits]
    note = _note(f"AUROC of the projection of {found['split']} prompts on the difference in means of train prompts.")
    charts = figures.discover(found["grid"], labels) if found["grid"] else []
    sizes_table = _table(["Split", "Positive", "Negative"], sizes)
    body = [
        _heading("discover  ·  Where do the classes separate in the residual stream?", model, facts),
        _tag("div", _tag("p", caution, class_="sentence"), class_="verdict"),
        _section("Separation per layer and position", draw(charts[:1]), draw(charts[1:]), note),
        _section("Highest AUROC", _table(["Position", "Layer", "AUROC", "Cosine of means", "Norm"], best)),
        _section("Protocol", sizes_table, _fold("protocol.json", _pretty(protocol))),
    ]
    return _publish(run_dir, f"{model['name']}: discover", body, draw.drawings)


def _publish(run_dir: Path, title: str, body: Iterable[Any], drawings: Sequence[Drawing]) -> Path:
    for drawing in drawings:
        stem = run_dir / "figures" / drawing.chart.name
        spec = json.dumps(drawing.chart.spec, indent=1)
        for suffix, content in ((".svg", drawing.svg), (".png", drawing.png), (".vl.json", spec)):
            _write(stem.with_name(stem.name + suffix), content)
    page = run_dir / "report.html"
    _write(page, _page(title, _join(body, "\n")))
    return page


_GLOBALS = "window.vegaEmbed = vegaEmbed;"


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed in one script, unable to end the element that holds it."""
    return "(()=>{" + vl_convert.javascript_bundle(_GLOBALS).replace("</script", "<\\/script") + "})();"


def _page(title: str, body: _Html) -> str:
    scripts = [_bundle(), _SCRIPT]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    # Vega compiles its expressions: hence unsafe-eval. Nothing may be loaded, and no other script may start.
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'; "
        "base-uri 'none'; form-action 'none'"
    )
    light, dark = (";".join(f"--{name}:{pair[k]}" for name, pair in figures.PALETTE.items()) for k in (0, 1))
    colours = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return _HEAD.format(policy=policy, title=_h(title), style=colours + _STYLE) + "\n".join(
        [body, "</main>", *(f"<script>{script}</script>" for script in scripts), "</body></html>\n"]
    )


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
"""

_STYLE = """
:root{
--sans:"Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif;
--serif:Charter,"Bitstream Charter","Iowan Old Style",Palatino,"Palatino Linotype",Georgia,"Liberation Serif",serif;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
*{box-sizing:border-box}
html{background:var(--paper);color:var(--ink);-webkit-text-size-adjust:100%}
body{margin:0;font:16px/1.5 var(--serif)}
main{max-width:1128px;margin:0 auto;padding:40px 24px 64px}
h1,h2,h3,p,ul,dl,figure{margin:0}
.kicker,h2,h3,dt,table,.badge,.note,summary,.ci,.reason{font-family:var(--sans)}
.kicker{font-size:13px;color:var(--muted)}
h1{font-size:30px;line-height:1.2;font-weight:600;margin:4px 0 14px;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:16px;font-weight:700;margin:0 0 12px}
h3{font-size:13px;font-weight:700;margin:14px 0 4px}
section{margin-top:30px;padding-top:14px;border-top:1px solid var(--hairline)}
section{counter-increment:part}main{counter-reset:part}
h2::before{content:counter(part);color:var(--muted);font-weight:400;margin-right:.7em}
dl{display:flex;flex-wrap:wrap;gap:8px 24px;padding-bottom:18px}
dt{font-size:11.5px;color:var(--muted)}
dd{margin:0;font-size:14px;overflow-wrap:anywhere}
.verdict{border-top:2px solid var(--ink);border-bottom:1px solid var(--hairline);padding:18px 0}
.sentence{font-size:19px;line-height:1.45;max-width:58em;margin-top:10px;overflow-wrap:anywhere}
.sentence:first-child{margin-top:0}.verdict:has(+section){border-bottom:0;padding-bottom:0}
.sentence.long{font-size:15.5px;max-width:68em;margin-top:7px}
.reason{font-size:13px;color:var(--muted);margin-top:6px;overflow-wrap:anywhere}
.badge{display:inline-block;font-size:15px;font-weight:700;letter-spacing:.03em;padding:5px 14px 5px 11px;
border:2px solid var(--direction);border-radius:3px;color:var(--direction);overflow-wrap:anywhere}
.badge i,.mini i{font-style:normal}
.badge.yes{background:var(--direction);color:var(--paper)}
.badge.open{border-style:dashed;border-color:var(--muted);color:var(--ink)}
.mini{font-size:11px;color:var(--muted);letter-spacing:.02em;display:block;white-space:nowrap}
.warnings{border-left:3px solid var(--null-a);padding-left:14px;margin-top:16px;overflow-wrap:anywhere}
.meaning,.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));
gap:4px 40px;margin-top:6px}
ul{padding-left:1.1em}li{margin:3px 0;font-size:15px;line-height:1.45}
section p{font-size:15px;max-width:70em;overflow-wrap:anywhere}
p.note{font-size:12.5px;line-height:1.5;color:var(--muted);margin-top:10px;max-width:78em}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:13px;line-height:1.35;font-variant-numeric:tabular-nums;margin:4px 0}
th{font-weight:600;vertical-align:bottom;border-bottom:1px solid var(--ink);white-space:nowrap}
th small{display:block;font-size:11px;font-weight:400;color:var(--muted)}
th,td{text-align:right;padding:4px 0 4px 20px}
th:first-child,td:first-child{padding-left:0}
.l{text-align:left}
td{vertical-align:top;border-bottom:1px solid var(--hairline)}
.grid td{overflow-wrap:anywhere}
table.key{width:100%}table.key tr:has(+tr>td:first-child:empty)>td{border-bottom-color:transparent}
table.key td{white-space:nowrap}table.key td,table.key th{padding-left:13px}
table.key td:first-child,table.key th:first-child{padding-left:0}
table.key td:nth-child(5),table.key th:nth-child(5){text-align:left}
.ci{color:var(--muted);font-weight:400}
.charts{display:grid;grid-template-columns:100%;gap:18px 28px;align-items:start;margin-top:8px}
.charts.narrow{grid-template-columns:repeat(auto-fit,minmax(min(100%,328px),1fr))}
.charts.middle{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.chart{min-width:0;max-width:100%;position:relative}
.chart svg{display:block;max-width:100%;height:auto;overflow:visible}
.live{position:absolute;inset:0;opacity:0}.ready .live{position:static;opacity:1}.ready .still{display:none}
details{margin-top:8px}
summary{cursor:pointer;font-size:13px;font-weight:600;padding:3px 0;overflow-wrap:anywhere}
pre,code{font:12.5px/1.5 var(--mono);background:color-mix(in srgb,var(--hairline) 32%,transparent)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:12px 14px;margin:8px 0}
code{padding:2px 5px}
#vg-tooltip-element{position:fixed;z-index:9;pointer-events:none;visibility:hidden;max-width:340px;padding:7px 10px;
font:12px/1.4 var(--sans);background:var(--paper);color:var(--ink);border:1px solid var(--muted);
box-shadow:0 2px 10px #0003;overflow-wrap:anywhere}
#vg-tooltip-element.visible{visibility:visible}
#vg-tooltip-element table{font-size:12px;margin:0}
#vg-tooltip-element td{border:0;padding:0 0 0 10px;text-align:left}
#vg-tooltip-element td.key{color:var(--muted);padding-left:0;text-align:right;max-width:110px}
@media screen and (max-width:720px){
main{padding:24px 16px 48px}h1{font-size:24px}.sentence{font-size:17px}dl{gap:6px 20px}
.key thead{display:none}.key tr{display:grid;grid-template-columns:repeat(3,1fr);gap:4px 12px;padding:8px 0;
border-bottom:1px solid var(--hairline)}
table.key td,table.key td:first-child{display:block;text-align:left;border:0;padding:0;white-space:normal}
table.key td:empty,table.key td:first-child:empty{display:none}
.key td::before{content:attr(data-h);display:block;font-size:11px;color:var(--muted)}
.chart.wide{overflow-x:auto}.chart.wide svg{min-width:720px;max-width:none}
}
@media (max-width:960px){table.key td:nth-child(n+9) .ci{display:block}table.key th{white-space:normal}}
@media print{
@page{size:A4;margin:14mm}
body{font-size:10.5pt}main{max-width:none;padding:0}
li,section p{font-size:9.5pt}.sentence{font-size:12pt}h1{font-size:19pt}
table{font-size:8pt}th,td{padding-left:10px}p.note,.ci,th small{font-size:7.5pt}
.scroll{overflow:visible}table.key td,th{white-space:normal}
.charts.narrow{grid-template-columns:1fr 1fr}
.charts.middle{grid-template-columns:100%}
section{margin-top:16px}section p:not(.note){break-after:avoid}h2,h3,summary{break-after:avoid}
.chart,tr,p,.verdict,.meaning li,.grid>div{break-inside:avoid}
.badge{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.chart svg{max-height:240mm}
.meaning,.grid{grid-template-columns:1fr 1fr;gap:4px 24px}
details.seed::details-content{content-visibility:visible;display:block}
}
"""

# A chart is a still picture until somebody points at it: then Vega draws the same one with tooltips.
_SCRIPT = """
for (const chart of document.querySelectorAll("figure.chart")) {
  const wake = () => {
    const live = document.createElement("div");
    live.className = "live";
    chart.append(live);
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const tooltip = {disableDefaultStyle: true};
    const options = {mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip};
    vegaEmbed(live, spec, options).then(() => chart.classList.add("ready"), () => live.remove());
  };
  chart.addEventListener("pointerenter", wake, {once: true});
}
addEventListener("beforeprint", () => document.querySelectorAll("details.seed").forEach((seed) => (seed.open = true)));
"""
