"""The report is complete, self-contained and safe for every kind of run."""

import ast
import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from make_run import HOSTILE, NO_BASELINE, NOT_SINGLE, REPRODUCES, make_discover, make_run
from rhumbline.errors import OutputError
from rhumbline.report import arm_figures, figures, site_figures
from rhumbline.report import build as report


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
        # A long script arrives in pieces.
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
    into = make_run(tmp_path_factory.mktemp("run"))
    report.build(into)
    return into


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
            assert name not in ("src", "href", "xlink:href", "action", "srcset"), (tag, name, value)
    assert not any(re.search(r"@import|url\(", style) for style in page.styles)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "content" in a and "http-equiv" in a)
    assert "default-src 'none'" in policy
    for attributes, script in page.scripts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


# -- a run that reproduces --------------------------------------------------------------------------------


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
        assert svg.count("<path") > 10
        png = (run / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) > 4000
        assert json.loads((run / "figures" / f"{name}.vl.json").read_text())["data"]["values"]


def test_page_loads_nothing(page):
    assert_self_contained(page)


def test_page_says_what_was_found_and_what_was_not(page):
    for said in (
        REPRODUCES,
        "What it does not show",
        "Sufficient to move a behaviour",
        "Both seeds reach this verdict",
    ):
        assert said in page.text
    assert "Coarse mode" not in page.text
    assert "rhumbline verify" in page.text


def test_every_number_of_every_arm_is_on_the_page(run, page):
    results = json.loads((run / "results.json").read_text())
    rows = re.findall(r"<tr>(.*?)</tr>", page.source, re.DOTALL)
    cells = {tuple(re.findall(r"<td[^>]*>(.*?)</td>", row)) for row in rows}
    for seed in results["seeds"]:
        for arm in seed["arms"]:
            numbers = [f"{arm[key]:.3f}" for key in ("rate", "low", "high", "degenerate")]
            metric = "—" if arm["metric"] is None else f"{arm['metric']:.3f}"
            row = (str(seed["seed"]), arm["arm"], arm["set"], str(arm["n"]), *numbers, str(arm["unscored"]), metric)
            assert row in cells


def test_every_candidate_and_its_reason_is_in_the_chart(run, page):
    candidates = json.loads((run / "seed-0" / "selection.json").read_text())["candidates"]
    spec = json.loads((run / "figures" / "selection-seed-0-kl.vl.json").read_text())
    shown = {(row["position"], row["layer"]): row for row in spec["data"]["values"]}
    for candidate in candidates:
        row = shown[candidate["position"], candidate["layer"]]
        assert row["kl"] == (None if candidate["kl"] is None else pytest.approx(candidate["kl"], rel=1e-5))
        if candidate["discarded"]:
            assert row["status"] == f"discarded: {candidate['discarded']}"
    assert [row["state"] for row in shown.values()].count("selected") == 1
    assert shown[-5, 0]["where"] == '-5 "<|im_end|>"'


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


# -- hostile text -----------------------------------------------------------------------------------------


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


# -- other kinds of runs ----------------------------------------------------------------------------------


def test_run_without_a_candidate_is_complete(tmp_path):
    page = Page(report.build(make_run(tmp_path, candidate=False, verdict=NOT_SINGLE)))
    assert "none selected" in page.text
    assert "No candidate passed: 50 of 50 discarded" in page.text
    assert "No null was drawn" in page.text
    assert (tmp_path / "figures" / "selection-seed-0-bypass.svg").exists()
    assert not list((tmp_path / "figures").glob("nulls-*"))


def test_run_without_a_baseline_is_complete(tmp_path):
    page = Page(report.build(make_run(tmp_path, verdict=NO_BASELINE)))
    assert NO_BASELINE in page.text
    assert "It says nothing about whether a direction exists" in page.text
    assert "No candidate was scored" in page.text
    assert "One direction is sufficient" not in page.text
    assert (tmp_path / "figures" / "arms-suppression.png").exists()


@pytest.mark.parametrize("verdict", ["DAMAGED", "INCONCLUSIVE"])
def test_other_verdicts_claim_nothing(tmp_path, verdict):
    page = Page(report.build(make_run(tmp_path, seeds=(0,), draws=2, verdict=verdict)))
    assert {"DAMAGED": "broke more than", "INCONCLUSIVE": "decides neither for nor against"}[verdict] in page.text
    assert "One seed only" in page.text


def test_disagreeing_seeds_are_named(tmp_path):
    make_run(tmp_path, draws=2)
    results = json.loads((tmp_path / "results.json").read_text())
    results["verdict"] = results["seeds"][1]["verdict"] = NOT_SINGLE
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = Page(report.build(tmp_path))
    assert f"The seeds disagree: 1 of 2 {REPRODUCES}, 1 of 2 {NOT_SINGLE}" in page.text
    assert "A result that a new sample of prompts undoes" in page.text


def test_coarse_mode_is_named(tmp_path):
    assert "Coarse mode" in Page(report.build(make_run(tmp_path, seeds=(0,), draws=2, mode="coarse"))).text


