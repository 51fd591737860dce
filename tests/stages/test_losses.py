"""What the interventions cost: losses and divergences against a plain computation, and what must not move them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rhumbline import load, preset, read_contrast, run, verify
from rhumbline.errors import InputError, ProtocolError
from rhumbline.evidence.side_effects import divergences, text_losses
from rhumbline.inference.interventions import Ablate, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.judge_names import class_judge
from rhumbline.judging.score import score_of
from rhumbline.models.chat import Chat
from rhumbline.organisms import organism_dir
from rhumbline.organisms.measured_texts import loss_texts
from rhumbline.prompts.contrasts import ContrastSet, Prompt, Sizes
from rhumbline.prompts.loss_texts import Exchange, LossTexts, read_texts
from rhumbline.protocol import Protocol
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, SUBTRACTION, ArmId, ArmKind
from rhumbline.records.files import read_json, read_rows
from rhumbline.settings import DoseSettings, NullSettings, SideEffectSettings, StabilitySettings
from rhumbline.stages.arms import AdditionParameters, SeedArms
from rhumbline.stages.losses import Reading, loss_rows
from sampled_contrast import sampled_contrast
from tolerances import WITH_SOFTMAX, near

SYSTEM = "You are a careful clerk."
TINY = Protocol(
    "rhumbline",
    seeds=(0,),
    sizes=Sizes(24, 10, 12),
    nulls=NullSettings(("isotropic", "covariance"), draws=1, wide=0),
    dose=DoseSettings((), ()),
    stability=StabilitySettings(refits=0),
    rule=preset("blog2026").rule,
    max_new_tokens=24,
    side_effects=SideEffectSettings(documents=10),
    conditions={"none": "", "clerk": SYSTEM},
)


NO_ARMS = {BASELINE: Arm("baseline")}


@pytest.fixture(scope="module")
def organism():
    return load(str(organism_dir("refusal")), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def contrast():
    return sampled_contrast(read_contrast(organism_dir("refusal") / "contrast.jsonl"))


@pytest.fixture(scope="module")
def finished(organism, contrast, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("side-effects") / "run"
    run(organism, contrast, out, TINY, texts=loss_texts("refusal"), page=False)
    return out


def seed_of(path: Path) -> dict:
    return read_json(path / "results.json")["seeds"][0]


# -- the formulas -----------------------------------------------------------------------------------------------------


def test_the_loss_of_the_baseline_is_the_models_own(organism):
    """transformers' own loss on one text is the mean that the rows give."""
    chat, texts = Chat.of(organism.tokenizer), loss_texts("refusal")
    sources = Reading(chat, 6, 256).text(texts)
    assert len(sources) == 6
    for row, text in zip(loss_rows(Runner(organism), "text", sources, NO_ARMS), texts.documents[:6], strict=True):
        ids = torch.tensor([organism.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            theirs = float(organism.model(input_ids=ids, labels=ids).loss)
        assert row.tokens == ids.shape[1] - 1
        assert row.nats / row.tokens == near(theirs, terms=WITH_SOFTMAX)


def test_only_the_tokens_of_an_answer_count(organism):
    """The loss of a response does not hold the prompt's; -100 is transformers' mark for a token that does not count."""
    chat, texts = Chat.of(organism.tokenizer), loss_texts("refusal")
    sources = Reading(chat, 6, 256).responses(texts, [])
    rows = list(loss_rows(Runner(organism), "responses", sources, NO_ARMS))
    assert len(rows) == 6
    for row, (_, document, _), exchange in zip(rows, sources, texts.exchanges[:6], strict=True):
        ids = torch.tensor([document.ids])
        assert organism.tokenizer.decode(document.ids[document.start :]) == exchange.response
        labels = ids.clone()
        labels[0, : document.start] = -100
        with torch.no_grad():
            theirs = float(organism.model(input_ids=ids, labels=labels).loss)
            with_prompt = float(organism.model(input_ids=ids, labels=ids).loss)
        ours = row.nats / row.tokens
        assert ours == near(theirs, terms=WITH_SOFTMAX)
        assert abs(ours - with_prompt) > 0.01


def test_no_intervention_costs_nothing_and_a_large_one_does(organism):
    chat = Chat.of(organism.tokenizer)
    prompts = [Prompt(f"What is {a} plus two?", "negative", id=a) for a in ("one", "three", "four")]
    direction = Direction.from_vector(torch.randn(organism.d_model, generator=torch.Generator().manual_seed(0)), -1, 4)
    nothing = ArmId.null("isotropic", 0, ArmKind.ABLATION)
    large = SeedArms(replace(direction, norm=60.0), [], AdditionParameters(1.0, "all"))
    arms = {**large.losses(()), nothing: Arm(str(nothing), (Ablate(direction, 0.0),))}
    runner, judge = Runner(organism), class_judge("refusal-opening")

    def score(prompt, ids):
        return score_of(judge, chat.answer(ids).text)

    sources = Reading(chat, 3, 256).completions(runner, prompts, score, 12)
    rows = loss_rows(runner, "completions", sources, arms)
    loss = {r.arm: r for r in text_losses("completions", rows)}
    kl = {r.arm: r for r in divergences(rows)}
    assert loss[nothing].change == near(0, terms=WITH_SOFTMAX)
    assert kl[nothing].max == near(0, terms=WITH_SOFTMAX)
    assert loss[ADDITION].low > 0.1
    assert kl[ADDITION].mean > 0.1
    assert {ABLATION, ADDITION, SUBTRACTION} < loss.keys()
    assert loss[ADDITION].change != loss[SUBTRACTION].change


def test_long_texts_are_cut_and_empty_ones_left_out(organism):
    reading = Reading(Chat.of(organism.tokenizer), 10, 5)
    texts = LossTexts("t", ("The harbor council says " * 20, "a"), (Exchange("Hello", "word " * 40),))
    (source,) = [s for s in reading.text(texts) if s.id == "00000"]
    assert len(source.document.ids) == 5
    (answer,) = reading.responses(texts, [])
    assert len(answer.document.ids) - answer.document.start == 5
    assert reading.text(LossTexts("t", ("",))) == []


# -- in a run ---------------------------------------------------------------------------------------------------------


def test_a_run_measures_all_three_texts_and_its_controls(finished):
    found = seed_of(finished)["side_effects"]
    arms = {"baseline", "ablation", "addition", "subtraction"} | {
        f"null:{family}:0:{kind}" for family in ("isotropic", "covariance") for kind in ("ablation", "addition")
    }
    for text in ("text", "responses", "completions"):
        table = {r["arm"]: r for r in found["losses"] if r["text"] == text}
        assert table.keys() == arms
        assert len({(r["documents"], r["tokens"]) for r in table.values()}) == 1  # every arm reads the same
        assert all(r["perplexity"] == pytest.approx(np.exp(r["ce"])) for r in table.values())
    completions = {r["arm"]: r for r in found["losses"] if r["text"] == "completions"}
    # On what it writes itself the model is surest; ablation costs little and addition a lot.
    assert completions["baseline"]["ce"] < 0.1
    assert completions["ablation"]["change"] < 0.2 < completions["addition"]["change"]
    kl = {r["arm"]: r for r in found["kl"]}
    assert kl.keys() == arms - {"baseline"}
    assert kl["ablation"]["mean"] < kl["addition"]["mean"]
    assert all(r["low"] <= r["mean"] <= r["high"] <= r["max"] for r in kl.values())
    negatives = {r["arm"]: r for r in found["negatives"]}
    assert negatives["ablation"]["change"] <= 0 < negatives["addition"]["change"]
    assert verify(finished) == []


def test_a_changed_row_is_noticed(finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    path = copy / "seed-0" / "losses-text.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["nats"] += 1.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    faults = verify(copy)
    assert any("losses-text.jsonl was changed" in f for f in faults)
    assert any("side_effects" in f and "change" in f for f in faults)


def test_a_killed_run_measures_what_is_missing_and_says_the_same(finished, organism, contrast, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    before = seed_of(copy)
    for name in ("losses-responses.jsonl", "condition-01.jsonl"):
        (copy / "seed-0" / name).unlink()
    kept = (copy / "seed-0" / "losses-text.jsonl").stat().st_mtime_ns
    run(organism, contrast, copy, TINY, texts=loss_texts("refusal"), page=False)
    assert seed_of(copy) == before
    assert (copy / "seed-0" / "losses-text.jsonl").stat().st_mtime_ns == kept
    with pytest.raises(ProtocolError, match=r"texts\."):
        run(organism, contrast, copy, TINY, page=False)


def test_without_texts_the_models_own_completions_remain(organism, contrast, tmp_path):
    protocol = replace(TINY, conditions={}, side_effects=SideEffectSettings(4, controls=()))
    result = run(organism, contrast, tmp_path / "run", protocol, page=False)
    found = result.results["seeds"][0]
    assert {r["text"] for r in found["side_effects"]["losses"]} == {"completions"}
    assert found["conditions"] == []
    assert verify(tmp_path / "run") == []
    nothing = replace(protocol, side_effects=SideEffectSettings(0))
    result = run(organism, contrast, tmp_path / "none", nothing, page=False)
    assert result.results["seeds"][0]["side_effects"]["losses"] == []


# -- conditions and breakdowns ----------------------------------------------------------------------------------------


def test_the_condition_without_system_prompt_repeats_the_run(finished):
    """The run itself had none: the same prompts, the same direction, the same rates. Another prompt gives others."""
    found = seed_of(finished)
    own = {(a["arm"], a["set"]): a["rate"] for a in found["arms"]}
    by = {(r["condition"], r["arm"], r["set"]): r for r in found["conditions"]}
    assert {c for c, _, _ in by} == {"none", "clerk"}
    for key in (("ablation", "positive"), ("addition", "negative"), ("ablation", "negative"), ("baseline", "positive")):
        assert by["none", *key]["rate"] == own[key]
        assert by["clerk", *key]["n"] == by["none", *key]["n"]
    assert by["none", "ablation", "positive"]["change"] < -0.5
    differ = [key for key in own if ("clerk", *key) in by and by["clerk", *key]["rate"] != own[key]]
    assert differ
    rows = read_rows(finished / "seed-0" / "condition-01.jsonl")
    assert {r["condition"] for r in rows} == {"clerk"}
    assert not any("completion" in r for r in rows)


def test_prompts_with_their_own_system_prompt_have_no_condition(organism, contrast, tmp_path):
    own = tuple(replace(p, system="Be brief.") if i == 3 else p for i, p in enumerate(contrast.prompts))
    with pytest.raises(ProtocolError, match="system prompt of their own"):
        run(organism, ContrastSet("c", own, "0" * 64, 0), tmp_path / "run", TINY, page=False)


# -- files of texts ---------------------------------------------------------------------------------------------------


def test_texts_are_read_from_either_form(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "One fact."}\n\n{"prompt": "Hello?", "response": "Hello."}\n')
    found = read_texts(lines)
    assert found.documents == ("One fact.",)
    assert found.exchanges == (Exchange("Hello?", "Hello."),)
    plain = tmp_path / "b.txt"
    plain.write_text("First\nline.\n\n  \nSecond.\n")
    assert read_texts(plain).documents == ("First\nline.", "Second.")
    assert read_texts(lines).record() != read_texts(plain).record()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text", "is not a file of texts"),
        ("a.jsonl", '{"text": ""}\n{"text": "x"}\nnot json', "line 1, 3"),
        ("a.jsonl", '{"prompt": "x"}', "line 1"),
        ("a.txt", "  \n", "no text"),
        ("a.txt", None, "does not exist"),
    ],
)
def test_faulty_texts_are_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path / name)


def test_written_organisms_predict_no_text():
    assert loss_texts("planted").documents == ()
    assert len(set(loss_texts("refusal").documents)) == len(loss_texts("refusal").documents) > 10
