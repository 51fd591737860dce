"""Whole runs on contrasts of texts, up to a verdict."""

import json
import random
from dataclasses import replace

import pytest

from rhumbline import load, run, verify
from rhumbline.organisms import organism_dir
from rhumbline.organisms.register import MARKERS
from rhumbline.organisms.style_rows import asked_rows
from rhumbline.presets.protocols import preset
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import Sizes
from rhumbline.settings import DoseSettings, NullSettings, StabilitySettings, TextScoreSettings


def protocol(test):
    """The preset for styles with small sizes."""
    return preset(
        "style",
        seeds=(0,),
        sizes=Sizes(24, 8, test),
        nulls=NullSettings(draws=1, wide=19, prompts=4, procedure_prompts=4),
        dose=DoseSettings((0.0, 1.0), (0.0, 1.0), draws=1, prompts=4),
        stability=StabilitySettings(refits=2, sites=1, prompts=4),
        max_new_tokens=32,
        text_score=TextScoreSettings(markers=MARKERS, classifier=False),
    )


@pytest.mark.slow
@pytest.mark.parametrize("askers", [("stately", "plain"), ("stately", "stately")], ids=" ".join)
def test_induction_is_tested_if_the_negatives_rarely_show_the_style(tmp_path, askers):
    """With plain askers induction is tested. With stately askers only, every prompt shows the style at baseline."""
    by_label = dict(zip(("positive", "negative"), askers, strict=True))
    path = tmp_path / "asked.jsonl"
    rows = asked_rows(random.Random(1), by_label, 40, 20)
    path.write_text("".join(row.to_json() + "\n" for row in rows))
    out = tmp_path / "run"
    run(load(str(organism_dir("style")), device="cpu", dtype="float32"), read_contrast(path), out, protocol(test=20))
    selection = json.loads((out / "seed-0" / "selection.json").read_text())
    (seed,) = json.loads((out / "results.json").read_text())["seeds"]
    level = {row["set"]: row["rate"] for row in seed["arms"] if row["arm"] == "baseline"}
    assert level["positive"] > 0.5
    assert seed["verdict"] != "NO-BASELINE"
    assert selection["room"] == (level["negative"] <= 0.5) == (askers[1] == "plain")
    induces = next(claim for claim in seed["claims"] if claim["claim"] == "induces")
    assert any(reason["code"] == "no-room" for reason in induces["reasons"]) == (not selection["room"])
    assert verify(out) == []


@pytest.mark.slow
def test_a_contrast_of_texts_is_read_over_its_responses(tmp_path):
    """A run on the responses of the style organism; its verdict is not asserted."""
    folder = organism_dir("style")
    contrast = replace(read_contrast(folder / "texts.jsonl"), name="texts")
    out = tmp_path / "run"
    run(load(str(folder), device="cpu", dtype="float32"), contrast, out, protocol(test=10))
    results = json.loads((out / "results.json").read_text())
    (seed,) = results["seeds"]
    assert json.loads((out / "protocol.json").read_text())["extraction"]["positions"] == "response-mean"
    assert seed["style"]["unit"]["source"] == "texts"
    assert seed["style"]["unit"]["auroc"] == 1.0
    # Both classes have the same prompts, so the completions do not separate them.
    level = {row["set"]: row["rate"] for row in seed["arms"] if row["arm"] == "baseline"}
    assert level["positive"] == level["negative"]
    assert verify(out) == []
