"""Contrasts of texts: who answers, by whom it is read, the metric of pairs, and runs to a verdict."""

import json
import random
from dataclasses import replace

import pytest
import torch

from rhumbline import load, run, verify
from rhumbline.errors import ContrastError, ProtocolError, TemplateError
from rhumbline.evidence.selection_rules import STYLE as STYLE_SELECTION
from rhumbline.evidence.selection_rules import choose
from rhumbline.inference.interventions import BASELINE
from rhumbline.inference.runner import Runner
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.text_style import MarkerJudge
from rhumbline.models.chat import Chat, ChatWithResponse
from rhumbline.models.chat_model import forward
from rhumbline.organisms import organism_dir
from rhumbline.organisms.register import (
    MARKERS,
)
from rhumbline.organisms.style_rows import asked_rows, style_contrasts
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS, Prompt, Sizes, split_contrast
from rhumbline.protocol import (
    DoseSettings,
    ExtractionSettings,
    NullSettings,
    StabilitySettings,
    TextScoreSettings,
    amend,
    preset,
)
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.seed_files import Candidate
from tolerances import near, tolerance


@pytest.fixture
def small(family_model):
    return family_model("qwen2")


PAIR = [
    Prompt("Describe the sea.", "positive", "a", response="Certainly! The sea is wide."),
    Prompt("Describe the sea.", "negative", "b", response="The sea is wide."),
    Prompt("Tell me about the old mill by the lake.", "positive", "c", response="Great question! It grinds corn."),
    Prompt("Tell me about the old mill by the lake.", "negative", "d", response="It grinds corn."),
]


def test_the_mean_over_a_response_is_that_of_its_tokens(small):
    chat, runner = Chat.of(small.tokenizer), Runner(small)
    texts = [chat.encode_text(p) for p in PAIR]
    together = {}
    for rows, h, _ in runner.residuals(texts, [-1, 0, 1, 2]):
        together |= {int(i): h[k] for k, i in enumerate(rows)}
    for i, text in enumerate(texts):
        assert isinstance(text, ChatWithResponse)
        each = [h[0, 0] for k in range(text.n_response) for _, h, _ in runner.residuals([text], [k + 1])]
        torch.testing.assert_close(together[i][1], torch.stack(each).mean(0), **tolerance())
        torch.testing.assert_close(together[i][3], each[min(1, len(each) - 1)], **tolerance())
        ((_, at_prompt, _),) = runner.residuals([chat.encode(PAIR[i])], [-1])
        torch.testing.assert_close(together[i][0], at_prompt[0, 0].float(), **tolerance())


def test_the_paired_metric_is_the_difference_of_mean_log_likelihoods(small):
    chat, runner = Chat.of(small.tokenizer), Runner(small)
    metric = PairedLogOdds.of(chat, PAIR)
    assert metric is not None
    assert PairedLogOdds.of(chat, PAIR[:3]) is None  # the third has no partner
    asked = [chat.encode(p) for p in PAIR[::2]]
    found = metric.read(runner, asked, [BASELINE])[0]
    for k, (one, other) in enumerate((PAIR[:2], PAIR[2:])):
        means = []
        for prompt in (one, other):
            text = chat.encode_text(prompt)
            ids = torch.tensor([list(text)])
            logs = forward(small, ids, torch.ones_like(ids), keep=0).detach().double().log_softmax(-1)[0]
            start = len(text) - text.n_response
            means.append(sum(float(logs[t - 1, text[t]]) for t in range(start, len(text))) / text.n_response)
        assert float(found[k]) == near(means[0] - means[1])


ASKED = [
    replace(PAIR[0], other_response=PAIR[1].response),
    replace(PAIR[3], other_response=PAIR[2].response),
]


def test_the_other_response_makes_the_pair(small):
    chat = Chat.of(small.tokenizer)
    whole = PairedLogOdds.of(chat, PAIR, PAIR)
    assert PairedLogOdds.of(chat, ASKED, ASKED) == whole
    assert whole is not None
    # What opens the positive responses, and no negative one.
    certainly, it = (chat.response_tokens(PAIR[k], PAIR[k].response or "")[0] for k in (0, 3))
    assert certainly in whole.own
    assert it not in whole.own


def test_both_answers_are_read_and_every_prompt_is_asked_once(tmp_path):
    rows = asked_rows(random.Random(0), {"positive": "stately", "negative": "plain"}, 60, 10)
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(row.to_json() + "\n" for row in rows))
    splits = split_contrast(read_contrast(path), Sizes(20, 8, 10), seed=0)
    true = MarkerJudge(MARKERS)
    for label, other in zip(LABELS, LABELS[::-1], strict=True):
        asked, read = splits.get("train", label), splits.texts("train", label)
        assert len(asked) == 20
        assert {p.text for p in read} == {p.text for p in (*asked, *splits.get("train", other))}
        assert {(true(p.response or "").value or 0) > 0 for p in read} == {label == "positive"}
    # Without other responses the texts of a class are its rows.
    plain = split_contrast(read_contrast(organism_dir("style") / "texts.jsonl"), Sizes(20, 8, 10), seed=0)
    assert plain.texts("train", "positive") == plain.get("train", "positive")
    path.write_text('{"prompt": "a b", "label": "positive", "other_response": "c"}\n')
    with pytest.raises(ContrastError, match="without a response"):
        read_contrast(path)


