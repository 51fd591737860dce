"""Markup, tables, styles and scripts of a report page; writes the page and the files of its figures.

Every text is escaped unless it is `Html`. The page loads nothing, and its scripts are allowed by their hashes.
Independent of runs.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert

from rhumbline.records.page_files import FIGURES, PAGE, write_page
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
        if value
    )
    return Html(f"<{name}{written}>{''.join(escaped(item) for item in content)}</{name}>")


def join(items: Iterable[Any], between: str = "") -> Html:
    """Concatenate items; those that are not markup are escaped."""
    return Html(between.join(escaped(item) for item in items))


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], left: int = 1, key: bool = False) -> Html:
    """Return a table in a scrollable box. The first `left` columns hold text, the others numbers.

    On a narrow screen each row of a `key` table becomes a card that names the column of every cell.
    """
    side = ["l" if k < left else "" for k in range(len(head))]
    titles = join(tag("th", cell, class_=s, scope="col") for cell, s in zip(head, side, strict=True))
    labels = [re.sub("<.*", "", cell) if key else "" for cell in head]
    body = join(
        (
            tag("tr", join(tag("td", cell, class_=s, data_h=h) for cell, s, h in zip(row, side, labels, strict=True)))
            for row in rows
        ),
        "\n",
    )
    table = tag("table", tag("thead", tag("tr", titles)), tag("tbody", body), class_="key" if key else "")
    return tag("div", table, class_="scroll")


def fold(summary: Any, *content: Any, class_: str = "") -> Html:
    """Return a part of the page that is closed until the reader opens it."""
    return tag("details", tag("summary", summary), *content, class_=class_)


def section(title: str, *content: Any) -> Html:
    """Return a numbered section of the page."""
    return tag("section", tag("h2", title), *content)


def note(*content: Any) -> Html:
    """Return a paragraph in small type."""
    return tag("p", *content, class_="note")


def bullets(items: Iterable[Any]) -> Html:
    """Return a bullet list."""
    return tag("ul", join(tag("li", item) for item in items))


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """Format a number with fixed digits and no negative zero; None is a dash."""
    return "—" if value is None else f"{value:{'+' if signed else ''}z.{digits}f}"


def count(n: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def interval(
    value: float | None, low: float | None, high: float | None, digits: int = 2, *, signed: bool = False
) -> Html:
    """Format a number in bold, with its interval; a dash if there is no number."""
    if value is None:
        return Html("—")
    ends = f"[{number(low, digits)}, {number(high, digits)}]"
    return join([tag("b", number(value, digits, signed)), " ", tag("span", ends, class_="ci")])


def interval_text(
    value: float | None, low: float | None, high: float | None, digits: int = 2, *, signed: bool = False
) -> str:
    """Format a number with its interval as plain text; with `signed`, the ends have a sign too."""
    ends = ", ".join(number(end, digits, signed) for end in (low, high))
    return f"{number(value, digits, signed)} [{ends}]"


def per_seed(parts: Sequence[tuple[str, Any]]) -> Html:
    """Return titled parts, one for each seed or evaluation; if there are more than two, only the first is open."""
    n_open = len(parts) if len(parts) <= 2 else 1
    return join(
        tag("div", tag("h3", title), content) if k < n_open else fold(title, content, class_="seed")
        for k, (title, content) in enumerate(parts)
    )


def optional_section(title: str, parts: Sequence[tuple[str, Any]], explanation: str) -> Html:
    """Return a section of titled parts with a note; empty if there are no parts."""
    return section(title, per_seed(parts), note(explanation)) if parts else Html("")


def pretty(value: Any) -> Html:
    """Format a value as indented JSON."""
    return tag("pre", json.dumps(value, indent=2, ensure_ascii=False))


class Canvas:
    """Draws charts, keeps the drawings for the folder of figures, and returns their markup."""

    def __init__(self) -> None:
        self.drawings: list[Drawing] = []

    def __call__(self, charts: Iterable[Chart | None]) -> Html:
        """Return the charts side by side, each as wide as its drawing."""
        shown = [self._one(chart) for chart in charts if chart is not None]
        widest = max((drawing.width for drawing in self.drawings[len(self.drawings) - len(shown) :]), default=0)
        columns = "narrow" if widest < 450 else "middle" if widest < 600 else ""
        return tag("div", join(shown), class_=f"charts {columns}".strip())

    def _one(self, chart: Chart) -> Html:
        drawing = figures.draw(chart)
        self.drawings.append(drawing)
        # `<` is escaped, so that no text in the data can end the script element.
        spec = json.dumps(drawing.inline_spec, separators=(",", ":")).replace("<", "\\u003c")
        data = Html(f'<script type="application/json">{spec}</script>')
        still = tag("div", Html(drawing.inline_svg), class_="still")
        wide = "chart wide" if drawing.width > 700 else "chart"
        return tag("figure", still, data, class_=wide, id=f"fig-{chart.name}", role="img", aria_label=chart.summary)


# -- the page -----------------------------------------------------------------------------------------------------


def publish(run_dir: Path, title: str, body: Iterable[Any], drawings: Sequence[Drawing]) -> Path:
    """Write the page and the files of its figures, and return the path of the page."""
    contents = {PAGE: _page(title, join(body, "\n")).encode()}
    for drawing in drawings:
        stem, spec = f"{FIGURES}/{drawing.chart.name}", json.dumps(drawing.chart.spec, indent=1)
        contents |= {f"{stem}.svg": drawing.svg.encode(), f"{stem}.png": drawing.png, f"{stem}.vl.json": spec.encode()}
    write_page(run_dir, contents)
    return run_dir / PAGE


_GLOBALS = "window.vegaEmbed = vegaEmbed;"


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script that contains no closing script tag."""
    return "(()=>{" + vl_convert.javascript_bundle(_GLOBALS).replace("</script", "<\\/script") + "})();"


def _page(title: str, body: Html) -> str:
    scripts = [_bundle(), _SCRIPT]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    # Vega compiles its expressions, which needs unsafe-eval. Nothing can be loaded, and no other script can run.
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'; "
        "base-uri 'none'; form-action 'none'"
    )
    light, dark = (";".join(f"--{name}:{pair[k]}" for name, pair in figures.PALETTE.items()) for k in (0, 1))
    colours = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return _HEAD.format(policy=policy, title=escaped(title), style=colours + _STYLE) + "\n".join(
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

# A chart is a static picture until the pointer enters it. Then Vega draws the same chart with tooltips.
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
