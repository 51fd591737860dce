"""The report of a complete run: its contents, charts and texts."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace as replace_field
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from make_run import change_results, make_run
from make_seed import REPRODUCES
from report_page import Page, assert_self_contained
from rhumbline.records.arms import ABLATION, BASELINE, ArmId
from rhumbline.records.codec import to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.results import (
    Results,
)
from rhumbline.records.seed_files import Selection
from rhumbline.report import build as report
from rhumbline.report import candidate_sections, figures, protocol_sections, verdict_sections
from rhumbline.report.example_section import examples
from rhumbline.report.protocol_sections import ablation_sentence
from rhumbline.report.run_record import read_run
from rhumbline.settings import NULL_FAMILIES


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


def test_the_page_states_which_tokens_ablations_edit(run, page):
    spared = read_run(run).protocol.ablation.spared
    assert ablation_sentence(spared) in page.source
    assert ablation_sentence(0) == "Ablations edit every token."
    assert "but the first token of" in ablation_sentence(1)
    assert "but the first 4 tokens of" in ablation_sentence(4)


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
    assert "Seed 0; the first 20 documents, 3 examples in the prompt, with the template of the tokenizer" in page.text
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


def test_draws_that_count_as_no_change_are_named_beside_the_gaps(tmp_path):
    run = make_run(tmp_path / "run", seeds=(0,), draws=1)
    assert "count as no change" not in verdict_sections.key_numbers(read_run(run))
    effects = RunDirectory.read(run).read_record(Results).seeds[0].effects
    nulls = {family: replace_field(null, ineffective=1) for family, null in effects[0].null.items()}
    changed = [to_json(replace_field(effects[0], null=nulls)), *map(to_json, effects[1:])]
    change_results(run, seeds={0: {"effects": changed}})
    shown = verdict_sections.key_numbers(read_run(run))
    for family in nulls:
        assert f"1 of {nulls[family].draws} of {family} (suppression, seed 0)" in shown
    assert "(induction, seed 0)" not in shown


def test_the_memory_of_workers_is_not_claimed(tmp_path):
    run, words = make_run(tmp_path / "run", seeds=(0,)), "their memory is not included"
    assert words not in protocol_sections.protocol(read_run(run))
    (run / "jobs.log").write_text("")
    assert words in protocol_sections.protocol(read_run(run))
