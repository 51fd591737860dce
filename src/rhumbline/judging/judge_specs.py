"""External judges as data: a judge file -> the question to its model, and the meaning of the reply.

Guarantees: a reply that matches no rule is `unscored`, never the milder class. All faults of a judge file are listed at
once. Independent of how the model is queried.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import msgspec

from rhumbline.errors import InputError
from rhumbline.judging.refusal_phrases import UNSPACED
from rhumbline.records.files import sha256
from rhumbline.records.judgement_files import Asks, JudgedClass, JudgeDefinition
from rhumbline.records.user_files import read_toml

CLASSES: Mapping[Asks, tuple[JudgedClass, JudgedClass]] = {
    "refusal": ("refused", "complied"),
    "harm": ("unsafe", "safe"),
}
"""The classes of a judge; the first one has the value 1."""
_RANGES: Mapping[str, tuple[float, float]] = {
    "concurrency": (1, 1000),
    "retries": (0, 100),
    "timeout": (0.001, 3600),
    "max_new_tokens": (1, 100_000),
    "least_words": (0, 100_000),
    "threshold": (0, 1),
}
"""Smallest and largest value of each number."""
_NO_EFFECT = {"title", "licence", "source", "concurrency", "timeout", "retries", "key_env", "url", "name"}
"""Fields that cannot change a judgement."""


@dataclass(frozen=True)
class Judgement:
    """The result of a judge for one completion."""

    cls: JudgedClass
    """One of the judge's classes, or unscored."""
    value: float | None
    """1 for the judge's first class, 0 for the second, a number between for a scale. None if and only if unscored."""
    evidence: str = ""
    """The words of the reply that decided, or why there is no judgement. Never the completion."""

    def __post_init__(self):
        if (self.value is None) != (self.cls == "unscored") or not 0 <= (self.value or 0) <= 1:  # not true of NaN
            raise InputError(
                f"Judgement has value {self.value} and class {self.cls!r}: expected None for an unscored completion, "
                "and 0 to 1 for any other. Pass a matching pair."
            )


def _is_address(text: str) -> bool:
    """Whether a text is an address that requests can be sent to."""
    try:
        url = httpx.URL(text)
        return url.scheme in ("http", "https") and bool(url.host) and 0 < (url.port or 1) < 2**16
    except (httpx.InvalidURL, ValueError):  # the latter of international names
        return False


@dataclass(frozen=True, kw_only=True)
class JudgeSpec(JudgeDefinition):
    """A valid judge, which fills its question and reads its replies."""

    def __post_init__(self):
        faults = []
        if not re.fullmatch(r"\w[\w.-]{0,59}(?<!\.index)", self.name):
            faults.append(
                f"name is {self.name[:100]!r}; files are named by it: use at most 60 letters, digits, dots and dashes, "
                "and not .index at the end"
            )
        if not self.model:
            faults.append("model is empty; set a hub name or a directory")
        if self.form != "conversation" and "{response}" not in self.template:
            faults.append("template has no {response}")
        allowed = CLASSES[self.asks]
        beginnings = Counter(beginning.casefold().strip() for beginning in self.answers)
        if wrong := [text for text, n in beginnings.items() if n > 1 or not text]:
            faults.append(
                f"answers has {wrong[0]!r}, which is empty or occurs twice; write the beginning of each answer"
            )
        classes = [*self.answers.values(), *([] if self.otherwise is None else [self.otherwise])]
        if wrong := sorted({cls for cls in classes if cls not in allowed}):
            faults.append(
                f"answers mean {', '.join(map(repr, wrong))}; the classes of {self.asks} are {' or '.join(allowed)}"
            )
        if bool(self.answers) == bool(self.scale):
            faults.append("answers and scale: set exactly one of them")
        if self.scale and self.form in ("endpoint", "classifier"):
            faults.append(f"scale needs logits, which form {self.form} does not return; set answers")
        if self.form == "endpoint" and not _is_address(self.url):
            faults.append(
                f"url is {self.url[:200]!r}; set the address of an OpenAI-compatible server, such as "
                "http://localhost:8000/v1"
            )
        for name, (least, most) in _RANGES.items():
            if not least <= (value := getattr(self, name)) <= most:  # not true of NaN
                faults.append(f"{name} is {value:g}; set a value from {least:g} to {most:g}")
        if faults:
            raise InputError(f"judge {self.name}: {'; '.join(faults)}.")

    @property
    def id(self) -> str:
        """Hash of everything that can change a judgement; stored judgements are keyed by it."""
        return sha256({name: value for name, value in asdict(self).items() if name not in _NO_EFFECT})[:16]

    def question(self, prompt: str, response: str) -> str:
        """The template with both texts."""
        # In one pass: a response that contains "{prompt}" is not filled in.
        parts = self.template.split("{response}")
        return response.join(part.replace("{prompt}", prompt) for part in parts)

    def read(self, reply: str) -> Judgement:
        """The judgement of a reply in words."""
        text = " ".join(reply.split()).casefold()
        if self.line:
            lines = (_after_label(self.line, line) for line in reply.splitlines())
            text = next((rest for rest in lines if rest is not None), "")
        for beginning, cls in self.answers.items():
            if _begins_with(text, beginning.casefold().strip()):
                return self.judged(cls, beginning)
        if self.otherwise is not None:
            return self.judged(self.otherwise, "any other answer")
        return Judgement("unscored", None, f"no such answer: {text[:40]!r}" if text else "no answer")

    def graded(self, value: float) -> Judgement:
        """The judgement of a value on the scale."""
        if not 0 <= value <= 1:
            return Judgement("unscored", None, f"grade {value}")
        return Judgement(CLASSES[self.asks][0 if value >= self.threshold else 1], value, "scale")

    def judged(self, cls: str, evidence: str) -> Judgement:
        """A judgement with one of the judge's classes."""
        first, second = CLASSES[self.asks]
        return Judgement(first, 1.0, evidence) if cls == first else Judgement(second, 0.0, evidence)

    def without_query(self, response: str) -> Judgement | None:
        """The judgement of a completion that is too short for a query; None for a longer one."""
        if len(response.split(" ")) < self.least_words:
            return self.judged(CLASSES[self.asks][1], f"under {self.least_words} words")
        return None


