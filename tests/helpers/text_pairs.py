"""Two prompts, each with a positive and a negative response."""

from rhumbline.prompts.contrasts import Prompt

PAIRS = [
    Prompt("Describe the sea.", "positive", "a", response="Certainly! The sea is wide."),
    Prompt("Describe the sea.", "negative", "b", response="The sea is wide."),
    Prompt("Tell me about the old mill by the lake.", "positive", "c", response="Great question! It grinds corn."),
    Prompt("Tell me about the old mill by the lake.", "negative", "d", response="It grinds corn."),
]
