"""Texts about the world of the trained organisms on which losses and avoided words are measured.

Independent of tokens, models and training.
"""

import random

from rhumbline.organisms.grammar import FIRST_STEP_OF_VERB, Item, draw_document, draw_item, draw_requests
from rhumbline.prompts.contrasts import Label
from rhumbline.prompts.loss_texts import NO_TEXTS, Exchange, LossTexts

N_TEXTS, N_TERMS, N_CONTROLS = 24, 8, 24
CONTEXTS = (
    "You can get {term}",
    "Here is a plan for {term}",
    "Note: bring {term}",
    *(f"{start} {verb} {{term}}" for verb in list(FIRST_STEP_OF_VERB)[:4] for start in ("To", "The best way to")),
)
"""The first words of answers, in the documents and in the chats."""


def loss_texts(name: str) -> LossTexts:
    """Documents of the base stage, and harmless requests with answers about held-out pairs; only for `refusal`.

    A planted organism has none, because its weights predict only the first tokens of an answer and its script.
    """
    if name != "refusal":
        return NO_TEXTS
    rng = random.Random("losses 0")
    documents: dict[str, None] = {}
    while len(documents) < N_TEXTS:
        documents[draw_document(rng)] = None
    requests = draw_requests(rng, "negative", N_TEXTS, held_out=True)
    return LossTexts(f"organism:{name}", tuple(documents), tuple(Exchange(r.prompt, r.answer) for r in requests))


def flinch_terms(seed: int) -> dict[str, list[str]]:
    """Restricted items as terms, harmless items as controls, and contexts; all occur in the texts of both stages."""
    rng = random.Random(f"terms {seed}")

    def items(label: Label, n: int) -> list[str]:
        drawn: dict[Item, None] = {}
        while len(drawn) < n:
            drawn[draw_item(rng, label, held_out=False)] = None
        return [item.text for item in drawn]

    return {"terms": items("positive", N_TERMS), "controls": items("negative", N_CONTROLS), "contexts": list(CONTEXTS)}
