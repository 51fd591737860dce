"""Two behaviours of one model: planted on axes of their own, or on axes that lie close together."""

import json
from dataclasses import replace

import pytest

from finished_runs import QUICK
from rhumbline import contrast_from_prompts, load, run
from rhumbline.analyses.dissociation import Side, dissociate
from rhumbline.errors import InputError
from rhumbline.organisms import Planted, build

BEHAVIOURS = ("blue", "green")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A model with two families of charms, and a run about either family."""

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
            protocol = replace(QUICK, behaviour=word, refusal_tokens=("I",))
            run(model, contrast, folder / word, protocol, page=False)
            sides.append(Side.open(folder / word, contrast))
        return model, sides

    return make


def test_axes_of_their_own_are_dissociated(two_runs):
    model, sides = two_runs(Planted(axes=2, effect=1.2, jitter=0.05))
    apart = dissociate(model, *sides, max_new_tokens=4)
    assert apart.finding == "DOUBLE-DISSOCIATION", apart.sentence
    assert abs(apart.cosine.selected) < 0.3
    assert {row.n for row in apart.table} == {QUICK.sizes.test}
    for row in apart.table:
        if row.ablated == "baseline":
            assert row.level > 0.9  # there to be taken
            assert row.drop == 0
    with pytest.raises(InputError, match="two behaviours"):
        dissociate(model, sides[0], sides[0])


def test_near_axes_are_not_dissociated_and_another_model_is_refused(two_runs, tmp_path):
    model, sides = two_runs(Planted(axes=2, overlap=0.8, effect=1.2, jitter=0.05))
    near = dissociate(model, *sides, max_new_tokens=4)
    assert near.finding == "NOT-DISSOCIATED"
    assert "affected by the direction of" in near.sentence
    assert near.cosine.selected > 0.6
    stranger = load(str(build(Planted(seed=9), tmp_path / "stranger")), device="cpu", dtype="float32")
    with pytest.raises(InputError, match="not the model of"):
        dissociate(stranger, *sides)
