"""The report is complete, self-contained and safe for every kind of run."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace as replace_field
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from make_run import change_results, make_discover, make_run
from make_seed import HOSTILE, NO_BASELINE, NOT_SINGLE, REPRODUCES
from rhumbline.records.arms import ABLATION, BASELINE, ArmId
from rhumbline.records.claims import ClaimKind
from rhumbline.records.directory import RunDirectory
from rhumbline.records.results import (
    AdjustedEffect,
    Confounds,
    LevelUnit,
    NeutralLevel,
    Results,
    ScoreCorrelation,
    StyleSummary,
)
from rhumbline.records.seed_files import Outcome, Selection
from rhumbline.records.shared import ClassifierFit, Marker
from rhumbline.records.verdict_names import VerdictName
from rhumbline.report import build as report
from rhumbline.report import candidate_sections, figures
from rhumbline.report.example_section import examples
from rhumbline.report.run_record import read_run
from rhumbline.settings import NULL_FAMILIES


class Page(HTMLParser):
    """Elements with their attributes, the text people read, and the contents of scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.styles: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        # The parser passes a long script in several pieces.
        if self.cdata_elem == "script":
            attributes, before = self.scripts.pop()
            self.scripts.append((attributes, before + data))
        elif self.cdata_elem == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    into = make_run(tmp_path_factory.mktemp("run"), evidence=True)
    report.build(into)
    return into


@pytest.fixture(scope="module")
def results(run) -> Results:
    return RunDirectory.read(run).read_record(Results)


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(run / "report.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Page:
    return Page(report.build(make_run(tmp_path_factory.mktemp("hostile"), seeds=(0,), hostile=True)))


def assert_self_contained(page: Page):
    loading = {"link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form"}
    assert not loading & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            is_anchor = (tag, name) == ("a", "href") and value.startswith("#")
            assert is_anchor or name not in ("src", "href", "xlink:href", "action", "srcset"), (tag, name, value)
    assert not any(re.search(r"@import|url\(", style) for style in page.styles)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "content" in a and "http-equiv" in a)
    assert "default-src 'none'" in policy
    for attributes, script in page.scripts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


# -- a run that reproduces --------------------------------------------------------------------------------------------


def test_every_chart_is_written_three_times(run, page):
    names = {attributes["id"].removeprefix("fig-") for tag, attributes in page.elements if tag == "figure"}
    assert {path.name for path in (run / "figures").iterdir()} == {
        name + suffix for name in names for suffix in (".svg", ".png", ".vl.json")
    }
    assert {"arms-suppression", "arms-induction", "selection-seed-1-kl", "separation-seed-0-auroc"} <= names
    for name in names:
        svg = (run / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert "var(--" not in svg
        assert svg.count("<path") > 6
        png = (run / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) > 4000
        assert json.loads((run / "figures" / f"{name}.vl.json").read_text())["data"]["values"]


def test_page_loads_nothing(page):
    assert_self_contained(page)


def test_the_page_states_what_the_verdict_shows_and_what_it_does_not_show(page):
    sentences = (
        REPRODUCES,
        "What it does not show",
        "Several distinct directions can have the same effect",
        "Both seeds reach this verdict",
        "rhumbline verify",
    )
    for sentence in sentences:
        assert sentence in page.text
    assert "Coarse mode" not in page.text


def test_a_run_with_all_evidence_has_every_section(page):
    opened = [
        "Key numbers",
        "Arms",
        "Null draws compared with the direction",
        "Wide nulls",
        "Dose",
        "Damage",
        "Side effects",
        "Selection",
        "Stability of the selection",
    ]
    closed = [
        "What the sample can show",
        "Seed 0 in detail",
        "Seed 1 in detail",
        "Readouts",
        "Benchmarks",
        "System prompts",
        "Which prompts",
        "Spread of the positives",
        "Every arm",
        "Protocol",
    ]
    assert re.findall('<section id="[^"]*"><h2>(.*?)</h2>', page.source) == [*opened, "Verify and cite"]
    assert re.findall('<details class="detail" id="[^"]*"><summary><h2>(.*?)</h2>', page.source) == closed
    contents = re.findall('<li><a href="#([^"]*)">(.*?)</a></li>', page.source)
    assert [title for _, title in contents] == [*opened, *closed, "Verify and cite"]
    assert {anchor for anchor, _ in contents} <= {attributes.get("id") for _, attributes in page.elements}


def test_headings_are_in_order_and_figures_have_a_description(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    figures_ = [attributes for tag, attributes in page.elements if tag in ("figure", "svg") and "role" in attributes]
    assert figures_
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in figures_)
    assert not any("role=" in svg for svg in re.findall('<svg class="marks.*?</svg>', page.source, re.DOTALL))


def sentences(page: Page) -> Iterator[str]:
    """The sentences of the paragraphs, lists, cells and headings."""
    for text in re.findall("<(?:p|li|td|h[1-3]|summary)[ >].*?</(?:p|li|td|h[1-3]|summary)>", page.source, re.DOTALL):
        yield from re.split(r"(?<=[.!?])\s+", unescape(re.sub("<.*?>", " ", text.split(">", 1)[1])))


def test_no_sentence_is_long(page):
    texts = list(sentences(page))
    assert len(texts) > 500
    assert [text for text in texts if len(text.split()) > 30] == []


def luminance(colour: str) -> float:
    channels = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("name", "least"), [("ink", 4.5), ("muted", 4.5), ("accent", 4.5), ("direction", 3.0)])
