"""Forecasts compared with the rows of runs, stage by stage."""

from collections import Counter
from dataclasses import replace

import pytest

from rhumbline import load, preset, read_contrast, run
from rhumbline.jobs.forecast import _share_computed, forecast, total
from rhumbline.jobs.sizing import work
from rhumbline.models.chat import Chat
from rhumbline.models.sources import own_contrast
from rhumbline.organisms import materialise
from rhumbline.organisms.measured_texts import loss_texts
from rhumbline.prompts.contrasts import Sizes, content_sha256, split_contrast
from rhumbline.prompts.loss_texts import NO_TEXTS
from rhumbline.settings import (
    AdditionSettings,
    DoseSettings,
    ExtractionSettings,
    NullSettings,
    SideEffectSettings,
    StabilitySettings,
)
from rhumbline.stages.run_plan import resolved
from sampled_contrast import sampled_contrast

LAZY = preset(
    "rhumbline",
    seeds=(0,),
    sizes=Sizes(16, 10, 8),
    nulls=NullSettings(
        ("isotropic", "covariance", "shuffled-site", "shuffled"), draws=1, wide=5, procedure=4, prompts=6
    ),
    rule=preset("blog2026").rule,  # it needs no rank, so few draws suffice
    dose=DoseSettings((0.0, 1.0), (0.0, 1.0), draws=1, prompts=6),
    stability=StabilitySettings(refits=3, sites=2, prompts=6),
    max_new_tokens=8,
    side_effects=SideEffectSettings(documents=5),
    conditions={"clerk": "You are a clerk."},
)
EAGER = replace(
    LAZY,
    full_grid=True,
    nulls=NullSettings(("isotropic",), draws=1, wide=0),
    rule=preset("blog2026").rule,
    dose=DoseSettings((), ()),
    stability=StabilitySettings(refits=0),
    conditions={},
    refusal_tokens=("I",),
    addition=AdditionSettings("validation"),
)
SCREENED = replace(
    LAZY,
    screen=6,
    nulls=replace(LAZY.nulls, screen=4, completed=3, draws=2, wide=8, interim=4),
    dose=DoseSettings((0.0, 1.0), (-1.0, 0.5, 1.0), draws=1, prompts=6),
)
EXACT = {"extraction", "arms", "separation", "losses on text", "losses on responses",
         "losses on completions", "condition clerk"}  # fmt: skip


def counted_rows(model, contrast, out, protocol, texts=NO_TEXTS) -> Counter[str]:
    """The rows of every stage of a run."""
    counted: Counter[str] = Counter()
    progress = lambda stage, rows: counted.update({stage: rows or 0})  # noqa: E731
    run(model, contrast, out, protocol, texts=texts, progress=progress, page=False)
    return Counter({stage: rows for stage, rows in counted.items() if rows})


@pytest.fixture(scope="module")
def refusal():
    """The organism, and its contrast with sampled splits."""
    contrast = sampled_contrast(own_contrast("organism:refusal"))
    return load("organism:refusal", device="cpu", dtype="float32"), contrast


@pytest.mark.parametrize("protocol", [LAZY, EAGER, SCREENED], ids=["lazy", "eager", "screened"])
def test_the_rows_of_a_run_agree_with_its_forecast(protocol, refusal, tmp_path):
    (model, contrast), texts = refusal, loss_texts("refusal")
    counted = counted_rows(model, contrast, tmp_path / "run", protocol, texts)
    splits = split_contrast(contrast, protocol.sizes, 0)
    stages = forecast(Chat.of(model.tokenizer), splits, protocol, model.n_layers, texts)
    assert [s.name for s in stages] == list(counted)  # the same stages, in the same order
    for stage in stages:
        assert 0 < counted[stage.name] <= stage.most, stage
        if stage.name in EXACT:
            assert counted[stage.name] == stage.rows == stage.most, stage
        elif stage.rows == stage.most and stage.name != "nulls":
            assert counted[stage.name] == stage.rows, stage
    assert sum(counted.values()) <= total({0: stages}).most
    assert total({0: stages, 1: stages}).rows == 2 * total({0: stages}).rows


def test_a_run_on_texts_reads_one_position_and_both_responses(refusal, tmp_path):
    model, contrast = refusal
    answers = {"positive": "I can't help with that.", "negative": "Sure, here it is."}
    prompts = tuple(
        replace(
            p, response=answers[p.label], other_response=answers["negative" if p.label == "positive" else "positive"]
        )
        for p in contrast.prompts
    )
    texts = replace(contrast, prompts=prompts, sha256=content_sha256(prompts))
    changes = {"extraction": ExtractionSettings("auto", filter=False), "side_effects": SideEffectSettings(documents=0)}
    protocol = replace(EAGER, addition=AdditionSettings(), **changes)
    counted = counted_rows(model, texts, tmp_path / "run", protocol)
    stages = forecast(
        Chat.of(model.tokenizer), split_contrast(texts, protocol.sizes, 0), resolved(protocol, texts), model.n_layers
    )
    by_name = {stage.name: stage for stage in stages}
    for name in ("extraction", "separation"):
        assert counted[name] == by_name[name].rows == by_name[name].most
    assert by_name["selection"].rows <= counted["selection"] <= by_name["selection"].most
    assert (
        work(protocol, model.n_layers)[0]["candidates"]
        == 5 * (work(resolved(protocol, texts), model.n_layers)[0]["candidates"])
    )


def test_in_16_bits_the_rounding_is_counted(refusal):
    model, contrast = refusal
    splits, chat = split_contrast(contrast, LAZY.sizes, 0), Chat.of(model.tokenizer)
    plain, rounded = (
        {s.name: s for s in forecast(chat, splits, SCREENED, model.n_layers, is_16_bit=x)} for x in (False, True)
    )
    for name in ("selection", "second direction"):
        assert plain[name].rows < rounded[name].rows < rounded[name].most == plain[name].most


def test_forecasts_grow_with_tokens_texts_and_layers(tmp_path):
    folder = materialise("planted", tmp_path)
    contrast = read_contrast(folder / "contrast.jsonl")
    chat = Chat.of(load(str(folder), device="cpu").tokenizer)
    splits = split_contrast(contrast, LAZY.sizes, 0)
    few, many = (forecast(chat, splits, p, 6) for p in (LAZY, replace(LAZY, max_new_tokens=80)))
    assert total({0: many}).written == 10 * total({0: few}).written > 0
    nothing = replace(LAZY, side_effects=SideEffectSettings(0))
    assert not [s for s in forecast(chat, splits, nothing, 6) if s.name.startswith("losses")]
    assert total({0: forecast(chat, splits, LAZY, 12)}).most > total({0: few}).most


def test_tokens_that_prompts_share_are_computed_once_for_each_pass():
    shared = [[1] * 20 + [i, i + 1] for i in range(2, 40, 2)]
    assert _share_computed(shared) < 0.2
    assert _share_computed([[i] * 22 for i in range(5)]) == pytest.approx(1.0)
    assert _share_computed([]) == 1.0
