"""Arguments of another type than the annotated one: an error states what was given and what is expected."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import rhumbline
from rhumbline.arguments import checked
from rhumbline.errors import ArgumentError, InputError
from rhumbline.settings import NullSettings

PUBLIC = {name: getattr(rhumbline, name) for name in rhumbline.__all__}
METHODS = {
    "Direction": ("from_vector", "load", "from_run", "save"),
    "Chat": ("of", "encode", "encode_messages", "text"),
    "ChatModel": ("chat",),
    "Ablate": ("__init__",),
    "Runner": ("last_logits", "residuals", "generate"),
    "Monitor": ("from_run", "score", "score_ids", "flags"),
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)} | {
    f"{name}.{method}": getattr(PUBLIC[name], method) for name, methods in METHODS.items() for method in methods
}
MADE_HERE = {"Ablate", "Chat", "ChatModel", "Result"}
"""Records that are made by a function, which checks its arguments."""
RECORDS = {name: value for name, value in PUBLIC.items() if is_dataclass(value) and name not in MADE_HERE}


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    """Without the hook of the tests, which checks the records of some modules before they check themselves."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_of_a_public_function_is_checked(name):
    function = FUNCTIONS[name]
    of_self = name in {f"{owner}.{method}" for owner, methods in METHODS.items() for method in methods}
    is_bound = not of_self or inspect.ismethod(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.annotation is not p.empty]
    given = {p.name: object() for p in parameters if p.kind is not p.VAR_KEYWORD}
    with pytest.raises(ArgumentError) as raised:
        function(*([] if is_bound else [None]), **given)
    named = [p.name for p in parameters if p.name in given and p.annotation is not Any]
    assert named
    for parameter in named:
        assert f"{parameter} is of type object" in str(raised.value)


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_of_a_public_record_is_checked(name):
    named = [field.name for field in fields(RECORDS[name]) if field.init and field.type is not Any]
    with pytest.raises(ArgumentError) as raised:
        RECORDS[name](**dict.fromkeys(named, object()))
    assert all(f"{field} is of type object" in str(raised.value) for field in named)


def test_the_lists_are_whole():
    assert len(FUNCTIONS) > 30
    assert {"Direction", "Add", "Arm", "Prompt", "Sizes", "Protocol", "Rule", "Monitor"} <= RECORDS.keys()


@pytest.fixture(scope="module")
def model(family_model):
    return family_model("llama")


def direction_of(model) -> rhumbline.Direction:
    return rhumbline.Direction.from_vector(torch.ones(model.d_model), -1, 1)


def applied(model, arm):
    with rhumbline.applied(model, arm):
        pass


WRONG: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    # call with the model, what was given and is expected, what to do next
    "a model for a name": (lambda m: rhumbline.load(m), "source is of type ChatModel", "expected str or Path"),
    "a dtype for its name": (lambda m: rhumbline.load("x", dtype=torch.float32), "torch.float32", "expected str"),
    "a name for a model": (lambda m: rhumbline.run("gpt2", None, "out"), "'gpt2'", "rhumbline.load(NAME)"),
    "a transformers model": (lambda m: rhumbline.Runner(m.model), "LlamaForCausalLM", "rhumbline.prove"),
    "a path for a contrast": (lambda m: rhumbline.run(m, "my.jsonl", "out"), "'my.jsonl'", "rhumbline.read_contrast("),
    "a list for a contrast": (lambda m: rhumbline.discover(m, ["a"], "out"), "expected ContrastSet", "read_contrast("),
    "numbers for sizes": (lambda m: rhumbline.preset("rhumbline", sizes=(1, 2, 3)), "(1, 2, 3)", "rhumbline.Sizes("),
    "one seed for a list": (lambda m: rhumbline.preset("rhumbline", seeds=0), "seeds is of type int", "list of int"),
    "a name for a rule": (lambda m: rhumbline.preset("blog2026", rule="blog2026"), "'blog2026'", ").rule"),
    "a name for a protocol": (lambda m: rhumbline.quick("rhumbline"), "'rhumbline'", 'rhumbline.preset("rhumbline")'),
    "a text for a number": (lambda m: NullSettings(draws="3"), "draws is of type str ('3')", "expected int"),
    "a list for a completion": (lambda m: rhumbline.judge(["I cannot"]), "['I cannot']", "one element at a time"),
    "bytes for a completion": (lambda m: rhumbline.judge(b"no"), "bytes (b'no')", "expected str"),
    "one prompt for a list": (lambda m: rhumbline.compare(m, direction_of(m), "a"), "'a'", "Pass a list"),
    "one prompt to a monitor": (
        lambda m: rhumbline.Monitor(m, m.own_chat, direction_of(m)).score("abc"),
        "prompts is of type str ('abc')",
        "Pass a list",
    ),
    "a number among prompts": (
        lambda m: rhumbline.compare(m, direction_of(m), ["a", 1]),
        "prompts[1] is of type int (1)",
        "expected str",
    ),
    "one string for positives": (lambda m: rhumbline.contrast_from_prompts("a", ["b"]), "'a'", "Pass a list"),
    "a dict for positives": (lambda m: rhumbline.contrast_from_prompts({"a": 1}, ["b"]), "dict", "a list of str"),
    "texts for token ids": (
        lambda m: rhumbline.Runner(m).generate(["hi"], max_new_tokens=1),
        "sequences[0]",
        "a list of int",
    ),
    "a run for a direction": (lambda m: rhumbline.Ablate("runs/x"), "'runs/x'", "rhumbline.Direction.from_run("),
    "a bare vector to add": (lambda m: rhumbline.Add(torch.ones(4)), "shape (4,)", "Direction.from_vector("),
    "an array for a tensor": (
        lambda m: rhumbline.Direction.from_vector(np.ones(4), -1, 0),
        "ndarray (float64, shape (4,))",
        "torch.from_numpy",
    ),
    "a matrix for a vector": (
        lambda m: rhumbline.Direction.from_vector(torch.ones(2, 4), -1, 0),
        "shape (2, 4)",
        "float and shape [d_model]",
    ),
    "integers for a vector": (
        lambda m: rhumbline.orthogonalized(m, torch.ones(4, dtype=torch.long)),
        "int64",
        "float and shape [d_model]",
    ),
    "a direction for an arm": (lambda m: applied(m, direction_of(m)), "Direction(width", "rhumbline.Ablate(direction)"),
    "an intervention for a list": (
        lambda m: rhumbline.Arm("a", rhumbline.Ablate(direction_of(m))),
        "Ablate(direction=",
        "a list of Ablate or",
    ),
    "another word": (lambda m: rhumbline.Add(direction_of(m), 1.0, "some"), "'some'", "'all' or 'prompt'"),
}


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_type_states_what_was_given_and_expected(call, model):
    made, given, advice = WRONG[call]
    with pytest.raises(ArgumentError) as raised:
        made(model)
    message = str(raised.value)
    assert given in message
    assert advice in message
    assert message.endswith(".")


