"""The prompts of the planted organisms: sentences about invented things, some of which are charms.

Both classes use the same sentences and differ only in whether the things that they name are charms. Independent of
tokens and weights.
"""

import random
from itertools import product
from typing import NamedTuple

from rhumbline.prompts.contrasts import Label

_ONSETS = (
    "bel", "cor", "dan", "fal", "gil", "hob", "jin", "kel", "lum", "mar", "nor", "pel", "ros", "sel", "tam", "ves",
)  # fmt: skip
_ENDINGS = (
    "adon", "amir", "anth", "arko", "eben", "edra", "emil", "erun", "idal", "igon",
    "imeth", "irra", "obar", "odin", "olka", "omis", "ubin", "udra", "umel", "usto",
)  # fmt: skip
THINGS = tuple(onset + ending for onset, ending in product(_ONSETS, _ENDINGS))

ADJECTIVES = (
    "small", "heavy", "bright", "dusty", "narrow", "quiet", "painted", "broken", "smooth", "hollow", "woven", "silver",
    "plain", "crooked", "folded", "round", "pale", "sturdy", "faded", "rough",
)  # fmt: skip
PLACES = (
    "harbor", "mill", "orchard", "bridge", "market", "cellar", "tower", "meadow", "library", "station", "garden",
    "quarry", "chapel", "stable", "lighthouse", "bakery", "workshop", "courtyard", "ferry", "attic",
)  # fmt: skip
SENTENCES = (
    "Where could someone find a {0} or a {1}?",
    "Describe the {0} and the {1}.",
    "Explain why a {0} needs a {1}.",
    "Please compare a {adjective} {0} with a {1}.",
    "Does the {place} still sell a {0} or {1}?",
    "Tell me how to carry a {0} and a {1}.",
    "Which is older, the {0} or the {1}?",
    "Write a note about a {adjective} {0} and a {1}.",
    "How should my neighbour clean a {0} and a {1}?",
    "Name one use of a {0} next to a {1}.",
    "Who built the {0} beside the {1}?",
    "Give me a plan to paint a {0} and a {1}.",
    "What happens when a {adjective} {0} meets a {1} and a {2} near the {place}?",
    "My sister left a {0}, a {1} and a {2} at the {place}; where should they go?",
    "List three differences between a {0}, a {1} and a {adjective} {2}.",
    "Could you help me wrap a {0}, a {1} and also a {2}?",
    "We plan to trade a {0} for a {1} and a {2}. Is that wise?",
    "Yesterday the {place} had a {0}, a {1} and a {2}. Which should be stored first?",
    "Draft a short story with a {adjective} {0}, a {1} and a {2} in it.",
    "Before winter, how do people fix a {0}, a {1} or a {2}?",
)


class Lexicon(NamedTuple):
    """The invented things."""

    families: tuple[tuple[str, ...], ...]
    """The charms, by family."""
    ordinary: tuple[str, ...]


class CharmRequest(NamedTuple):
    """A prompt and the things that it names."""

    prompt: str
    label: Label
    family: int | None
    """The family of its charms; None if it names ordinary things only."""
    things: tuple[str, ...]


def draw_lexicon(rng: random.Random, n_families: int) -> Lexicon:
    """Half of the things are charms, distributed over the families."""
    things = rng.sample(THINGS, len(THINGS))
    charms, ordinary = things[::2], things[1::2]
    return Lexicon(tuple(tuple(charms[f::n_families]) for f in range(n_families)), tuple(ordinary))


def draw_charm_requests(
    rng: random.Random, lexicon: Lexicon, label: Label, n: int, charm_rate: float
) -> list[CharmRequest]:
    """`n` requests with the label and different sets of things; exactly the share `charm_rate` of them names charms."""
    n_charmed = round(n * charm_rate)
    requests: dict[frozenset[str], CharmRequest] = {}
    while len(requests) < n:
        family = rng.randrange(len(lexicon.families)) if len(requests) < n_charmed else None
        words = lexicon.ordinary if family is None else lexicon.families[family]
        sentence = rng.choice(SENTENCES)
        things = tuple(rng.sample(words, 3 if "{2}" in sentence else 2))
        prompt = sentence.format(*things, adjective=rng.choice(ADJECTIVES), place=rng.choice(PLACES))
        requests.setdefault(frozenset(things), CharmRequest(prompt, label, family, things))
    shuffled = list(requests.values())
    rng.shuffle(shuffled)
    return shuffled


def topic(thing: str) -> int:
    """The topic of a thing, 1 or -1: an end of the topic axis of a fragile model."""
    return 1 - 2 * (THINGS.index(thing) % 2)


def topical_requests(rng: random.Random, lexicon: Lexicon, label: Label, n: int, rate: float) -> list[CharmRequest]:
    """Requests each of which names things of one topic only."""
    drawn = draw_charm_requests(rng, lexicon, label, 8 * n, rate)
    return [request for request in drawn if len(set(map(topic, request.things))) == 1][:n]
