import csv
import io
import json
from collections import Counter
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.errors import ArgumentError, ContrastError
from rhumbline.prompts.contrast_files import COLUMNS, contrast_from_prompts, read_contrast
from rhumbline.prompts.contrasts import LABELS, SPLITS, Prompt, Sizes, near_text, split_contrast
from rhumbline.records.unicode_text import nfkc, visible

TWO = [{"prompt": "Make a kite", "label": "positive"}, {"prompt": "Bake a cake", "label": "negative"}]


def as_json(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write(tmp_path, content, name="c.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(tmp_path, content, name="c.jsonl"):
    with pytest.raises(ContrastError) as caught:
        read_contrast(write(tmp_path, content, name))
    return str(caught.value)


def numbered(n, labels=LABELS, **fields):
    return [{"prompt": f"{label} item {i}", "label": label, **fields} for label in labels for i in range(n)]


def contrast(rows, tmp_path):
    return read_contrast(write(tmp_path, as_json(rows)))


# -- reading


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


# -- splitting


def everything(splits):
    return [p for split in SPLITS for label in LABELS for p in splits.get(split, label)]


@settings(deadline=None)
@given(
    n=st.tuples(st.integers(3, 60), st.integers(3, 60)),
    sizes=st.builds(Sizes, *[st.integers(1, 30)] * 3),
    seed=st.integers(0, 2**40),
)
def test_sampled_splits_are_disjoint_and_sized(n, sizes, seed):
    source = contrast_from_prompts((f"p {i}" for i in range(n[0])), (f"n {i}" for i in range(n[1])))
    splits = split_contrast(source, sizes, seed)
    assert max(Counter(everything(splits)).values()) == 1
    assert set(everything(splits)) <= set(source.prompts)
    asked = {split: getattr(sizes, split) for split in SPLITS}
    total = sum(asked.values())
    for available, label in zip(n, LABELS, strict=True):
        assert all(p.label == label for split in SPLITS for p in splits.get(split, label))
        realised = {split: splits.sizes()[split][label] for split in SPLITS}
        assert sum(realised.values()) == min(available, total)
        for split in SPLITS:
            assert 1 <= realised[split] <= asked[split]
            # In proportion: less than one prompt off, but for what the one prompt of a tiny split costs the others.
            fair = asked[split] * min(1, available / total)
            assert realised[split] < fair + 1
            assert realised[split] > fair - 3
    assert splits == split_contrast(source, sizes, seed)
    assert (splits.near_duplicates, splits.dropped, splits.fixed) == (0, 0, frozenset())
    assert Counter(i for by in splits.ids().values() for ids in by.values() for i in ids) == Counter(
        p.id for p in everything(splits)
    )


def test_proportion():
    def realised(n, sizes):
        source = contrast_from_prompts((f"p {i}" for i in range(n)), (f"n {i}" for i in range(n)))
        return [by["positive"] for by in split_contrast(source, sizes, 0).sizes().values()]

    assert realised(130, Sizes(128, 32, 100)) == [64, 16, 50]
    assert realised(300, Sizes(128, 32, 100)) == [128, 32, 100]
    assert realised(4, Sizes(1000, 1, 1)) == [2, 1, 1]
    assert realised(3, Sizes(1, 1, 1000)) == [1, 1, 1]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000))
def test_seeds_differ_and_file_order_does_not_matter(seed):
    positive, negative = [[f"{c} {i}" for i in range(60)] for c in "pn"]
    source, sizes = contrast_from_prompts(positive, negative), Sizes(20, 10, 10)
    splits = split_contrast(source, sizes, seed)
    assert everything(splits) != everything(split_contrast(source, sizes, seed + 1))
    for order in (source.prompts[::-1], source.prompts[60:] + source.prompts[:60]):
        assert split_contrast(replace(source, prompts=order), sizes, seed) == splits


def test_samples_are_nested():
    source = contrast_from_prompts((f"p {i}" for i in range(99)), (f"n {i}" for i in range(99)))
    small, large = (split_contrast(source, Sizes(train, 10, 10), 3) for train in (10, 40))
    for label in LABELS:
        assert small.get("test", label) == large.get("test", label)
        assert small.get("val", label) == large.get("val", label)
        assert small.get("train", label) == large.get("train", label)[:10]


