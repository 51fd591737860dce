"""Markup, tables, styles and scripts of a report page; writes the page and the files of its figures.

Every text is escaped unless it is `Html`. The page loads nothing, and its scripts are allowed by their hashes.
Independent of runs.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert

from rhumbline.records.page_files import FIGURES, PAGE, write_page
from rhumbline.records.results import SeedResult
from rhumbline.records.verdict_rule import is_number
from rhumbline.report import figures
from rhumbline.report.figures import Chart, Drawing


class Html(str):
    """Text that is markup already and is not escaped again."""


def escaped(value: Any) -> str:
    """Return markup unchanged, and any other value as escaped text; None is a dash."""
    if isinstance(value, Html):
        return value
    text = "—" if value is None else str(value)
    return html.escape("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """Return `<name attributes>content</name>`; `class_` means class and `aria_label` means aria-label."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value not in ("", None)
    )
    return Html(f"<{name}{written}>{''.join(escaped(item) for item in content)}</{name}>")


def join(items: Iterable[Any], between: str = "") -> Html:
    """Concatenate items; those that are not markup are escaped."""
    return Html(between.join(escaped(item) for item in items))


def table(
    head: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    left: int = 1,
    key: bool = False,
    reasons: bool = False,
    sortable: bool = False,
) -> Html:
    """Return a table in a scrollable box. The first `left` columns hold text, the others numbers.

    On a narrow screen each row of a `key` table becomes a card that names the column of every cell. With `reasons` the
    last column holds sentences. The reader can sort a `sortable` table by a click on the title of a column.
    """
    side = ["l" if k < left or (reasons and k == len(head) - 1) else "" for k in range(len(head))]
    titles = join(tag("th", cell, class_=s, scope="col") for cell, s in zip(head, side, strict=True))
    labels = [re.sub("<.*", "", cell) if key else "" for cell in head]
    body = join(
        (
            tag("tr", join(tag("td", cell, class_=s, data_h=h) for cell, s, h in zip(row, side, labels, strict=True)))
            for row in rows
        ),
        "\n",
    )
    kinds = " ".join(name for name, has in (("key", key), ("reasons", reasons), ("sortable", sortable)) if has)
    table = tag("table", tag("thead", tag("tr", titles)), tag("tbody", body), class_=kinds)
    # Whoever has no pointer scrolls a box that has the focus.
    return tag("div", table, class_="scroll", tabindex=0)


def fold(summary: Any, *content: Any, class_: str = "", id: str = "") -> Html:
    """Return a part of the page that is closed until the reader opens it."""
    return tag("details", tag("summary", summary), *content, class_=class_, id=id)


def section(title: str, *content: Any) -> Html:
    """Return a section of the page, with an anchor."""
    return tag("section", tag("h2", title), *content, id=_anchor(title))


def detail(title: str, *content: Any) -> Html:
    """Return a section that is closed until the reader opens it, with an anchor; empty without content."""
    shown = [part for part in content if part]
    return fold(tag("h2", title), *shown, class_="detail", id=_anchor(title)) if shown else Html()


def _anchor(title: str) -> str:
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def contents(sections: Iterable[Html]) -> Html:
    """Return the list of the sections, each a link to its anchor."""
    heads = [(part, re.search(r' id="([^"]*)"><(?:summary><)?h2>(.*?)</h2>', part)) for part in sections]
    links = (tag("li", tag("a", Html(head[2]), href=f"#{head[1]}")) for part, head in heads if head)
    return tag("nav", tag("h2", "Contents"), tag("ol", join(links)), aria_label="Contents")


def how_to_read(*content: Any) -> Html:
    """Return an explanation that is closed until the reader opens it."""
    return fold("How to read this", note(*content), class_="how")


def note(*content: Any) -> Html:
    """Return a paragraph in small type."""
    return tag("p", *content, class_="note")


def bullets(items: Iterable[Any]) -> Html:
    """Return a bullet list."""
    return tag("ul", join(tag("li", item) for item in items))


def header(kicker: str, title: str, facts: Iterable[tuple[str, Any]]) -> Html:
    """Return the title block of a page; facts without a value are left out."""
    listed = join(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value)
    return tag("header", tag("p", kicker, class_="kicker"), tag("h1", title), tag("dl", listed))


def verdict(*content: Any) -> Html:
    """Return the box of the main result."""
    return tag("div", *content, class_="verdict")


# -- numbers ----------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Format a number with fixed digits and no negative zero; a value that is not a finite number is a dash."""
    return f"{value:{'+' if signed else ''}z.{digits}f}" if is_number(value) else "—"


