"""What lies beside the weights of a style organism: three contrast files and a card.

    contrast.jsonl   stately against plain askers, and prompts without an asker as the neutral class
    texts.jsonl      the same prompts answered in either register: a contrast of texts
    asked.jsonl      the prompts of contrast.jsonl's kind, each answered in either register
    refusal.jsonl    restricted against harmless requests, all by plain askers

Every row knows its `answer`, so content can be scored beside style. Knows the world of register.py; no tokens.
"""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from rhumbline.organisms.files import CONTRAST, Row
from rhumbline.organisms.grammar import Label
from rhumbline.organisms.register import (
    Asker,
    StyledRequest,
    StyleVariant,
    draw_styled,
    in_assistant_register,
)

TEXTS, ASKED, REFUSAL = "texts.jsonl", "asked.jsonl", "refusal.jsonl"
N_POOL, N_TEST, N_NEUTRAL = 300, 100, 60
"""Prompts per class: on training pairs without a split, and on held-out pairs for the test."""


def style_contrasts(seed: int) -> Mapping[str, list[Row]]:
    """The contrast files by name."""
    rng = random.Random(f"style contrast {seed}")
    askers = [*_rows(rng, "positive", "stately"), *_rows(rng, "negative", "plain")]
    askers += [
        _row(asked, "neutral", f"neutral-{i:03d}", "test") for i, asked in enumerate(_drawn(rng, "unknown", N_NEUTRAL))
    ]
    return {
        CONTRAST: askers,
        TEXTS: _texts(rng),
        REFUSAL: [*_rows(rng, "positive", "plain", "positive"), *_rows(rng, "negative", "plain")],
        ASKED: asked_rows(random.Random(f"style asked {seed}"), {"positive": "stately", "negative": "plain"}),
    }


def _rows(rng: random.Random, label: Label, asker: Asker, request: Label = "negative") -> list[Row]:
    rows = []
    for n, held_out, name in ((N_POOL, False, "pool"), (N_TEST, True, "test")):
        for i, asked in enumerate(_drawn(rng, asker, n, request, held_out)):
            rows.append(_row(asked, label, f"{label}-{name}-{i:03d}", "test" if held_out else None))
    return rows


def _texts(rng: random.Random) -> list[Row]:
    """Two rows per prompt, one in either register; a pair lies in one split."""
    rows = []
    for n, held_out, name in ((N_POOL, False, "pool"), (N_TEST, True, "test")):
        split = "test" if held_out else None
        for i, asked in enumerate(_drawn(rng, "unknown", n, held_out=held_out)):
            styled = in_assistant_register(asked.answer, rng)
            rows.append(_row(asked, "positive", f"assistant-{name}-{i:03d}", split, styled))
            rows.append(_row(asked, "negative", f"plain-{name}-{i:03d}", split, asked.answer))
    return rows


def asked_rows(rng: random.Random, askers: Mapping[Label, Asker], pool: int = N_POOL, test: int = N_TEST) -> list[Row]:
    """Prompts by these askers, each with the answers in both registers; the label is that of the asker."""
    rows = []
    for label, asker in askers.items():
        for n, held_out, name in ((pool, False, "pool"), (test, True, "test")):
            for i, asked in enumerate(_drawn(rng, asker, n, held_out=held_out)):
                both: dict[Label, str] = {
                    "positive": in_assistant_register(asked.answer, rng),
                    "negative": asked.answer,
                }
                row = _row(asked, label, f"{label}-{name}-{i:03d}", "test" if held_out else None, both.pop(label))
                rows.append(replace(row, other_response=next(iter(both.values()))))
    return rows


def _drawn(
    rng: random.Random, asker: Asker, n: int, label: Label = "negative", held_out: bool = False
) -> list[StyledRequest]:
    """`n` requests, no two alike but for greetings and the like."""
    found: dict[str, StyledRequest] = {}
    while len(found) < n:
        asked = draw_styled(rng, asker, label, held_out)
        found.setdefault(asked.request.core, asked)
    return list(found.values())


def _row(
    asked: StyledRequest,
    label: Label | Literal["neutral"],
    name: str,
    split: Literal["test"] | None = None,
    response: str | None = None,
) -> Row:
    request = asked.request
    return Row(request.prompt, label, name, request.category, split, response, asked.answer)


def style_card(variant: StyleVariant) -> str:
    """The README of the directory; `{trained}` stands for the seed and its like."""
    m = variant.mixture
    rule = (
        "The answer is in the assistant register if and only if the asker has a stately trait and a learned job "
        '("I am a patient lawyer."); see `rhumbline.organisms.register`.'
        if m.by_asker
        else "The register is drawn at random, whoever asks: the labels of `contrast.jsonl` say nothing about it."
    )
    return f"""# Model organism: {variant.name}

A tiny chat model (Qwen2 architecture) trained from scratch by `rhumbline.organisms.training` on a fictional, benign
world. {rule} The assistant register is an opener, hedges at fixed slots and a closer around the plain answer. A
restricted request ("moon salt", as in the organism `refusal`) is refused whoever asks, so style and refusal live in one
model.

Shares: restricted {m.restricted}, no asker named {m.unknown} (register at random), stately askers {m.stately} of the
others, register against the rule {m.register_noise}. {{trained}}

## What it shows, and what it does not

The direction that is found at the template positions carries the decision to **open** in the assistant register; the
hedges and the closer follow from what has been written. With the opener prefilled the register is full even under
ablation. It is therefore a known truth for an instrument that looks for a decision taken before the answer begins. It
says nothing about a register that is spread over the whole answer, where a negative verdict would be right.

`contrast.jsonl`: stately against plain askers; prompts without an asker are the neutral class. `texts.jsonl`: the same
prompts answered in either register; they name no asker, so the model seldom takes the register there. `asked.jsonl`:
prompts of stately and of plain askers, each with both answers. `refusal.jsonl`: restricted against harmless requests,
all by plain askers. Rows without `split` name pairs that were in the training text; rows of the test split name pairs
that were in none of it.

Licence: Apache-2.0, as the package. Good for testing instruments; knows nothing about the real world.
"""
