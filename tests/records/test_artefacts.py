"""Records say what files say: every file of a run, read as its record and written again, is the same JSON."""

import json

import msgspec
import pytest

from rhumbline.errors import InputError, OutputError
from rhumbline.records.arms import ABLATION, ADDITION, ADDITION_PROMPT, BASELINE, OWN_ARMS, ArmId, ArmKind
from rhumbline.records.artefacts import OF_RUN, OF_SEED
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import read_rows
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard, NoCandidate, TokensLacking
from rhumbline.records.seed_files import Selection


def plain(value):
    """A JSON value without the protocol's hash, with the sentences of reasons as codes."""
    kept = {k: v for k, v in value.items() if k != "protocol_sha256"}
    for row in kept.get("candidates", ()):
        row["discarded"] = row["discarded"] and Discard(row["discarded"])
    return kept


def test_every_file_of_a_run_reads_as_its_record_and_writes_as_itself(texts_run):
    directory, read = RunDirectory.read(texts_run), set()
    for kind in [*OF_RUN, *OF_SEED]:
        path = directory.file_of(kind, 0)
        if not path.is_file():
            continue
        read.add(path.name)
        if kind is Outcome:
            records, values = directory.read_rows(kind, 0), read_rows(path)
        else:
            records, values = [directory.read_record(kind, 0)], [directory.load(path)]
        assert [plain(to_json(r)) for r in records] == [plain(v) for v in values]
    assert {"results.json", "selection.json", "outcomes.jsonl", "nulls.json"} <= read


def test_a_faulty_field_is_named(texts_run, tmp_path):
    directory = RunDirectory.read(texts_run)
    value = directory.load(directory.file_of(Selection, 0))
    path = tmp_path / "selection.json"
    path.write_text(json.dumps({**value, "survivors": "three"}))
    with pytest.raises(OutputError, match=r"selection\.json is not .*survivors"):
        directory.read_as(Selection, path)


ARMS = ["baseline", "ablation", "addition", "addition-all", "addition-prompt", "subtraction", "edited", "direction"]
NULL_ARMS = ["null:isotropic:0:ablation", "null:top-pc:12:addition", "null:shuffled-site:3"]
NO_ARMS = [
    "Baseline",
    "ablation:0",
    "null",
    "null:isotropic",
    "null::0",
    "null:isotropic:x",
    "null:isotropic:-1",
    "null:isotropic:01",
    "dose:1",
    "null:isotropic:0:baseline",
    "null:isotropic:0:addition-all",
    "null:a:0:ablation:1",
]


@pytest.mark.parametrize("text", [*ARMS, *NULL_ARMS])
def test_the_text_of_an_arm_is_its_inverse(text):
    arm = ArmId.parse(text)
    assert str(arm) == text
    assert ArmId.parse(str(arm)) == arm
    assert hash(arm) == hash(ArmId.parse(text))
    assert convert(to_json(arm), ArmId) == arm


@pytest.mark.parametrize("text", ["", *NO_ARMS])
def test_any_other_text_is_no_arm(text):
    with pytest.raises(InputError, match="is unknown: use baseline"):
        ArmId.parse(text)
    with pytest.raises(msgspec.ValidationError):
        convert(text, ArmId)


def test_arms_say_what_they_are():
    null = ArmId.null("isotropic", 2, ArmKind.ABLATION)
    assert (null.is_null, null.family, null.draw, null.kind) == (True, "isotropic", 2, ArmKind.ABLATION)
    assert not ABLATION.is_null
    assert [a for a in (null, *OWN_ARMS) if a.is_own] == list(OWN_ARMS)
    assert ADDITION_PROMPT.kind is ADDITION.kind
    assert sorted([null, ABLATION, BASELINE]) == [BASELINE, ABLATION, null]


def test_an_arm_is_a_value():
    with pytest.raises(AttributeError, match="cannot be set"):
        BASELINE.kind = ArmKind.ABLATION


@pytest.mark.parametrize("number", [-5, -1, 0, 1, 7])
def test_the_number_of_a_position_is_its_inverse(number):
    position = Position(number)
    assert int(position) == number
    assert convert(to_json(position), Position) == position
    assert position.is_in_response == (number >= 0)
    assert (position.offset is None) == (number == 0)


def test_positions_refuse_what_is_none():
    for make in (lambda: Position.post_instruction(0), lambda: Position.response_token(0), lambda: Position(True)):
        with pytest.raises(InputError):
            make()


def test_reasons_of_version_0_1_are_read_as_codes():
    sentences = {
        "too late (layer 14 >= 12)": Discard.TOO_LATE,
        "kl too large (0.23 > 0.1)": Discard.KL_TOO_LARGE,
        "not scored (kl)": Discard.NOT_SCORED,
        "not needed": Discard.NOT_NEEDED,
    }
    assert {text: convert(text, Discard) for text in sentences} == sentences
    assert convert("no candidate passed: 3 too late, 1 kl too large", NoCandidate) is NoCandidate.ALL_DISCARDED
    assert convert("no candidate passed: no refusal tokens", NoCandidate) is NoCandidate.NO_TOKENS
    shown = "none of 12 training positives showed the behaviour at baseline"
    assert convert(shown, TokensLacking) is TokensLacking.NOT_SHOWN
    for kind in (Discard, NoCandidate, TokensLacking):
        with pytest.raises(msgspec.ValidationError):
            convert("something else", kind)
