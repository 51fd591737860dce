"""Hostile texts, tables and models that a user passes, by format. Independent of the commands."""

import json
import os
from dataclasses import replace
from pathlib import Path

from hostile_values import DEEP, JSON, LONG, TOML, Kind, Value, contents, file, just, place, places, texts

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
    thousands_of_seeds=f"seeds = {list(range(5000))}",
    thousands_of_strengths=f"dose = {{strengths = {[1.0] * 5000}}}",
    a_long_marker=f'judge = "markers"\ntext_score = {{markers = ["{LONG}"]}}',
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
    conditions_have_an_escape='conditions = {a = "x\\u001b[2J"}',
    system_has_an_escape='chat = {system = "x\\u001b[2J"}',
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
    a_phrase_of_a_million=f'en = ["no {"x" * 10**6}"]',
    thousands_of_phrases=f"en = {[f'no {i}' for i in range(5000)]}",
    phrases_of_all_languages="".join(f"{code} = {[f'no {i}' for i in range(200)]}\n" for code in ("en", "ja", "de")),
)
JUDGE = TOML | contents(
    ".toml",
    name_has_a_slash='name = "a/b"\nmodel = "m"\nform = "text"\ntemplate = "{response}"\nasks = "harm"',
    no_name='model = "m"',
    timeout_is_a_text='name = "a"\nmodel = "m"\ntimeout = "x"',
    answers_is_a_list='name = "a"\nmodel = "m"\nanswers = [1]',
    url_is_a_file='name = "a"\nmodel = "m"\nform = "endpoint"\nurl = "file:///etc/passwd"\ntemplate = "{response}"',
    url_has_a_port_that_is_too_large='name = "a"\nmodel = "m"\nform = "endpoint"\nasks = "harm"\n'
    'url = "http://a:99999"\ntemplate = "{response}"\nanswers = {a = "safe"}',
    timeout_is_infinite='name = "a"\nmodel = "m"\nform = "text"\nasks = "harm"\ntimeout = inf\n'
    'template = "{response}"\nanswers = {a = "safe"}',
    answers_has_an_empty_beginning='name = "a"\nmodel = "m"\nform = "text"\nasks = "harm"\ntemplate = "{response}"\n'
    'answers = {"" = "safe"}',
)
SCORES = JSON | contents(
    ".json",
    no_layers='{"n_layers": 0, "candidates": []}',
    layers_is_a_text='{"n_layers": "x", "candidates": []}',
    layers_of_400_digits='{"n_layers": 1' + "0" * 400 + ', "candidates": []}',
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
            "a_score_of_400_digits": {"bypass": 10**400},
            "position_of_30_digits": {"position": -(10**30)},
        }.items()
    },
)
TERMS = JSON | contents(
    ".json",
    terms_is_a_text='{"terms": "a", "controls": ["b"], "contexts": ["c {term}"]}',
    terms_are_numbers='{"terms": [1], "controls": ["b"], "contexts": ["c {term}"]}',
    no_terms='{"terms": [], "controls": ["b"], "contexts": ["c {term}"]}',
    no_place='{"terms": ["a"], "controls": ["b"], "contexts": ["c"]}',
    an_escape='{"terms": ["a\\u001b[2J"], "controls": ["b", "c", "d", "e"], "contexts": ["c {term}", "d {term}"]}',
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
    **{
        f"{name} in a {column}": file(
            "hostile.jsonl", rows({"prompt": "a", "label": "positive", "id": "1", column: f"a{character}b"})
        )
        for name, character in {"a null": "\0", "an escape": "\x1b[2J", "a bell": "\a", "CSI": "\x9b"}.items()
        for column in ("prompt", "system", "response", "id", "category")
    },
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
    "both labels up to variation selectors": file("hostile.jsonl", both("Open \u2764\ufe0f.", "Open \u2764.")),
    "a long id": file("hostile.jsonl", rows({"prompt": "a", "label": "positive", "id": LONG})),
    "a long category": file("hostile.jsonl", rows({"prompt": "a", "label": "positive", "category": LONG})),
    "an id twice": file(
        "hostile.jsonl",
        rows({"prompt": "a", "label": "positive", "id": "1"}, {"prompt": "b", "label": "negative", "id": "1"}),
    ),
    "CSV with a null": file("hostile.csv", "prompt,label\na\0b,positive\n"),
    "CSV with an escape": file("hostile.csv", "prompt,label\na\x1b[31mb,positive\n"),
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
    "an escape": file("hostile.txt", "a\x1b[31mb"),
    "an escape in a row": file("hostile.jsonl", '{"text": "a\\u001b[31mb"}\n'),
    "empty texts": file("hostile.jsonl", '{"text": " "}\n'),
    "half of a surrogate pair": file("hostile.jsonl", '{"text": "a\\ud800"}\n'),
    "a .txt file without text": file("hostile.txt", " \n\n \n"),
}
SUFFIX = texts(".txt") | {
    "an escape": file("hostile.txt", "please\n\x1b[31mnow\n"),
    "a delete": file("hostile.txt", "please\x7f\n"),
    "only line breaks": file("hostile.txt", "\n\n\n"),
}
SYSTEMS = texts(".txt") | {
    "only spaces": file("hostile.txt", " \n"),
    "an escape": file("hostile.txt", "Be brief.\x1b[2J"),
    "two of one name": Value(lambda folder: "none,none"),
    "an empty item": Value(lambda folder: "none,"),
}
LABELS = texts(".csv") | {
    "another header": file("hostile.csv", "a,b\n1,2\n"),
    "no row": file("hostile.csv", "row,prompt,completion,label\n"),
    "an unknown row": file("hostile.csv", "row,prompt,completion,label\nx,p,c,refused\n"),
    "a null": file("hostile.csv", "row,prompt,completion,label\nx\0,p,c,refused\n"),
    "an escape": file("hostile.csv", "row,prompt,completion,label\nx,p,\x1b[2J,refused\n"),
    "a large cell": file("hostile.csv", "row,prompt,completion,label\nx,p," + "c" * 200_000 + ",refused\n"),
    "an open quote": file("hostile.csv", 'row,prompt,completion,label\n"x,p,c'),
    "a large header": file("hostile.csv", "x" * 200_000),
    "many columns": file("hostile.csv", ",".join("x" * 100_000)),
    "a column twice": file("hostile.csv", "row,prompt,completion,label,label\nx,p,c,refused,complied\n"),
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
    "another run": place("hostile", lambda path: (path.mkdir(), (path / "protocol.json").write_text('{"schema": 1}'))),
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
