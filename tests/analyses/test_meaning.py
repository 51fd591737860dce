"""Meaning: a direction of refusal leaves the judgement of harm where both have axes of their own, and only there."""

import json
from dataclasses import replace

import numpy as np
import pytest

import wired_model as wired
from finished_runs import QUICK
from rhumbline import load, read_contrast, run
from rhumbline.analyses.crossed_prompts import shares
from rhumbline.analyses.meaning import analyse
from rhumbline.analyses.subject import open_subject
from rhumbline.errors import ContrastError, InputError
from rhumbline.prompts.batteries import BatteryPrompt, read_battery
from rhumbline.prompts.contrast_files import LONGEST, LONGEST_NAME
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.meaning_file import MeaningPlan, MeaningRecord
from rhumbline.report.meaning_section import meaning
from rhumbline.report.page import Canvas

PLAN = MeaningPlan(prompts=24, draws=2, max_new_tokens=8)
GROUPS = {
    1: {"harmful": (wired.BOTH,), "harmless": (wired.PLAIN,)},
    2: {"harmful": (wired.HARMFUL, wired.BOTH), "harmless": (wired.REFUSED, wired.PLAIN)},
}


def battery(axes, earlier=()):
    return [
        BatteryPrompt(Prompt(text, "positive", id=f"{words[0]} {i}"), content, "words", earlier)
        for content, groups in GROUPS[axes].items()
        for words in groups
        for i, text in enumerate(wired.requests(words, 24 // len(groups), seed=5))
    ]


@pytest.fixture(scope="module")
def subject_with(tmp_path_factory):
    """A finished run of a model that judges and refuses along one axis or two; its labels are the refusals."""
    made = {}

    def get(axes):
        if axes not in made:
            into = tmp_path_factory.mktemp(f"axes{axes}")
            sides = ((wired.REFUSED, wired.BOTH), (wired.PLAIN, wired.HARMFUL)) if axes == 2 else ()
            folder = wired.build(wired.judges(axes=axes), into / "model", wired.contrast_rows(*sides))
            model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
            run(model, contrast, into / "run", replace(QUICK, max_new_tokens=12), page=False)
            made[axes] = replace(open_subject(into / "run", model, contrast), page=False)
        return made[axes]

    return get


@pytest.fixture(scope="module")
def two(subject_with) -> MeaningRecord:
    return analyse(subject_with(2), battery(2), PLAN)


def effect(record, *which):
    return record.of(*which).effect.mean


def test_two_axes_dissociate(two, subject_with):
    assert two.answer == "REFUSAL-ONLY"
    assert effect(two, "refusal", "ablation", "refusal") == pytest.approx(1, abs=0.05)
    assert effect(two, "refusal", "ablation", "judgement") == pytest.approx(0, abs=0.1)
    # The other way round: the harmfulness direction removes the judgement and leaves refusal.
    assert effect(two, "harm", "ablation", "judgement") == pytest.approx(1, abs=0.05)
    assert effect(two, "harm", "ablation", "refusal") == pytest.approx(0, abs=0.05)
    assert effect(two, "harm", "addition", "judgement") > 0.9
    assert two.harm.crossed
    assert abs(two.harm.cosine) < two.harm.random
    assert two.crossing["refusal"].fact.mean == pytest.approx(1, abs=0.05)
    assert two.crossing["harm"].content.mean == pytest.approx(1, abs=0.05)
    assert {(c.content, c.fact) for c in two.cells} == {
        (content, fact) for content in ("harmful", "harmless") for fact in ("refused", "complied")
    }
    assert subject_with(2).directory.read_record(MeaningRecord) == two


def test_one_axis_does_not(subject_with):
    record = analyse(subject_with(1), battery(1), PLAN)
    assert record.answer == "HARM-AND-REFUSAL"
    assert effect(record, "refusal", "ablation", "judgement") == pytest.approx(1, abs=0.05)
    assert record.harm.cosine > 0.95
    assert (record.harm.crossed, record.crossing) == (False, None)


def test_the_prompts_of_the_run_are_the_default(subject_with):
    record = analyse(subject_with(1), plan=PLAN)
    assert (record.battery, record.answer) == ("run", "HARM-AND-REFUSAL")
    assert {c.group for c in record.cells} == {"contrast"}


def test_a_model_that_does_not_judge_is_not_measured(planted):
    """It refuses, but its replies to the question do not depend on the request."""
    with pytest.raises(InputError, match="too few harmful"):
        analyse(planted, battery(2)[:1] + battery(2)[-12:], PLAN)
    prompts = [*planted.prompts("test", "positive")[:12], *planted.prompts("test", "negative")[:12]]
    rows = [BatteryPrompt(p, "harmful" if i % 2 else "harmless", "any") for i, p in enumerate(prompts)]
    record = analyse(planted, rows, PLAN)
    assert record.answer == "NOT-MEASURED"
    assert record.sentence.startswith("6 refused and 6 complied prompts were measured")
    assert "--prompts" in record.sentence
    more = replace(record, gaps=tuple(replace(gap, upper=8, lower=8) for gap in record.gaps))
    assert "is not above 0" in more.sentence


def test_an_earlier_turn_is_part_of_the_chat(subject_with):
    subject, turns = subject_with(1), ("Tell me about the tameash.", "Here is an answer.")
    record = analyse(subject, battery(1, turns), PLAN)
    assert sum(c.n for c in record.cells) + record.unclear == len(battery(1)) // 2
    # The first turn dilutes the share of the words below the threshold, so nothing is refused.
    assert (record.gaps[0].upper, record.answer) == (0, "NOT-MEASURED")
    assert all(c.fact == "complied" for c in record.cells)


def test_groups_are_reported_apart(subject_with):
    """As for a language: refusal in one group and none in the other, where an earlier turn hides the words."""
    turns = ("Tell me about the tameash.", "Here is an answer.")
    rows = [*battery(1), *(replace(row, group="second turn") for row in battery(1, turns))]
    record = analyse(subject_with(1), rows, PLAN)
    refused = {c.group for c in record.cells if c.fact == "refused"}
    assert (refused, {c.group for c in record.cells}) == ({"words"}, {"words", "second turn"})
    assert record.answer == "HARM-AND-REFUSAL"  # measured on the group that is refused


def test_shares_add_up_and_state_the_planted_ones():
    rng = np.random.default_rng(0)
    harmful, refused = rng.random(400) < 0.5, rng.random(400) < 0.5
    content, fact = shares(3.0 * harmful + refused + rng.normal(0, 0.1, 400), harmful, refused, ~refused)
    assert content.mean == pytest.approx(0.75, abs=0.03)
    assert fact.mean == pytest.approx(1 - content.mean)
    assert fact.low < 0.25 < fact.high


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "content": "harmful"}], "no prompt has the content harmless"),
        ([{"prompt": "a", "content": "bad"}], "use harmful or harmless"),
        ([{"prompt": " ", "content": "harmful"}], "prompt is empty"),
        ([{"content": "harmful"}], "prompt is missing"),
        ([{"prompt": "a", "content": "harmful", "first_prompt": "b"}], "give both or neither"),
        ([{"prompt": "a", "content": "harmful", "label": "positive"}], "unknown column 'label'"),
        ([{"prompt": 3, "content": "harmful"}], "prompt is int 3, not text"),
        ([{"prompt": "a" * (LONGEST + 1), "content": "harmful"}], "prompt has 1,000,001 characters"),
        ([{"prompt": "a", "content": "harmful", "group": "g" * (LONGEST_NAME + 1)}], "group has 1,001 characters"),
        (
            [{"prompt": "a", "content": "harmful", "first_prompt": "b", "first_reply": "c" * (LONGEST + 1)}],
            "first_reply has",
        ),
        ([{"prompt": "a\x1b[2J", "content": "harmful"}], r"prompt contains the control character U\+001B"),
        ([{"prompt": "a", "content": "harmful", "group": "\x9b"}], r"group contains the control character U\+009B"),
        ([{"prompt": "a\ud83d", "content": "harmful"}], "prompt contains half of a surrogate pair"),
        ([{"prompt": "a", "content": c} for c in ("harmful", "harmless")], "repeats the prompt of line 1"),
        ([], "no prompt has the content"),
    ],
)
def test_a_faulty_battery_is_refused(tmp_path, rows, words):
    path = tmp_path / "battery.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ContrastError, match=words):
        read_battery(path)


def test_a_battery_is_read_with_its_columns_and_without_repeats(tmp_path):
    path = tmp_path / "battery.csv"
    path.write_text(
        "prompt,content,group,first_prompt,first_reply\nA,harmful,de,,\nB,harmless,,Hi,Hello\nA,harmful,de,,\n"
    )
    first, second = read_battery(path)
    assert (first.prompt.text, first.content, first.group, first.earlier) == ("A", "harmful", "de", ())
    assert (second.content, second.group, second.earlier) == ("harmless", "battery", ("Hi", "Hello"))


def test_the_report_has_a_section(two):
    canvas = Canvas()
    html = str(meaning(two, canvas))
    assert "REFUSAL-ONLY" in html
    assert [drawing.chart.name for drawing in canvas.drawings] == ["meaning-effects", "meaning-reply", "meaning-cosine"]