def test_texts_and_the_direction_stand_out_from_the_page(name, least, mode):
    """The contrast of WCAG 2: 4.5 for texts, 3 for graphics."""
    pair = sorted(luminance(figures.PALETTE[colour][mode]) for colour in (name, "paper"))
    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least


def test_a_null_family_looks_the_same_in_every_chart(run):
    """And no family looks like the direction."""
    seen: dict[str, set] = {}
    for path in (run / "figures").glob("*.vl.json"):
        for text in re.findall(r'\{[^{}]*"domain": \[[^]]*\][^{}]*"range": \[[^{}]*\}', path.read_text()):
            scale = json.loads(text)
            for name, value in zip(scale["domain"], scale["range"], strict=False):
                if isinstance(name, str) and str(value).startswith("#"):
                    seen.setdefault(re.split("[ ,]", name)[0], set()).add(value)
    drawn = set(NULL_FAMILIES) & set(seen)
    assert len(drawn) > 1
    for family in drawn:
        assert seen[family] == {figures.LOOKS[family].colour}
    assert len({figures.LOOKS[name].colour for name in (*NULL_FAMILIES, "direction", "baseline")}) == 8
    assert len({figures.LOOKS[name].shape for name in NULL_FAMILIES}) == 6
    assert len({figures.LOOKS[name].dash for name in (*NULL_FAMILIES, "direction")}) == 7


def test_examples_need_saved_completions(page, tmp_path):
    assert "Examples" not in page.text
    record = read_run(make_run(tmp_path, seeds=(0,), draws=2, evidence=True))
    shared = {"side": "positive", "cls": "refused", "score": 1.0, "evidence": "", "metric": 0.0, "category": None}
    texts = {"prompt_id": "p", "prompt": "Which <b>?", "completion": "word " * 100, "new_tokens": 9}
    arms = (BASELINE, ABLATION, ArmId.parse("null:isotropic:0:ablation"))
    rows = [Outcome(arm=arm, **shared, **texts) for arm in arms]
    record.directory.write_rows_as(rows, record.directory.file_of(Outcome, 0))
    assert examples(record) == ""
    saved = replace_field(record, protocol=replace_field(record.protocol, save_completions=True))
    shown = examples(saved)
    assert shown.startswith("<details")
    assert shown.count("Which &lt;b&gt;?") == 1
    assert shown.count("word …") == 2
    assert shown.count("word") == 2 * 56
    model = replace(record.results.model, name="organism:refusal")
    assert examples(replace_field(saved, results=replace_field(saved.results, model=model))).startswith("<section")


