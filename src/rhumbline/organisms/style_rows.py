"""The contrast files of a style organism, and its card.

    contrast.jsonl   stately and plain askers, and prompts without an asker as the neutral class
    texts.jsonl      prompts without an asker, each answered in either register: a contrast of texts
    asked.jsonl      prompts of stately and plain askers, each with both answers
    refusal.jsonl    restricted and harmless requests, all by plain askers

Every row has the plain `answer`, so that content can be scored in addition to style. Independent of tokens.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Literal

from rhumbline.organisms.files import CONTRAST, Row, card, pool_and_test
from rhumbline.organisms.register import Asker, StyledRequest, StyleMixture, draw_styled, in_assistant_register
from rhumbline.prompts.contrasts import Label

TEXTS, ASKED, REFUSAL = "texts.jsonl", "asked.jsonl", "refusal.jsonl"
N_NEUTRAL = 60
"""Prompts of the neutral class."""


def style_contrasts(seed: int) -> Mapping[str, list[Row]]:
    """The contrast files by name."""
    rng = random.Random(f"style contrast {seed}")
    askers = [*_rows(rng, "positive", "stately"), *_rows(rng, "negative", "plain")]
    askers += [
        _row(styled, "neutral", f"neutral-{i:03d}", "test")
        for i, styled in enumerate(_drawn(rng, "unknown", N_NEUTRAL))
    ]
    return {
        CONTRAST: askers,
        TEXTS: _texts(rng),
        REFUSAL: [*_rows(rng, "positive", "plain", "positive"), *_rows(rng, "negative", "plain")],
        ASKED: asked_rows(random.Random(f"style asked {seed}"), {"positive": "stately", "negative": "plain"}),
    }


def _rows(rng: random.Random, label: Label, asker: Asker, request: Label = "negative") -> Iterator[Row]:
    for part in pool_and_test():
        for i, styled in enumerate(_drawn(rng, asker, part.n, request, part.held_out)):
            yield _row(styled, label, f"{label}-{part.name}-{i:03d}", part.split)


def _texts(rng: random.Random) -> list[Row]:
    """Two rows per prompt, one in each register; both are in the same split."""
    rows = []
    for part in pool_and_test():
        for i, styled in enumerate(_drawn(rng, "unknown", part.n, held_out=part.held_out)):
            assistant = in_assistant_register(styled.answer, rng)
            rows.append(_row(styled, "positive", f"assistant-{part.name}-{i:03d}", part.split, assistant))
            rows.append(_row(styled, "negative", f"plain-{part.name}-{i:03d}", part.split, styled.answer))
    return rows


def asked_rows(rng: random.Random, askers: Mapping[Label, Asker], *sizes: int) -> list[Row]:
    """Prompts of these askers, each with the answers in both registers; the label is that of the asker.

    `sizes`: prompts per class in the pool and in the test; default: those of the other files.
    """
    rows = []
    for label, asker in askers.items():
        for part in pool_and_test(*sizes):
            for i, styled in enumerate(_drawn(rng, asker, part.n, held_out=part.held_out)):
                both = (in_assistant_register(styled.answer, rng), styled.answer)
                responses = both if label == "positive" else both[::-1]
                rows.append(_row(styled, label, f"{label}-{part.name}-{i:03d}", part.split, *responses))
    return rows


def _drawn(
    rng: random.Random, asker: Asker, n: int, label: Label = "negative", held_out: bool = False
) -> list[StyledRequest]:
    """`n` requests with different cores."""
    drawn: dict[str, StyledRequest] = {}
    while len(drawn) < n:
        styled = draw_styled(rng, asker, label, held_out)
        drawn.setdefault(styled.request.core, styled)
    return list(drawn.values())


def _row(
    styled: StyledRequest,
    label: Label | Literal["neutral"],
    name: str,
    split: Literal["test"] | None,
    response: str | None = None,
    other_response: str | None = None,
) -> Row:
    request = styled.request
    return Row(request.prompt, label, split, name, request.category, response, styled.answer, other_response)


def style_card(name: str, mixture: StyleMixture, trained: str) -> str:
    """The README of the directory; `trained` states the seed and the dtype."""
    rule = "The register is drawn at random for every asker, so the labels of `contrast.jsonl` do not determine it."
    if mixture.by_asker:
        rule = (
            "The answer is in the assistant register if and only if the asker has a stately trait and a learned job\n"
            '("I am a patient lawyer."); see `rhumbline.organisms.register`.'
        )
    return card("style", name=name, rule=rule, trained=trained, **vars(mixture))