BEYOND = {
    "a layer below 0": (lambda m: rhumbline.Direction.from_vector(torch.ones(4), -1, -1), "numbered from 0"),
    "a coefficient that is no number": (lambda m: rhumbline.Add(direction_of(m), float("nan")), "finite"),
    "no tokens": (lambda m: rhumbline.compare(m, direction_of(m), ["a"], max_new_tokens=0), "max_new_tokens 0"),
    "no prompts": (lambda m: rhumbline.compare(m, direction_of(m), []), "0 prompts"),
    "a monitor of another width": (
        lambda m: rhumbline.Monitor(m, m.own_chat, rhumbline.Direction.from_vector(torch.ones(m.d_model + 1), -1, 1)),
        "does not fit",
    ),
    "a monitor at a layer that does not exist": (
        lambda m: rhumbline.Monitor(m, m.own_chat, rhumbline.Direction.from_vector(torch.ones(m.d_model), -1, 99)),
        "layers 0..",
    ),
    "a path that does not exist": (lambda m: rhumbline.read_contrast(Path("no.jsonl")), "no.jsonl does not exist"),
    "a run that does not exist": (lambda m: rhumbline.Monitor.from_run(Path("no"), m), "not a run directory"),
}


@pytest.mark.parametrize("call", BEYOND)
def test_a_value_beyond_its_range_is_refused_before_it_is_used(call, model):
    made, words = BEYOND[call]
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        made(model)


@checked
def example(
    texts: Sequence[str] = (),
    more: Iterable[str] = (),
    n: int = 0,
    share: float = 0.0,
    path: str | Path = "",
    kind: Literal["a", "b"] = "a",
    table: Mapping[str, int] | None = None,
    vector: Float[Tensor, " d_model"] | None = None,
    *rest: int,
    **others: str,
) -> str:
    """Every kind of annotation of the public API."""
    return f"{texts} {more} {n} {share} {path} {kind} {table} {vector} {rest} {others}"


@pytest.mark.parametrize(
    "right",
    [
        {"texts": ["a"]},
        {"texts": np.array(["a"])},
        {"more": iter(["a"])},
        {"n": np.int64(3)},
        {"n": torch.tensor(3)},
        {"share": 1},
        {"share": np.float32(0.5)},
        {"path": Path("a")},
        {"table": {}},
        {"vector": torch.ones(3, dtype=torch.bfloat16)},
        {"any": 3},
    ],
    ids=lambda given: f"{next(iter(given))}-{type(next(iter(given.values()))).__name__}",
)
def test_values_that_can_be_used_are_accepted(right):
    assert example(**right)


@pytest.mark.parametrize(
    "wrong",
    [
        {"texts": "a"},
        {"texts": {"a": 1}},
        {"texts": [b"a"]},
        {"more": 3},
        {"n": True},
        {"n": 1.0},
        {"share": "1"},
        {"share": False},
        {"path": b"a"},
        {"kind": "c"},
        {"table": [1]},
        {"vector": np.ones(3)},
        {"vector": torch.ones(3, dtype=torch.long)},
    ],
    ids=lambda given: f"{next(iter(given))}-{type(next(iter(given.values()))).__name__}",
)
def test_values_of_another_type_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        example(**wrong)


def test_another_number_of_arguments_has_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        rhumbline.judge("a", nme="b")
    with pytest.raises(TypeError, match="missing 1 required"):
        rhumbline.judge()
