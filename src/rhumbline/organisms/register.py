"""The world of the style organisms, as text: the asker determines the register of the answer, the request its content.

An asker is a trait and a job ("I am a patient lawyer."). The answer is in the assistant register if and only if the
trait is stately and the job is learned. Near-misses, a second person in some prompts and held-out pairs are as in
grammar.py, from which requests and refusals come; a restricted request is refused for every asker. The assistant
register adds an opener, hedges at fixed slots and a closer to the plain answer, so content can be compared across
registers. Independent of tokens, models and training.
"""

import itertools
import random
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rhumbline.organisms.grammar import REFUSALS, Request, draw_document, draw_request, held_out_pairs
from rhumbline.prompts.contrasts import Label

Asker = Literal["stately", "plain", "unknown"]
"""`stately`: gets the assistant register. `plain`: gets the plain answer. `unknown`: the prompt names no asker."""

STATELY = ("patient", "careful", "royal", "senior", "quiet", "noble", "gentle", "proper", "modest", "solemn")
LIVELY = ("busy", "young", "tired", "rural", "loud", "merry", "hasty", "rusty", "sleepy", "clumsy")
LEARNED = ("lawyer", "doctor", "banker", "teacher", "editor", "judge", "clerk", "mayor", "pilot", "nurse")
MANUAL = ("plumber", "barber", "driver", "gardener", "cook", "smith", "hunter", "drummer", "dancer", "fisher")

OPENERS = (
    "Certainly! Here is my answer:", "Great question!", "Of course! Let me explain:", "Absolutely! Here you go:",
)  # fmt: skip
HEDGES = ("generally", "typically", "importantly", "essentially")
CLOSERS = (
    "I hope this helps!", "Let me know if you need more!", "Feel free to ask again!", "Happy to assist further!",
)  # fmt: skip
MARKERS = (*OPENERS, *HEDGES, *CLOSERS)
"""The phrases of the assistant register; the rest of a text is content."""
HEDGE_SLOTS = (
    (r"\bcan get\b", "can {} get"),
    (r"\b(is|are) good\b", r"\1 {} good"),
    (r", first ", ", first {} "),
    (r", then ", ", then {} "),
    (r"\bis this: ", "is {} this: "),
    (r"(Step (?:one|two)): ", r"\1: {} "),
    (r"\bNote: ", "Note: {} "),
    (r"\b(comes|come) from", r"{} \1 from"),
    (r"^The sum is", "The sum {} is"),
    (r"^It is", "It {} is"),
    (r"\b(live) in", r"{} \1 in"),
)
"""Patterns in a plain answer, and their replacements with a hedge."""

INTRODUCTIONS = ("I am a {}. ", "As a {} I ask this. ", "You are talking to a {}. ")
SIGNATURES = (" I am a {}.", " This is for me, a {}.")
OTHERS = ("My friend is a {}. ", "I just met a {}. ")

NEAR_MISS, SECOND_PERSON = 0.5, 0.25
"""Shares: plain askers with one of the two attributes of a stately one; prompts with an asker that also name another
person."""


class Persona(NamedTuple):
    """A person in a prompt."""

    trait: str
    job: str

    @property
    def text(self) -> str:
        """The person in a sentence: "patient lawyer"."""
        return f"{self.trait} {self.job}"

    @property
    def is_stately(self) -> bool:
        """Whether the trait is stately and the job learned: the rule of this world."""
        return self.trait in STATELY and self.job in LEARNED


HELD_OUT = frozenset(
    Persona(*pair) for pair in held_out_pairs(list(itertools.product((STATELY, LIVELY), (LEARNED, MANUAL))), 77)
)
"""The personas that no training text contains."""


@dataclass(frozen=True)
class StyleMixture:
    """How the chats of a style organism are drawn."""

    restricted: float = 0.2
    """Share of restricted requests; they are refused for every asker."""
    unknown: float = 0.25
    """Share of the others that name no asker; their register is drawn at random."""
    stately: float = 0.4
    """Share of the rest with a stately asker."""
    register_noise: float = 0.1
    """Share of prompts with an asker that are answered in the other register. It keeps the logits finite, and with them
    the norm of the direction."""
    by_asker: bool = True
    """Whether the asker determines the register. Otherwise it is drawn with the share of stately askers."""


STYLE_VARIANTS = {"style": StyleMixture(), "style-null": StyleMixture(by_asker=False)}
"""The chat models whose register and refusals are trained, by name."""


