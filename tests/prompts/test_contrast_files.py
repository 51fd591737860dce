"""Contrast files of texts: both responses, splits of pairs, and neutral rows."""

import random

import pytest

from rhumbline.errors import ContrastError
from rhumbline.judging.text_style import MarkerJudge
from rhumbline.organisms import organism_dir
from rhumbline.organisms.register import MARKERS
from rhumbline.organisms.style_rows import asked_rows, style_contrasts
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS, Sizes, split_contrast


def test_both_responses_to_each_prompt_are_read(tmp_path):
    rows = asked_rows(random.Random(0), {"positive": "stately", "negative": "plain"}, 60, 10)
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(row.to_json() + "\n" for row in rows))
    splits = split_contrast(read_contrast(path), Sizes(20, 8, 10), seed=0)
    true = MarkerJudge(MARKERS)
    for label, other in zip(LABELS, LABELS[::-1], strict=True):
        prompts, texts = splits.get("train", label), splits.texts("train", label)
        assert len(prompts) == 20
        assert {p.text for p in texts} == {p.text for p in (*prompts, *splits.get("train", other))}
        assert {(true(p.response or "").value or 0) > 0 for p in texts} == {label == "positive"}
    # Without other responses the texts of a class are its rows.
    plain = split_contrast(read_contrast(organism_dir("style") / "texts.jsonl"), Sizes(20, 8, 10), seed=0)
    assert plain.texts("train", "positive") == plain.get("train", "positive")
    path.write_text('{"prompt": "a b", "label": "positive", "other_response": "c"}\n')
    with pytest.raises(ContrastError, match="without a response"):
        read_contrast(path)


def test_both_texts_of_a_pair_are_in_one_split(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(row.to_json() + "\n" for row in style_contrasts(0)["texts.jsonl"]))
    contrast = read_contrast(path)
    splits = split_contrast(contrast, Sizes(64, 16, 100), seed=3)
    prompts = [{p.text for c in ("positive", "negative") for p in splits.get(s, c)} for s in ("train", "val", "test")]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    for split in ("train", "val"):
        assert [p.text for p in splits.get(split, "positive")] == [p.text for p in splits.get(split, "negative")]


def test_neutral_rows_are_separate(tmp_path):
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
