"""Two behaviours of one model: planted on separate axes, or on axes at a small angle."""

import json
from dataclasses import replace

import pytest

from finished_runs import QUICK
from rhumbline import contrast_from_prompts, load, read_contrast, run
from rhumbline.analyses.dissociation import BehaviourRun, _finding, dissociate
from rhumbline.errors import InputError
from rhumbline.organisms import Planted, build
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.sheet_files import DissociationCell
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
