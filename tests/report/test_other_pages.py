"""The report of hostile texts, and of runs that are not a complete one that reproduces."""

import json
import re

import pytest
from msgspec.structs import replace

from make_run import change_results, make_discover, make_run
from make_seed import HOSTILE, NO_BASELINE, NOT_SINGLE, REPRODUCES
from report_page import Page, assert_self_contained
from rhumbline.records.claims import ClaimKind
from rhumbline.records.directory import RunDirectory
from rhumbline.records.reasons import Discard
from rhumbline.records.results import (
    AdjustedEffect,
    Confounds,
    LevelUnit,
    NeutralLevel,
    Results,
    ScoreCorrelation,
    StyleSummary,
)
from rhumbline.records.seed_files import Selection
from rhumbline.records.shared import ClassifierFit, Marker
from rhumbline.records.verdict_names import VerdictName
from rhumbline.report import build as report


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Page:
    return Page(report.build(make_run(tmp_path_factory.mktemp("hostile"), seeds=(0,), hostile=True)))


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
    candidates = RunDirectory.read(tmp_path).read_record(Selection, 0).candidates
    best = max(row.induce for row in candidates if row.discarded is Discard.DOES_NOT_INDUCE)
    assert f"the largest induce score below the bound (0.00) is {best:.2f} at" in page.text
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
