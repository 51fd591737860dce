"""The language of a text: a script test, and for the Latin and Cyrillic scripts a test of function words.

Names a language only to decide whether a judge can read the text. Independent of judges.
"""

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files

from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.normal_text import normal_form
from rhumbline.judging.refusal_phrases import first_sentence

MOST_CHARACTERS, MOST_WORDS = 240, 40
"""Beginning of a text that is read: a text that changes its language later is in its first one."""
FEWEST_WORDS = 8
"""Fewest words that show that a text is in no listed language."""
SHARE, SHARE_OF_ENGLISH = 0.15, 0.05
"""Share of function words that a language needs. English needs fewer: its texts include code, tables and lists."""
UNKNOWN = "unknown"
"""A language that is not listed."""
DENSE = frozenset({"CJK", "BOPOMOFO", "HIRAGANA", "KATAKANA", "HANGUL"})
"""Scripts whose letters count twice, because a word has fewer of them."""
KANA = 0.1
"""Share of kana among East Asian letters that makes a text Japanese."""
_WORD, _ASCII_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*"), re.compile(r"[a-z]+(?:'[a-z]+)*")


@cache
def _tables() -> dict[str, dict[str, str]]:
    return tomllib.loads((files("rhumbline.judging") / "languages.toml").read_text(encoding="utf-8"))


@cache
def function_words() -> Mapping[str, tuple[str, ...]]:
    """The languages that each function word belongs to; a word of English belongs to English only."""
    languages: dict[str, set[str]] = {}
    for language, words in _tables()["words"].items():
        for word in words.split():
            languages.setdefault(word, set()).add(language)
    return {word: ("en",) if "en" in of else tuple(sorted(of)) for word, of in languages.items()}


@cache
def _english() -> frozenset[str]:
    return frozenset(word for word, languages in function_words().items() if languages == ("en",))


@cache
def _others() -> Mapping[str, tuple[str, ...]]:
    """The function words of other languages than English."""
    return {word: languages for word, languages in function_words().items() if languages != ("en",)}


@cache
def _places() -> Mapping[str, int]:
    """The place of each language in the list."""
    return {language: place for place, language in enumerate(_tables()["words"])}


@cache
def known_languages() -> frozenset[str]:
    """The codes of the languages that a text can have here, and `UNKNOWN`."""
    return frozenset((*_tables()["words"], *_tables()["scripts"].values(), UNKNOWN))


def language_of(text: str) -> str | None:
    """The language of a text by its code, such as `en`; None if too few words or letters tell it.

    A text in a script that is not listed has the name of the script; `UNKNOWN`: words of no listed language.
    """
    beginning = normal_form(text[:MOST_CHARACTERS]).lower()
    is_ascii = beginning.isascii()
    if not is_ascii and (language := _of_script(beginning)) is not None:
        return language
    words = (_ASCII_WORD if is_ascii else _WORD).findall(beginning)[:MOST_WORDS]
    hits = {"en": sum(map(_english().__contains__, words))}
    if hits["en"] * 2 > len(words):  # a word of English counts for no other language
        return "en"
    others = _others()
    for word in filter(others.__contains__, words):
        for language in others[word]:
            hits[language] = hits.get(language, 0) + 1
    # Of languages with as many hits, the one that is listed first, which more texts have.
    best, most = max(hits.items(), key=lambda hit: (hit[1], -_places()[hit[0]]))
    if best != "en" and most >= max(2, SHARE * len(words)):
        return best
    if not is_ascii and _is_cyrillic(words):
        return "ru"
    if hits["en"] > 0 and hits["en"] >= SHARE_OF_ENGLISH * len(words):
        return "en"
    return UNKNOWN if len(words) >= FEWEST_WORDS else None


def uncovered_language(text: str, covered: Collection[str], broken: str | None) -> str | None:
    """The language of a completion that a judge of the languages `covered` cannot read; None if it can.

    `broken` is how it is broken (`degeneration`). A loop of sentences has the language of its first one, if that one is
    listed; any other broken text is broken in every language.
    """
    if broken is None:
        language = language_of(text)
    elif broken == "repetition" and degeneration(sentence := first_sentence(text)) is None:
        language = language_of(sentence)
        language = None if language == UNKNOWN else language
    else:
        language = None
    return None if language in covered else language


def _of_script(text: str) -> str | None:
    """The language of a text whose letters are mostly neither Latin nor Cyrillic; None for other texts."""
    scripts = Counter(map(_script, text))
    del scripts[""]
    weights = Counter({script: n * (2 if script in DENSE else 1) for script, n in scripts.items()})
    asian = sum(n for script, n in weights.items() if script in DENSE)
    if asian * 2 > weights.total():
        kana = weights["HIRAGANA"] + weights["KATAKANA"]
        if kana >= KANA * asian and weights["HANGUL"] < kana:
            return "ja"
        return "ko" if weights["HANGUL"] * 2 > asian else "zh"
    script = max(weights, key=lambda name: weights[name], default="LATIN")
    if script in ("LATIN", "CYRILLIC"):
        return None
    return _tables()["scripts"].get(script, script.lower())


def _is_cyrillic(words: Sequence[str]) -> bool:
    return sum(_script(word[0]) == "CYRILLIC" for word in words) * 2 > len(words)


@cache
def _script(character: str) -> str:
    """The script of a letter, the first word of its name; empty for other characters."""
    return unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""
