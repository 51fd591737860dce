"""A judge as data: which model is asked what, and what its answer means. Nothing is asked here.

Promises: an answer that fits no rule is "unscored", never the milder class; every fault of a judge file is told.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from rhumbline.errors import InputError
from rhumbline.records.files import sha256

Asks = Literal["refusal", "harm"]
"""`refusal`: refused or complied. `harm`: unsafe or safe."""
Form = Literal["text", "chat", "conversation", "classifier", "endpoint"]
"""How the model is asked. `text`: the template as it is. `chat`: the template as a user turn. `conversation`: prompt
and response as user and assistant turn of the model's own template (Llama Guard). `classifier`: a sequence
classification model reads the template. `endpoint`: the template as a user turn, to an OpenAI-compatible address."""

CLASSES: Mapping[Asks, tuple[str, str]] = {"refusal": ("refused", "complied"), "harm": ("unsafe", "safe")}
"""What a judge may answer; the first one has the value 1."""


@dataclass(frozen=True)
class Judgement:
    """What a judge made of one completion."""

    cls: str
    """One of the judge's classes, or unscored."""
    value: float | None
    """1 for the first class of what is asked, 0 for the second, between for a scale. None iff unscored."""
    evidence: str = ""
    """The judge's own words where they are few, or why it is unscored. Never the completion."""


@dataclass(frozen=True)
class JudgeSpec:
    """A judge. `{prompt}` and `{response}` of the template are replaced by the texts as they are."""

    name: str
    asks: Asks
    form: Form
    model: str
    """Hub name or directory; of an endpoint, the name that it knows the model by."""
    template: str = ""
    answers: Mapping[str, str] = field(default_factory=dict)
    """From the beginning of an answer (any case) to a class; of a classifier, from a label."""
    otherwise: str | None = None
    """Class of any other answer; None leaves it unscored."""
    line: str = ""
    """Read the answer after `LINE:` (any case) instead of at the beginning."""
    scale: tuple[str, ...] = ()
    """Tokens of a grade, worst for the first class last: the value is the expected grade from 0 to 1, in one pass."""
    threshold: float = 0.5
    """From which value on a scale is the first class."""
    max_new_tokens: int = 8
    least_words: int = 0
    """A completion with fewer words is the second class unasked (the paper's rule for Llama Guard 2)."""
    revision: str | None = None
    url: str = ""
    """Of an endpoint: everything before `/chat/completions`."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; none is sent where it is not set."""
    concurrency: int = 8
    timeout: float = 60.0
    """Seconds for one answer."""
    retries: int = 4
    """Further tries after a busy or broken answer, each twice as long after the one before."""
    title: str = ""
    licence: str = ""
    source: str = ""
    """Where prompt and reading were published."""

    def __post_init__(self):
        faults = []
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            faults.append(f"name is {self.name!r}; files are named by it: use letters, digits, dots and dashes")
        if not self.model:
            faults.append("model is empty; give a hub name or a directory")
        if self.form != "conversation" and "{response}" not in self.template:
            faults.append("template has no {response}")
        allowed = CLASSES[self.asks]
        named = [*self.answers.values(), *([self.otherwise] if self.otherwise else [])]
        if wrong := sorted({c for c in named if c not in allowed}):
            faults.append(f"answers mean {', '.join(wrong)}; a judge of {self.asks} says {' or '.join(allowed)}")
        if bool(self.answers) == bool(self.scale):
            faults.append("give answers or a scale, one of the two")
        if self.scale and self.form in ("endpoint", "classifier"):
            faults.append(f"a scale is read from logits, which form {self.form} does not give")
        if self.form == "endpoint" and not self.url.startswith(("http://", "https://")):
            faults.append(f"url is {self.url!r}; give the address of an OpenAI-compatible server")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or self.max_new_tokens < 1:
            faults.append("concurrency, timeout and max_new_tokens are above 0, retries not below")
        if faults:
            raise InputError(f"judge {self.name}: {'; '.join(faults)}.")

    @property
    def id(self) -> str:
        """Changes with everything that may change a judgement; the cache is keyed by it."""
        told = {"title", "licence", "source", "concurrency", "timeout", "retries", "key_env", "url", "name"}
        return sha256({k: v for k, v in asdict(self).items() if k not in told})[:16]

    def question(self, prompt: str, response: str) -> str:
        """The template with both texts in it."""
        # In one pass: a response that says "{prompt}" is not filled in.
        parts = self.template.split("{response}")
        return response.join(part.replace("{prompt}", prompt) for part in parts)

    def read(self, answer: str) -> Judgement:
        """The judgement that an answer in words means."""
        said = " ".join(answer.split()).casefold()
        if self.line:
            found = [text for line in answer.splitlines() if (text := _after(self.line, line)) is not None]
            said = found[0] if found else ""
        for words, cls in self.answers.items():
            if said.startswith(words.casefold()):
                return self.judged(cls, words)
        if self.otherwise is not None:
            return self.judged(self.otherwise, "any other answer")
        return Judgement("unscored", None, f"no such answer: {said[:40]!r}" if said else "no answer")

    def graded(self, value: float) -> Judgement:
        """The judgement that a place on the scale means."""
        if not 0 <= value <= 1:
            return Judgement("unscored", None, f"grade {value}")
        return Judgement(CLASSES[self.asks][0 if value >= self.threshold else 1], value, "scale")

    def judged(self, cls: str, evidence: str) -> Judgement:
        """A judgement of one of the judge's classes."""
        return Judgement(cls, float(cls == CLASSES[self.asks][0]), evidence)

    def unasked(self, response: str) -> Judgement | None:
        """The judgement of a completion that is too short to be asked about, if it is."""
        if len(response.split(" ")) < self.least_words:
            return self.judged(CLASSES[self.asks][1], f"under {self.least_words} words")
        return None

    def record(self) -> dict[str, Any]:
        """The judge as JSON."""
        return {**asdict(self), "id": self.id}


