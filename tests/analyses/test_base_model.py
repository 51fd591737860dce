"""Directions of a chat model in its base model, in an unrelated model, and in models that cannot be compared."""

import json

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rhumbline import load
from rhumbline.analyses import base_model
from rhumbline.errors import InputError
from rhumbline.organisms import Planted, build, organism_dir
from rhumbline.records.positions import Position


def test_the_direction_separates_in_its_own_model_and_not_in_an_unrelated_one(planted, tmp_path):
    record = base_model.analyse(planted, planted.model, draws=19)
    assert record.finding.answer == "separates"
    row = record.conditions.template.layers[planted.selected().layer]
    assert row.cosine > 0.999
    assert row.chat_in_base == row.chat_in_chat
    # Other charms and other axes with the same vocabulary: the direction has no meaning there.
    unrelated = load(str(build(Planted(seed=11), tmp_path / "unrelated")), device="cpu")
    record = base_model.analyse(planted, unrelated, draws=19)
    assert record.finding.answer != "separates"
    assert record.tokens.same
    assert not record.tokens.retokenised


def test_a_base_model_differs_from_an_unrelated_model_and_has_no_refusal_direction(refusal, tmp_path):
    """`refusal` was trained from `refusal-base`, which was trained on texts about the same items, without refusals."""
    base = load("organism:refusal-base", device="cpu", dtype="float32")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config.from_pretrained(organism_dir("refusal-base"))).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    unrelated = load(str(tmp_path), device="cpu", dtype="float32")
    records = [base_model.analyse(refusal, model, draws=19) for model in (base, unrelated)]
    layer = refusal.selected().layer
    for record in records:
        assert record.tokens.same
        assert record.finding.answer != "separates"
        row = record.conditions.template.layers[layer]
        assert row.chat_in_chat.low > 0.9  # at the same site the chat model has the direction
        assert row.chat_in_base.high < 0.85
    for at in (2, 4, layer):
        inherited, of_unrelated = (r.conditions.plain.layers[at] for r in records)
        assert inherited.cosine > 0.25 > abs(of_unrelated.cosine)


def test_a_base_that_cannot_be_compared_is_refused(planted, refusal, tmp_path):
    with pytest.raises(InputError, match="layers of width"):
        base_model.analyse(planted, refusal.model, draws=3)
    # The same architecture with another tokenizer: refused, or read in its own tokens with `retokenise`.
    folder = build(Planted(), tmp_path / "other")
    config = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = config["model"]["vocab"]
    vocabulary["I"], vocabulary[" cannot"] = vocabulary[" cannot"], vocabulary["I"]
    vocabulary["user"], vocabulary["system"] = vocabulary["system"], vocabulary["user"]
    (folder / "tokenizer.json").write_text(json.dumps(config))
    other = load(str(folder), device="cpu")
    with pytest.raises(InputError, match="--retokenise"):
        base_model.analyse(planted, other, draws=3)
    record = base_model.analyse(planted, other, draws=3, retokenise=True)
    assert record.tokens.retokenised
    assert record.conditions.template.position == Position(-1)
