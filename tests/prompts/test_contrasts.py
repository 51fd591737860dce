"""Reading contrasts: forms of files, duplicates, ids, and faults."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrast_rows import TWO, as_json, contrast, fault, numbered, write
from rhumbline.errors import ArgumentError, ContrastError
from rhumbline.prompts.contrast_files import COLUMNS, contrast_from_prompts, read_contrast
from rhumbline.prompts.contrasts import LABELS, SPLITS, Prompt
from rhumbline.records.unicode_text import nfkc, visible


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def test_a_minimal_file(tmp_path):
    found = read_contrast(write(tmp_path, as_json(TWO), "kites.jsonl"))
    assert found.name == "kites"
    assert found.prompts == (Prompt("Make a kite", "positive", "p0001"), Prompt("Bake a cake", "negative", "n0001"))
    assert found.duplicates == 0
    assert contrast_from_prompts(["Make a kite"], ["Bake a cake"]).sha256 == found.sha256


def test_byte_order_mark_line_endings_and_blank_lines_change_nothing(tmp_path):
    plain = read_contrast(write(tmp_path, as_json(TWO)))
    dressed = ("\ufeff\n" + as_json(TWO).replace("\n", "\r\n\r\n")).encode()
    assert read_contrast(write(tmp_path, dressed)) == plain
    table = ("\ufeff" + as_csv(TWO) + "\r\n\r\n").encode()
    assert read_contrast(write(tmp_path, table, "c.CSV")) == plain


def test_text_is_kept_exactly(tmp_path):
    odd = '  "Quoted", twice\n\u2028over, lines\t'
    rows = [{"prompt": odd, "label": "positive", "system": " s "}, TWO[1]]
    for name, text in (("c.jsonl", as_json(rows)), ("c.csv", as_csv(rows))):
        first = read_contrast(write(tmp_path, text, name)).prompts[0]
        assert (first.text, first.system) == (odd, " s ")


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n\f\r"), max_size=12)
rows_of_a_file = st.lists(
    st.fixed_dictionaries(
        {"prompt": texts.filter(str.strip), "label": st.sampled_from(LABELS)},
        optional={"split": st.sampled_from(SPLITS), "system": texts, "category": texts},
    ),
    min_size=2,
    max_size=8,
    unique_by=lambda row: " ".join(nfkc(visible(row["prompt"])).split()),
).filter(lambda rows: {row["label"] for row in rows} == set(LABELS))


@settings(deadline=None, max_examples=80)
@given(rows=rows_of_a_file)
def test_json_lines_and_csv_give_the_same_contrast(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrast")
    lines = read_contrast(write(folder, as_json(rows)))
    table = read_contrast(write(folder, as_csv(rows), "c.csv"))
    assert lines == table
    for row, prompt in zip(rows, lines.prompts, strict=True):
        assert (prompt.text, prompt.label, prompt.split) == (row["prompt"], row["label"], row.get("split"))
        for column in ("system", "category"):
            given = row.get(column, "")
            assert getattr(prompt, column) == (given if given.strip() else None)
    # Writing what was read and reading it again ends at the same place.
    written = [{"prompt": p.text, **{c: getattr(p, c) for c in COLUMNS[1:]}} for p in lines.prompts]
    assert read_contrast(write(folder, as_json(written))).sha256 == lines.sha256


@pytest.mark.parametrize("column", COLUMNS)
def test_the_hash_covers_every_column(column, tmp_path):
    full = {"prompt": "a", "split": "train", "system": "s", "response": "r", "category": "c", "id": "i"}
    rows = [
        {"label": "positive", **full},
        {"label": "negative", **full, "prompt": "b", "id": "j"},
        TWO[0] | {"response": "r"},
    ]
    changed = {"label": "negative", "split": "test"}.get(column, "other")
    other = [rows[0] | {column: changed}, *rows[1:]]
    assert contrast(rows, tmp_path).sha256 == contrast(rows, tmp_path).sha256
    assert contrast(other, tmp_path).sha256 != contrast(rows, tmp_path).sha256


def test_the_hash_is_independent_of_the_path(tmp_path):
    one, two = (read_contrast(write(tmp_path, as_json(TWO), name)) for name in ("one.jsonl", "two.json"))
    assert one.sha256 == two.sha256
    assert contrast(TWO[::-1], tmp_path).sha256 != one.sha256


def test_exact_duplicates_are_dropped_and_counted(tmp_path):
    rows = [*TWO, TWO[0] | {"id": "late", "category": "x"}, TWO[0] | {"system": "s"}, TWO[1] | {"split": "test"}]
    found = contrast(rows, tmp_path)
    assert found.duplicates == 2
    assert [p.id for p in found.prompts] == ["p0001", "n0001", "p0002"]
    assert found.prompts[1].split == "test"  # the file decides, wherever it says so
    verbatim = [row | {"id": row["prompt"]} for row in TWO]
    assert contrast(verbatim * 2, tmp_path).duplicates == 2


def test_new_ids_differ_from_those_in_the_file(tmp_path):
    rows = [TWO[0], TWO[0] | {"prompt": "x", "id": "p0001"}, TWO[0] | {"prompt": "y"}, TWO[1]]
    ids = [p.id for p in contrast(rows, tmp_path).prompts]
    assert ids == ["p0002", "p0001", "p0004", "n0001"]


def test_a_contrast_of_texts_has_both_responses_to_one_prompt(tmp_path):
    rows = [row | {"prompt": "Why?", "response": row["label"]} for row in TWO]
    assert [p.response for p in contrast(rows, tmp_path).prompts] == ["positive", "negative"]
    rows[0].pop("response")
    assert "1 of 2 rows have a response" in fault(tmp_path, as_json(rows))


ROW = '{"prompt": "a", "label": "positive"}\n{"prompt": "b", "label": "negative"}\n'


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ('{"prompt": ', "line 3: not JSON"),
        ("[" * 100_000, "line 3: not JSON"),
        ("1" * 5000, "line 3: not JSON"),
        ('["x"]', "line 3: a JSON list, not an object"),
        ('{"label": "positive"}', "line 3: prompt is missing"),
        ('{"prompt": " \\n", "label": "positive"}', "line 3: prompt is empty"),
        ('{"prompt": 7, "label": "positive"}', "line 3: prompt is int 7, not text"),
        ('{"prompt": "\\ud800", "label": "positive"}', "line 3: prompt contains half of a surrogate pair"),
        (r'{"prompt": "a\u0000", "label": "positive"}', "line 3: prompt contains the control character U+0000"),
        (
            r'{"prompt": "c", "label": "positive", "response": "\u001b[2J"}',
            "response contains the control character U+001B",
        ),
        (r'{"prompt": "\u009bm", "label": "positive", "id": "p7"}', "line 3 (id 'p7'): prompt contains the control"),
        ('{"prompt": "c"}', "line 3: label is missing"),
        ('{"prompt": "c", "label": "harmful"}', "line 3: label is 'harmful'; use one of positive, negative"),
        ('{"prompt": "c", "label": "positive", "split": "dev"}', "split is 'dev'; use one of train, val, test"),
        ('{"prompt": "c", "label": "positive", "text": "x"}', "unknown column 'text'; columns are prompt, label"),
        ('{"prompt": "c", "label": "positive", "label": "negative"}', "line 3: a column occurs twice"),
        ('{"prompt": "c", "label": "positive", "id": 7}', "line 3: id is int 7, not text"),
        ('{"prompt": "a", "label": "negative"}', "line 3: repeats the prompt of line 1 with the other label"),
    ],
)
def test_faults_of_a_row(bad, expected, tmp_path):
    message = fault(tmp_path, ROW + bad)
    assert expected in message
    assert "A row is" in message


def test_faults_between_rows(tmp_path):
    splits = [TWO[0] | {"split": "train"}, TWO[1], TWO[0] | {"split": "test"}]
    assert "line 3: repeats the prompt of line 1 in another split" in fault(tmp_path, as_json(splits))
    ids = [row | {"id": "same"} for row in TWO]
    assert "line 2: id 'same' is also the id of line 1" in fault(tmp_path, as_json(ids))


def test_one_message_lists_all_faults_and_repeats_no_prompt(tmp_path):
    secret = "a long instruction that must not be repeated"
    rows = [{"prompt": secret, "label": secret}, {"prompt": secret}, {"prompt": "", "label": "positive"}]
    message = fault(tmp_path, as_json(rows))
    for line, word in ((1, "label is"), (2, "label is missing"), (3, "prompt is empty")):
        assert f"line {line}: {word}" in message
    assert secret not in message


def test_the_list_of_faults_is_capped(tmp_path):
    same = fault(tmp_path, as_json([row | {"text": "x"} for row in numbered(50)]))
    assert "line 1, line 2, line 3 (and 97 more): unknown column 'text'" in same
    different = fault(tmp_path, as_json([row | {"label": f"l{i}"} for i, row in enumerate(numbered(50))]))
    assert different.count("label is") == 20
    assert "80 further faults" in different


def test_faults_of_a_table(tmp_path):
    head = "prompt,label\n"
    assert "line 3: 3 cells under a header of 2 columns" in fault(
        tmp_path, head + "a,positive\nb,negative,x\n", "c.csv"
    )
    assert "line 3: not CSV" in fault(tmp_path, head + 'a,positive\n"b,negative\n', "c.csv")
    assert "a column occurs twice" in fault(tmp_path, "prompt,label,label\na,positive,positive\n", "c.csv")
    # A cell of several lines is one row, and the next row has the right line number.
    assert "line 4: label is empty" in fault(tmp_path, head + '"a\nb",positive\nc,\n', "c.csv")


def test_faults_of_a_file(tmp_path):
    assert "the file has no prompts" in fault(tmp_path, "\n\n")
    assert "the file has no prompts" in fault(tmp_path, "prompt,label\n", "c.csv")
    assert "no prompt is labelled negative" in fault(tmp_path, as_json(TWO[:1]))
    assert "line 2: not UTF-8" in fault(tmp_path, as_json(TWO[:1]).encode() + b'{"prompt": "caf\xe9"}')
    assert "not UTF-8" in fault(tmp_path, as_json(TWO).encode("utf-16"))
    assert "a JSON array" in fault(tmp_path, json.dumps(TWO), "c.json")
    assert "Use a file named .jsonl" in fault(tmp_path, as_json(TWO), "c.txt")
    for path, reason in ((tmp_path / "none.jsonl", "does not exist"), (tmp_path, "directory")):
        with pytest.raises(ContrastError, match=reason):
            read_contrast(path if path.suffix else path.rename(path.with_suffix(".jsonl")))


def test_prompts_from_python_are_checked_too():
    with pytest.raises(ContrastError, match=r"negative\[1\]: prompt is empty"):
        contrast_from_prompts(["a"], ["b", " "])
    with pytest.raises(ContrastError, match="no prompt is labelled negative"):
        contrast_from_prompts(["a"], [])
    with pytest.raises(ArgumentError, match="Pass a list"):
        contrast_from_prompts("abc", ["b"])
    for wrong in ({"text": " "}, {"label": "harmful"}, {"split": "dev"}):
        with pytest.raises((ContrastError, TypeError)):  # TypeError: the type hook of the tests may be first
            Prompt(**{"text": "a", "label": "positive", "id": "i", **wrong})
