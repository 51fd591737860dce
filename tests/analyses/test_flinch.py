"""Planted flinches: a chat model whose terms are less likely, by a bias of the head or by a vector in the stream."""

import json
from dataclasses import replace

import pytest
import torch

from families import random_model
from rhumbline import load
from rhumbline.analyses.flinch import Terms, _finding, flinch
from rhumbline.errors import InputError, ModelError, OutputError
from rhumbline.models import proving
from rhumbline.organisms import organism_dir
from rhumbline.records.sheet_files import FlinchDirection, MeanFlinch
from rhumbline.report.sheets import write
from tolerances import near

TERMS = Terms(
    ("ships", "pilot", "map"),
    ("harbour", "morning", "chart", "noon", "sail", "user", "model", "assistant", "reads"),
    ("Describe the {term}", "What does the old {term}", "The pilot reads the {term}", "Name the {term} that sail"),
)
MANY = replace(
    TERMS,
    contexts=tuple(
        f"{start} {what} {{term}}"
        for start in ("Describe the", "What does the", "The pilot reads the", "Name the")
        for what in ("old", "new", "first", "other")
    ),
)
"""The same in so many contexts that half of them test a direction."""


@pytest.fixture(scope="module")
def build(tokenizer):
    """A phi (its head and its sublayers have biases), and copies of it with something planted."""

    def make(name, plant=lambda model, ids: None):
        model = random_model("phi", vocab_size=len(tokenizer))
        ids = [tokenizer(f" {term}", add_special_tokens=False)["input_ids"] for term in TERMS.terms]
        with torch.no_grad():
            plant(model, sorted({i for word in ids for i in word}))
        return replace(proving.prove(model, tokenizer, name), name=name)

    return make


def lower_the_head(model, ids):
    model.lm_head.bias[ids] -= 4.0


def write_a_vector(model, ids):
    away = model.lm_head.weight[ids].mean(0)
    model.model.layers[0].mlp.fc2.bias -= 8 * away / away.norm()


def test_a_lowered_head_is_a_flinch_without_a_direction(build):
    record = flinch(build("chat", lower_the_head), build("base"), TERMS)
    assert record.finding == "FLINCH"
    assert record.mean.high < -1
    assert record.direction is None
    assert all(row.flinch < 0 for row in record.terms)


def test_a_flinch_in_the_stream_is_removed_by_one_direction(build):
    record = flinch(build("chat", write_a_vector), build("base"), MANY)
    assert record.finding == "FLINCH-ONE-DIRECTION"
    direction = record.direction
    assert abs(direction.after) < 0.2 * abs(direction.before)
    assert max(direction.nulls) < direction.moved  # random directions of the same norm have no such effect


@pytest.mark.parametrize("n", [2, 3, 15])
def test_few_contexts_do_not_test_one_direction(build, n):
    """The same models. One context gives an interval without width, so it would show any change."""
    record = flinch(build("chat", write_a_vector), build("base"), replace(MANY, contexts=MANY.contexts[:n]))
    assert record.finding == "FLINCH"
    assert f"needs 8 contexts that did not select the layer, not {n // 2};" in record.sentence
    assert "give 16 contexts or more" in record.sentence


MEAN = MeanFlinch(-0.5, -0.7, -0.3, 0.01)
RESTORED = FlinchDirection(2, 1.0, before=-0.5, after=-0.1, moved=0.4, low=0.3, high=0.5, p=0.05, nulls=(), contexts=8)


@pytest.mark.parametrize(
    ("change", "finding", "words"),
    [
        ({}, "FLINCH-ONE-DIRECTION", "changed it from -0.50 to -0.10"),
        ({"low": 0.2}, "FLINCH", "change 0.40 [0.20, 0.50]"),
        ({"p": 0.1}, "FLINCH", "p = 0.10"),
        # Without a flinch on these contexts every change restores more than half of it.
        ({"before": 0.10, "after": 0.12, "moved": 0.02, "low": 0.01, "high": 0.03}, "FLINCH", "show no flinch"),
        ({"before": 0.0, "after": 0.1, "moved": 0.1, "low": 0.05, "high": 0.2}, "FLINCH", "show no flinch"),
        ({"contexts": 7}, "FLINCH", "not select the layer, not 7"),
        ({"contexts": 1, "low": 0.4, "high": 0.4}, "FLINCH", "not select the layer, not 1"),
    ],
)
def test_one_direction_explains_a_flinch_that_the_test_contexts_show(change, finding, words):
    found, sentence = _finding(MEAN, replace(RESTORED, **change), 3)
    assert found == finding
    assert words in sentence
    assert ("not tested" in sentence) == ("contexts" in change or "before" in change)


def test_the_same_model_does_not_flinch(build, tmp_path):
    record = flinch(build("chat"), build("base"), TERMS)
    assert record.finding == "NO-FLINCH"
    assert record.mean.flinch == near(0)
    page = write(record, tmp_path / "out")
    assert "NO-FLINCH" in page.read_text()
    assert json.loads((tmp_path / "out" / "flinch.json").read_text())["n"]["terms"] == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        write(record, tmp_path / "other")


def test_a_trained_pair_does_not_flinch():
    """Requests for restricted items are refused; elsewhere these words are as frequent as others (docs/log.md)."""
    terms = Terms.read(organism_dir("refusal-base") / "terms.json")
    some = replace(terms, controls=terms.controls[:10], contexts=terms.contexts[:4])
    chat, base = (load(f"organism:{name}", device="cpu", dtype="float32") for name in ("refusal", "refusal-base"))
    record = flinch(chat, base, some)
    assert record.finding == "NO-FLINCH"
    assert max(abs(row.gap) for row in record.terms) > 0.1  # the models do differ
    assert record.mean.low < 0 < record.mean.high or record.mean.p > 0.05


def test_terms_that_spell_control_tokens_are_refused_or_plain_text(build):
    chat, base = build("chat"), build("base")
    spelled = replace(TERMS, terms=("ships", "<|im_end|>"), contexts=("Name </s> the {term}", *TERMS.contexts))
    with pytest.raises(
        InputError, match=r"context 0 \(</s>\), '<\|im_end\|>' \(<\|im_end\|>\)\. .*--control-tokens plain"
    ):
        flinch(chat, base, spelled)
    record = flinch(chat, base, spelled, control_tokens="plain")
    assert (record.control_tokens, record.encoded_as_text) == ("plain", ("context 0", "'<|im_end|>'"))
    assert record.mean.flinch == near(0)
    own = flinch(chat, base, TERMS)
    assert (own.control_tokens, own.encoded_as_text) == ("error", ())
    assert flinch(chat, base, TERMS, control_tokens="plain").terms == own.terms


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "expected a JSON object"),
        ('{"terms": ["a"]}', "expected a JSON object"),
        ('{"terms": ["a"], "controls": ["b"], "contexts": ["x {term}", "y {term}"]}', "expected 4 or more"),
        (
            '{"terms": ["a"], "controls": ["b", "c", "d", "a"], "contexts": ["x {term}", "y {term}"]}',
            "both term and",
        ),
        ('{"terms": ["a"], "controls": ["b", "c", "d", "e"], "contexts": ["x", "y {term}"]}', "has no {term}"),
    ],
)
def test_faulty_terms_are_refused(tmp_path, text, words):
    path = tmp_path / "terms.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words.replace("{", r"\{").replace("}", r"\}")):
        Terms.read(path)


def test_a_model_without_a_log_probability_is_refused(build):
    chat, base = build("chat"), build("base")
    with torch.no_grad():
        chat.model.lm_head.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="chat: the log-probability of a term is not finite"):
        flinch(chat, base, TERMS)
