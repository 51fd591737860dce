"""Hostile command lines: a healthy line of every command, and the kind of every option.

A new option is one line in `OPTIONS`; `test_hostile_options.py` fails until it is there. Independent of what a command
does.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hostile_artefacts import DIRECTION, RUN
from hostile_files import (
    BESIDE,
    CONTRAST,
    EXPERIMENT,
    FOLDER,
    JUDGE,
    LABELS,
    LOSS_TEXT,
    MODEL,
    OUT,
    PHRASES,
    SCORES,
    SUFFIX,
    SWEEP,
    SYSTEMS,
    TEMPLATE,
    TERMS,
    WORD,
    WORDS,
)  # fmt: skip
from hostile_values import DEEP, SWITCH, TEXT, Kind, Value, just, real, whole

from rhumbline.cli import parser

Words = Mapping[str, str]
"""A healthy line: the value of every argument that the command needs, by name."""

_ANALYSIS = {"run": "RUN", "--contrast": "CONTRAST"}
BASES: Mapping[str, Words] = {
    "demo": {"--out": "OUT", "--organism": "planted"},
    "run": {"model": "MODEL", "--out": "OUT", "--contrast": "CONTRAST"},
    "discover": {"model": "MODEL", "--out": "OUT", "--contrast": "CONTRAST"},
    "sweep": {"sweep": "SWEEP", "--out": "OUT"},
    "compare": {"runs": "RUN", "--out": "OUT"},
    "reproduce": {"name": "qwen-1.8b", "--out": "OUT", "--contrast": "CONTRAST", "--model": "MODEL"},
    "verify": {"run": "RUN"},
    "report": {"run": "RUN"},
    "select": {"scores": "SCORES"},
    "evaluate": {"run": "RUN", "--tasks": "answers", "--include-path": "TASKS", "--model": "MODEL"},
    "analyze geometry": _ANALYSIS,
    "analyze base": {**_ANALYSIS, "--base": "MODEL"},
    "analyze suffix": {**_ANALYSIS, "--suffix": "SUFFIX"},
    "analyze directions": _ANALYSIS,
    "analyze monitor": {**_ANALYSIS, "--suffix": "SUFFIX"},
    "analyze damage": _ANALYSIS,
    "analyze steering": _ANALYSIS,
    "analyze frontier": _ANALYSIS,
    "analyze trajectory": _ANALYSIS,
    "analyze meaning": _ANALYSIS,
    "analyze circuit": _ANALYSIS,
    "push": {"source": "RUN", "repository": "me/mine", "--dry-run": "OUT"},
    "chat": {"model": "MODEL", "--direction": "DIRECTION", "--layer": "1", "--prompt": "Hello."},
    "play": {"model": "MODEL", "--direction": "DIRECTION", "--layer": "1"},
    "analyze dissociation": {
        "run": "RUN", "other": "RUN", "--model": "MODEL", "--contrasts": "CONTRAST", "--out": "OUT",
    },
    "analyze flinch": {"model": "MODEL", "--base": "MODEL", "--terms": "TERMS", "--out": "OUT"},
    "analyze style": {"model": "MODEL", "--contrast": "MADE", "--out": "OUT"},
    "robustness": {"models": "MODEL", "--contrast": "CONTRAST", "--out": "OUT"},
    "data list": {},
    "data show": {"name": "refusal"},
    "data check": {"name": "refusal", "--data-dir": "TASKS"},
    "contrast make": {
        "model": "MODEL", "--prompts": "SUFFIX", "--system": "Be formal.", "--out": "OUT.jsonl",
    },
    "label": {"run": "RUN", "--out": "OUT.csv"},
    "judge": {"run": "RUN", "--judge": "JUDGE"},
    "edit": {"model": "MODEL", "--direction": "DIRECTION", "--out": "OUT"},
    "export": {"run": "DIRECTION", "--to": "lora", "--out": "OUT", "--model": "MODEL"},
    "model": {"model": "MODEL"},
    "organism list": {},
    "organism train": {"name": "refusal", "--out": "OUT"},
}  # fmt: skip
"""Lines that are accepted: each of them would load a model, or is done at once."""

NO_NAME = just(*WORDS, codes=(2, 3))
NUMBERS = just("x", "1.5", "1,,2", ",", "1;2", "1 b", "9" * 6000, "--", "a,b")
LATE_POSITIONS = just("-1", "response:0", "response:x", "response:-3", "response:99999999999999999999")
OPTIONS: Mapping[str, Kind] = {
    # files and directories
    "--config": EXPERIMENT,
    "--phrases": PHRASES,
    "--systems": SYSTEMS,
    "--chat-template": TEMPLATE,
    "--template-kwargs": just(
        "{", "[]", "1", "null", '"x"', "[" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, '{"a": ' + "9" * 5000 + "}",
        '{"messages": []}', '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": "\\ud800"}', "{'a': 1}",
    ),
    "--contrast": CONTRAST | WORD,
    "--contrasts": CONTRAST | WORD,
    "--data-dir": FOLDER,
    "--include-path": FOLDER,
    "--embeddings": FOLDER,
    "--loss-text": LOSS_TEXT,
    "--suffix": SUFFIX,
    "--terms": TERMS,
    "--human": LABELS,
    "--out": OUT,
    "--model": MODEL,
    "--base": MODEL,
    "--edited": MODEL,
    "--direction": DIRECTION | {f"a run: {what}": value for what, value in list(RUN.items())[::5]},
    "model": MODEL,
    "models": MODEL,
    "run": RUN,
    "runs": RUN,
    "other": RUN,
    "scores": SCORES,
    "sweep": SWEEP,
    "judge --judge": WORD | JUDGE,
    "compare runs": {what: replace(value, codes=(1, 2)) for what, value in RUN.items()},
    "export run": DIRECTION | RUN,
    "label --out": BESIDE,
    "contrast make --out": BESIDE | just("no-name-of-lines"),
    "contrast make --prompts": SUFFIX | {what: CONTRAST[what] for what in ("not JSON", "an array", "many digits")},
    "--match": WORD,
    "--temperature": real("-1"),
    "sweep --out": BESIDE,
    # words
    "name": WORD | just("organism:refusal"),
    "--organism": just(*WORDS, late=True),
    "--preset": WORD,
    "--judge": WORD,
    "--expect": WORD,
    "--device": NO_NAME | just("cuda:x", "cuda:-1", "cpu:7", "meta", "mps:0:0", codes=(2, 3)),
    "--dtype": NO_NAME | just("int8", "float8_e4m3fn", "torch.float32", "complex64", "bool", codes=(2, 3)),
    "--engine": WORD | just("ray://", "ray://:0", "ray://host", "local://x"),
    "--behaviour": just(" ", "\n", "\x1b[31mred", "a\nb"),
    "--positions": WORD | LATE_POSITIONS,
    "--seeds": NUMBERS | just("-1", "0,0", "0,-1", str(2**64), str(10**30)),
    "discover --sizes": NUMBERS | just("1", "1,2,3,4", "0,1", "-1,1", "1,1000000000000000000000"),
    "--sizes": NUMBERS | just("1,2", "1,2,3,4", "0,1,1", "-1,1,1", "1,1,1000000000000000000000"),
    "analyze steering --sizes": just("x", "1,,2", ",", "1;2", "--", "0", "-1", "nan", "inf", "1,1", "17"),
    "analyze circuit --sizes": just("x", "1,,2", ",", "1;2", "--", "0", "-1", "1.5", "1,1"),
    "--battery": CONTRAST,
    "--harmful": WORD,
    "--harmless": WORD,
    "analyze meaning --prompts": whole(4),
    "analyze trajectory --tokens": just("x", "1,,2", ",", "1;2", "--", "0", "-1", "1.5", "1,1", "48"),
    "analyze style --doses": just("x", "1,,2", ",", "1;2", "--", "0", "-1", "nan", "inf", "101"),
    "--depths": just("x", "1,,2", ",", "--", "0", "-1", "nan", "1"),
    "--harm": WORD | JUDGE,
    "--doses": just("x", "1,,2", ",", "1;2", "--", "0", "-1", "nan", "inf", "1,1", "2,1", "6"),
    "--interventions": WORD | just("leace", "ablation,ablation", "ablation,best"),
    "--kl-prompts": whole(2),
    "--ask": just(" "),
    "--refusal-tokens": just(",", "I,", "I,,As") | just("\x1b[31m", codes=(2, 3), late=True),
    "--coefficient": real("0", "banana", "1e300"),
    "--add-at": WORD,
    "--thinking": WORD,
    "--control-tokens": WORD,
    "--spare-tokens": whole(0),
    "--date": just("today", "2026-13-01", "2026-02-30", "20260101", "2026-1-1", "-1"),
    "--tasks": just(",", " "),
    "--arms": just("banana", "null:isotropic:99999999999999999999:ablation", "null:x:0:ablation", "../x"),
    "--sources": WORD | just("gradient,gradient"),
    "--to": WORD,
    "--system": just("a\x1b[31mb", "\x9b2J"),
    "--prompt": just("a\x1b[31mb", " "),
    "--null": WORD,
    "--license": just(*WORDS[1:], "MIT License"),
    "push --dry-run": OUT,
    "source": DIRECTION | RUN,
    "repository": WORD | just("me/mine.git"),
    "--strength": real(),
    "--port": whole(0),
    "chat --coefficient": real(),
    "play --coefficient": real(),
    # numbers
    "--nulls": whole(1),
    "--wide-nulls": whole(0) | just("9"),
    "--max-new-tokens": whole(1),
    "--loss-documents": whole(0),
    "--replicas": whole(1),
    "--gpus-per-replica": real("-1", "-0.5"),
    "--gpu-memory": real("0", "-1"),
    "--gpu-tflops": real("0", "-1"),
    "--gpu-bandwidth": real("0", "-1"),
    "--seed": whole(0) | just(str(2**64)),
    "--limit": whole(1),
    "--fewshot": whole(0),
    "--batch-size": whole(1),
    "--components": whole(1),
    "--draws": whole(1),
    "--random": whole(1),
    "--prompts": whole(2),
    "--heads": whole(1),
    "--max-rank": whole(2),
    "--samples": whole(1),
    "--steps": whole(1),
    "--margin": real("-0.1", "1.1"),
    "--fpr": real("-0.1", "1", "1.1"),
    "--ranks": whole(1),
    "--test": whole(1),
    "--n": whole(1),
    "--add": real("0"),
    "export --coefficient": real("0"),
    "--layer": whole(0) | just("999", late=True, codes=(2, 3)),
    "--position": just("x", "1.5", str(10**30), str(-(10**30)), "99", "-99", "nan"),
    "--rank": whole(1),
}  # fmt: skip
"""The kind of every option that takes a value: by its name, or by its command and name where commands differ."""


LATE_COMMANDS = frozenset(
    f"analyze {name}" for name in ("damage", "steering", "frontier", "trajectory", "meaning", "circuit")
)
"""Commands whose options are tried by `make hostile` only: they load a model first."""


@dataclass(frozen=True)
class Case:
    """A command line with one hostile value."""

    command: str
    option: str
    what: str
    value: Value

    def __str__(self) -> str:
        return f"{self.command} {self.option}: {self.what}"


def outputs(out: Path) -> dict[str, str]:
    """The words for a new file or directory of this name."""
    return {f"OUT{suffix}": f"{out}{suffix}" for suffix in ("", ".csv", ".jsonl")}


def line(command: str, words: Words, changed: str | None = None, value: str | None = None) -> list[str]:
    """The healthy arguments of a command, or those with the value of one argument changed."""
    arguments = {name: words.get(word, word) for name, word in BASES[command].items()}
    if changed is not None:
        arguments[changed] = value or ""
    positional = [text for name, text in arguments.items() if not name.startswith("-")]
    options = []
    for name, text in arguments.items():
        if name == "--contrasts":
            options += [name, text, words["CONTRAST"]]
        elif (command, name) == ("contrast make", "--system"):
            options += [f"{name}={text}", f"{name}=Be brief."]
        elif name.startswith("-"):
            options.append(f"{name}={text}")
    return [*command.split(), *options, "--", *positional] if positional else [*command.split(), *options]


def arguments_of() -> Iterator[tuple[str, argparse.Action]]:
    """Every command with each of its arguments, from the parser itself."""

    def walk(p: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.Action]]:
        for action in p._actions:
            if isinstance(action, argparse._SubParsersAction):
                for part, sub in action.choices.items():
                    yield from walk(sub, f"{name} {part}".strip())
            elif name and not isinstance(action, argparse._HelpAction):
                yield name, action

    yield from walk(parser(), "")


def name_of(action: argparse.Action) -> str:
    """`--option`, or the name of a positional argument."""
    return action.option_strings[-1] if action.option_strings else action.dest


def kind_of(command: str, action: argparse.Action) -> Kind | None:
    """The hostile values of an argument; None if its kind is not listed."""
    if action.nargs == 0:
        return SWITCH
    name = name_of(action)
    found = OPTIONS.get(f"{command} {name}", OPTIONS.get(name))
    if found is None:
        return None
    is_late = bool(found) and all(value.is_late for value in found.values())
    texts = {what: replace(value, is_late=is_late and what == LONG_TEXT) for what, value in TEXT.items()}
    return found | {what: value for what, value in texts.items() if what not in TAKEN.get(name, ())}


def cases() -> list[Case]:
    """Every argument of every command with each hostile value of its kind.

    An option that several commands share is tried in full on one of them, and with a few values on the others.
    """
    found: list[Case] = []
    tried: set[tuple[str, int]] = set()
    for command, action in arguments_of():
        kind, name = kind_of(command, action), name_of(action)
        if kind is None or command not in BASES:
            continue
        key = (name, id(OPTIONS.get(f"{command} {name}", OPTIONS.get(name))))
        if (command, name) in LATE:
            kind = {what: value for what, value in kind.items() if value.is_late}
        some = list(kind.items()) if key not in tried or action.nargs == 0 else sample(kind, len(found))
        tried.add(key)
        if command in LATE_COMMANDS:
            some = [(what, replace(value, is_late=True)) for what, value in some]
        found += [Case(command, name, what, value) for what, value in some]
    return found


LATE = {("model", "model"), ("edit", "--layer")}
"""Options that are tried with a loaded model in `make test`; `make hostile` tries the others too."""
LONG_TEXT = next(what for what in TEXT if what.startswith("'xxx"))
TAKEN = {"--system": ("''", LONG_TEXT), "--prompt": (LONG_TEXT,), "--ask": (LONG_TEXT,)}
"""Texts that an option takes: a system prompt can be empty, and texts can be long."""
SOME = 1
"""Values of a kind that are tried on each further command."""


def sample(kind: Kind, start: int) -> list[tuple[str, Value]]:
    """A few values of a kind, other ones for each start."""
    values = list(kind.items())
    step = max(1, len(values) // SOME)
    return [values[(start + i * step) % len(values)] for i in range(min(SOME, len(values)))]
