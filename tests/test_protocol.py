"""The protocol: its JSON value gives the same protocol again, and what cannot be tested is refused."""

import dataclasses
import json
import typing

import pytest

from rhumbline.errors import ProtocolError
from rhumbline.presets.experiment_files import amend
from rhumbline.presets.protocols import PRESETS, preset
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.protocol import Protocol
from rhumbline.records.positions import Position
from rhumbline.settings import ExtractionSettings


@pytest.mark.parametrize("name", PRESETS)
def test_a_protocol_equals_the_protocol_of_its_json_value(name):
    protocol = preset(name, seeds=(3, 1), chat=ChatOptions(system="Be brief."), refusal_tokens=("I", "As"))
    assert Protocol.of(json.loads(json.dumps(protocol.record()))) == protocol


def test_the_protocol_of_a_run_is_read_from_its_file():
    """protocol.json contains further keys, and its `chat` is a description of the rendering."""
    protocol = preset("rhumbline", chat=ChatOptions(system="Be brief.", template="{{ messages }}"))
    chat = {"template_sha256": "ab", "system": "Be brief.", "enable_thinking": None, "date": None, "prefix": [1, 2]}
    read = Protocol.of({"schema": 1, **protocol.record(), "chat": chat, "model": {"name": "m"}})
    assert read.chat == ChatOptions(system="Be brief.")  # the file contains only the hash of the template
    assert read.rule == protocol.rule
    assert read.nulls == protocol.nulls


def test_a_field_that_an_older_run_lacks_has_its_default():
    record = preset("style").record()
    del record["text_score"], record["sampling"]
    assert Protocol.of(record) == preset("style")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": "all"}, "seeds"),
        ({"nulls": {"draws": 0}}, r"nulls\.draws is 0"),
        ({"rule": {"name": "rhumbline", "min_drop": "large"}}, r"rule\.min_drop"),
    ],
)
def test_a_protocol_of_a_wrong_value_names_the_field(changes, words):
    with pytest.raises(ProtocolError, match=words):
        Protocol.of({**preset("rhumbline").record(), **changes})


def float_fields(kind: type, at: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], bool]]:
    """Every field of a record, nested ones included, that may hold a number or several (True)."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        parts = (hint, *typing.get_args(hint))
        if dataclasses.is_dataclass(hint):
            found += float_fields(hint, (*at, name))
        elif float in parts:
            found.append(((*at, name), typing.get_origin(hint) is tuple))
    return found


def test_every_number_of_a_protocol_is_finite():
    fields = float_fields(Protocol)
    names = {".".join(at) for at, _ in fields}
    assert {"addition.coefficient", "dose.strengths", "selection.max_kl", "rule.max_kl", "rule.min_drop"} <= names
    for at, several in fields:
        for value in (float("nan"), float("inf"), float("-inf")):
            changes: object = [1.0, value] if several else value
            for name in reversed(at):
                changes = {name: changes}
            with pytest.raises(ProtocolError, match=at[-1]):
                amend(preset("rhumbline"), changes)
    with pytest.raises(ProtocolError, match=r"chat\.template_kwargs\.x is nan"):
        amend(preset("rhumbline"), {"chat": {"template_kwargs": {"x": float("nan")}}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"addition": {"coefficient": 0}}, r"addition\.coefficient is 0, which adds nothing; use another number"),
        ({"addition": {"coefficient": -0.0}}, "adds nothing"),
        ({"selection": {"max_kl": 0.0}}, "max_kl 0.0 must be positive"),
        ({"rule": {"max_kl": 0.0}}, "max_kl is 0.0"),
        ({"refusal_tokens": ["I", ""]}, "refusal_tokens has an empty text"),
        ({"conditions": {"clerk": 3}}, "conditions"),
        ({"conditions": {" ": "You are a clerk."}}, "use a name"),
    ],
)
def test_what_cannot_be_tested_is_refused(changes, words):
    with pytest.raises(ProtocolError, match=words):
        amend(preset("rhumbline"), changes)


@pytest.mark.parametrize(
    ("nulls", "advice"),
    [({"wide": 5}, "--wide-nulls 19"), ({"procedure": 6, "draws": 1}, "set both to 19 or more in an experiment file")],
)
def test_too_few_draws_are_answered_with_the_smallest_number_that_works(nulls, advice):
    with pytest.raises(ProtocolError, match=advice) as error:
        amend(preset("rhumbline"), {"nulls": nulls}, "options")
    assert all(f"nulls.{name} is {n}" in str(error.value) for name, n in nulls.items() if name != "draws")
    assert amend(preset("rhumbline"), {"nulls": {**nulls, "wide": 19, "procedure": 19}}, "options").nulls.wide == 19
    with pytest.raises(ProtocolError):
        amend(preset("rhumbline"), {"nulls": {**nulls, "wide": 18, "procedure": 18}}, "options")


def test_the_name_of_a_condition_is_text():
    protocol = preset("rhumbline")
    object.__setattr__(protocol, "conditions", {1: "You are a clerk."})  # the tests' type checks refuse it earlier
    with pytest.raises(ProtocolError, match="conditions has 1"):
        protocol.__post_init__()


def test_an_older_run_has_no_screen_and_completes_all_prompts():
    record = preset("rhumbline").record()
    for name in ("completed", "interim", "screen"):
        del record["nulls"][name]
    del record["screen"], record["quick"]
    old = Protocol.of(record)
    assert (old.screen, old.quick, old.nulls.completed, old.nulls.interim, old.nulls.screen) == (0, False, 0, 0, 0)


def test_a_continuous_score_completes_all_prompts():
    protocol = preset("rhumbline", judge="markers")
    assert protocol.nulls.completed > 0
    assert protocol.completed == 0


def test_positions_are_checked():
    assert ExtractionSettings("response:3").response_position == Position.response_token(3)
    assert ExtractionSettings("response-mean").response_position == Position.response_mean()
    assert ExtractionSettings("post-instruction").response_position is None
    for wrong in ("response:0", "response:x", "middle"):
        with pytest.raises(ProtocolError, match="response:K"):
            ExtractionSettings(wrong)
    with pytest.raises(ProtocolError, match="classifier"):
        amend(preset("style"), {"judge": "classifier", "text_score": {"classifier": False}})
