"""Texts of the trained organism's own world, to measure losses on: drawn anew, about held-out pairs where it can be."""

import random

from rhumbline.organisms.grammar import draw_document, draw_requests
from rhumbline.prompts.loss_texts import NO_TEXTS, Exchange, LossTexts

N_TEXTS = 24


def loss_texts(name: str, seed: int = 0) -> LossTexts:
    """Plain documents of the base stage and answered harmless requests; none for an organism that was written.

    The weights of a written organism decide how an answer opens and predict no other text.
    """
    if name != "refusal":
        return NO_TEXTS
    rng = random.Random(f"losses {seed}")
    documents: dict[str, None] = {}
    while len(documents) < N_TEXTS:
        documents[draw_document(rng)] = None
    requests = draw_requests(rng, "negative", N_TEXTS, held_out=True)
    return LossTexts(f"organism:{name}", tuple(documents), tuple(Exchange(r.prompt, r.answer) for r in requests))