def count(n: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def interval(
    value: float | None, low: float | None, high: float | None, digits: int = 2, *, signed: bool = False
) -> Html:
    """Format a number in bold, with its interval; a dash if there is no number."""
    if not is_number(value):
        return Html("—")
    ends = f"[{number(low, digits)}, {number(high, digits)}]"
    return join([tag("b", number(value, digits, signed)), " ", tag("span", ends, class_="ci")])


def rate(row: Any) -> Html:
    """Format the field `rate` of a record with its interval."""
    return interval(row.rate, row.low, row.high)


def mean(row: Any, digits: int = 2, *, signed: bool = False) -> Html:
    """Format the field `mean` of a record with its interval."""
    return interval(row.mean, row.low, row.high, digits, signed=signed)


def change(row: Any) -> Html:
    """Format the field `change` of a record with its interval, `change_low` and `change_high`."""
    return interval(row.change, row.change_low, row.change_high, signed=True)


# -- parts of the page ------------------------------------------------------------------------------------------------


def parts(title: str, titled: Sequence[tuple[str, Any]], explanation: str) -> Html:
    """Return a closed section of titled parts with a note; empty if there are no parts."""
    if not titled:
        return Html()
    return detail(title, *(tag("div", tag("h3", name), content) for name, content in titled), note(explanation))


def by_seed(title: str, seeds: Iterable[SeedResult], content: Callable[[SeedResult], Any], explanation: str) -> Html:
    """Return a closed section with the content of every seed that has some, and a note; empty if none has."""
    return parts(title, [(f"Seed {seed.seed}", shown) for seed in seeds if (shown := content(seed))], explanation)


def pretty(value: Any) -> Html:
    """Format a value as indented JSON."""
    return tag("pre", json.dumps(value, indent=2, ensure_ascii=False))


class Canvas:
    """Draws charts, keeps the drawings for the folder of figures, and returns their markup."""

    def __init__(self) -> None:
        self.drawings: list[Drawing] = []

    def __call__(self, charts: Iterable[Chart | None]) -> Html:
        """Return the charts side by side, each as wide as its drawing; empty if there is none."""
        drawings = [figures.draw(chart) for chart in charts if chart is not None]
        if not drawings:
            return Html()
        self.drawings += drawings
        widest = max(drawing.width for drawing in drawings)
        columns = "narrow" if widest < 450 else "middle" if widest < 600 else ""
        return tag("div", join(map(_figure, drawings)), class_=f"charts {columns}".strip())


def _figure(drawing: Drawing) -> Html:
    # `<` is escaped, so that no text in the data can end the script element.
    spec = json.dumps(drawing.inline_spec, separators=(",", ":")).replace("<", "\\u003c")
    data = Html(f'<script type="application/json">{spec}</script>')
    still = tag("div", Html(drawing.inline_svg), class_="still", aria_hidden="true")
    wide, chart = "chart wide" if drawing.width > 700 else "chart", drawing.chart
    return tag("figure", still, data, class_=wide, id=f"fig-{chart.name}", role="img", aria_label=chart.summary)


# -- the page ---------------------------------------------------------------------------------------------------------


def publish(run_dir: Path, title: str, body: Iterable[Any], drawings: Sequence[Drawing]) -> Path:
    """Write the page and the files of its figures, and return the path of the page."""
    contents = {PAGE: _page(title, join(body, "\n")).encode()}
    for drawing in drawings:
        stem, spec = f"{FIGURES}/{drawing.chart.name}", json.dumps(drawing.chart.spec, indent=1)
        contents |= {f"{stem}.svg": drawing.svg.encode(), f"{stem}.png": drawing.png, f"{stem}.vl.json": spec.encode()}
    write_page(run_dir, contents)
    return run_dir / PAGE


@cache
def _scripts() -> tuple[str, str]:
    """Return Vega, Vega-Lite and vega-embed as one script that contains no closing script tag, and the page's own."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return f"(()=>{{{bundle}}})();", (files("rhumbline.report") / "page.js").read_text(encoding="utf-8")


def _page(title: str, body: Html) -> str:
    scripts, style = _scripts(), (files("rhumbline.report") / "page.css").read_text(encoding="utf-8")
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    # Vega compiles its expressions, which needs unsafe-eval. Nothing can be loaded, and no other script can run.
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'; "
        "base-uri 'none'; form-action 'none'"
    )
    light, dark = (";".join(f"--{name}:{pair[k]}" for name, pair in figures.PALETTE.items()) for k in (0, 1))
    colours = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return _HEAD.format(policy=policy, title=escaped(title), style=f"{colours}\n{style}") + "\n".join(
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