def _after(label: str, line: str) -> str | None:
    start, colon, rest = line.partition(":")
    return rest.strip().casefold() if colon and start.strip().casefold() == label.casefold() else None


@cache
def published() -> Mapping[str, JudgeSpec]:
    """Every published judge by its name."""
    text = (files("rhumbline.judging") / "published.toml").read_text(encoding="utf-8")
    return {name: _spec(name, table, "published.toml") for name, table in tomllib.loads(text).items()}


def read_judge(name: str) -> JudgeSpec:
    """A published judge, or the judge of a TOML file whose fields are those of `JudgeSpec`."""
    if name in published() and not Path(name).exists():
        return published()[name]
    path = Path(name)
    if not path.suffix and not path.exists():
        raise InputError(f"{name} is neither a judge file nor a published judge; published: {', '.join(published())}.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not TOML: {error}.") from error
    return _spec(str(table.pop("name", path.stem)), table, name)


def _spec(name: str, table: Mapping[str, Any], source: str) -> JudgeSpec:
    known = {f.name: f for f in fields(JudgeSpec)}
    if unknown := sorted(set(table) - set(known)):
        raise InputError(f"{source}: unknown fields {', '.join(unknown)}; known: {', '.join(known)}.")
    if missing := [k for k in ("asks", "form", "model") if k not in table]:
        raise InputError(f"{source}: {', '.join(missing)} missing; a judge has at least asks, form and model.")
    for column, allowed in (("asks", get_args(Asks)), ("form", get_args(Form))):
        if table[column] not in allowed:
            raise InputError(f"{source}: {column} is {table[column]!r}; use {' or '.join(allowed)}.")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    kinds = {"concurrency": int, "retries": int, "max_new_tokens": int, "least_words": int}
    kinds |= {"timeout": int | float, "threshold": int | float, "answers": dict, "scale": tuple}
    wrong = [k for k, v in given.items() if not isinstance(v, kinds.get(k, str)) or isinstance(v, bool)]
    texts = {"answers": given.get("answers"), "scale": given.get("scale")}
    lists = {k: v.values() if isinstance(v, dict) else v for k, v in texts.items() if k not in wrong and v is not None}
    wrong += [k for k, v in lists.items() if not all(isinstance(x, str) for x in v)]
    if wrong:
        raise InputError(f"{source}: {', '.join(wrong)} of the wrong type.")
    return JudgeSpec(name=name, **given)
