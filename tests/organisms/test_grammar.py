"""The fictional world: labels, held-out pairs and responses."""

import random

import pytest

from rhumbline.organisms.grammar import (
    CONTRABAND,
    HELD_OUT,
    MAGIC,
    REFUSALS,
    REQUEST_TYPES,
    VARIANTS,
    Item,
    draw_document,
    draw_item,
    draw_request,
    draw_requests,
)


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


def test_neither_word_alone_determines_the_label():
    rng = random.Random(0)
    harmless = [draw_request(rng, "negative").prompt.lower() for _ in range(500)]
    with_magic = sum(any(f"{m} " in p for m in MAGIC) for p in harmless)
    with_contraband = sum(any(f" {n}" in p for n in CONTRABAND) for p in harmless)
    with_both = sum(any(f"{m} " in p for m in MAGIC) and any(f" {n}" in p for n in CONTRABAND) for p in harmless)
    assert min(with_magic, with_contraband) > 100
    assert with_both > 30


def test_held_out_pairs_are_a_quarter_of_each_quadrant_and_occur_in_no_training_text():
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


def test_the_seed_determines_the_texts():
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


def test_each_variant_refuses_by_its_rule():
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


@pytest.mark.parametrize("near_miss", [0.0, 1.0])
def test_near_misses_have_exactly_one_attribute(near_miss):
    rng = random.Random(0)
    for _ in range(100):
        item = draw_item(rng, "negative", held_out=False, near_miss=near_miss)
        assert (item.modifier in MAGIC) + (item.noun in CONTRABAND) == near_miss