def test_without_induce_and_kl_a_candidate_that_removes_the_behaviour_survives():
    table = [Candidate(Position(0), 2, -1.0, -0.2, 0.6, content=1.0, moved=0.9)]
    assert choose(table, 10, STYLE_SELECTION).selected is None
    found = choose(table, 10, STYLE_SELECTION.without_induce_and_kl()).selected
    assert found is not None
    assert found.layer == 2
    (lost,) = choose([replace(table[0], content=0.5)], 10, STYLE_SELECTION.without_induce_and_kl()).candidates
    assert lost.discarded is Discard.LOSES_CONTENT


def test_a_response_needs_tokens_of_its_own(small):
    chat = Chat.of(small.tokenizer)
    with pytest.raises(TemplateError, match="tokens of its own"):
        chat.response_tokens(PAIR[0], " ")


def test_a_pair_of_texts_lies_in_one_split(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(row.to_json() + "\n" for row in style_contrasts(0)["texts.jsonl"]))
    contrast = read_contrast(path)
    splits = split_contrast(contrast, Sizes(64, 16, 100), seed=3)
    prompts = [{p.text for c in ("positive", "negative") for p in splits.get(s, c)} for s in ("train", "val", "test")]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    for split in ("train", "val"):
        assert [p.text for p in splits.get(split, "positive")] == [p.text for p in splits.get(split, "negative")]


def protocol(test):
    """The style's preset, as small as a whole run can be."""
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
def test_texts_are_run_to_a_verdict_by_who_asks(tmp_path, askers):
    """With plain askers there is room to induce; with stately ones alone the style is there on every prompt."""
    asked = dict(zip(("positive", "negative"), askers, strict=True))
    path = tmp_path / "asked.jsonl"
    rows = asked_rows(random.Random(1), asked, 40, 20)
    path.write_text("".join(row.to_json() + "\n" for row in rows))
    out = tmp_path / "run"
    run(load(str(organism_dir("style")), device="cpu", dtype="float32"), read_contrast(path), out, protocol(test=20))
    selection = json.loads((out / "seed-0" / "selection.json").read_text())
    (seed,) = json.loads((out / "results.json").read_text())["seeds"]
    level = {row["set"]: row["rate"] for row in seed["arms"] if row["arm"] == "baseline"}
    assert level["positive"] > 0.5
    assert seed["verdict"] != "NO-BASELINE"
    assert selection["room"] == (level["negative"] <= 0.5) == (askers[1] == "plain")
    assert ("Induction was not tested" in seed["sentence"]) == (not selection["room"])
    assert verify(out) == []


@pytest.mark.slow
def test_texts_are_run_to_a_verdict_with_the_content_beside_it(tmp_path):
    """The whole job on the responses of the style organism; which verdict is no theorem, that it reads texts is."""
    folder = organism_dir("style")
    contrast = replace(read_contrast(folder / "texts.jsonl"), name="texts")
    out = tmp_path / "run"
    run(load(str(folder), device="cpu", dtype="float32"), contrast, out, protocol(test=10))
    results = json.loads((out / "results.json").read_text())
    (seed,) = results["seeds"]
    assert json.loads((out / "protocol.json").read_text())["extraction"]["positions"] == "response-mean"
    assert seed["style"]["unit"]["source"] == "texts"
    assert seed["style"]["unit"]["auroc"] == 1.0
    # The same prompts on either side: what the model writes unasked cannot tell the classes apart.
    level = {row["set"]: row["rate"] for row in seed["arms"] if row["arm"] == "baseline"}
    assert level["positive"] == level["negative"]
    assert verify(out) == []


def test_neutral_rows_stand_aside(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(
        '{"prompt": "a b", "label": "positive"}\n{"prompt": "c d", "label": "negative"}\n'
        '{"prompt": "e f", "label": "neutral", "answer": "g"}\n'
    )
    contrast = read_contrast(path)
    assert [p.text for p in contrast.neutral] == ["e f"]
    assert len(contrast.prompts) == 2
    path.write_text('{"prompt": "a b", "label": "positive"}\n{"prompt": "c d", "label": "neutral"}\n')
    with pytest.raises(ContrastError, match="labelled negative"):
        read_contrast(path)


def test_positions_are_checked():
    assert ExtractionSettings("response:3").response_position == Position.response_token(3)
    assert ExtractionSettings("response-mean").response_position == Position.response_mean()
    assert ExtractionSettings("post-instruction").response_position is None
    for wrong in ("response:0", "response:x", "middle"):
        with pytest.raises(ProtocolError, match="response:K"):
            ExtractionSettings(wrong)
    with pytest.raises(ProtocolError, match="classifier"):
        amend(preset("style"), {"judge": "classifier", "text_score": {"classifier": False}})
