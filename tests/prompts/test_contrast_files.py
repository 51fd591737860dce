"""Contrast files of texts: both responses, splits of pairs, and neutral rows."""

import csv
import json
import random

import pytest

from rhumbline.errors import ContrastError
from rhumbline.judging.text_style import MarkerJudge
from rhumbline.organisms import organism_dir
from rhumbline.organisms.register import MARKERS
from rhumbline.organisms.style_rows import asked_rows, style_contrasts
from rhumbline.prompts.contrast_files import read_contrast, read_prompts, with_ids
from rhumbline.prompts.contrasts import LABELS, Sizes, split_contrast
from rhumbline.records.codec import to_json


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


CLASSES = [{"prompt": "a b", "label": "positive", "id": "p"}, {"prompt": "c d", "label": "negative", "id": "n"}]


def with_neutral(path, *rows):
    neutral = [{"label": "neutral", **row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*CLASSES, *neutral]))
    return read_contrast(path)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "a b"}, r"line 3: repeats the prompt of line 1 with the label neutral"),
        ({"prompt": "c\u00a0 d"}, r"line 3: repeats the prompt of line 2 with the label neutral"),
        ({"prompt": "e f", "id": "n"}, r"line 3: id 'n' is also the id of line 2"),
        ({"prompt": "e f", "id": "g"}, r"line 4: id 'g' is also the id of line 3"),
        ({"prompt": "e f", "split": "train"}, r"line 3: a neutral row is in the split train"),
        ({"prompt": "e f", "response": "x"}, r"line 3: a neutral row has a response"),
    ],
)
def test_neutral_rows_have_the_checks_of_the_classes(tmp_path, row, fault):
    with pytest.raises(ContrastError, match=fault):
        with_neutral(tmp_path / "c.jsonl", row, {"prompt": "g h", "id": "g"})


def test_a_neutral_prompt_of_a_contrast_of_texts_is_no_prompt_of_its_classes(tmp_path):
    path = tmp_path / "c.jsonl"
    rows = [{**row, "prompt": "a b", "response": row["label"]} for row in CLASSES]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "a b", "label": "neutral"}]))
    with pytest.raises(ContrastError, match="repeats the prompt of line"):
        read_contrast(path)


def test_repeated_neutral_prompts_are_read_once_and_every_one_has_an_id(tmp_path):
    """The empty id of a CSV file is a missing one, and a number that is an id in the file is not given again."""
    rows = [{"prompt": "e f"}, {"prompt": "e f"}, {"prompt": "g h", "id": "neutral-0000", "split": "test"}]
    contrast = with_neutral(tmp_path / "c.jsonl", *rows)
    assert {p.text: p.id for p in contrast.neutral} == {"e f": "neutral-0001", "g h": "neutral-0000"}
    assert contrast.duplicates == 1
    table = tmp_path / "c.csv"
    table.write_text("prompt,label,id\na b,positive,\nc d,negative,\ne f,neutral,\ng h,neutral,\n")
    assert [p.id for p in read_contrast(table).neutral] == ["neutral-0000", "neutral-0001"]


MADE = {
    "model": "m", "fingerprint": "f", "revision": None, "template_sha256": "t", "prompts": "p", "prompts_sha256": "p",
    "systems": {"positive": "a", "negative": "b"}, "n_prompts": 2, "max_new_tokens": 8, "temperature": 0.7, "seed": 1,
    "rhumbline": "0", "match": "words", "with_systems": True, "pairs": 2, "words": {"positive": 4.0, "negative": 4.5},
    "left_out": {"no_answer": 0, "degenerate": 0, "same": 0, "length": 0},
}  # fmt: skip


def test_the_first_line_of_a_made_contrast_is_its_record_and_no_row(tmp_path):
    rows = [{"prompt": "Open it.", "label": "positive"}, {"prompt": "Close it.", "label": "negative"}]
    plain, made = tmp_path / "plain.jsonl", tmp_path / "made.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.write_text("".join(json.dumps(row) + "\n" for row in [{"made": MADE}, *rows]))
    read = read_contrast(made)
    assert read.prompts == read_contrast(plain).prompts
    assert read.sha256 == read_contrast(plain).sha256
    assert to_json(read.made) == to_json(read.record())["made"] == MADE
    assert "made" not in to_json(read_contrast(plain).record())
    made.write_text("".join(json.dumps(row) + "\n" for row in [{"made": {**MADE, "seed": "x"}}, *rows]))
    with pytest.raises(ContrastError, match=r"line 1: made is not .*seed"):
        read_contrast(made)
    made.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"made": MADE}]))
    with pytest.raises(ContrastError, match="unknown column 'made'"):
        read_contrast(made)


def test_prompts_without_classes_are_read_from_every_form(tmp_path):
    forms = {
        "a.txt": "Why is tea brown?\n\n  WHY is tea brown\nOpen it.\n",
        "a.csv": "prompt,category\nWhy is tea brown?,tea\nOpen it.,\n",
        "a.jsonl": '{"prompt": "Why is tea brown?", "answer": "oxygen"}\n{"prompt": "Open it.", "id": "x"}\n',
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert [p.text for p in read_prompts(tmp_path / name)] == ["Why is tea brown?", "Open it."]
    assert [p.category for p in read_prompts(tmp_path / "a.csv")] == ["tea", None]


def test_a_prompt_is_not_divided_at_a_page_break_or_a_unicode_line_separator(tmp_path):
    prompts = ["Why is\u2028tea brown?", "Open\fit."]
    for name, end in (("a.txt", "\n"), ("b.txt", "\r\n"), ("c.txt", "\r")):
        (tmp_path / name).write_bytes(end.join([*prompts, ""]).encode())
        assert [p.text for p in read_prompts(tmp_path / name)] == prompts


def test_a_cell_of_a_csv_file_is_as_long_as_a_text_of_json_lines(tmp_path):
    """The limit of the module `csv` is that of the process, and stays as it was."""
    path, long, limit = tmp_path / "c.csv", "a" * 200_000, csv.field_size_limit()
    path.write_text(f"prompt,label\n{long},positive\nc d,negative\n")
    assert read_contrast(path).prompts[0].text == long
    path.write_text(f"prompt,label\n{long * 6},positive\nc d,negative\n")
    with pytest.raises(ContrastError, match="prompt has 1,200,000 characters; at most 1,000,000 are read"):
        read_contrast(path)
    assert csv.field_size_limit() == limit


def test_prompts_without_classes_have_unique_ids(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "One?"}\n{"id": "a", "prompt": "Two?"}\n')
    with pytest.raises(ContrastError, match="id 'a' is also the id of"):
        read_prompts(path)
    path.write_text('{"prompt": "One?"}\n{"id": "p0001", "prompt": "Two?"}\n{"prompt": "Three?"}\n')
    ids = [prompt.id for prompt in with_ids(read_prompts(path))]
    assert ids[1] == "p0001"
    assert len(set(ids)) == 3
    for name, text, message in (
        ("b.jsonl", '{"prompt": "a", "label": "positive"}', "unknown column 'label'"),
        ("b.txt", " \n", "has no prompts"),
        ("b.pdf", "x", "not a file of prompts"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ContrastError, match=message):
            read_prompts(tmp_path / name)
