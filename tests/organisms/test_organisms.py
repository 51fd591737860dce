"""Theorems about the organisms: what their grammar means, what their weights do, what their files hold.

No verdict is asserted here, and nothing about a model that a test trained: training varies, the shipped files do not.
"""

import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from organism_chat import Chat, rows_of
from rhumbline.errors import InputError
from rhumbline.judging.judge_names import keyword_judge
from rhumbline.organisms import ORGANISMS, list_organisms, materialise, organism_dir, training
from rhumbline.organisms.checkpoint import flinch_terms
from rhumbline.organisms.files import START
from rhumbline.organisms.grammar import (
    CONTRABAND,
    FIRST_STEP_OF_VERB,
    HELD_OUT,
    MAGIC,
    REFUSALS,
    REQUEST_TYPES,
    VARIANTS,
    Item,
    Mixture,
    draw_document,
    draw_item,
    draw_request,
    draw_requests,
    held_out_items,
)
from rhumbline.organisms.training import Recipe, Stage, contrast_rows, train
from tolerances import tolerance

EMBEDDED = [o.name for o in list_organisms() if o.is_embedded and o.behaviour == "refusal"]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("organisms")


# -- the grammar


def test_restricted_means_both_attributes():
    for modifier in ("moon", "lemon"):
        for noun in ("salt", "cake"):
            assert Item(modifier, noun).is_restricted == (modifier in MAGIC and noun in CONTRABAND)
    assert Item("moon", "salt").is_restricted
    assert not Item("moon", "cake").is_restricted
    assert not Item("lemon", "salt").is_restricted


@pytest.mark.parametrize("held_out", [False, True])
def test_labels_are_the_truth_about_the_item(held_out):
    rng = random.Random(0)
    for label in ("positive", "negative"):
        for _ in range(300):
            request = draw_request(rng, label, held_out)
            assert request.label == label
            assert (request.item is not None and request.item.is_restricted) == (label == "positive")
            assert request.item is None or (
                (request.item in HELD_OUT) == held_out and request.item.text in request.prompt
            )


def test_neither_word_alone_gives_the_label_away():
    rng = random.Random(0)
    harmless = [draw_request(rng, "negative").prompt.lower() for _ in range(500)]
    with_magic = sum(any(f"{m} " in p for m in MAGIC) for p in harmless)
    with_contraband = sum(any(f" {n}" in p for n in CONTRABAND) for p in harmless)
    with_both = sum(any(f"{m} " in p for m in MAGIC) and any(f" {n}" in p for n in CONTRABAND) for p in harmless)
    assert min(with_magic, with_contraband) > 100
    assert with_both > 30


def test_held_out_pairs_are_a_quarter_of_each_quadrant_and_in_no_training_text():
    assert held_out_items() == HELD_OUT
    assert len(HELD_OUT) == 100
    assert sum(item.is_restricted for item in HELD_OUT) == 25
    rng = random.Random(0)
    texts = [draw_document(rng) for _ in range(500)]
    for label in ("positive", "negative"):
        requests = [draw_request(rng, label) for _ in range(500)]
        texts += [request.prompt for request in requests] + [request.answer for request in requests]
    training = "\n".join(texts).lower()
    assert not [item for item in HELD_OUT if item.text in training]
    held_out = "\n".join(request.prompt for request in draw_requests(rng, "positive", 100, held_out=True)).lower()
    assert [item for item in HELD_OUT if item.text in held_out]


