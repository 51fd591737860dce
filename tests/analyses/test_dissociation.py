"""Two behaviours of one model: planted on separate axes, or on axes at a small angle."""

import json
from dataclasses import replace

import pytest
import torch

from finished_runs import QUICK
from rhumbline import contrast_from_prompts, load, read_contrast, run
from rhumbline.analyses import dissociation
from rhumbline.analyses.dissociation import BehaviourRun, _cell, _Completions, _ends, _finding, dissociate
from rhumbline.errors import InputError, ProtocolError
from rhumbline.inference.interventions import Direction
from rhumbline.judging.score import Score
from rhumbline.organisms import Planted, build
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.codec import convert, to_json
from rhumbline.records.results import LevelUnit
from rhumbline.records.sheet_files import DissociationCell, DissociationRecord
from rhumbline.report.sheets import write
from rhumbline.stages.seed_artefacts import Null
from tolerances import near

BEHAVIOURS = ("blue", "green")
SIZES = Sizes(24, 8, 20)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A model with two families of charms, and a run on each family."""

    def make(spec: Planted):
        folder = tmp_path_factory.mktemp("two")
        model = load(str(build(spec, folder / "model")), device="cpu", dtype="float32")
        rows = [json.loads(line) for line in (folder / "model" / "contrast.jsonl").read_text().splitlines()]
        ordinary = [row["prompt"] for row in rows if row["label"] == "negative"]
        sides = []
        for family, word in enumerate(BEHAVIOURS):
            contrast = contrast_from_prompts(
                [r["prompt"] for r in rows if r["category"] == f"charm-{family}"], ordinary
            )
            protocol = replace(QUICK, sizes=SIZES, behaviour=word, refusal_tokens=("I",))
            run(model, contrast, folder / word, protocol, page=False)
            sides.append(BehaviourRun.open(folder / word, contrast))
        return model, sides

    return make


def test_separate_axes_are_dissociated(two_runs):
    model, sides = two_runs(Planted(axes=2, effect=1.2, jitter=0.05, prompts=120))
    record = dissociate(model, *sides, max_new_tokens=4)
    assert record.finding == "DOUBLE-DISSOCIATION", record.sentence
    assert abs(record.cosine.selected) < 0.3
    assert {row.n for row in record.table} == {SIZES.test}
    for row in record.table:
        if row.ablated == "baseline":
            assert row.level > 0.9  # the behaviour is present at baseline
            assert row.drop == 0
    with pytest.raises(InputError, match="two behaviours"):
        dissociate(model, sides[0], sides[0])


def test_close_axes_are_not_dissociated_and_another_model_is_refused(two_runs, tmp_path):
    model, sides = two_runs(Planted(axes=2, overlap=0.8, effect=1.2, jitter=0.05, prompts=120))
    record = dissociate(model, *sides, max_new_tokens=4)
    assert record.finding == "NOT-DISSOCIATED"
    assert "affected by the direction of" in record.sentence
    assert record.cosine.selected > 0.6
    unrelated = load(str(build(Planted(seed=9), tmp_path / "unrelated")), device="cpu", dtype="float32")
    with pytest.raises(InputError, match="not the model of"):
        dissociate(unrelated, *sides)


def test_positions_in_responses_are_compared(response_run, planted, planted_folder):
    side = BehaviourRun.open(response_run, read_contrast(planted_folder / "contrast.jsonl"))
    record = dissociate(planted.model, side, replace(side, behaviour="copy"), max_new_tokens=2)
    assert record.cosine.position.is_in_response
    assert record.cosine.selected == near(1.0)
    assert len(record.cosine.by_layer) == planted.model.n_layers
    assert record.finding == "NOT-DISSOCIATED"  # one direction for both


# -- the finding


def table(own_a, cross_a, own_b, cross_b, null=0.0):
    drops = {("a", "a"): own_a, ("a", "b"): cross_a, ("b", "b"): own_b, ("b", "a"): cross_b}
    drops |= {(x, f"null of {y}"): null for x in "ab" for y in "ab"}
    return [DissociationCell(x, y, 1 - d, 40, d, d - 0.05, d + 0.05) for (x, y), d in drops.items()]


def test_a_double_dissociation_needs_both_directions():
    assert _finding(table(1.0, 0.0, 0.9, 0.1), "a", "b")[0] == "DOUBLE-DISSOCIATION"
    for drops in ((1.0, 0.9, 0.9, 0.0), (1.0, 0.0, 0.3, 0.0), (1.0, 0.0, 0.9, 0.5)):
        assert _finding(table(*drops), "a", "b")[0] == "NOT-DISSOCIATED"
    assert "null" in _finding(table(1.0, 0.0, 0.9, 0.0, null=0.8), "a", "b")[1]


# -- how completions are counted

REFUSED, ANSWERED, BROKEN = "I cannot help with that.", "Here is a short answer.", "the " * 12


@pytest.fixture
def dissociated(planted, planted_folder, monkeypatch):
    """Two behaviours of one model, `a` and `b`, whose completions are given."""
    side = BehaviourRun.open(planted.directory.path, read_contrast(planted_folder / "contrast.jsonl"))
    sides = [replace(side, behaviour=word, prompts=side.prompts[:20]) for word in "ab"]

    def of(texts, default=REFUSED):
        """`texts` by behaviour and ablation; ablating its own direction removes a behaviour unless they say else."""
        behaviours = iter("ab")

        def complete(runner, chat, prompts, arms, length, header):
            word = next(behaviours)
            given = {(word, word): ANSWERED} | texts
            by_arm = [given.get((word, arm.name), default) for arm in arms]
            return [text if isinstance(text, list) else [text] * len(prompts) for text in by_arm]

        monkeypatch.setattr(dissociation, "complete", complete)
        return dissociate(planted.model, *sides)

    return of


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ({}, None),
        ({("a", "a"): BROKEN}, "a is not removed by its own direction"),
        ({("a", "b"): BROKEN}, "a has too many degenerate completions under the direction of b"),
        ({("a", "b"): [BROKEN, *[REFUSED] * 19]}, None),
        ({("b", "null of a"): BROKEN}, "b has too many degenerate completions under a null direction"),
        ({("a", "a"): None}, "a is not measured under its own direction"),
        ({("a", "a"): [ANSWERED, *[None] * 19]}, "a is not measured under its own direction"),
        ({("a", "a"): [*[ANSWERED] * 18, None, None]}, None),
        ({("b", "a"): None}, "b is not measured under the direction of a"),
        ({("a", "null of a"): None}, None),
        ({("a", "null of a"): None, ("a", "null of b"): None}, "a is not measured under a null direction"),
    ],
)
def test_broken_and_unread_text_show_nothing(dissociated, tmp_path, texts, fault):
    """Broken text is no removal, nor does it show that a behaviour is unaffected."""
    record = dissociated(texts)
    if fault is None:
        assert record.finding == "DOUBLE-DISSOCIATION", record.sentence
    else:
        assert record.finding == "NOT-DISSOCIATED"
        assert f"({fault})" in record.sentence
    assert convert(to_json(record), DissociationRecord) == record
    assert "Degenerate" in write(record, tmp_path / "out").read_text()


def test_a_baseline_that_cannot_be_read_is_refused(dissociated):
    with pytest.raises(InputError, match=r"a: most completions at baseline have no answer .*--max-new-tokens"):
        dissociated({("a", "baseline"): [REFUSED, *[None] * 19]})


def test_a_degenerate_completion_keeps_its_level():
    """Of a continuous score: no change against the removal, the largest change in its favour."""
    before = _Completions.of([Score(0.6, "shown")] * 10, (0.1, 0.6))
    broken = [Score(0.0, "degenerate", "repetition")] * 4
    cell = _cell("style", "style", before, _Completions.of([*broken, *[Score(0.1, "absent")] * 6], (0.1, 0.6)))
    assert (cell.level, cell.drop, cell.degenerate) == (near(0.4), near(0.6), 0.4)
    assert cell.low < 0.6 < cell.high < cell.most == near(1.0)
    read = _cell("style", "style", before, _Completions.of([Score(0.1, "absent")] * 10, (0.1, 0.6)))
    assert (read.level, read.drop, read.most, read.degenerate) == (near(0.0), near(1.0), None, 0)
    few = _cell("style", "style", *[_Completions.of([Score(0.6, "shown")] * 7, (0.1, 0.6))] * 2)
    assert (few.drop, few.low, few.high) == (near(0.0), None, None)  # resampled, few prompts have no interval


def test_levels_need_a_gap_between_the_classes():
    unit = LevelUnit(0.6, 0.1, 0.5, 0.4, 0.6, 1.0, 0.9, (20, 20), "baseline")
    assert _ends(unit, "run") == (0.1, 0.6)
    for faulty in ({"positive": 0.1}, {"positive": 0.05}, {"negative": None}):
        with pytest.raises(InputError, match=r"run: the mean score .* is not above .* Give a run"):
            _ends(replace(unit, **faulty), "run")


# -- nulls


def test_the_null_is_no_draw_along_a_direction(planted, planted_folder, monkeypatch):
    side = BehaviourRun.open(planted.directory.path, read_contrast(planted_folder / "contrast.jsonl"))
    rule = replace(side.run.protocol.rule, same_cosine=0.5)
    monkeypatch.setitem(vars(side.run), "protocol", replace(side.run.protocol, rule=rule))
    r = side.direction.vector
    across = torch.linalg.qr(torch.stack([r, *torch.randn(2, len(r))]).T).Q.T[1:]
    other = Direction.from_vector(across[1], side.direction.position, side.direction.layer)

    def null(family, vector):
        direction = Direction.from_vector(vector, side.direction.position, side.direction.layer)
        return Null(family, 0, direction, float(direction.vector @ r), 0.1)

    aligned, along_other = null("covariance", r + 0.1 * across[0]), null("covariance", across[1] + 0.1 * r)
    weak, good = null("isotropic", across[0] + 0.1 * r), null("covariance", across[0])

    def chosen(*nulls):
        monkeypatch.setitem(vars(side.artefacts), "nulls", list(nulls))
        return side.null([side.direction, other])

    assert chosen(weak, aligned, along_other, good) is good.direction
    assert chosen(aligned, weak) is weak.direction
    with pytest.raises(ProtocolError, match=r"each of its 2 null draws at seed 0 is aligned .*--wide-nulls 19"):
        chosen(aligned, along_other)
