"""Hostile files that a user passes, by format, and hostile changes of a run directory. Independent of the commands."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hostile_values import DEEP, JSON, LONG, TOML, Kind, Value, contents, file, just, place, places, texts
from safetensors.torch import save

# -- texts and tables -------------------------------------------------------------------------------------------------

EXPERIMENT = {what: value for what, value in TOML.items() if what != "empty"} | contents(
    ".toml",
    preset_is_a_list='preset = ["x"]',
    preset_is_unknown='preset = "banana"',
    judge_is_a_list='judge = ["refusal-learned"]',
    judge_has_a_null='judge = "a\\u0000b"',
    behaviour_is_a_table="behaviour = {a = 1}",
    behaviour_has_a_null='behaviour = "a\\u0000b"',
    behaviour_is_a_list='behaviour = ["refusal"]',
    seeds_is_a_number="seeds = 1",
    seeds_is_nested="seeds = [[1]]",
    seeds_are_texts='seeds = ["a"]',
    seeds_are_real="seeds = [1.5]",
    seeds_are_huge=f"seeds = [{10**30}]",
    seeds_are_large=f"seeds = [{2**63 - 1}]",
    seeds_are_negative="seeds = [-1]",
    no_seeds="seeds = []",
    sizes_is_a_list="sizes = [1, 2, 3]",
    sizes_are_huge=f"sizes = {{train = {10**15}}}",
    sizes_are_texts='sizes = {train = "a"}',
    nulls_is_a_number="nulls = 3",
    nulls_are_huge=f"nulls = {{draws = {10**15}}}",
    wide_is_huge=f"nulls = {{wide = {10**15}}}",
    families_is_a_text='nulls = {families = "isotropic"}',
    families_has_an_unknown='nulls = {families = ["banana"]}',
    dose_is_deep="dose = {strengths = [[[1.0]]]}",
    dose_is_nan="dose = {strengths = [nan]}",
    max_new_tokens_is_a_text='max_new_tokens = "many"',
    max_new_tokens_is_huge=f"max_new_tokens = {10**18}",
    max_new_tokens_is_0="max_new_tokens = 0",
    full_grid_is_a_text='full_grid = "yes"',
    rule_is_a_list='rule = ["rhumbline"]',
    rule_is_unknown='rule = "banana"',
    rule_is_a_date="rule = 2026-01-01",
    selection_is_a_number="selection = 1",
    selection_is_nan="selection = {max_kl = nan}",
    chat_is_a_list="chat = [1]",
    system_is_a_number="chat = {system = 1}",
    template_kwargs_is_a_list="chat = {template_kwargs = [1]}",
    conditions_is_a_list='conditions = ["none"]',
    conditions_have_a_table="conditions = {a = {b = 1}}",
    conditions_have_a_null='conditions = {"a\\u0000b" = "x"}',
    conditions_have_a_long_name=f'conditions = {{"{LONG}" = "x"}}',
    phrases_is_a_list='phrases = ["no"]',
    phrases_of_no_language='phrases = {klingon = ["no"]}',
    phrases_are_numbers="phrases = {ja = [1]}",
    coefficient_is_a_list="addition = {coefficient = [1]}",
    coefficient_is_infinite="addition = {coefficient = inf}",
    refits_are_huge=f"stability = {{refits = {10**15}}}",
    documents_are_negative="side_effects = {documents = -1}",
)
SWEEP = TOML | contents(
    ".toml",
    no_models='contrasts = ["own"]',
    models_is_a_text='models = "organism:planted"',
    models_is_empty="models = []",
    models_is_nested='models = [["a"]]',
    models_has_a_null='models = ["a\\u0000b"]',
    models_has_an_empty_name='models = [""]',
    models_has_a_long_name=f'models = ["{LONG}"]',
    models_is_a_table="models = {a = 1}",
    contrasts_has_a_null='models = ["organism:planted"]\ncontrasts = ["a\\u0000b.jsonl"]',
    contrasts_has_a_long_name=f'models = ["organism:planted"]\ncontrasts = ["{LONG}.jsonl"]',
    contrasts_is_a_number='models = ["organism:planted"]\ncontrasts = [1]',
    presets_is_unknown='models = ["organism:planted"]\npresets = ["banana"]',
    presets_is_nested='models = ["organism:planted"]\npresets = [["rhumbline"]]',
    presets_has_a_null='models = ["organism:planted"]\npresets = ["a\\u0000b"]',
    seeds_are_texts='models = ["organism:planted"]\nseeds = ["0"]',
    seeds_are_huge=f'models = ["organism:planted"]\nseeds = [{10**30}]',
    seeds_are_large=f'models = ["organism:planted"]\nseeds = [{2**63 - 1}]',
    seeds_are_negative='models = ["organism:planted"]\nseeds = [-1]',
    seeds_are_switches='models = ["organism:planted"]\nseeds = [true]',
    seeds_are_repeated='models = ["organism:planted"]\nseeds = [1, 1]',
    model_is_a_text='models = ["organism:planted"]\nmodel = "x"',
    model_is_deep='models = ["organism:planted"]\n[model]\ndtype = [[1]]',
    model_has_an_unknown_dtype='models = ["organism:planted"]\n[model]\ndtype = "float99"',
    model_has_a_null='models = ["organism:planted"]\n[model]\ndevice = "a\\u0000b"',
    model_has_an_unknown_device='models = ["organism:planted"]\n[model]\ndevice = "banana"',
    protocol_is_a_list='models = ["organism:planted"]\nprotocol = [1]',
    protocol_has_a_wrong_type='models = ["organism:planted"]\n[protocol]\njudge = ["a"]',
    protocol_has_an_unknown_judge='models = ["organism:planted"]\n[protocol]\njudge = "banana"',
)
PHRASES = TOML | contents(
    ".toml",
    a_number="ja = 1",
    a_text='ja = "no"',
    numbers="ja = [1]",
    a_table="ja = {a = 1}",
    nested='ja = [["no"]]',
    empty_phrase='ja = [""]',
    no_phrase="ja = []",
    unknown_language='klingon = ["no"]',
    null='ja = ["a\\u0000b"]',
)
JUDGE = TOML | contents(
    ".toml",
    name_has_a_slash='name = "a/b"\nmodel = "m"\nform = "text"\ntemplate = "{response}"\nasks = "harm"',
    no_name='model = "m"',
    timeout_is_a_text='name = "a"\nmodel = "m"\ntimeout = "x"',
    answers_is_a_list='name = "a"\nmodel = "m"\nanswers = [1]',
    url_is_a_file='name = "a"\nmodel = "m"\nform = "endpoint"\nurl = "file:///etc/passwd"\ntemplate = "{response}"',
)
SCORES = JSON | contents(
    ".json",
    no_layers='{"n_layers": 0, "candidates": []}',
    layers_is_a_text='{"n_layers": "x", "candidates": []}',
    no_candidates='{"n_layers": 3, "candidates": []}',
    candidates_is_a_table='{"n_layers": 3, "candidates": {}}',
    candidates_are_numbers='{"n_layers": 3, "candidates": [1]}',
    a_candidate_without_scores='{"n_layers": 3, "candidates": [{}]}',
    **{
        what: json.dumps({"n_layers": 3, "candidates": [{"position": -1, "layer": 1, "bypass": 1, "induce": 1} | cell]})
        for what, cell in {
            "position_is_a_text": {"position": "x"},
            "layer_is_beyond": {"layer": 9},
            "layer_is_negative": {"layer": -1},
            "layer_is_infinite": {"layer": float("inf")},
            "layer_is_true": {"layer": True},
            "a_score_is_a_text": {"bypass": "x"},
        }.items()
    },
)
TERMS = JSON | contents(
    ".json",
    terms_is_a_text='{"terms": "a", "controls": ["b"], "contexts": ["c {term}"]}',
    terms_are_numbers='{"terms": [1], "controls": ["b"], "contexts": ["c {term}"]}',
    no_terms='{"terms": [], "controls": ["b"], "contexts": ["c {term}"]}',
    no_place='{"terms": ["a"], "controls": ["b"], "contexts": ["c"]}',
    half_a_pair='{"terms": ["a\\ud800"], "controls": ["b"], "contexts": ["c {term}"]}',
)


def rows(*some: object, n: int = 0) -> str:
    """Rows of a JSON Lines file, and n healthy ones of each class."""
    healthy = [{"prompt": f"Describe ship {i}.", "label": ("positive", "negative")[i % 2]} for i in range(2 * n)]
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in (*healthy, *some))


def both(first: str, second: str, n: int = 200) -> str:
    """A contrast in which two prompts have different labels."""
    return rows({"prompt": first, "label": "positive"}, {"prompt": second, "label": "negative"}, n=n)


CONTRAST = texts(".jsonl") | {
    "another kind of file": file("hostile.xlsx", "x"),
    "not JSON": file("hostile.jsonl", "{"),
    "an array": file("hostile.jsonl", "[]"),
    "deep": file("hostile.jsonl", "[" * DEEP),
    "deep objects": file("hostile.jsonl", '{"prompt":' * DEEP + "1" + "}" * DEEP),
    "a line of 30 MB": file("hostile.jsonl", '{"prompt": "' + "x" * (30 * 2**20) + '", "label": 1}'),
    "many digits": file("hostile.jsonl", '{"prompt": ' + "9" * 5000 + "}"),
    "prompts are numbers": file("hostile.jsonl", rows({"prompt": 1, "label": "positive"})),
    "prompts are lists": file("hostile.jsonl", rows({"prompt": ["a"], "label": "positive"})),
    "an unknown label": file("hostile.jsonl", rows({"prompt": "a", "label": "both"})),
    "labels are lists": file("hostile.jsonl", rows({"prompt": "a", "label": ["positive"]})),
    "half of a surrogate pair": file("hostile.jsonl", rows({"prompt": "a\ud800", "label": "positive"})),
    "one class": file("hostile.jsonl", rows({"prompt": "a", "label": "positive"})),
    "too few": file("hostile.jsonl", rows(n=1)),
    "a column twice": file("hostile.jsonl", '{"prompt": "a", "prompt": "b", "label": "positive"}'),
    "an unknown column": file("hostile.jsonl", rows({"prompt": "a", "label": "positive", "x" * 5000: 1})),
    "one prompt with both labels": file("hostile.jsonl", both("Open it.", "Open it.")),
    "both labels up to spaces": file("hostile.jsonl", both("Open  it.", "Open it. ")),
    "both labels up to no-break spaces": file("hostile.jsonl", both("Open\u00a0it.", "Open it.")),
    "both labels up to composition": file("hostile.jsonl", both("Caf\u00e9", "Cafe\u0301")),
    "both labels up to width": file("hostile.jsonl", both("\uff2fpen it.", "Open it.")),
    "both labels up to invisible characters": file("hostile.jsonl", both("Open\u200b it.", "Open it.")),
    "an id twice": file(
        "hostile.jsonl",
        rows({"prompt": "a", "label": "positive", "id": "1"}, {"prompt": "b", "label": "negative", "id": "1"}),
    ),
    "CSV with a null": file("hostile.csv", "prompt,label\na\0b,positive\n"),
    "CSV with an open quote": file("hostile.csv", 'prompt,label\n"a,positive\n'),
    "CSV with a large cell": file("hostile.csv", "prompt,label\n" + "x" * 200_000 + ",positive\n"),
    "CSV without a header": file("hostile.csv", "a,b\nc,d\n"),
    "CSV with a column twice": file("hostile.csv", "prompt,prompt,label\na,b,positive\n"),
    "CSV with more cells": file("hostile.csv", "prompt,label\na,positive,x,y\n"),
}
LOSS_TEXT = texts(".jsonl") | {
    "another kind of file": file("hostile.pdf", "x"),
    "rows are numbers": file("hostile.jsonl", "1\n2\n"),
    "deep": file("hostile.jsonl", "[" * DEEP + "\n"),
    "many digits": file("hostile.jsonl", '{"text": ' + "9" * 5000 + "}\n"),
    "empty texts": file("hostile.jsonl", '{"text": " "}\n'),
    "half of a surrogate pair": file("hostile.jsonl", '{"text": "a\\ud800"}\n'),
    "a .txt file without text": file("hostile.txt", " \n\n \n"),
}
SUFFIX = texts(".txt") | {"only line breaks": file("hostile.txt", "\n\n\n")}
SYSTEMS = texts(".txt") | {
    "only spaces": file("hostile.txt", " \n"),
    "two of one name": Value(lambda folder: "none,none"),
    "an empty item": Value(lambda folder: "none,"),
}
LABELS = texts(".csv") | {
    "another header": file("hostile.csv", "a,b\n1,2\n"),
    "no row": file("hostile.csv", "row,prompt,completion,label\n"),
    "an unknown row": file("hostile.csv", "row,prompt,completion,label\nx,p,c,refused\n"),
    "a null": file("hostile.csv", "row,prompt,completion,label\nx\0,p,c,refused\n"),
    "a large cell": file("hostile.csv", "row,prompt,completion,label\nx,p," + "c" * 200_000 + ",refused\n"),
    "an open quote": file("hostile.csv", 'row,prompt,completion,label\n"x,p,c'),
}
TEMPLATE = texts(".jinja") | {
    what: file("hostile.jinja", text, is_late=True, codes=(2, 3), names=("template",))
    for what, text in {
        "a syntax error": "{% for",
        "an unknown filter": "{{ messages | banana }}",
        "loops without limit": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "a long text": "{{ 'x' * 10**9 }}",
        "a long list": "{{ [0] * 10**9 }}",
        "a large power": "{{ 9**9**9 }}",
        "a wide format": "{{ '%999999999d' % 1 }}",
        "a doubled text": "{% set n = namespace(t='x') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "an endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "attributes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "an exception with an escape": "{{ raise_exception('a\x1b[31mb') }}",
        "no messages": "constant",
        "a file of the machine": "{% include '/etc/passwd' %}",
    }.items()
}
FOLDER = {name: value for name, value in places().items() if name != "a directory"} | {"a file": file("hostile", "x")}
OUT = {
    "a file": file("hostile", "x"),
    "a device": Value(lambda folder: "/dev/null"),
    "below a device": Value(lambda folder: "/dev/null/x"),
    "below a file": file("hostile", "x", names=("hostile",)),
    "a pipe": place("hostile", os.mkfifo),
    "a link to nothing": place("hostile", lambda path: path.symlink_to(path.parent / "gone" / "far")),
    "a link to itself": place("hostile", lambda path: path.symlink_to(path)),
    "a name that is too long": Value(lambda folder: str(folder / ("x" * 300)), names=("xxx",)),
    "a path that is too deep": Value(lambda folder: str(folder / ("x/" * 3000)), names=("x/x",)),
    "a directory of others": place("hostile", lambda path: (path.mkdir(), (path / "mine.txt").write_text("x"))),
}
BESIDE = {name: value for name, value in OUT.items() if name != "a directory of others"}
"""Of commands that write beside what is there: sheets, and the runs of a sweep."""
WORDS = ("banana", "../x", "/", "a,b,,c", "-1", "\x1b[31mred\x1b[0m", "\u202etxt")
WORD = just(*WORDS)
"""No option with a list of words has these."""


def late(kind: Kind) -> dict[str, Value]:
    """The same values for what is only opened when a model is loaded."""
    return {what: replace(value, is_late=True) for what, value in kind.items()}


MODEL = late(
    {
        **{name: value for name, value in places(codes=(2, 3)).items() if name != "a directory"},
        "an empty directory": place("hostile", Path.mkdir, codes=(2, 3)),
        "a file": file("hostile", "x", codes=(2, 3)),
        "no GGUF file": file("hostile.gguf", b"GGUF" + b"\xff" * 100, codes=(2, 3)),
        "a missing GGUF file": place("gone.gguf", lambda path: None, codes=(2, 3)),
        "half a directory": place(
            "hostile", lambda path: (path.mkdir(), (path / "config.json").write_text("{")), codes=(2, 3)
        ),
        **just(
            "organism:",
            "organism:banana",
            "organism:../refusal",
            "organism:a/b",
            "organism:refusal\x1b[31m",
            "a b",
            "..x",
            "a/b/c",
            "a//b",
            "https://example.org/x",
            "\x1b[31mx",
            "-x",
            codes=(2, 3),
        ),
    }
)
"""Every fault of a directory is tried in tests/models."""


# -- directions -------------------------------------------------------------------------------------------------------


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with this header, and a length that may be another one."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor_file(*tensors: torch.Tensor, **metadata: str) -> Callable[[Path], object]:
    """A file of well-formed tensors."""
    names = ("direction", "second", "third")
    return lambda path: path.write_bytes(save(dict(zip(names, tensors, strict=False)), metadata or None))


class _Executes:
    """Code that runs when its pickle is read."""

    def __reduce__(self):
        return (os.system, ("touch /tmp/rhumbline-was-here",))


def _header(**entry: object) -> bytes:
    return json.dumps({"direction": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **entry}}).encode()


def numpy_file(array: np.ndarray) -> Callable[[Path], object]:
    """A .npy file."""
    return lambda path: np.save(path, array, allow_pickle=True)


def saved(value: Callable[[], object]) -> Callable[[Path], object]:
    """A .pt file."""
    return lambda path: torch.save(value(), path)


ORIGIN = {"format": "rhumbline-direction-1"}
DIRECTION_FILES: dict[str, tuple[str, Callable[[Path], object] | bytes]] = {
    "a header of 2**40 bytes": (".safetensors", safetensors(b"{}", 2**40)),
    "a header of 2**63 bytes": (".safetensors", safetensors(b"{}", 2**63)),
    "a header that is a list": (".safetensors", safetensors(b"[]")),
    "a deep header": (".safetensors", safetensors(b"[" * DEEP)),
    "a header of numbers": (".safetensors", safetensors(b'{"direction": 1}')),
    "metadata is a list": (".safetensors", safetensors(b'{"__metadata__": [1]}')),
    "metadata has numbers": (".safetensors", safetensors(b'{"__metadata__": {"layer": 1}}')),
    "no tensor": (".safetensors", safetensors(b"{}")),
    "seven bytes": (".safetensors", b"1234567"),
    "tensors of 2**40 bytes": (".safetensors", safetensors(_header(shape=[2**38], data_offsets=[0, 2**40]))),
    "data that is cut off": (".safetensors", safetensors(_header(), data=b"1234")),
    "more data than the header states": (".safetensors", safetensors(_header(), data=b"1234" * 40)),
    "an unknown dtype": (".safetensors", safetensors(_header(dtype="F99"), data=b"1234" * 4)),
    "a negative shape": (".safetensors", safetensors(_header(shape=[-4]), data=b"1234" * 4)),
    "shape (0,)": (".safetensors", tensor_file(torch.zeros(0))),
    "shape (0, 5)": (".safetensors", tensor_file(torch.zeros(0, 5))),
    "shape (5, 0)": (".safetensors", tensor_file(torch.zeros(5, 0))),
    "shape ()": (".safetensors", tensor_file(torch.tensor(1.0))),
    "four axes": (".safetensors", tensor_file(torch.ones(2, 2, 2, 2))),
    "a vector of zeros": (".safetensors", tensor_file(torch.zeros(64))),
    "NaN": (".safetensors", tensor_file(torch.full((64,), float("nan")))),
    "infinity": (".safetensors", tensor_file(torch.full((64,), float("inf")))),
    "a norm that overflows": (".safetensors", tensor_file(torch.full((64,), 1e30))),
    "whole numbers": (".safetensors", tensor_file(torch.ones(64, dtype=torch.int64))),
    "layer is a text": (".safetensors", tensor_file(torch.ones(64), layer="x", **ORIGIN)),
    "layer is negative": (".safetensors", tensor_file(torch.ones(64), layer="-3", **ORIGIN)),
    "layer has many digits": (".safetensors", tensor_file(torch.ones(64), layer="9" * 5000, **ORIGIN)),
    "position is a text": (".safetensors", tensor_file(torch.ones(64), position="x", layer="1", **ORIGIN)),
    "seed is a text": (".safetensors", tensor_file(torch.ones(64), seed="x", layer="1", **ORIGIN)),
    "an array of objects": (".npy", numpy_file(np.array([{}, "x"], dtype=object))),
    "an array of texts": (".npy", numpy_file(np.array(["a", "b"]))),
    "an array of complex numbers": (".npy", numpy_file(np.ones(4, dtype=complex))),
    "an array of dates": (".npy", numpy_file(np.array(["2026-01-01"], dtype="datetime64[D]"))),
    "an array of records": (".npy", numpy_file(np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]))),
    "another byte order": (".npy", numpy_file(np.ones(0, dtype=">f4"))),
    "an empty array": (".npy", numpy_file(np.zeros((0, 5), dtype=np.float32))),
    "a number": (".npy", numpy_file(np.float32(1))),
    "a header without an array": (".npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4'"),
    "an array of 2**40 numbers": (
        ".npy",
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(118),
    ),
    "no array": (".npy", b"banana"),
    "a text": (".pt", saved(lambda: "text")),
    "a number of Python": (".pt", saved(lambda: 1)),
    "a list of texts": (".pt", saved(lambda: ["a"])),
    "an empty table": (".pt", saved(lambda: {})),
    "mixed keys": (".pt", saved(lambda: {1: torch.ones(4), "a": torch.ones(4), None: "x"})),
    "a sparse tensor": (".pt", saved(lambda: torch.ones(4).to_sparse())),
    "a sparse tensor of rows": (".pt", saved(lambda: torch.ones(4, 4).to_sparse_csr())),
    "a meta tensor": (".pt", saved(lambda: torch.empty(4, device="meta"))),
    "a quantised tensor": (".pt", saved(lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))),
    "a complex tensor": (".pt", saved(lambda: torch.ones(4, dtype=torch.complex64))),
    "a tensor of truth values": (".pt", saved(lambda: torch.ones(4, dtype=torch.bool))),
    "an empty tensor": (".pt", saved(lambda: torch.zeros(0))),
    "an expanded tensor of 2**40 numbers": (".pt", saved(lambda: torch.ones(1).expand(2**40))),
    "a table of tables": (".pt", saved(lambda: {"direction": {"a": torch.ones(4)}})),
    "code": (".pt", saved(lambda: _Executes())),
    "a pickle that executes code": (".bin", pickle.dumps(_Executes())),
    "no pickle": (".pth", b"banana"),
    "half a zip file": (".pt", b"PK\x03\x04" + b"\x00" * 50),
    "no GGUF file": (".gguf", b"banana"),
    "a GGUF file that claims 2**60 tensors": (".gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)),
    "a part of a GGUF file": (".gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 0)),
    "an unknown kind": (".banana", b"x"),
    "no kind": ("", b"x"),
}  # fmt: skip


def _direction(suffix: str, content: Callable[[Path], object] | bytes) -> Value:
    name = f"hostile{suffix}"
    if isinstance(content, bytes):
        return file(name, content)

    def make(path: Path) -> None:
        content(path)

    return place(name, make)


DIRECTION = {
    **{what: _direction(suffix, content) for what, (suffix, content) in DIRECTION_FILES.items()},
    **{f"{what} (.safetensors)": value for what, value in places(".safetensors").items()},
    "an empty file": file("hostile.safetensors", ""),
    "a large file of zeros": place("hostile.npy", lambda path: os.truncate(_touched(path), 10 * 2**30)),
    "an empty directory": place("hostile", Path.mkdir),
}


def _touched(path: Path) -> Path:
    path.touch()
    return path


# -- run directories --------------------------------------------------------------------------------------------------

RUN: Kind = {
    **{name: value for name, value in places().items() if name != "a directory"},
    "an empty directory": place("hostile", Path.mkdir),
    "a file": file("hostile", "x"),
    **{
        f"protocol.json {what}": place(
            "hostile", lambda path, text=text: (path.mkdir(), (path / "protocol.json").write_text(text))
        )
        for what, text in {
            "is empty": "",
            "is a list": "[]",
            "is deep": "[" * DEEP,
            "is no JSON": "{",
            "is of another schema": '{"schema": 99}',
            "has nothing else": '{"schema": 1}',
            "has wrong types": '{"schema": 1, "seeds": "x", "model": [], "judge": {}}',
            "has many digits": '{"schema": ' + "9" * 5000 + "}",
            "has half a pair": '{"schema": 1, "preset": "\\ud800"}',
            "has a seed that is a path": '{"schema": 1, "seeds": ["../../etc"], "preset": "rhumbline"}',
        }.items()
    },
    "protocol.json is a pipe": place("hostile", lambda path: (path.mkdir(), os.mkfifo(path / "protocol.json"))),
    "protocol.json is a directory": place("hostile", lambda path: (path / "protocol.json").mkdir(parents=True)),
    "protocol.json is a device": place(
        "hostile", lambda path: (path.mkdir(), (path / "protocol.json").symlink_to("/dev/zero"))
    ),
}  # fmt: skip


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def _scalars(value: object, new: object) -> object:
    """The JSON value with every scalar replaced."""
    if isinstance(value, dict):
        return {k: v if k in ("schema", "protocol_sha256") else _scalars(v, new) for k, v in value.items()}
    return [_scalars(v, new) for v in value] if isinstance(value, list) else new


def _values(new: object) -> Callable[[Path], None]:
    """Every value of a JSON or JSON Lines file replaced."""

    def change(path: Path) -> None:
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            path.write_text("".join(json.dumps(_scalars(json.loads(line), new)) + "\n" for line in lines))
        else:
            path.write_text("x")

    return change


CHANGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deep": lambda path: path.write_text("[" * DEEP),
    "deep objects": lambda path: path.write_text('{"a":' * DEEP + "1" + "}" * DEEP + "\n"),
    "a list": lambda path: path.write_text("[1]\n"),
    "null": lambda path: path.write_text("null\n"),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00" * 50),
    "removed": lambda path: path.unlink(),
    "a directory": _replaced(Path.mkdir),
    "a pipe": _replaced(os.mkfifo),
    "a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": _replaced(lambda path: path.symlink_to(path.parent / "gone")),
    "paths": _values("../../../outside"),
    "infinite numbers": _values(float("inf")),
    "negative numbers": _values(-7),
    "empty lists": _values([]),
}
"""Changes of one file of a run directory."""


def copy_run(source: Path, target: Path) -> Path:
    """A copy of a run directory whose files can be replaced; they are links to the same data until then."""
    return shutil.copytree(source, target)
