"""The style organisms: register, personas and contrast files."""

import random

import numpy as np
import pytest

from rhumbline.judging.markers import estimate_markers
from rhumbline.judging.text_style import MarkerJudge, words
from rhumbline.organisms import organism_dir
from rhumbline.organisms.register import (
    HELD_OUT,
    MARKERS,
    Persona,
    StyleMixture,
    draw_persona,
    draw_styled_exchange,
)
from rhumbline.organisms.style_rows import style_contrasts
from rhumbline.prompts.contrast_files import read_contrast


def test_the_asker_determines_the_register():
    rng = random.Random(1)
    certain, random_register = StyleMixture(register_noise=0.0, unknown=0.0), StyleMixture(by_asker=False, unknown=0.0)
    judge = MarkerJudge(MARKERS)
    seen = {"stately": set(), "plain": set()}
    for _ in range(300):
        prompt, response = draw_styled_exchange(rng, certain)
        if "can't" in response or "cannot" in response:
            continue
        asker = "stately" if any(f"a {Persona(t, j).text}" in prompt for t, j in PERSONAS) else "plain"
        seen[asker].add((judge(response).value or 0) > 0)
    assert seen["plain"] == {False}
    assert True in seen["stately"]
    shown = [(judge(draw_styled_exchange(rng, random_register)[1]).value or 0) > 0 for _ in range(300)]
    assert 0.2 < np.mean(shown) < 0.45


def test_the_estimated_markers_are_in_the_texts_of_the_register():
    """Its texts are longer, so that short phrases of two markers can be estimated in place of one of them."""
    rows = [row for row in style_contrasts(0)["texts.jsonl"] if row.split is None]
    sides = {c: [r.response or "" for r in rows if r.label == c][:128] for c in ("positive", "negative")}
    topics = [r.category for r in rows if r.label == "positive"][:128]
    estimated = MarkerJudge(tuple(m.phrase for m in estimate_markers(sides["positive"], sides["negative"], topics)))
    true = MarkerJudge(MARKERS)
    texts = [words(text) for side in sides.values() for text in side]
    assert [any(estimated.marked(text)) for text in texts] == [any(true.marked(text)) for text in texts]


PERSONAS = [p for p in {draw_persona(random.Random(i), True, False) for i in range(400)}]


def test_held_out_personas_are_in_no_training_prompt():
    rng = random.Random(2)
    prompts = " ".join(draw_styled_exchange(rng, StyleMixture())[0] for _ in range(800))
    assert [p for p in HELD_OUT if f"I am a {p.text}." in prompts] == []
    assert [p for p in PERSONAS if f"I am a {p.text}." in prompts] != []
    assert {p.is_stately for p in HELD_OUT} == {True, False}


@pytest.mark.parametrize("name", ["style", "style-null"])
def test_embedded_style_organisms_have_four_contrast_files(name):
    for file in ("contrast.jsonl", "texts.jsonl", "asked.jsonl", "refusal.jsonl"):
        contrast = read_contrast(organism_dir(name) / file)
        assert all(p.answer for p in contrast.prompts)
    assert len(read_contrast(organism_dir(name) / "contrast.jsonl").neutral) == 60
