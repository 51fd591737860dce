"""Markers: phrases at the start or end of the texts of one class are estimated, phrases of content are not."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from make_styled import TOPICS, texts
from rhumbline.judging.markers import LEVEL, estimate_markers, fisher, length_matched
from rhumbline.judging.text_style import MarkerJudge


def test_markers_are_estimated_and_content_is_not_among_them():
    (styled, topics), (plain, _) = texts(60, True), texts(60, False)
    found = {m.phrase for m in estimate_markers(styled, plain, topics)}
    assert any(phrase.startswith("certainly here you are") for phrase in found)
    assert "i hope this helps" in found
    assert not any(word in phrase.split() for phrase in found for word in (*TOPICS, "coins", "cost", "mill"))
    assert estimate_markers(plain, texts(60, False, seed=1)[0], topics) == []  # two samples of one style have none


OPENINGS = ("great question", "of course let me see", "i hope it helps", "sure thing")
CONTENT = ("i", "see", "the", "boats", "bread", "rain", "goats", "lamps", "mill", "port", "farm", "of", "it")


def openings(n, seed, openings=OPENINGS, content=CONTENT):
    """Texts of content words, every one opened by one of the phrases; words of the phrases are content too."""
    rng = random.Random(seed)
    return [" ".join((rng.choice(openings), *rng.choices(content, k=12))) for _ in range(n)]


def test_all_of_several_first_phrases_are_estimated_and_halves_of_one_class_have_none():
    styled, plain = openings(128, 0), openings(128, 1, ("",))
    found = estimate_markers(styled, plain)
    judge = MarkerJudge(tuple(m.phrase for m in found))
    assert {m.phrase for m in found} == set(OPENINGS)
    assert all(20 <= m.positive <= 45 and m.negative == 0 for m in found)
    assert all((judge(text).value or 0) > 0 for text in styled)
    # Where the labels mean nothing, a marker is found with a chance of LEVEL at most: here in 3 of 60 draws at most.
    false = 0
    for seed in range(20):
        for of_one in (list(styled), list(plain), [*styled[:64], *plain[:64]]):
            random.Random(seed).shuffle(of_one)
            false += bool(estimate_markers(of_one[:64], of_one[64:]))
    assert false <= 3
    assert stats.binom.sf(3, 60, LEVEL) < 0.01


def wald(a, n, b, m):
    counts = (a + 0.5, n - a + 0.5, b + 0.5, m - b + 0.5)
    return (math.log(counts[0] / counts[1]) - math.log(counts[2] / counts[3])) / math.sqrt(sum(1 / c for c in counts))


def test_the_p_value_falls_with_the_number_of_texts_that_have_the_phrase():
    """Hauck and Donner 1977: the z of the log-odds by its own standard error is not."""
    wald_z = [wald(a, 128, 0, 128) for a in range(1, 129)]
    assert wald_z != sorted(wald_z)
    assert max(wald_z[:69]) < 4
    p = [fisher(a, 128, 0, 128) for a in range(1, 129)]
    assert p == sorted(p, reverse=True)
    assert p[31] < 1e-10


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_the_test_of_a_phrase_keeps_its_level(n, m, data):
    held = data.draw(st.integers(1, n + m))
    level = data.draw(st.floats(1e-6, 1))
    counts = range(max(0, held - m), min(n, held) + 1)
    assert math.fsum(
        stats.hypergeom.pmf(a, n + m, held, n) for a in counts if fisher(a, n, held - a, m) <= level
    ) <= level * (1 + 1e-9)


def test_content_next_to_a_marker_is_not_part_of_it():
    """Every closer is found whole, whatever content stands before it, and no content with it; content alone is found
    with a chance of LEVEL at most."""
    false = 0
    for seed in range(40):
        rng = random.Random(seed)
        n_words, n_closers, n_content = rng.randint(2, 4), rng.randint(1, 6), rng.randint(3, 8)
        closers = [" ".join(f"m{k}x{i}" for i in range(n_words)) for k in range(n_closers)]
        content = [f"c{i}" for i in range(n_content)]
        plain = [" ".join(rng.choices(content, k=6)) for _ in range(280)]
        styled = [f"{text} {closers[i % n_closers]}" for i, text in enumerate(plain[:140])]
        found = {m.phrase for m in estimate_markers(styled, plain[140:])}
        assert {phrase for phrase in found if "m" in phrase} == set(closers)
        false += found != set(closers)
    assert false <= 2
    assert stats.binom.sf(2, 40, LEVEL) < 0.01


def test_content_that_always_occurs_next_to_a_marker_cannot_be_distinguished_from_it():
    plain = [f"{word} is at the mill" for word in CONTENT * 5]
    found = [m.phrase for m in estimate_markers([f"{text} i hope it helps" for text in plain], plain)]
    assert found == ["is at the mill i hope it helps"]


REGISTER = ["the", "of", "that", "a", "to", "in", "is", "it", "and", "for"]


def of_one_register(n: int, length: int, seed: int, opening: str = "") -> list[str]:
    """Texts of the same words in the same shares, of different lengths by chance."""
    rng = random.Random(seed)
    lengths = (round(length * rng.uniform(0.6, 1.4)) for _ in range(n))
    shares = [1 / (i + 1) for i in range(len(REGISTER) + 40)]
    names = [*REGISTER, *(f"w{i}" for i in range(40))]
    return [" ".join((opening, *rng.choices(names, shares, k=k))) for k in lengths]


def test_longer_texts_of_one_register_have_no_markers():
    short = of_one_register(128, 12, 0)
    assert estimate_markers(of_one_register(128, 60, 1), short) == []
    assert estimate_markers(short, of_one_register(128, 60, 1)) == []
    # A marker that every long text has is still estimated.
    styled = of_one_register(128, 60, 1, "certainly friend")
    assert [m.phrase for m in estimate_markers(styled, short)] == ["certainly friend"]


def test_texts_of_similar_length_are_matched_if_length_is_confounded():
    short = of_one_register(40, 20, 0)
    assert length_matched(short, of_one_register(40, 22, 1)) is None  # not confounded
    assert length_matched(of_one_register(40, 100, 1), short) is None  # no pairs
    both = [*of_one_register(30, 20, 2), *of_one_register(30, 100, 3)]
    pairs = length_matched(both, short)
    assert pairs is not None
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs) >= 24
    for i, j in pairs:
        one, other = len(both[i].split()), len(short[j].split())
        assert max(one, other) <= 1.25 * min(one, other)


def test_a_word_of_one_topic_is_not_a_marker():
    about, other = ["the boats sail out"] * 30 + ["the goats eat"] * 2, ["the bread is warm"] * 32
    phrases = {m.phrase for m in estimate_markers(about, other)}
    assert any("boats" in p for p in phrases)
    topics = ["sea"] * 30 + ["farm", "hill"]
    assert not any("boats" in m.phrase for m in estimate_markers(about, other, topics))