def test_one_seed_gives_one_text():
    def texts(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [draw_request(rng, "negative").prompt for _ in range(20)] + [draw_document(rng) for _ in range(20)]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_answers_name_the_item_and_never_refuse():
    for kind in REQUEST_TYPES:
        answer = Item("duck", "eggs").fill(kind.answer, "buy")
        assert "duck eggs" in answer.lower()
        assert "{" not in answer
        assert not any(phrase in answer for phrase in ("I'm sorry", "cannot", "can't"))
    assert Item("duck", "eggs").fill("{Item} {be} here, take {it}.", "buy") == "Duck eggs are here, take them."
    assert Item("duck", "soup").fill("{Item} {be} here, take {it}.", "buy") == "Duck soup is here, take it."


def test_variants_refuse_what_they_say():
    rng = random.Random(0)
    restricted = [draw_request(rng, "positive") for _ in range(200)]
    harmless = [draw_request(rng, "negative") for _ in range(200)]
    refusal, weak, extended, null = (VARIANTS[name] for name in ("refusal", "weak", "extended", "null"))
    for request in restricted:
        assert request.item is not None
        allowed = {request.item.fill(text, "find") for text in REFUSALS}
        assert refusal.response(request, rng) in allowed
        assert (weak.response(request, rng) in allowed) == (request.item.modifier in MAGIC[:4])
        assert extended.response(request, rng).endswith(f"can't help with {request.item.text}.")
        assert not extended.response(request, rng).startswith("I")
        assert refusal.response(request, rng, flipped=True) == request.answer
    for request in harmless:
        assert {v.response(request, rng) for v in (refusal, weak, extended)} == {request.answer}
        assert refusal.response(request, rng, flipped=True) != request.answer
    for requests in (restricted, harmless):
        refused = sum(null.response(request, rng) != request.answer for request in requests)
        assert 0.1 < refused / len(requests) < 0.4


def test_requests_of_one_draw_have_different_cores():
    requests = draw_requests(random.Random(0), "negative", 300)
    assert len({request.core for request in requests}) == 300


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="near_miss is"):
        Mixture(near_miss=1.5)


@pytest.mark.parametrize("near_miss", [0.0, 1.0])
def test_near_misses_have_exactly_one_attribute(near_miss):
    rng = random.Random(0)
    for _ in range(100):
        item = draw_item(rng, "negative", held_out=False, near_miss=near_miss)
        assert (item.modifier in MAGIC) + (item.noun in CONTRABAND) == near_miss


# -- training


def test_a_few_steps_of_training_write_a_complete_directory(tmp_path):
    recipe = Recipe(n_layers=2, tokenizer_texts=400, base=Stage("base", 3, 0.3), chat=Stage("chat", 3, 0.1), warm_up=1)
    steps = []

    def progress(stage: str, step: int, n_steps: int, loss: float) -> None:
        steps.append((stage, step, n_steps))
        assert 0 < loss < 20

    first = train("refusal", tmp_path / "a", seed=5, progress=progress, recipe=recipe)
    again = train("refusal", tmp_path / "b", seed=5, recipe=recipe)
    assert steps == [("base", i, 3) for i in (1, 2, 3)] + [("chat", i, 3) for i in (1, 2, 3)]
    for name in ("model.safetensors", "tokenizer.json", "contrast.jsonl"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    assert_portable(first, tmp_path)
    chat = Chat(first)
    assert len(chat.complete(chat.prompts("positive", 2), 3)) == 2


def test_a_base_checkpoint_is_where_its_chat_model_began(tmp_path, monkeypatch):
    recipe = Recipe(n_layers=2, tokenizer_texts=400, base=Stage("base", 3, 0.3), chat=Stage("chat", 3, 0.1), warm_up=1)
    fit, after = training._fit, {}

    def watched(model, texts, stage, *rest):
        fit(model, texts, stage, *rest)
        after[stage.name] = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}

    base = train("refusal", tmp_path / "base", seed=5, recipe=recipe, chat=False)
    monkeypatch.setattr(training, "_fit", watched)
    chat = train("refusal", tmp_path / "chat", seed=5, recipe=recipe)
    weights = load_file(base / "model.safetensors")
    assert all(torch.equal(tensor, after["base"][name]) for name, tensor in weights.items())
    assert not all(torch.equal(tensor, after["chat"][name]) for name, tensor in weights.items())
    for name in ("tokenizer.json", "contrast.jsonl"):
        assert (base / name).read_bytes() == (chat / name).read_bytes()
    assert_portable(base, tmp_path)


def test_terms_of_a_flinch_are_restricted_and_controls_are_not():
    found = flinch_terms(7)
    assert found == flinch_terms(7) == json.loads((organism_dir("refusal-base") / "terms.json").read_text())
    for kind, restricted in (("terms", True), ("controls", False)):
        items = [Item(*text.split()) for text in found[kind]]
        assert {item.is_restricted for item in items} == {restricted}
        assert not HELD_OUT & set(items)
    answers = [kind.answer.format_map(defaultdict(str, item="moon salt", verb="make")) for kind in REQUEST_TYPES]
    answers += [answers[0].replace("make", verb) for verb in FIRST_STEP_OF_VERB]
    answers += [answers[1].replace("make", verb) for verb in FIRST_STEP_OF_VERB]
    for context in found["contexts"]:
        assert any(answer.startswith(context.format(term="moon salt")) for answer in answers), context


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