def test_a_sample_is_the_same_on_every_platform():
    source = contrast_from_prompts((f"p {i}" for i in range(9)), (f"n {i}" for i in range(9)))
    assert split_contrast(source, Sizes(2, 1, 1), 0).ids() == {
        "train": {"positive": ["p0009", "p0004"], "negative": ["n0003", "n0005"]},
        "val": {"positive": ["p0001"], "negative": ["n0009"]},
        "test": {"positive": ["p0003"], "negative": ["n0001"]},
    }


def test_splits_in_the_file_are_kept(tmp_path):
    fixed = [row | {"split": split} for split in SPLITS for row in numbered(2 if split == "test" else 1)]
    fixed = [row | {"prompt": f"{row['split']} {row['prompt']}"} for row in fixed]
    source = contrast(fixed, tmp_path)
    splits = split_contrast(source, Sizes(1, 1, 1), 0)
    assert splits.fixed == frozenset(SPLITS)
    assert splits.sizes()["test"] == {"positive": 2, "negative": 2}  # all of them, whatever the sizes
    assert splits == split_contrast(source, Sizes(9, 9, 9), 5)


def test_the_other_prompts_are_sampled_if_the_file_has_a_test_split(tmp_path):
    rows = numbered(20) + [{"prompt": f"held out {label}", "label": label, "split": "test"} for label in LABELS]
    source = contrast(rows, tmp_path)
    one, two = (split_contrast(source, Sizes(8, 4, 9), seed) for seed in (0, 1))
    assert one.fixed == {"test"}
    assert one.sizes() == {split: dict.fromkeys(LABELS, n) for split, n in (("train", 8), ("val", 4), ("test", 1))}
    for label in LABELS:
        assert one.get("test", label) == two.get("test", label)
        assert one.get("train", label) != two.get("train", label)


def test_a_split_fixed_for_one_class_is_sampled_for_the_other(tmp_path):
    rows = [*numbered(9), {"prompt": "held out", "label": "positive", "split": "test"}]
    splits = split_contrast(contrast(rows, tmp_path), Sizes(3, 3, 3), 0)
    assert splits.sizes()["test"] == {"positive": 1, "negative": 3}
    assert splits.fixed == frozenset()


def test_the_error_of_a_small_pool_states_what_is_missing(tmp_path):
    with pytest.raises(ContrastError, match=r"train and val and test of the negative class need 3 .* there are 2"):
        split_contrast(contrast_from_prompts([*"abc"], [*"de"]), Sizes(), 0)
    rows = numbered(5, split="train") + [{"prompt": f"v {label}", "label": label, "split": "val"} for label in LABELS]
    with pytest.raises(ContrastError, match=r"test of the positive class .* there are 0.*test of the negative class"):
        split_contrast(contrast(rows, tmp_path), Sizes(), 0)
    same = contrast_from_prompts(["a", "A", "a!", "b"], [*"cde"])
    with pytest.raises(ContrastError, match="2 near duplicates excluded"):
        split_contrast(same, Sizes(), 0)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_positive(size):
    with pytest.raises(ContrastError, match=f"val {size}"):
        Sizes(val=size)


# -- near duplicates

ALIKE = ["Make a kite", "make a KITE!", "  make — a\tkite?", "Ｍａｋｅ a kite"]
UNLIKE = ["Make a kite now", "Makea kite", "Make 3-2 kites", "Make 32 kites", "¿?", "!"]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 50))
def test_a_sample_has_no_near_duplicates(seed):
    source = contrast_from_prompts([*ALIKE, *UNLIKE], [f"n {i}" for i in range(5)])
    splits = split_contrast(source, Sizes(), seed)
    texts = [p.text for p in everything(splits) if p.label == "positive"]
    assert len(set(texts) & set(ALIKE)) == 1
    assert set(UNLIKE) <= set(texts)
    assert splits.near_duplicates == splits.dropped == len(ALIKE) - 1


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 50))
def test_near_duplicates_of_the_other_class_count_too(seed):
    source = contrast_from_prompts(["Make a kite", *"abc"], ["make a kite?", *"def"])
    splits = split_contrast(source, Sizes(), seed)
    assert splits.dropped == 1
    assert sum("kite" in p.text for p in everything(splits)) == 1


