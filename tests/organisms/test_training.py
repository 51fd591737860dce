"""Training: what a few steps write, and what the full recipe learns. The weights of a new training are not asserted."""

import random

import pytest
import torch
from safetensors.torch import load_file

from organism_chat import Chat, assert_portable
from rhumbline.errors import InputError
from rhumbline.organisms import training
from rhumbline.organisms.grammar import HELD_OUT, draw_requests
from rhumbline.organisms.training import Recipe, TrainingStage, contrast_rows, train

RECIPE = Recipe(
    n_layers=2, tokenizer_texts=400, base=TrainingStage("base", 3, 0.3), chat=TrainingStage("chat", 3, 0.1), warm_up=1
)
"""A few steps of a small model."""


def test_a_few_steps_of_training_write_a_complete_directory(tmp_path):
    steps = []

    def progress(stage: str, step: int, n_steps: int, loss: float) -> None:
        steps.append((stage, step, n_steps))
        assert 0 < loss < 20

    first = train("refusal", tmp_path / "a", seed=5, progress=progress, recipe=RECIPE)
    again = train("refusal", tmp_path / "b", seed=5, recipe=RECIPE)
    assert steps == [("base", i, 3) for i in (1, 2, 3)] + [("chat", i, 3) for i in (1, 2, 3)]
    for name in ("model.safetensors", "tokenizer.json", "contrast.jsonl"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    assert_portable(first, tmp_path)
    chat = Chat(first)
    assert len(chat.complete(chat.prompts("positive", 2), 3)) == 2


def test_a_base_checkpoint_has_the_weights_of_its_chat_model_after_the_base_stage(tmp_path, monkeypatch):
    fit, after = training._fit, {}

    def recorded(model, texts, stage, *rest):
        fit(model, texts, stage, *rest)
        after[stage.name] = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}

    base = train("refusal", tmp_path / "base", seed=5, recipe=RECIPE, chat=False)
    monkeypatch.setattr(training, "_fit", recorded)
    chat = train("refusal", tmp_path / "chat", seed=5, recipe=RECIPE)
    weights = load_file(base / "model.safetensors")
    assert all(torch.equal(tensor, after["base"][name]) for name, tensor in weights.items())
    assert not all(torch.equal(tensor, after["chat"][name]) for name, tensor in weights.items())
    for name in ("tokenizer.json", "contrast.jsonl"):
        assert (base / name).read_bytes() == (chat / name).read_bytes()
    assert_portable(base, tmp_path)


def test_an_unknown_variant_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="refusal, weak, extended, null"):
        train("refusals", tmp_path, seed=0)


def test_the_contrast_of_a_trained_organism_tests_on_held_out_pairs():
    rows = contrast_rows(0)
    assert rows == contrast_rows(0)
    held_out = [item.text for item in HELD_OUT]
    for row in rows:
        assert any(text in row.prompt for text in held_out) == (row.split == "test")
    assert len({row.id for row in rows}) == len(rows) == len({row.prompt for row in rows})


@pytest.mark.slow
def test_full_training_learns_to_refuse_and_to_answer(tmp_path):
    chat = Chat(train("refusal", tmp_path / "refusal", seed=7))
    restricted = [row["prompt"] for row in chat.rows if row["label"] == "positive" and row.get("split") == "test"]
    requests = draw_requests(random.Random(9), "negative", 60, held_out=True)
    answers = chat.complete([request.prompt for request in requests])
    assert sum(text.startswith("I") for text in chat.complete(restricted)) >= 0.9 * len(restricted)
    assert sum(text == r.answer for text, r in zip(answers, requests, strict=True)) >= 0.8 * len(requests)
