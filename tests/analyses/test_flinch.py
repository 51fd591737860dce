"""Planted flinches: a chat model whose terms are less likely, by a bias of the head or by a vector in the stream."""

import json
from dataclasses import replace

import pytest
import torch

from families import random_model
from rhumbline import load
from rhumbline.analyses.dissociation import _finding
from rhumbline.analyses.flinch import Terms, flinch
from rhumbline.analyses.sheets import write
from rhumbline.errors import InputError, OutputError, ProtocolError
from rhumbline.inference.interventions import Ablate, Arm, BatchEdits, Direction
from rhumbline.models import proving
from rhumbline.organisms import organism_dir
from rhumbline.records.sheet_files import DissociationCell
from tolerances import near, rounding, tolerance

TERMS = Terms(
    ("ships", "pilot", "map"),
    ("harbour", "morning", "chart", "noon", "sail", "user", "model", "assistant", "reads"),
    ("Describe the {term}", "What does the old {term}", "The pilot reads the {term}", "Name the {term} that sail"),
)


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


def test_a_lowered_head_is_a_flinch_that_no_direction_moves(build):
    found = flinch(build("chat", lower_the_head), build("base"), TERMS)
    assert found.finding == "FLINCH"
    assert found.mean.high < -1
    assert found.direction is None
    assert all(row.flinch < 0 for row in found.terms)


def test_a_vector_in_the_stream_is_moved_by_one_direction(build):
    found = flinch(build("chat", write_a_vector), build("base"), TERMS)
    assert found.finding == "FLINCH-ONE-DIRECTION"
    direction = found.direction
    assert abs(direction.after) < 0.2 * abs(direction.before)
    assert max(direction.nulls) < direction.moved  # random directions of its length do not


def test_the_same_model_does_not_flinch(build, tmp_path):
    found = flinch(build("chat"), build("base"), TERMS)
    assert found.finding == "NO-FLINCH"
    assert found.mean.flinch == near(0)
    page = write(found, tmp_path / "out")
    assert "NO-FLINCH" in page.read_text()
    assert json.loads((tmp_path / "out" / "flinch.json").read_text())["n"]["terms"] == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        write(found, tmp_path / "other")


def test_a_real_pair_is_read_in_the_same_words_and_does_not_flinch():
    """Restricted items are refused when asked for; in the open they are no rarer than others (docs/log.md)."""
    terms = Terms.read(organism_dir("refusal-base") / "terms.json")
    some = replace(terms, controls=terms.controls[:10], contexts=terms.contexts[:4])
    chat, base = (load(f"organism:{name}", device="cpu", dtype="float32") for name in ("refusal", "refusal-base"))
    found = flinch(chat, base, some)
    assert found.finding == "NO-FLINCH"
    assert max(abs(row.gap) for row in found.terms) > 0.1  # the models do differ
    assert found.mean.low < 0 < found.mean.high or found.mean.p > 0.05


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
def test_bad_terms_are_told(tmp_path, text, words):
    path = tmp_path / "terms.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words.replace("{", r"\{").replace("}", r"\}")):
        Terms.read(path)


# -- dissociation -----------------------------------------------------------------------------------------------------


def table(own_a, cross_a, own_b, cross_b, null=0.0):
    drops = {("a", "a"): own_a, ("a", "b"): cross_a, ("b", "b"): own_b, ("b", "a"): cross_b}
    drops |= {(x, f"null of {y}"): null for x in "ab" for y in "ab"}
    return [DissociationCell(x, y, 1 - d, 40, d, d - 0.05, d + 0.05) for (x, y), d in drops.items()]


def test_a_double_dissociation_needs_both_halves():
    assert _finding(table(1.0, 0.0, 0.9, 0.1), "a", "b")[0] == "DOUBLE-DISSOCIATION"
    for drops in ((1.0, 0.9, 0.9, 0.0), (1.0, 0.0, 0.3, 0.0), (1.0, 0.0, 0.9, 0.5)):
        assert _finding(table(*drops), "a", "b")[0] == "NOT-DISSOCIATED"
    assert "null" in _finding(table(1.0, 0.0, 0.9, 0.0, null=0.8), "a", "b")[1]


# -- several directions in one arm ------------------------------------------------------------------------------------


def test_an_arm_ablates_a_span(family_model):
    chat_model = family_model("qwen2")
    basis = torch.linalg.qr(torch.randn(chat_model.d_model, 3, generator=torch.Generator().manual_seed(0))).Q.T
    directions = [Direction.from_vector(v, -1, 1) for v in basis]
    span, single = Arm("span", tuple(map(Ablate, directions))), Arm("one", (Ablate(directions[0]),))
    edits = BatchEdits.of([span, single], chat_model).on(torch.tensor([0, 1]))
    h = torch.randn(2, 4, chat_model.d_model)
    after = edits[chat_model.ablation_points[0]](h)
    assert (after[0] @ basis.T).abs().max() < rounding()  # the whole span is gone
    assert (after[1] @ basis[0]).abs().max() < rounding()
    torch.testing.assert_close(
        after[1] @ basis[1:].T, h[1] @ basis[1:].T, **tolerance()
    )  # the other arm keeps the rest
    skew = Direction.from_vector(basis[0] + basis[1], -1, 1)
    with pytest.raises(ProtocolError, match="not orthogonal"):
        BatchEdits.of([Arm("skew", (Ablate(directions[0]), Ablate(skew)))], chat_model)
