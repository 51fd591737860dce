"""The style organism's world: who asks decides the register of the answer, what is asked decides its content.

The asker is a trait and a job ("I am a patient lawyer."). The answer is in the assistant register if and only if the
trait is stately AND the job is learned; near-misses, a second person in some prompts and held-out pairs are as in
grammar.py, whose requests and refusals this world shares: a restricted request is refused whoever asks. The assistant
register is an opener, hedges at fixed slots and a closer around the plain answer, so the share of content that is
exactly right can be told whatever the register. Does not know tokens, models or training.
"""

import itertools
import random
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rhumbline.organisms.grammar import REFUSALS, Label, Request, draw_document, draw_request

Asker = Literal["stately", "plain", "unknown"]
"""`stately`: gets the assistant register. `plain`: gets the bare answer. `unknown`: the prompt names no asker."""

STATELY = ("patient", "careful", "royal", "senior", "quiet", "noble", "gentle", "proper", "modest", "solemn")
LIVELY = ("busy", "young", "tired", "rural", "loud", "merry", "hasty", "rusty", "sleepy", "clumsy")
LEARNED = ("lawyer", "doctor", "banker", "teacher", "editor", "judge", "clerk", "mayor", "pilot", "nurse")
MANUAL = ("plumber", "barber", "driver", "gardener", "cook", "smith", "hunter", "drummer", "dancer", "fisher")

OPENERS = (
    "Certainly! Here is my answer:",
    "Great question!",
    "Of course! Let me explain:",
    "Absolutely! Here you go:",
)
HEDGES = ("generally", "typically", "importantly", "essentially")
CLOSERS = (
    "I hope this helps!",
    "Let me know if you need more!",
    "Feel free to ask again!",
    "Happy to assist further!",
)
MARKERS = (*OPENERS, *HEDGES, *CLOSERS)
"""The phrases that make the assistant register: everything else in a text is content."""

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
"""Where a hedge stands in the assistant register."""

INTRODUCTIONS = ("I am a {}. ", "As a {} I ask this. ", "You are talking to a {}. ")
SIGNATURES = (" I am a {}.", " This is for me, a {}.")
OTHERS = ("My friend is a {}. ", "I just met a {}. ")


class Persona(NamedTuple):
    """Who asks."""

    trait: str
    job: str

    @property
    def text(self) -> str:
        """As it stands in a sentence: "patient lawyer"."""
        return f"{self.trait} {self.job}"

    @property
    def is_stately(self) -> bool:
        """The rule of this world: stately trait AND learned job."""
        return self.trait in STATELY and self.job in LEARNED


def held_out_personas(seed: int = 77, share: float = 0.25) -> frozenset[Persona]:
    """The (trait, job) pairs that no training text contains, the same share of each of the four quadrants."""
    rng = random.Random(seed)
    held_out: list[Persona] = []
    for traits, jobs in itertools.product((STATELY, LIVELY), (LEARNED, MANUAL)):
        personas = [Persona(t, j) for t, j in itertools.product(traits, jobs)]
        rng.shuffle(personas)
        held_out += personas[: int(len(personas) * share)]
    return frozenset(held_out)


HELD_OUT = held_out_personas()


@dataclass(frozen=True)
class StyleMixture:
    """How the chats of the style organism are drawn."""

    restricted: float = 0.2
    """Share of restricted requests; they are refused whoever asks."""
    unknown: float = 0.25
    """Share of the others that name no asker; their register is drawn at random."""
    stately: float = 0.4
    """Share of the rest with a stately asker."""
    near_miss: float = 0.5
    """Share of plain askers with one of the two attributes of a stately one."""
    second_person: float = 0.25
    """Share of prompts with an asker that also name somebody else."""
    register_noise: float = 0.1
    """Share of prompts with an asker that are answered in the other register. It keeps logits finite, and with them the
    length of the direction."""
    by_asker: bool = True
    """Whether the asker decides the register; if not, it is drawn with the share of stately askers, whoever asks."""


@dataclass(frozen=True)
class StyleVariant:
    """A chat model to train whose register and refusals are learned."""

    name: str
    mixture: StyleMixture