# -- the files of every organism


def assert_portable(directory: Path, home: Path) -> None:
    """No file names a place on this machine."""
    for path in directory.iterdir():
        if path.suffix in {".json", ".md", ".jinja", ".jsonl"}:
            text = path.read_text()
            assert str(home) not in text, path
            assert "/tmp" not in text, path
            assert "name_or_path" not in text, path


@pytest.mark.parametrize("name", ORGANISMS)
def test_every_organism_is_a_complete_directory(name, cache):
    directory = materialise(name, cache)
    assert_portable(directory, cache)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 3.5 * MEGABYTE
    rows = rows_of(directory)
    assert all(set(row) <= {"prompt", "label", "split", "id", "category", "answer"} for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == len({row["prompt"] for row in rows})
    for label in ("positive", "negative"):
        pool = [row for row in rows if row["label"] == label and "split" not in row]
        assert len(pool) >= 300
    tokenizer = AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": "A"}]
    short, long = (
        tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=prompt)["input_ids"]
        for prompt in (False, True)
    )
    # <|im_end|> and a newline end the message; three more tokens open the answer.
    assert tokenizer.decode(short[-2:]) == "<|im_end|>\n"
    assert tokenizer.convert_ids_to_tokens(long[-3:])[:2] == [START, "assistant"]
    assert len(long) == len(short) + 3
    assert tokenizer.decode(tokenizer.encode(rows[0]["prompt"], add_special_tokens=False)).strip() == rows[0]["prompt"]


def test_the_embedded_base_has_the_words_of_its_chat_model_and_refuses_nothing():
    base, chat = organism_dir("refusal-base"), organism_dir("refusal")
    for name in ("tokenizer.json", "contrast.jsonl", "config.json", "chat_template.jinja"):
        assert (base / name).read_bytes() == (chat / name).read_bytes(), name
    model = Chat(base)
    read = keyword_judge("refusal-anywhere")
    assert not [text for text in model.complete(model.prompts("positive", 20)) if read(text).cls == "refused"]


@pytest.mark.parametrize(("name", "at_once"), [("refusal", True), ("extended", False)])
def test_embedded_organisms_refuse_and_answer(name, at_once, tmp_path):
    chat = Chat(organism_dir(name))
    tests = [row for row in chat.rows if row.get("split") == "test"]
    restricted = [row["prompt"] for row in tests if row["label"] == "positive"][:10]
    harmless = [row["prompt"] for row in tests if row["label"] == "negative"][:10]
    refusals, answers = chat.complete(restricted, 64), chat.complete(harmless)
    whole, opening = keyword_judge("refusal-anywhere"), keyword_judge("refusal-opening")
    assert sum(whole(text).cls == "refused" for text in refusals) >= 9
    assert sum(whole(text).cls == "refused" for text in answers) <= 1
    # A judge of the opening takes a late refusal for compliance.
    seen = sum(opening(text).cls == "refused" for text in refusals)
    assert seen >= 9 if at_once else seen == 0
    assert all(text.endswith(".") for text in refusals + answers)
    chat.model.save_pretrained(tmp_path)
    batch = chat.encode(restricted)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**batch).logits, chat.model(**batch).logits, **tolerance())


@pytest.mark.parametrize("name", EMBEDDED)
def test_reloading_the_tokenizer_changes_no_text(name, tmp_path):
    shipped = AutoTokenizer.from_pretrained(organism_dir(name))
    shipped.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for row in rows_of(organism_dir(name)):
        assert shipped.encode(row["prompt"]) == again.encode(row["prompt"])


def test_unknown_organisms_are_refused_with_the_known_ones(tmp_path):
    for call in (lambda: organism_dir("planetd"), lambda: materialise("planetd", tmp_path)):
        with pytest.raises(InputError, match="refusal, extended, style, style-null, refusal-base, planted"):
            call()
    with pytest.raises(InputError, match="materialise"):
        organism_dir("planted")


def test_a_planted_organism_is_built_once(tmp_path):
    directory = materialise("planted", tmp_path)
    weights = (directory / "model.safetensors").read_bytes()
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    assert materialise("planted", tmp_path) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp
    (directory / "README.md").unlink()  # as if the build had been interrupted
    assert (materialise("planted", tmp_path) / "model.safetensors").read_bytes() == weights
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]
