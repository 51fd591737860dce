"""What was forecast against what a run did, stage by stage; and what is said before a model is loaded."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from make_sets import make_sets
from rhumbline import load, open_contrast, preset, read_contrast, run
from rhumbline.cli import forecast as forecasts
from rhumbline.cli import main
from rhumbline.cli.console import Progress, Work
from rhumbline.jobs.device_speed import WeightShapes, measure
from rhumbline.jobs.forecast import _share_computed, forecast, total
from rhumbline.jobs.sizing import work
from rhumbline.models.chat import Chat
from rhumbline.models.sources import own_contrast
from rhumbline.organisms import materialise
from rhumbline.organisms.measured_texts import loss_texts
from rhumbline.prompts.contrasts import Sizes, content_sha256, split_contrast
from rhumbline.prompts.loss_texts import NO_TEXTS
from rhumbline.protocol import (
    AdditionSettings,
    DoseSettings,
    ExtractionSettings,
    NullSettings,
    SideEffectSettings,
    StabilitySettings,
)
from rhumbline.stages.run_plan import resolved

LAZY = preset(
    "rhumbline",
    seeds=(0,),
    sizes=Sizes(16, 10, 8),
    nulls=NullSettings(
        ("isotropic", "covariance", "shuffled-site", "shuffled"), draws=1, wide=5, procedure=4, prompts=6
    ),
    rule=preset("blog2026").rule,  # it needs no rank, so that few draws are enough
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
    dose=DoseSettings((0.0, 1.0), (0.5, 1.0), draws=1, prompts=6),
)
EXACT = {"extraction", "arms on positives", "arms on negatives", "separation", "losses on text", "losses on responses",
         "losses on completions", "condition clerk"}  # fmt: skip


def counted_rows(model, contrast, out, protocol, texts=NO_TEXTS) -> Counter[str]:
    """The rows of every stage of a run."""
    counted: Counter[str] = Counter()
    progress = lambda stage, rows: counted.update({stage: rows or 0})  # noqa: E731
    run(model, contrast, out, protocol, texts=texts, progress=progress, page=False)
    return Counter({stage: rows for stage, rows in counted.items() if rows})


@pytest.fixture(scope="module")
def refusal():
    """The organism, and the prompts of its contrast that have no split."""
    contrast = own_contrast("organism:refusal")
    prompts = tuple(p for p in contrast.prompts if p.split is None)
    return load("organism:refusal", device="cpu", dtype="float32"), replace(contrast, prompts=prompts)


@pytest.mark.parametrize("protocol", [LAZY, EAGER, SCREENED], ids=["lazy", "eager", "screened"])
def test_a_run_does_what_was_forecast(protocol, refusal, tmp_path):
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
    stages = forecasts._stages(model.tokenizer, texts, protocol, model.n_layers, NO_TEXTS, model.dtype)[0]
    by_name = {stage.name: stage for stage in stages}
    for name in ("extraction", "separation"):
        assert counted[name] == by_name[name].rows == by_name[name].most
    assert by_name["selection"].rows <= counted["selection"] <= by_name["selection"].most
    assert (
        work(protocol.record(), model.n_layers)[0]["candidates"]
        == 5 * (work(resolved(protocol, texts).record(), model.n_layers)[0]["candidates"])
    )


def test_in_16_bits_the_rounding_is_counted(refusal):
    model, contrast = refusal
    splits, chat = split_contrast(contrast, LAZY.sizes, 0), Chat.of(model.tokenizer)
    plain, rounded = (forecast(chat, splits, SCREENED, model.n_layers, is_16_bit=x)[2] for x in (False, True))
    assert plain.name == "selection"
    assert plain.rows < rounded.rows < rounded.most == plain.most


def test_a_forecast_draws_the_sample_of_the_run(refusal, tmp_path):
    model, _ = refusal
    contrast = open_contrast("refusal", make_sets(tmp_path))
    chat = Chat.of(model.tokenizer)
    protocol = replace(LAZY, sampling="reference")
    found = forecasts._stages(model.tokenizer, contrast, protocol, model.n_layers, NO_TEXTS, model.dtype)[0]
    lots, reference = (
        forecast(chat, split_contrast(contrast, protocol.sizes, 0, sampling), protocol, model.n_layers)
        for sampling in ("lots", "reference")
    )
    assert found == reference
    assert reference != lots


@pytest.mark.parametrize("kind", ["empty", "own code", "no weights", "unknown dtype"])
def test_the_plan_gives_the_errors_of_the_run(kind, planted_folder, call, tmp_path):
    model, options = shutil.copytree(planted_folder, tmp_path / "model"), ["--device", "cpu"]
    if kind == "empty":
        shutil.rmtree(model)
        model.mkdir()
    elif kind == "own code":
        config = json.loads((model / "config.json").read_text())
        own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
        (model / "config.json").write_text(json.dumps(config | own))
        (model / "mine.py").write_text("raise RuntimeError('this code was run')")
    elif kind == "no weights":
        (model / "model.safetensors").unlink()
    else:
        options += ["--dtype", "float31"]
    contrast = planted_folder / "contrast.jsonl"
    command = ["run", model, "--contrast", contrast, "--out", tmp_path / "run", *options]
    ran, planned = call(*command), call(*command, "--plan")
    assert ran[0] == planned[0] == 3
    assert str(model) in planned[2] or "float31" in planned[2]
    assert "this code was run" not in ran[2] + planned[2]
    assert not (tmp_path / "run").exists()


def test_more_is_forecast_for_more(tmp_path):
    folder = materialise("planted", tmp_path)
    contrast = read_contrast(folder / "contrast.jsonl")
    chat = Chat.of(load(str(folder), device="cpu").tokenizer)
    splits = split_contrast(contrast, LAZY.sizes, 0)
    few, many = (forecast(chat, splits, p, 6) for p in (LAZY, replace(LAZY, max_new_tokens=80)))
    assert total({0: many}).written == 10 * total({0: few}).written > 0
    nothing = replace(LAZY, side_effects=SideEffectSettings(0))
    assert not [s for s in forecast(chat, splits, nothing, 6) if s.name.startswith("losses")]
    assert total({0: forecast(chat, splits, LAZY, 12)}).most > total({0: few}).most


def test_the_plan_says_what_fits_and_stops(tmp_path, capsys, monkeypatch):
    folder = materialise("planted", tmp_path / "models")
    command = ["run", str(folder), "--contrast", str(folder / "contrast.jsonl"), "--out", str(tmp_path / "run")]

    def loaded(*args, **kwargs):
        raise AssertionError("the model was loaded")

    with monkeypatch.context() as patched:
        patched.setattr("rhumbline.models.loading.load", loaded)
        assert main([*command, "--plan"]) == 0
    said = capsys.readouterr().out
    for part in ("arms on positives", "parameters", "fits", "on this machine", "prompt tokens/s"):
        assert part in said
    assert "DOES NOT FIT" not in said
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("rhumbline.cli.forecast._free_memory", lambda device: (1e3, "a small machine"))
    assert main([*command, "--plan"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_device_is_timed_in_the_shapes_of_the_model():
    shapes = WeightShapes([(64, 32), (32, 64), (64, 32)], (256, 32))
    speed = measure(shapes, torch.float32, torch.device("cpu"))
    assert 0 < speed.prompt_token < speed.step < 1
    more = measure(replace(shapes, blocks=[*shapes.blocks] * 50), torch.float32, torch.device("cpu"))
    assert more.prompt_token > 5 * speed.prompt_token
    assert speed.seconds(100, 0) == pytest.approx(100 * speed.prompt_token)
    assert speed.seconds(0, 2 * speed.rows) == pytest.approx(2 * speed.step)


def test_tokens_that_prompts_share_are_computed_once_for_each_pass():
    shared = [[1] * 20 + [i, i + 1] for i in range(2, 40, 2)]
    assert _share_computed(shared) < 0.2
    assert _share_computed([[i] * 22 for i in range(5)]) == pytest.approx(1.0)
    assert _share_computed([]) == 1.0


def test_one_bar_shows_the_share_of_the_whole_run(capsys):
    work = [Work("extraction", 10, 100), Work("nulls", 100, 300), Work("extraction", 10, 100), Work("nulls", 100, 500)]
    progress = Progress(work)
    try:
        progress("extraction", None)
        progress("extraction", 5)
        assert progress.finished == 50
        progress("extraction", 20)  # more rows than expected do not count
        assert progress.finished == 100
        progress("nulls", None)
        progress("nulls", 10)
        progress("nulls", None)  # the next part of the same stage
        progress("nulls", 10)
        assert progress.finished == 160
        progress("report", None)  # a stage that is not expected; nulls count as whole
        assert progress.finished == 400
        progress("nulls", None)  # of the second seed, whose extraction was resumed
        assert progress.finished == 500
        progress("nulls", 100)
        assert progress.finished == 1000
    finally:
        progress.close()
    said = capsys.readouterr().err
    assert "nulls: ended early, 20 of 100 expected rows were needed" in " ".join(said.split())
    assert said.count("ended early") == 1