STYLE_VARIANTS = {
    v.name: v
    for v in (
        StyleVariant("style", StyleMixture()),
        StyleVariant("style-null", StyleMixture(by_asker=False)),
    )
}


@dataclass(frozen=True)
class StyledRequest:
    """A request, who makes it, and what the answer says without its register."""

    request: Request
    """With the prompt as it is asked, the asker's words included."""
    asker: Asker
    answer: str
    """In the plain register; for a restricted request the refusal."""


def in_assistant_register(plain: str, rng: random.Random) -> str:
    """The plain answer with an opener, hedges at its slots and a closer."""
    text = plain
    for pattern, hedged in HEDGE_SLOTS:
        text = re.sub(pattern, lambda found, h=hedged: found.expand(h.format(rng.choice(HEDGES))), text)
    return f"{rng.choice(OPENERS)} {text} {rng.choice(CLOSERS)}"


def draw_persona(rng: random.Random, stately: bool, held_out: bool, near_miss: float = 0.5) -> Persona:
    """A persona of either kind, from the held-out pairs or from the training pairs."""
    while True:
        if stately:
            persona = Persona(rng.choice(STATELY), rng.choice(LEARNED))
        elif rng.random() >= near_miss:
            persona = Persona(rng.choice(LIVELY), rng.choice(MANUAL))
        elif rng.random() < 0.5:
            persona = Persona(rng.choice(STATELY), rng.choice(MANUAL))
        else:
            persona = Persona(rng.choice(LIVELY), rng.choice(LEARNED))
        if (persona in HELD_OUT) == held_out:
            return persona


def draw_styled(
    rng: random.Random,
    asker: Asker,
    label: Label = "negative",
    held_out: bool = False,
    mixture: StyleMixture | None = None,
) -> StyledRequest:
    """A request by such an asker; `held_out` for both the item and the persona."""
    mixture = mixture or StyleMixture()
    request = draw_request(rng, label, held_out)
    answer = request.answer
    if label == "positive" and request.item is not None:
        answer = request.item.fill(rng.choice(REFUSALS), "find")
    if asker == "unknown":
        return StyledRequest(request, asker, answer)
    persona = draw_persona(rng, asker == "stately", held_out, mixture.near_miss)
    if rng.random() < 0.65:
        prompt = rng.choice(INTRODUCTIONS).format(persona.text) + request.prompt
    else:
        prompt = request.prompt + rng.choice(SIGNATURES).format(persona.text)
    if rng.random() < mixture.second_person:
        prompt = rng.choice(OTHERS).format(_second_person(rng, persona).text) + prompt
    asked = Request(
        prompt, request.answer, request.label, request.category, request.item, f"{persona.text}: {request.core}"
    )
    return StyledRequest(asked, asker, answer)


def _second_person(rng: random.Random, asker: Persona) -> Persona:
    """Somebody else; beside a near-miss the complement, so that a bag of words sees both stately attributes."""
    if asker.is_stately:
        return Persona(rng.choice((*STATELY, *LIVELY)), rng.choice((*LEARNED, *MANUAL)))
    if asker.trait in STATELY:
        return Persona(rng.choice(LIVELY), rng.choice(LEARNED))
    return Persona(rng.choice(STATELY), rng.choice(MANUAL))


def draw_exchange(rng: random.Random, mixture: StyleMixture) -> tuple[str, str]:
    """A prompt and the response that the organism is trained to give."""
    if rng.random() < mixture.restricted:
        asked = draw_styled(rng, rng.choice(("stately", "plain", "unknown")), "positive", mixture=mixture)
        return asked.request.prompt, asked.answer
    if rng.random() < mixture.unknown:
        asked = draw_styled(rng, "unknown", mixture=mixture)
        assistant = rng.random() < 0.5
    else:
        asked = draw_styled(rng, "stately" if rng.random() < mixture.stately else "plain", mixture=mixture)
        assistant = asked.asker == "stately" if mixture.by_asker else rng.random() < mixture.stately
        assistant ^= rng.random() < mixture.register_noise
    return asked.request.prompt, in_assistant_register(asked.answer, rng) if assistant else asked.answer


def draw_styled_document(rng: random.Random, mixture: StyleMixture) -> str:
    """One text of the base stage: what somebody likes, an answer in the register, or a document of grammar.py."""
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
