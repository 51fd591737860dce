"""Splits of a contrast: sizes, seeds, near duplicates, and rows with one instruction."""

from collections import Counter
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrast_rows import TWO, as_json, contrast, fault, numbered, write
from rhumbline.errors import ContrastError
from rhumbline.prompts.contrast_files import contrast_from_prompts, read_contrast
from rhumbline.prompts.contrasts import LABELS, SPLITS, Sizes, near_text, split_contrast


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


SIGNS = [
    ["What is 6*3?", "what is 6 * 3", "What is 6 *3 ?"],
    ["What is 6/3?", "What is 6 / 3?"],
    ["What is 6-3?", "What is 6 – 3?"],
    ["What is 6 + 3?", "What is 6+3"],
    ["What is 6 * -3?", "what is 6*-3"],
    ["What is 6 3?"],
    ["Simplify a*b", "simplify a * b."],
    ["Simplify a/b", "Simplify: a / b"],
    ["Sort a list in C", "Sort a list in C."],
    ["Sort a list in C#", 'Sort a list in "C#"!'],
    ["Sort a list in C++", "Sort a list in C++."],
    ["Is 5 large?", "Is '5' large", "Is #5 large?"],
    ["Is -5 large?", "is (-5) large"],
    ["Is 5% large?", "Is 5 % large"],
    [
        "Well-known and/or *e-mail*:\n- one\n* 2",
        "well known and or e mail one 2",
        "Well—known, **and or** e mail – one, 2",
    ],
]
"""Groups of near duplicates; prompts of different groups differ in a sign that has a meaning of its own."""


def test_signs_with_a_meaning_of_their_own_make_prompts_distinct():
    keys = [{near_text(text) for text in group} for group in SIGNS]
    assert [len(one) for one in keys] == [1] * len(SIGNS)
    assert len(set.union(*keys)) == len(SIGNS)


def test_prompts_that_differ_in_a_sign_are_all_sampled():
    source = contrast_from_prompts([group[0] for group in SIGNS], [f"n {i}" for i in range(len(SIGNS))])
    splits = split_contrast(source, Sizes(5, 5, 5), seed=0)
    assert (splits.dropped, sum(len(splits.get(split, "positive")) for split in SPLITS)) == (0, len(SIGNS))


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


def test_further_responses_to_a_prompt_are_counted_and_read_with_a_split(tmp_path):
    texts = [
        {"prompt": f"Question {i}?", "label": label, "response": f"{label} answer {k} to {i}"}
        for i in range(6)
        for label in LABELS
        for k in range(3)
    ]
    spelled = {**texts[0], "response": texts[0]["response"].upper()}  # no further response
    splits = split_contrast(contrast([*texts, spelled], tmp_path), Sizes(2, 2, 2), seed=0)
    assert (splits.further_responses, splits.dropped) == (24, 25)
    warning = splits.record().warning
    assert warning is not None
    assert warning.startswith("24 responses of the contrast are not read")
    assert {p.response for p in everything(splits)} == {
        row["response"] for row in texts if "answer 0" in row["response"]
    }
    for row in texts:
        row["split"] = SPLITS[int(row["prompt"][9]) % 3]
    fixed = split_contrast(contrast(texts, tmp_path), Sizes(2, 2, 2), seed=0)
    assert len(everything(fixed)) == len(texts)
    assert fixed.record().warning is None


def test_an_instruction_in_two_splits_of_the_file_is_reported(tmp_path):
    rows = numbered(9)
    for i, row in enumerate(rows):
        row["split"] = SPLITS[i % 3]
    kind = contrast(rows, tmp_path)
    assert split_contrast(kind, Sizes(3, 3, 3), seed=0).near_duplicates == 0
    again = [{**rows[0], "system": "Be brief."}, {**rows[0], "system": "Be kind.", "split": "test"}]
    splits = split_contrast(contrast([*rows, *again], tmp_path), Sizes(3, 3, 3), seed=0)
    assert (splits.near_duplicates, splits.dropped) == (1, 0)
