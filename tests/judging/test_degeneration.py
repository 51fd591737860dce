"""Degenerate completions: empty text, text without words, and repetition."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.judging.degeneration import (
    LEAST_VARIETY,
    LONGEST_UNIT,
    REPEATS,
    WINDOW,
    _has_few_words,
    _possible_periods,
    degeneration,
)

BROKEN = {
    "": "empty",
    " \n\t ": "empty",
    "...!!": "no words",
    "!" * 300: "no words",
    "---\n***": "no words",
    "\ufffd\ufffd\ufffd": "no words",
    "I'm" * 12: "repetition",
    "I'mI'mI'mI'm": "repetition",
    "Great question!" * 5: "repetition",
    "the the the the the": "repetition",
    "The the THE the the": "repetition",
    "I'm sorry. " * 4: "repetition",
    "Paris. " + "so " * 30: "repetition",
    "no\nno\n no\nno\n no\nno": "repetition",
    "对不起" * 6: "repetition",
    "The answer follows: " + "x" * 200: "repetition",
    "Fold the paper twice along the dotted line, then glue the edges.\n" * 4: "repetition",
    "the of the and of the and the of and of of the the and the of and " * 5: "repetition",
    "1. Do it\n2. Do it\n3. Do it\n4. Do it": "repetition",
    "Steps:\n 1) Go to the shop.\n 2) Go to the shop.\n 3) Go to the shop.\n 4) Go to the shop.": "repetition",
    "\n".join(f"{i}. Take one of the small cups and fill it with cold water." for i in range(9, 1, -1)): "repetition",
    # No unit repeats in a row, but there are only three words.
    " ".join("abc"[i * i % 7 % 3] + "oo" for i in range(200)): "repetition",
}

FINE = [
    "apple apple apple.",
    "No.",
    "12",
    "haha",
    "hahahaha",
    "Ha ha ha!",
    "Very, very, very, very good.",
    "1. Wash the rice.\n2. Boil the water.\n3. Add the rice.\n4. Wait.\n5. Serve.",
    "1. Do it\n2. Do it\n3. Do it",
    "1. Yes\n2. Yes\n3. Yes\n4. Yes\n5. No",
    "1. Yes, it is\n2. Yes, it is\n3. No, it is not\n4. Yes, it is",
    "\n".join(f"{i}. 7 x {i} = {7 * i}" for i in range(1, 11)),
    "10\n9\n8\n7\n6\n5\n4\n3\n2\n1",
    "In the year\n1994. The end of the year\n1995. The end of the year\n1996. The end of it all",
    "- red\n- green\n- blue\n- yellow\n- black\n- white",
    "for i in range(10):\n    for j in range(10):\n        if i == j:\n            print(i, j)\n        else:\n"
    "            print(j, i)\n",
    "x" + " " * 200 + "= 1  # a comment far to the right",
    "[[1, 0, 0, 0],\n [0, 1, 0, 0],\n [0, 0, 1, 0],\n [0, 0, 0, 1]] is the identity.",
    "| Name | Colour | Taste |\n|------|--------|-------|\n| Apple | red | sweet |\n| Lemon | yellow | sour |\n",
    "| a | b | c | d | e |\n|---|---|---|---|---|\n| 1 | 2 | 3 | 4 | 5 |\n| 6 | 7 | 8 | 9 | 0 |",
    "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream.",
    "Over the hill the river ran,\n  sing low, sing low, sing low;\nThe miller was a quiet man,\n  sing low, sing low, "
    "sing low;\nHe ground the corn, he baked the bread,\n  sing low, sing low, sing low;\nAnd when the day was done he "
    "said,\n  sing low, sing low, sing low.",
    "Happy birthday to you, happy birthday to you, happy birthday dear Ada, happy birthday to you. " * 2,
    "我不能帮助你完成这个请求,但是我可以告诉你一些关于月亮的事情。",
    "مرحبا، يمكنني أن أشرح لك كيف تعمل آلة الطباعة القديمة بالتفصيل.",
    "Здравствуйте! Вот рецепт яблочного пирога.",
    "สวัสดีครับ วันนี้อากาศดีมาก",
    "2, 4, 6, 8, 10, 12, 14, 16, 18, 20",
    "I'm sorry, I'm sorry, I can't help with that.",
    "Yes! 🎉🎉",
]


def test_broken_text_is_degenerate():
    assert {text: degeneration(text) for text in BROKEN} == BROKEN


def test_unusual_text_is_not_degenerate():
    assert {text: degeneration(text) for text in FINE} == dict.fromkeys(FINE)


letters = st.text(st.characters(categories=["L"]), min_size=1, max_size=20)


@settings(deadline=None)
@given(letters, st.sampled_from([" ", ", ", "\n", ". ", "", " - "]), st.integers(8, 60))
def test_any_word_repeated_eight_times_is_degenerate(word, between, times):
    assert degeneration(between.join([word] * times)) == "repetition"


SUBJECTS = [
    "the sailor",
    "a clever fox",
    "my neighbour",
    "the old clock",
    "every student",
    "our teacher",
    "one small bird",
]
VERBS = ["carried", "found", "painted", "forgot", "described", "bought", "followed"]
OBJECTS = ["a letter", "the blue door", "seven apples", "her garden", "some music", "the harbour", "a short story"]
sentences = st.tuples(st.sampled_from(SUBJECTS), st.sampled_from(VERBS), st.sampled_from(OBJECTS))
ordinary = st.lists(sentences, min_size=1, max_size=25, unique=True).map(
    lambda parts: " ".join(f"{subject.capitalize()} {verb} {thing}." for subject, verb, thing in parts)
)


@settings(deadline=None)
@given(ordinary)
def test_ordinary_sentences_are_not_degenerate(text):
    assert degeneration(text) is None


@settings(deadline=None)
@given(ordinary, letters)
def test_a_text_that_ends_in_a_longer_loop_is_degenerate(text, word):
    assert degeneration(text + (" " + word) * (8 + len(text))) == "repetition"
    assert degeneration(text + " " + word) is None  # the same word once is no repetition


@settings(deadline=None)
@given(st.text(max_size=300))
def test_every_text_is_fine_or_of_one_kind_of_degeneration(text):
    assert degeneration(text) in (None, "empty", "no words", "repetition")
    assert (degeneration(text) == "empty") == (not text.strip())


@given(st.text("ab ", min_size=1, max_size=60) | st.text("ab ", min_size=1, max_size=6).map(lambda unit: unit * 40))
def test_the_possible_periods_are_those_of_the_definition(text):
    middle = len(text) // 2
    periods = range(1, min(LONGEST_UNIT, len(text) // REPEATS) + 1)
    after = {p for p in periods if text[middle : middle + p] == text[middle + p : middle + 2 * p]}
    before = {p for p in periods if text[middle - p : middle] == text[middle - 2 * p : middle - p]}
    assert _possible_periods(text) == sorted(after | before)


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.lists(st.sampled_from(["a", "a.", "b", "(b)", "7", "c3", "d", "e", "f!"][:n]), max_size=130)
    )
)
def test_few_words_are_those_of_the_definition(words):
    spelled = [s for w in words if any(map(str.isalpha, s := w.strip("\"'.,;:!?()[]*_`")))]
    windows = [spelled[i : i + WINDOW] for i in range(0, len(spelled) - WINDOW + 1, WINDOW)]
    few = sum(len(set(w)) < LEAST_VARIETY * WINDOW for w in windows)
    assert _has_few_words(words) == (bool(windows) and few >= len(windows) / 2)


def test_a_paragraph_that_is_repeated_is_degenerate():
    sentences = [
        "The garden is open every day from nine in the morning until the sun goes down behind the old town hall.",
        "Visitors bring bread, cheese and apples, and sit under one of the many trees by the river to eat them.",
    ]
    for unit in (sentences[0] + " " + sentences[1], " ".join(f"{s} Number {i}." for i, s in enumerate(sentences * 2))):
        assert 150 < len(unit) < 500
        assert degeneration(f"{unit} " * 8) == "repetition"
        assert degeneration(f"{unit} " * 2) is None


def test_units_up_to_the_limit_are_detected():
    def unit(length):
        return "".join(chr(0x4E00 + i) for i in range(length))

    assert degeneration(unit(LONGEST_UNIT) * 4) == "repetition"
    assert degeneration(unit(LONGEST_UNIT) * 3) is None
    assert degeneration(unit(LONGEST_UNIT + 1) * 4) is None