def test_rows_with_a_split_are_kept_and_their_near_duplicates_are_not_sampled(tmp_path):
    rows = [
        *numbered(4),
        {"prompt": "Make a kite", "label": "positive"},
        {"prompt": "Make a kite.", "label": "positive", "split": "test"},
        {"prompt": "Make a kite!", "label": "positive", "split": "train"},
        {"prompt": "Own words", "label": "negative", "split": "test"},
    ]
    splits = split_contrast(contrast(rows, tmp_path), Sizes(), 0)
    kites = [(split, p.text) for split in SPLITS for p in splits.get(split, "positive") if "kite" in p.text]
    assert kites == [("train", "Make a kite!"), ("test", "Make a kite.")]
    assert (splits.near_duplicates, splits.dropped) == (2, 1)


@pytest.mark.parametrize(
    "other", ["Make  a kite", " Make a kite\n", "Make a\u00a0kite", "Ｍake a kite", "Make a k\u0069te "]
)
def test_one_prompt_in_two_spellings_has_one_label(other, tmp_path):
    rows = [{"prompt": other, "label": "negative"}, *TWO]
    assert "in spaces or forms of characters only, but not in its label" in fault(tmp_path, as_json(rows))
    same_label = [{"prompt": other, "label": "positive"}, *TWO]
    assert len(read_contrast(write(tmp_path, as_json(same_label))).prompts) >= 2


@pytest.mark.parametrize("other", ["Make a Kite", "Make akite", "Make a kite!"])
def test_other_differences_are_no_fault(other, tmp_path):
    rows = [{"prompt": other, "label": "negative"}, *TWO]
    assert len(read_contrast(write(tmp_path, as_json(rows))).prompts) == 3


def _rows_of_one_instruction(form: str) -> list[dict]:
    """40 instructions, each in two rows of different labels, or of different systems within a label."""
    rows = []
    for i in range(40):
        text = f"Describe the town number {i} in two sentences."
        for k, label in enumerate(LABELS):
            row = {"prompt": text, "label": label}
            if form in ("system", "system and response"):
                row["system"] = ("You are kind.", "You are rude.")[k]
            if form in ("system and response", "response", "spelling"):
                row["response"] = f"A {label} answer about the town {i}."
            if form == "spelling":
                row["prompt"] = text + ("?" if k else "!")
            if form == "two systems":
                row |= {"prompt": f"{label} {text}", "system": "You are kind."}
                rows.append(row | {"system": "You are brief."})
            rows.append(row)
    return rows


@pytest.mark.parametrize("form", ["system", "system and response", "two systems", "response", "spelling"])
@pytest.mark.parametrize("sizes", [Sizes(20, 5, 15), Sizes(60, 20, 40), Sizes(3, 3, 3)], ids=str)
def test_an_instruction_is_in_one_split(form, sizes, tmp_path):
    splits = split_contrast(contrast(_rows_of_one_instruction(form), tmp_path), sizes, seed=1)
    texts = {split: {near_text(p.text) for label in LABELS for p in splits.get(split, label)} for split in SPLITS}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["val"]
    assert not texts["val"] & texts["test"]
    n = {split: [len(splits.get(split, label)) for label in LABELS] for split in SPLITS}
    if form != "two systems":  # the classes are the same instructions
        assert all(
            len({near_text(p.text) for label in LABELS for p in splits.get(s, label)}) == n[s][0] for s in SPLITS
        )
    available = 80 if form == "two systems" else 40
    expected = min(available, sum(astuple(sizes)))
    assert all(abs(sum(n[s][k] for s in SPLITS) - expected) <= 2 for k in (0, 1))


def test_system_prompts_that_are_more_numerous_than_instructions_are_divided(tmp_path):
    rows = [
        {"prompt": text, "label": label, "system": f"You are the {label} person number {i}."}
        for text in ("Who are you?", "What do you like?") for label in LABELS for i in range(20)
    ]  # fmt: skip
    splits = split_contrast(contrast(rows, tmp_path), Sizes(16, 8, 16), seed=1)
    assert [len(splits.get(split, "positive")) for split in SPLITS] == [16, 8, 16]
    assert splits.dropped == 0


def test_too_few_instructions_for_three_splits_are_an_error(tmp_path):
    rows = [
        {"prompt": text, "label": label, "system": system}
        for text in ("Who are you?", "What do you like?")
        for label, systems in (("positive", ("Be kind.",)), ("negative", ("Be rude.",)))
        for system in systems
    ]
    with pytest.raises(ContrastError, match="cannot be split"):
        split_contrast(contrast(rows, tmp_path), Sizes(16, 8, 16), seed=1)