def test_a_map_of_mostly_empty_cells_is_not_drawn(run):
    selection = RunDirectory.read(run).read_record(Selection, 0)
    empty = [replace_field(c, bypass=None) if k % 3 else c for k, c in enumerate(selection.candidates)]
    sparse = replace(selection, candidates=tuple(empty))
    names = [
        [chart.name for chart in candidate_sections.selection_maps(0, some, {}, 0.1)] for some in (selection, sparse)
    ]
    assert [name.rsplit("-", 1)[1] for name in names[0]] == ["bypass", "induce", "kl"]
    assert [name.rsplit("-", 1)[1] for name in names[1]] == ["induce", "kl"]
    scored = candidate_sections.candidate_table(sparse, {})
    assert scored.count("<tr>") - 1 == sum(
        any(s is not None for s in (c.bypass, c.induce, c.kl)) for c in sparse.candidates
    )


def test_every_number_of_every_arm_is_on_the_page(results, page):
    rows = re.findall(r"<tr>(.*?)</tr>", page.source, re.DOTALL)
    cells = {tuple(re.findall(r"<td[^>]*>(.*?)</td>", row)) for row in rows}
    for seed in results.seeds:
        for arm in seed.arms:
            numbers = [f"{value:.3f}" for value in (arm.rate, arm.low, arm.high, arm.degenerate)]
            metric = "—" if arm.metric is None else f"{arm.metric:.3f}"
            row = (str(seed.seed), str(arm.arm), arm.side, str(arm.n), *numbers, str(arm.unscored), metric)
            assert row in cells


def test_every_candidate_and_its_reason_is_in_the_chart(run):
    candidates = RunDirectory.read(run).read_record(Selection, 0).candidates
    spec = json.loads((run / "figures" / "selection-seed-0-kl.vl.json").read_text())
    shown = {(row["position"], row["layer"]): row for row in spec["data"]["values"]}
    for candidate in candidates:
        row = shown[int(candidate.position), candidate.layer]
        assert row["kl"] == (None if candidate.kl is None else pytest.approx(candidate.kl, rel=1e-5))
        if candidate.discarded:
            assert row["status"] == f"discarded: {candidate.discarded.text}"
    assert [row["state"] for row in shown.values()].count("selected") == 1
    assert shown[-5, 0]["where"] == '-5 "<|im_end|>"'


def test_the_numbers_of_the_evidence_are_on_the_page(results, page):
    dose, wide = results.seeds[0].dose, results.seeds[0].wide[0]
    assert dose is not None
    assert f"Fragility {dose.fragility.fragility:.3g}" in page.text
    assert f"at strength {dose.fragility.half:.2f}" in page.text
    assert "a true suppression of 0.08 or more is detected with 80% power" in page.text
    assert "Seed 0; the first 20 documents, 3 examples in the prompt, with the chat template" in page.text
    assert "Seeds 0 and 1: cosine 0.91, the same site." in page.text
    for null in wide.families.values():
        assert f"{null.mean:.2f}" in page.text
        assert f"{null.max:.2f}" in page.text


def test_page_and_files_draw_the_same_chart(run, page):
    specs = [json.loads(text) for attributes, text in page.scripts if attributes.get("type") == "application/json"]
    files = sorted((run / "figures").glob("*.vl.json"))
    assert len(specs) == len(files)
    on_file = [json.loads(path.read_text())["data"] for path in files]
    assert all(spec["data"] in on_file for spec in specs)
    assert all("$schema" not in spec for spec in specs)


def test_colours_of_the_page_follow_the_reader(page):
    light = "".join(pair[0] for name, pair in figures.PALETTE.items() if name != "paper")
    charts = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert "var(--direction)" in charts
    assert not any(colour in charts for colour in re.findall("#[0-9a-f]{6}", light))
    assert "prefers-color-scheme:dark" in page.styles[0]
    assert "@media print" in page.styles[0]


def test_identifiers_in_drawings_are_unique(page):
    identifiers = re.findall(r'\bid="([^"]+)"', re.sub(r"<script.*?</script>", "", page.source, flags=re.DOTALL))
    assert len(identifiers) == len(set(identifiers))


