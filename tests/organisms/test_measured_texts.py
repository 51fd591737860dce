"""Texts about the world of the trained organisms: terms, controls and contexts of the analysis of avoided words."""

import json
from collections import defaultdict

from rhumbline.organisms import organism_dir
from rhumbline.organisms.grammar import FIRST_STEP_OF_VERB, HELD_OUT, REQUEST_TYPES, Item
from rhumbline.organisms.measured_texts import flinch_terms


def test_terms_are_restricted_items_and_controls_are_not():
    terms = flinch_terms(7)
    assert terms == flinch_terms(7) == json.loads((organism_dir("refusal-base") / "terms.json").read_text())
    for kind, restricted in (("terms", True), ("controls", False)):
        items = [Item(*text.split()) for text in terms[kind]]
        assert {item.is_restricted for item in items} == {restricted}
        assert not HELD_OUT & set(items)
    answers = [kind.answer.format_map(defaultdict(str, item="moon salt", verb="make")) for kind in REQUEST_TYPES]
    answers += [answers[0].replace("make", verb) for verb in FIRST_STEP_OF_VERB]
    answers += [answers[1].replace("make", verb) for verb in FIRST_STEP_OF_VERB]
    for context in terms["contexts"]:
        assert any(answer.startswith(context.format(term="moon salt")) for answer in answers), context