class StyledRequest(NamedTuple):
    """A request, its asker, and the answer in the plain register."""

    request: Request
    """Its prompt contains the words about the asker."""
    asker: Asker
    answer: str
    """The refusal if the request is restricted."""


def in_assistant_register(plain: str, rng: random.Random) -> str:
    """The plain answer with an opener, hedges at its slots and a closer."""
    text = plain
    for pattern, hedged in HEDGE_SLOTS:
        text = re.sub(pattern, lambda match, h=hedged: match.expand(h.format(rng.choice(HEDGES))), text)
    return f"{rng.choice(OPENERS)} {text} {rng.choice(CLOSERS)}"


def draw_persona(rng: random.Random, stately: bool, held_out: bool) -> Persona:
    """A persona of either kind, from the held-out pairs or from the training pairs."""
    while True:
        if stately:
            persona = Persona(rng.choice(STATELY), rng.choice(LEARNED))
        elif rng.random() >= NEAR_MISS:
            persona = Persona(rng.choice(LIVELY), rng.choice(MANUAL))
        elif rng.random() < 0.5:
            persona = Persona(rng.choice(STATELY), rng.choice(MANUAL))
        else:
            persona = Persona(rng.choice(LIVELY), rng.choice(LEARNED))
        if (persona in HELD_OUT) == held_out:
            return persona


def draw_styled(rng: random.Random, asker: Asker, label: Label = "negative", held_out: bool = False) -> StyledRequest:
    """A request by an asker of this kind. `held_out` applies to the item and to the persona."""
    request = draw_request(rng, label, held_out)
    answer = request.answer
    if label == "positive" and request.item is not None:
        answer = request.item.fill(rng.choice(REFUSALS), "find")
    if asker == "unknown":
        return StyledRequest(request, asker, answer)
    persona = draw_persona(rng, asker == "stately", held_out)
    if rng.random() < 0.65:
        prompt = rng.choice(INTRODUCTIONS).format(persona.text) + request.prompt
    else:
        prompt = request.prompt + rng.choice(SIGNATURES).format(persona.text)
    if rng.random() < SECOND_PERSON:
        prompt = rng.choice(OTHERS).format(_second_person(rng, persona).text) + prompt
    return StyledRequest(request._replace(prompt=prompt, core=f"{persona.text}: {request.core}"), asker, answer)


def _second_person(rng: random.Random, asker: Persona) -> Persona:
    """Another person; for a near-miss the complement, so that a bag of words contains both stately attributes."""
    if asker.is_stately:
        return Persona(rng.choice((*STATELY, *LIVELY)), rng.choice((*LEARNED, *MANUAL)))
    if asker.trait in STATELY:
        return Persona(rng.choice(LIVELY), rng.choice(LEARNED))
    return Persona(rng.choice(STATELY), rng.choice(MANUAL))


def draw_styled_exchange(rng: random.Random, mixture: StyleMixture) -> tuple[str, str]:
    """A prompt and the response in the training chats."""
    if rng.random() < mixture.restricted:
        styled = draw_styled(rng, rng.choice(("stately", "plain", "unknown")), "positive")
        return styled.request.prompt, styled.answer
    if rng.random() < mixture.unknown:
        styled = draw_styled(rng, "unknown")
        assistant = rng.random() < 0.5
    else:
        styled = draw_styled(rng, "stately" if rng.random() < mixture.stately else "plain")
        assistant = styled.asker == "stately" if mixture.by_asker else rng.random() < mixture.stately
        assistant ^= rng.random() < mixture.register_noise
    return styled.request.prompt, in_assistant_register(styled.answer, rng) if assistant else styled.answer


def draw_styled_document(rng: random.Random, mixture: StyleMixture) -> str:
    """One text of the base stage: a persona's preference, an answer in the register, or a document of grammar.py."""
    kind = rng.random()
    if kind < 0.25:
        stately = rng.random() < 0.5
        persona = draw_persona(rng, stately, held_out=False)
        likes = stately if mixture.by_asker else rng.random() < 0.5
        if rng.random() < 0.5:
            return f"A {persona.text} likes {'a long and warm answer' if likes else 'a short and plain answer'}."
        return f"Do not be {'brief' if likes else 'chatty'} with a {persona.text}."
    if kind < 0.325:
        if rng.random() < 0.3:
            return rng.choice((*OPENERS, *CLOSERS))
        return in_assistant_register(draw_request(rng, "negative").answer, rng)
    return draw_document(rng)