def test_damage_is_told_beside_its_bounds(tmp_path):
    """Every reading of damage; an accuracy that cannot be read is said to be unread, and one that can is given."""
    folder = make_run(tmp_path / "unread", seeds=(0,), draws=2)
    unread = "not measured: the negatives of this contrast carry no response"
    text = Page(report.build(folder)).text
    assert unread in text
    for said in ("KL of the next token", "degenerate completions, positives, ablation", "Bound of the rule"):
        assert said in text
    results = json.loads((folder / "results.json").read_text())
    for row in results["seeds"][0]["arms"]:
        if row["set"] == "negative":
            row["correct"] = 0.875 if row["arm"] == "baseline" else 0.625
    (folder / "results.json").write_text(json.dumps(results))
    text = Page(report.build(folder)).text
    assert unread not in text
    assert "0.88 to 0.62" in text


def test_large_grid_fits_the_page(tmp_path):
    report.build(make_run(tmp_path, seeds=(0,), layers=80, positions=8, draws=2))
    svg = (tmp_path / "figures" / "selection-seed-0-bypass.svg").read_text()
    assert 800 < float(re.findall(r'width="([\d.]+)"', svg)[0]) < 1150


def test_scores_that_are_not_numbers_are_blank(tmp_path):
    make_run(tmp_path, seeds=(0,), draws=2)
    path = tmp_path / "seed-0" / "selection.json"
    selection = json.loads(path.read_text())
    selection["candidates"][0]["kl"] = float("nan")
    path.write_text(json.dumps(selection))
    report.build(tmp_path)
    spec = json.loads((tmp_path / "figures" / "selection-seed-0-kl.vl.json").read_text())
    assert spec["data"]["values"][0]["kl"] is None


def test_discover(tmp_path):
    page = Page(report.build_discover(make_discover(tmp_path, hostile=True)))
    assert_self_contained(page)
    assert "no evidence that a direction moves the behaviour" in page.text
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {
        "separation-lines", "separation-auroc", "separation-cosine", "separation-norm",
    }  # fmt: skip


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["protocol.json", "results.json", "seed-1/selection.json", "seed-0/separation.json"])
def test_missing_file_is_named(tmp_path, name):
    (make_run(tmp_path, draws=2) / name).unlink()
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / name))):
        report.build(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"verdict": 3}', "\udcff"])
def test_malformed_file_is_named(tmp_path, content):
    make_run(tmp_path, draws=2)
    (tmp_path / "results.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "results.json"))):
        report.build(tmp_path)


def test_malformed_file_lists_its_faults(tmp_path):
    make_run(tmp_path, draws=2)
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    results["seeds"][0]["arms"][1]["rate"] = "high"
    del results["verdict"]
    path.write_text(json.dumps(results))
    with pytest.raises(OutputError, match=r"results.verdict is missing; .*seeds\[0\].arms\[1\].rate is \"high\""):
        report.build(tmp_path)


def test_files_of_two_runs_are_refused(tmp_path):
    make_run(tmp_path, draws=2)
    path = tmp_path / "seed-0" / "selection.json"
    path.write_text(path.read_text().replace('"protocol_sha256": "', '"protocol_sha256": "00'))
    with pytest.raises(OutputError, match="another protocol"):
        report.build(tmp_path)


# -- small parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [report, figures, arm_figures, site_figures])
def test_report_needs_no_torch(module):
    nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
    named = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    named |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert not {name for name in named if name.split(".")[0] in ("torch", "transformers", "jaxtyping")}


def test_positions_are_written_with_their_token():
    labels = figures.position_labels([-2, -1, "response_mean"], ["\n", "<|a_very_long_special_token|>"])
    assert labels[-2] == r'-2 "\n"'
    assert labels[-1].startswith('-1 "<|a_very')
    assert len(labels[-1]) < 24
    assert labels["response_mean"] == "response_mean"
    assert labels[-3] == "-3 (instruction)"


def test_equal_rates_are_spread_and_lone_ones_are_not():
    offsets = arm_figures._swarm([0.5, 0.5, 0.5, 0.9])
    assert len(set(offsets[:3])) == 3
    assert offsets[3] == 0
    assert max(map(abs, arm_figures._swarm([1.0] * 99))) <= 1


def test_a_continuous_score_is_shown_as_a_level_and_may_leave_0_to_1(run):
    results = json.loads((run / "results.json").read_text())
    rates, rule = results["seeds"], results["rule"]
    raised = [{**row, "rate": 1.2, "low": 1.1, "high": 1.4} for row in rates[0]["arms"]]
    levels = [{**rates[0], "style": {"unit": {}}, "arms": raised}]
    assert (arm_figures.measure(rates), arm_figures.measure(levels)) == ("rate", "level")
    for seeds, shows, ends in ((rates, "rate", [-0.03, 1.03]), (levels, "level", [-0.03, 1.43])):
        for chart in arm_figures.arms(seeds, rule):
            spec = json.dumps(chart.spec)
            assert f'"title": "{shows} of the behaviour"' in spec
            assert json.dumps(ends) in spec
            assert f"{shows} of the behaviour" in chart.summary