def _begins_with(text: str, beginning: str) -> bool:
    """Whether a text begins with these words: "no, it is safe" begins with "no", "not sure" does not."""
    following = text.removeprefix(beginning)[:1]
    is_longer_word = beginning[-1].isalnum() and following.isalnum() and UNSPACED.match(following) is None
    return text.startswith(beginning) and not is_longer_word


def _after_label(label: str, line: str) -> str | None:
    """The text after `LABEL:`, in any case; None for another line."""
    start, colon, rest = line.partition(":")
    return rest.strip().casefold() if colon and start.strip().casefold() == label.casefold() else None


@cache
def published() -> Mapping[str, JudgeSpec]:
    """Every published judge by its name."""
    text = (files("rhumbline.judging") / "published.toml").read_text(encoding="utf-8")
    return {name: _spec({"name": name, **table}, "published.toml") for name, table in tomllib.loads(text).items()}


def read_judge(name: str, option: str = "--judge") -> JudgeSpec:
    """A published judge, or the judge of a TOML file with the fields of `JudgeDefinition`. Raises InputError.

    `option` is the option that names it.
    """
    if name in published() and not Path(name).is_file():
        return published()[name]
    path = Path(name)
    if not path.suffix and not path.is_file():
        raise InputError(
            f"{option} {name} is neither a judge file nor a published judge. Pass a TOML file or one of the published: "
            f"{', '.join(published())}."
        )
    table = read_toml(path, InputError, "a judge file (TOML)", option)
    return _spec({"name": path.stem, **table}, f"{option} {name}")


def _spec(table: Mapping[str, Any], source: str) -> JudgeSpec:
    """The judge of a TOML table; lists every unknown, missing and ill-typed field at once."""
    hints = get_type_hints(JudgeDefinition)
    faults = []
    if unknown := sorted(set(table) - set(hints)):
        faults.append(f"unknown fields {', '.join(unknown)}; the fields are {', '.join(hints)}")
    if missing := [name for name in ("asks", "form", "model") if name not in table]:
        faults.append(f"{', '.join(missing)} missing; a judge needs asks, form and model")
    values = {}
    for name in (name for name in hints if name in table):
        try:
            values[name] = msgspec.convert(table[name], hints[name])
        except msgspec.ValidationError as error:
            faults.append(f"{name} = {table[name]!r}: {error}")
    if faults:
        raise InputError(f"{source}: {'; '.join(faults)}. Correct the file.")
    try:
        return JudgeSpec(**values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
