"""Trajectory: the windows that contain the token of the decision have the whole effect, and the others have none."""

from dataclasses import replace

import pytest

import wired_model
from finished_runs import QUICK
from rhumbline import load, read_contrast, run
from rhumbline.analyses.subject import open_subject
from rhumbline.analyses.trajectory import analyse
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.trajectory_file import TrajectoryPlan, TrajectoryRecord
from rhumbline.report.page import Canvas
from rhumbline.report.trajectory_section import trajectory

PLAN = TrajectoryPlan(tokens=(1, 2, 3), draws=2, prompts=8, max_new_tokens=12)
PROTOCOL = replace(QUICK, reads=Sizes(12, 6, 8), max_new_tokens=12)


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    """The subject of a finished run of a wired model."""

    def get(spec, **changes):
        into = tmp_path_factory.mktemp("wired")
        folder = wired_model.build(spec, into / "model")
        model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
        run(model, contrast, into / "run", replace(PROTOCOL, **changes), page=False)
        return replace(open_subject(into / "run", model, contrast), page=False)

    return get


def effects(record, effect="suppression"):
    return {(r.window, r.tokens): r.own.change.mean for r in record.windows if r.effect == effect}


@pytest.fixture(scope="module")
def late(wired) -> TrajectoryRecord:
    """The third token of the completion decides."""
    return analyse(wired(wired_model.refuses_at(" :", ("Well", " so", " :"))), PLAN)


@pytest.mark.parametrize("effect", ["suppression", "induction"])
def test_only_windows_with_the_third_token_have_an_effect(late, effect):
    expected = {("all", None): 1, ("prompt", None): 0, ("completion", None): 1}
    expected |= {("first", k): int(k > 2) for k in PLAN.tokens} | {("after", k): int(k <= 2) for k in PLAN.tokens}
    assert effects(late, effect) == expected
    for row in late.windows:
        assert row.nulls["isotropic"].max == 0
        assert row.beyond.mean == row.own.change.mean
        assert row.share == row.own.change.mean
        assert row.own.change.n == PLAN.prompts


@pytest.mark.parametrize("effect", ["suppression", "induction"])
def test_a_decision_at_the_last_prompt_token_is_in_the_prompt(planted, effect):
    """The contrary case: no token of the completion has an effect."""
    record = analyse(planted, PLAN)
    assert {window: value for window, value in effects(record, effect).items() if value} == {
        ("all", None): 1,
        ("prompt", None): 1,
    }
    assert (record.block, record.no_block) == (None, "the template has no think block")
    assert planted.directory.read_record(TrajectoryRecord) == record


@pytest.mark.slow
def test_a_late_refusal_is_prepared_in_the_prompt(subject_of):
    """`extended` refuses in its third sentence; its best direction acts before, and removes a part only."""
    protocol = replace(QUICK, max_new_tokens=64, judge="refusal-anywhere", save_completions=True)
    found = analyse(subject_of("extended", protocol), TrajectoryPlan((16,), 1, 12, 64))
    assert not found.is_selected
    whole, prompt = (found.of("suppression", w).own.change.mean for w in ("all", "prompt"))
    assert 0.1 < whole < 0.9
    assert prompt > 0.5 * whole
    assert found.of("suppression", "after", 16).own.change.mean == 0


@pytest.mark.parametrize("through", [True, False])
def test_the_effect_through_a_think_block_and_with_the_block_fixed(wired, through):
    """One model decides by the text of its block; the other writes the same block for all prompts."""
    tokens = {"refusal_tokens": (" Danger",)} if through else {}
    record = analyse(wired(wired_model.thinks(through=through), **tokens), replace(PLAN, tokens=(1,)))
    by = {part.carrier: part.own.change.mean for part in record.through}
    assert by["direct"] == (0 if through else 1)
    assert by["through"] == (1 if through else 0)
    assert by["regenerated"] == 1
    assert all(part.nulls.max == 0 for part in record.through)
    assert record.block.completed == record.block.prompts == PLAN.prompts
    # The closing token is read inside of the block, and chooses the first token after it.
    assert effects(record)["block", None] == 1
    assert effects(record)["after block", None] == 0
    assert "through the block" in str(trajectory(record, Canvas()))


def test_the_report_has_a_section(late):
    canvas = Canvas()
    html = str(trajectory(late, canvas))
    assert "first 3 tokens of the completion" in html
    assert [drawing.chart.name for drawing in canvas.drawings] == ["trajectory-suppression", "trajectory-induction"]