def test_rebuilding_changes_nothing(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report.build(run)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


# -- hostile text -----------------------------------------------------------------------------------------------------


def test_hostile_text_stays_text(hostile):
    assert_self_contained(hostile)
    kinds = [attributes.get("type") for attributes, _ in hostile.scripts]
    assert kinds.count(None) == 2
    assert all("alert(1)" not in script for attributes, script in hostile.scripts if attributes.get("type") is None)
    assert "alert(1)" in hostile.text
    assert "\u202e" not in hostile.source
    assert hostile.source.count("</script>") == len(hostile.scripts)


def test_hostile_text_survives_in_the_data(hostile):
    specs = [json.loads(text) for attributes, text in hostile.scripts if attributes.get("type") == "application/json"]
    prompts = {row["prompt_id"] for spec in specs for row in spec["data"]["values"] if "prompt_id" in row}
    assert prompts == {HOSTILE}


# -- other kinds of runs ----------------------------------------------------------------------------------------------


def test_a_run_without_a_candidate_is_complete(tmp_path):
    page = Page(report.build(make_run(tmp_path, candidate=False, verdict=VerdictName.NOT_TESTED)))
    assert "none selected" in page.text
    assert "every candidate was discarded" in page.text
    assert "No null was drawn" in page.text
    assert "No direction was tested" in page.text
    assert (tmp_path / "figures" / "selection-seed-0-bypass.svg").exists()
    assert not list((tmp_path / "figures").glob("nulls-*"))


def test_a_run_without_a_baseline_is_complete(tmp_path):
    page = Page(report.build(make_run(tmp_path, verdict=NO_BASELINE)))
    assert NO_BASELINE in page.text
    assert "It does not say whether a direction exists" in page.text
    assert "no candidate was scored" in page.text
    assert "One direction is sufficient" not in page.text
    assert (tmp_path / "figures" / "arms-suppression.png").exists()


@pytest.mark.parametrize("verdict", [VerdictName.DAMAGED, VerdictName.INCONCLUSIVE])
def test_other_verdicts_claim_nothing(tmp_path, verdict):
    page = Page(report.build(make_run(tmp_path, seeds=(0,), draws=2, verdict=verdict)))
    sentences = {"DAMAGED": "damaged more than", "INCONCLUSIVE": "decides neither for nor against"}
    assert sentences[verdict] in page.text
    assert "There is only one seed" in page.text


def claims_table(page: Page) -> list[list[str]]:
    """The cells of the first table of a page."""
    table = re.search("<table.*?</table>", page.source, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_the_table_of_claims_comes_first(tmp_path):
    page = Page(report.build(make_run(tmp_path, draws=2, verdict=VerdictName.INCONCLUSIVE, evidence=True)))
    head, *rows = claims_table(page)
    assert head == ["Claim", "State", "Chart", "Number [95 %]", "n", "Margin", "Reason"]
    assert [row[0] for row in rows] == [kind.text for kind in ClaimKind]
    numbers = ["undecided", "", "0.90 [0.85, 0.95]", "100", "0.5"]
    assert rows[0][1:] == [*numbers, "suppression 0.37 [0.30, 0.52] around 0.5"]
    chart = re.search('<svg class="claim".*?</svg>', page.source)
    assert chart is not None
    assert chart[0].count("<circle") == 3
    assert chart[0].count("<line") == 3
    assert page.source.index("<table") < page.source.index("Key numbers")
    assert "Synthetic sentence" not in page.text
    assert "The seeds share 20 of 180 positive test prompts" in page.text


def test_a_verdict_of_a_weaker_rule_is_qualified(tmp_path):
    page = Page(report.build(make_run(tmp_path, draws=2, verdict=VerdictName.REPRODUCES_PAPER)))
    assert "SINGLE-DIRECTION-REPRODUCES by the paper's criteria" in page.text
    assert "weaker than the default rule" in page.text
    assert "weaker" not in Page(report.build(make_run(tmp_path / "default", draws=2))).text


def test_a_run_of_version_4_of_the_rule_shows_its_sentences(tmp_path):
    run = make_run(tmp_path, draws=2)
    change_results(run, claims=[], seeds={0: {"claims": []}, 1: {"claims": []}})
    text = Page(report.build(run)).text
    assert f"Seed 1: Synthetic sentence of the verdict {REPRODUCES}." in text


def test_disagreeing_seeds_are_named(tmp_path):
    run = make_run(tmp_path, draws=2)
    change_results(run, verdict=NOT_SINGLE, seeds={1: {"verdict": NOT_SINGLE}})
    page = Page(report.build(run))
    assert f"The seeds disagree: 1 of 2 {REPRODUCES}, 1 of 2 {NOT_SINGLE}" in page.text


def test_coarse_mode_is_named(tmp_path):
    assert "Coarse mode" in Page(report.build(make_run(tmp_path, seeds=(0,), draws=2, mode="coarse"))).text


def test_damage_is_reported_with_its_bounds(tmp_path):
    """Every measurement of damage; accuracy is reported only if the contrast has known answers."""
    run = make_run(tmp_path, seeds=(0,), draws=2)
    unknown = ">not measured<"
    page = Page(report.build(run))
    assert unknown in page.source
    text = page.text
    for name in ("KL divergence of the next token", "degenerate completions, positives, ablation", "Bound of the rule"):
        assert name in text
    arms = RunDirectory.read(run).read_record(Results).seeds[0].arms
    known = [
        replace(arm, correct=0.875 if arm.arm.is_baseline else 0.625) if arm.side == "negative" else arm for arm in arms
    ]
    change_results(run, seeds={0: {"arms": known}})
    page = Page(report.build(run))
    assert unknown not in page.source
    assert "0.88 to 0.62" in page.text


def test_a_continuous_score_has_its_section(tmp_path):
    run = make_run(tmp_path, seeds=(0,), draws=2)
    marker = Marker(phrase="in essence", log_odds=2.5, p=0.001, positive=30, negative=2)
    style = StyleSummary(
        LevelUnit(0.6, 0.1, 0.5, 0.4, 0.6, 0.9, 0.8, (100, 100), "baseline"),
        "completions",
        "estimated",
        (marker,) * 14,
        ClassifierFit(0.93, 128, 5),
        0.1,
        Confounds(
            (ScoreCorrelation(other="content_words", n=100, r=0.2),),
            (AdjustedEffect("suppression", 0.5, 0.44, None, 0, 100),),
        ),
        NeutralLevel(20, 0.2, 0.31, None),
    )
    change_results(run, seeds={0: {"style": style}})
    page = Page(report.build(run))
    numbers = (
        "in essence",
        "and 2 more",
        "0.440",
        "content words",
        "+0.20",
        "0 of 100",
        "0.93",
        "0.31",
        "own completions",
    )
    for text in ("Score, content and confounds", "A level is", "level of the behaviour", *numbers):
        assert text in page.source


def test_large_grid_fits_the_page(tmp_path):
    report.build(make_run(tmp_path, seeds=(0,), layers=80, positions=8, draws=2))
    svg = (tmp_path / "figures" / "selection-seed-0-bypass.svg").read_text()
    assert 800 < float(re.findall(r'width="([\d.]+)"', svg)[0]) < 1150


def test_scores_that_are_not_numbers_are_blank(tmp_path):
    run = make_run(tmp_path, seeds=(0,), draws=2)
    path = run / "seed-0" / "selection.json"
    selection = json.loads(path.read_text())
    selection["candidates"][0]["kl"] = None  # not finite
    path.write_text(json.dumps(selection))
    report.build(run)
    spec = json.loads((run / "figures" / "selection-seed-0-kl.vl.json").read_text())
    assert spec["data"]["values"][0]["kl"] is None


def test_discover(tmp_path):
    page = Page(report.build_discover(make_discover(tmp_path, hostile=True)))
    assert_self_contained(page)
    assert "not evidence that a direction causes the behaviour" in page.text
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {
        "separation-lines", "separation-auroc", "separation-cosine", "separation-norm",
    }  # fmt: skip
