"""What is fixed beforehand: one frozen record per stage, the presets, and the experiment file that overrides them.

Promises: all faults of an experiment file are listed at once; every difference between presets is a named field.
Does not run anything.
"""

import dataclasses
import inspect
import math
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from rhumbline.errors import InputError, ProtocolError
from rhumbline.evidence.selection_rules import ARDITI2024, BLOG2026, STYLE, SelectionRule
from rhumbline.evidence.verdict_rules import Rule
from rhumbline.evidence.verdict_rules import rule as named_rule
from rhumbline.judging.judge_names import CONTINUOUS_JUDGES, keyword_judge
from rhumbline.judging.keyword_judges import KEYWORD_JUDGES
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Sizes
from rhumbline.prompts.sampling import Sampling
from rhumbline.records.codec import to_json
from rhumbline.records.positions import Position

FAMILIES = ("isotropic", "covariance", "top-pc", "unrelated", "shuffled-site", "shuffled")
"""Null families, weakest first; the place in this list seeds the draws."""


@dataclass(frozen=True)
class Extraction:
    """Where the candidate directions are read."""

    positions: str = "post-instruction"
    """post-instruction: all template tokens after the instruction (the paper). last-instruction: the last token of the
    instruction (the blog). response-mean: the mean over the tokens of the response that the contrast carries.
    response:K: its K-th token. auto: response-mean for a contrast of texts, otherwise post-instruction."""
    filter: bool = True
    """Keep only train and val prompts whose metric has the sign of their class (positives > 0, negatives < 0)."""

    def __post_init__(self):
        known = ("post-instruction", "last-instruction", "response-mean", "auto")
        if self.positions not in known and self.response_position is None:
            raise ProtocolError(
                f"extraction.positions is {self.positions!r}; use {', '.join(known)}, or response:K with K from 1 up."
            )

    @property
    def response_position(self) -> Position | None:
        """The position in the response that is read; None if positions of the prompt are read."""
        return Position.named(self.positions)


@dataclass(frozen=True)
class Nulls:
    """The control directions that every arm is repeated with."""

    families: tuple[str, ...] = FAMILIES
    """isotropic: random, norm-matched. covariance: as the negatives' activations spread. top-pc: random in the span of
    their main axes. unrelated: topics within the negatives, or another contrast. shuffled-site: the same fit on
    balanced pseudo-classes. shuffled: the whole procedure on them, extraction and selection."""
    draws: int = 3
    """Draws of each family that complete every test prompt: the first ones."""
    wide: int = 99
    """Draws of each family that are scored by the fast metric; the smallest p that they allow is 1 / (wide + 1). 0:
    none are, and the rule may not ask for a rank."""
    procedure: int = 19
    """The same for `shuffled`, of which every draw extracts and selects anew."""
    prompts: int = 16
    """Test prompts per class that the fast metric reads under every draw."""
    procedure_prompts: int = 8
    """Validation prompts of either class that a draw of `shuffled` is selected on."""
    top: int = 10
    """Components that span `top-pc`."""
    unrelated: str = ""
    """File of another contrast for the family `unrelated`; empty: topics (`category`) within the negatives."""

    def __post_init__(self):
        unknown = [f for f in self.families if f not in FAMILIES]
        if unknown or len(set(self.families)) != len(self.families):
            raise ProtocolError(
                f"nulls.families is {list(self.families)}; use each at most once of {', '.join(FAMILIES)}."
            )
        if self.draws < 1:
            raise ProtocolError(f"nulls.draws is {self.draws}; an effect needs at least 1 null draw beside it.")
        for name, least in (("wide", 0), ("procedure", 1), ("prompts", 2), ("procedure_prompts", 2), ("top", 1)):
            if getattr(self, name) < least:
                raise ProtocolError(f"nulls.{name} is {getattr(self, name)}; give {least} or more.")

    def total(self, family: str) -> int:
        """Draws of a family, whether they complete prompts or are only scored."""
        return max(self.draws, self.wide and (min(self.wide, self.procedure) if family == "shuffled" else self.wide))


COEFFICIENTS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""What a coefficient chosen on validation may be."""


@dataclass(frozen=True)
class Addition:
    """How the direction is added on negatives."""

    coefficient: float | Literal["validation"] = 1.0
    """In units of the difference in means. `validation`: the smallest of 0.5, 0.75, 1, 1.5 and 2 under which 9 of 10
    validation negatives open as a refusal, or else the one under which most do."""
    positions: Literal["all", "prompt"] = "all"
    """`all` adds to generated tokens too; `prompt` leaves them alone. The other one is run beside it."""

    def __post_init__(self):
        if self.positions not in ("all", "prompt"):
            raise ProtocolError(f"addition.positions is {self.positions!r}; use all or prompt.")
        if isinstance(self.coefficient, str) and self.coefficient != "validation":
            raise ProtocolError(f"addition.coefficient is {self.coefficient!r}; use a number or validation.")
        if self.coefficient == 0:
            raise ProtocolError("addition.coefficient is 0, which adds nothing; use another number, or validation.")


@dataclass(frozen=True)
class Dose:
    """The curves over strengths, read by the fast metric on test prompts."""

    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    """Of the ablation, x - a r r^T x. None: no curve."""
    coefficients: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """Of the addition."""
    draws: int = 2
    """Draws of each null family that are measured too."""
    prompts: int = 24
    """Test prompts per class."""

    def __post_init__(self):
        if any(not 0 <= a <= 2 for a in self.strengths) or any(c < 0 for c in self.coefficients):
            raise ProtocolError("dose: strengths lie in 0..2, and coefficients are not negative.")
        if self.draws < 0 or self.prompts < 2:
            raise ProtocolError("dose: give draws of 0 or more, and 2 prompts or more.")


@dataclass(frozen=True)
class Stability:
    """How often, and among how many sites, the choice is made again on resampled prompts."""

    refits: int = 20
    """Bootstrap refits; 0 leaves the question open."""
    sites: int = 4
    """The best surviving candidates, among which a refit chooses."""
    prompts: int = 16
    """Validation prompts per class that a refit is chosen on."""

    def __post_init__(self):
        if self.refits < 0 or self.sites < 1 or self.prompts < 2:
            raise ProtocolError("stability: give refits of 0 or more, 1 site or more, and 2 prompts or more.")


@dataclass(frozen=True)
class SideEffects:
    """What the interventions cost elsewhere, measured on whole texts."""

    documents: int = 24
    """Documents of each text that every arm reads; 0: none."""
    max_tokens: int = 256
    """Longest beginning of a plain document, or of an answer, that is read (the paper's)."""
    controls: tuple[str, ...] = ("isotropic", "covariance")
    """Null families whose first draw is measured beside the direction, where the run draws them: equal norm, and equal
    share of the stream."""

    def __post_init__(self):
        unknown = [f for f in self.controls if f not in FAMILIES]
        if unknown:
            raise ProtocolError(f"side_effects.controls is {list(self.controls)}; use some of {', '.join(FAMILIES)}.")
        if self.documents < 0 or self.max_tokens < 2:
            raise ProtocolError("side_effects: give documents of 0 or more, and max_tokens of 2 or more.")


@dataclass(frozen=True)
class TextScore:
    """How a continuous score of completions is made, where the judge is `markers` or `classifier`."""

    markers: tuple[str, ...] = ()
    """The marker phrases. None given: estimated on training texts of both classes (the contrast's responses, or else
    the model's own baseline completions)."""
    classifier: bool = True
    """Whether a classifier is fitted on the training texts beside them; needs scikit-learn and topics."""
    content_prompts: int = 32
    """Validation prompts per class on which a candidate's content is looked at."""

    def __post_init__(self):
        if self.content_prompts < 2:
            raise ProtocolError(f"text_score.content_prompts is {self.content_prompts}; give 2 or more.")


def _not_finite(value: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """Every NaN and infinity of a record, nested ones included, with its dotted name."""
    match value:
        case float():
            if not math.isfinite(value):
                yield at, value
        case Mapping():
            for key, part in value.items():
                yield from _not_finite(part, f"{at}.{key}")
        case tuple() | list():
            for index, part in enumerate(value):
                yield from _not_finite(part, f"{at}[{index}]")
        case _ if dataclasses.is_dataclass(value):
            for field_ in dataclasses.fields(value):
                yield from _not_finite(getattr(value, field_.name), f"{at}.{field_.name}" if at else field_.name)


@dataclass(frozen=True)
class Protocol:
    """Everything that is decided before the first forward pass."""

    preset: str
    """The preset that this started from."""
    behaviour: str = "refusal"
    """The word for the behaviour in verdicts and reports."""
    seeds: tuple[int, ...] = (0, 1)
    """Each seed samples the splits anew and refits the direction."""
    sizes: Sizes = field(default_factory=Sizes)
    """Prompts per class in train, val and test, where the contrast does not fix them."""
    sampling: Sampling = "lots"
    """How the pools of a named contrast are drawn from. `reference`: by the paper's code, in its order."""
    chat: ChatOptions = field(default_factory=ChatOptions)
    extraction: Extraction = field(default_factory=Extraction)
    refusal_tokens: Literal["auto"] | tuple[str, ...] = "auto"
    """First tokens of a refusal. `auto`: those of the model's own baseline refusals of training positives."""
    selection: SelectionRule = ARDITI2024
    nulls: Nulls = field(default_factory=Nulls)
    addition: Addition = field(default_factory=Addition)
    dose: Dose = field(default_factory=Dose)
    stability: Stability = field(default_factory=Stability)
    side_effects: SideEffects = field(default_factory=SideEffects)
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Name: system prompt (empty: none) under which the direction of this run is tested again on the test prompts."""
    judge: str = "refusal-opening"
    """Who reads the completions: a keyword judge, or `markers` or `classifier` for a continuous score."""
    text_score: TextScore = field(default_factory=TextScore)
    max_new_tokens: int = 64
    """Length of a completion; a judge that reads too few tokens misses late refusals."""
    rule: Rule = field(default_factory=lambda: named_rule("rhumbline"))
    full_grid: bool = False
    """Score every candidate that the layer cut leaves; without it only what can decide the choice (the same one)."""
    save_completions: bool = False
    """Write the completions beside their scores."""
    early_stop: bool = False
    """End a null's completion once its class is settled; `new_tokens` then counts up to there. The direction's own
    arms are always read whole, since other judges and lengths read them too."""

    def __post_init__(self):
        faults = [f"{name} is {value}; give a finite number" for name, value in _not_finite(self)]
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            faults.append(f"seeds is {list(self.seeds)}; give different whole numbers from 0 up")
        if self.max_new_tokens < 1:
            faults.append(f"max_new_tokens is {self.max_new_tokens}; give 1 or more")
        if self.sampling not in typing.get_args(Sampling):
            faults.append(f"sampling is {self.sampling!r}; use lots or reference")
        if not self.behaviour.strip():
            faults.append("behaviour is empty; give a word such as refusal")
        if self.refusal_tokens != "auto" and not self.refusal_tokens:
            faults.append("refusal_tokens is empty; use auto, or give the first tokens of a refusal")
        if isinstance(self.refusal_tokens, tuple) and "" in self.refusal_tokens:
            faults.append("refusal_tokens has an empty text; give the first tokens of a refusal, such as I or As")
        for name, text in self.conditions.items():
            if not isinstance(name, str) or not name.strip() or not isinstance(text, str):
                faults.append(f"conditions has {name!r} = {text!r}; give a name and the text of a system prompt")
        lacking = sorted(set(self.rule.families) - set(self.nulls.families))
        if lacking:
            faults.append(f"rule {self.rule.name} needs null families that are not drawn: {', '.join(lacking)}")
        elif self.rule.max_p is not None:
            draws = min(self.nulls.total(f) if self.nulls.wide else 0 for f in self.rule.families)
            if 1 / (draws + 1) > self.rule.max_p + 1e-9:
                faults.append(
                    f"rule {self.rule.name} asks for p <= {self.rule.max_p:g}, which {draws} draws by the fast metric "
                    "cannot reach: raise nulls.wide and nulls.procedure (options --wide-nulls N)"
                )
        if self.early_stop and self.save_completions:
            faults.append("early_stop cuts completions short, so save_completions would keep parts: use one of them")
        if self.early_stop and not (self.judge in KEYWORD_JUDGES and KEYWORD_JUDGES[self.judge].can_decide_early):
            able = ", ".join(name for name, j in KEYWORD_JUDGES.items() if j.can_decide_early)
            faults.append(
                f"early_stop needs a judge that the beginning of a completion can settle ({able}); {self.judge} reads "
                "the whole of it, since a later degeneration changes the class"
            )
        if self.conditions and self.judge in CONTINUOUS_JUDGES:
            faults.append(f"conditions compare rates of a class, and judge {self.judge} gives a score: leave them out")
        if self.judge == "classifier" and not self.text_score.classifier:
            faults.append("judge is classifier, and text_score.classifier is false")
        if faults:
            raise ProtocolError("; ".join(faults) + ".")
        if self.judge not in CONTINUOUS_JUDGES:
            keyword_judge(self.judge)

    @property
    def is_continuous(self) -> bool:
        """Whether completions have a continuous score instead of a class."""
        return self.judge in CONTINUOUS_JUDGES

    def record(self) -> dict[str, Any]:
        """The JSON value of the protocol."""
        return to_json(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Protocol":
        """The protocol of a JSON value: that of `record()`, or that of protocol.json, which contains further keys.

        A field that an older run lacks has its default. The text of the chat template is not in protocol.json. Raises
        ProtocolError that names the faulty field.
        """
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            raise ProtocolError(
                f"protocol: {error}. Rerun the experiment, or use the version of rhumbline that wrote the protocol."
            ) from error


PRESETS: Mapping[str, Protocol] = {
    "rhumbline": Protocol("rhumbline"),
    # The paper has neither nulls nor a rule: one isotropic draw and the blog's margins stand in for them.
    "arditi2024": Protocol(
        "arditi2024",
        seeds=(42,),
        sampling="reference",
        nulls=Nulls(("isotropic",), 1, wide=0),
        dose=Dose((), ()),
        stability=Stability(refits=0),
        judge="refusal-anywhere-literal",
        full_grid=True,
        max_new_tokens=512,
        # 256 batches of 16; of the model's own completions there are no more than test prompts.
        side_effects=SideEffects(documents=4096, controls=("isotropic",)),
        rule=named_rule("arditi2024"),
    ),
    "blog2026": Protocol(
        "blog2026",
        extraction=Extraction("last-instruction", filter=False),
        selection=BLOG2026,
        nulls=Nulls(("isotropic",), 1, wide=0),
        dose=Dose((), ()),
        stability=Stability(refits=0),
        judge="refusal-opening",
        rule=named_rule("blog2026"),
    ),
    "style": Protocol(
        "style",
        behaviour="style",
        extraction=Extraction("auto", filter=False),
        selection=STYLE,
        addition=Addition(1.0, "prompt"),
        judge="markers",
        rule=named_rule("style"),
    ),
}


def preset(name: str, **changes: Any) -> Protocol:
    """A preset by name, with fields replaced; ProtocolError lists the known names and fields."""
    if name not in PRESETS:
        raise ProtocolError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}.")
    known = {f.name for f in dataclasses.fields(Protocol)} - {"preset"}
    if unknown := sorted(set(changes) - known):
        raise ProtocolError(f"unknown protocol fields {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
    return replace(PRESETS[name], **changes)


def read_experiment(path: str | Path) -> tuple[str | None, dict[str, Any]]:
    """The preset named in an experiment file (TOML) and its tables; checked by `amend`."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProtocolError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{path} is not TOML: {error}.") from error
    name = table.pop("preset", None)
    return name, table


def amend(protocol: Protocol, changes: Mapping[str, Any], source: str = "experiment") -> Protocol:
    """`protocol` with the fields of nested tables replaced; every unknown or ill-typed field is listed at once.

    `selection` and `rule` may also be the name of a preset's.
    """
    faults: list[str] = []
    amended = _amend(protocol, changes, "", faults)
    if faults:
        raise ProtocolError(f"{source}: " + "; ".join(faults) + ".")
    return amended


_NAMED: Mapping[str, Mapping[str, Any]] = {
    "selection": {"arditi2024": ARDITI2024, "blog2026": BLOG2026, "rhumbline": ARDITI2024, "style": STYLE},
    "rule": {name: named_rule(name) for name in ("arditi2024", "blog2026", "rhumbline", "style")},
}


def _amend(record: Any, changes: Mapping[str, Any], at: str, faults: list[str]) -> Any:
    hints = typing.get_type_hints(type(record))
    known = [f.name for f in dataclasses.fields(record) if f.name != "preset"]
    new: dict[str, Any] = {}
    for name, value in changes.items():
        place = f"{at}{name}"
        if name not in known:
            faults.append(f"unknown field {place} (known here: {', '.join(known)})")
            continue
        old = getattr(record, name)
        if isinstance(value, str) and place in _NAMED:
            if value in _NAMED[place]:
                new[name] = _NAMED[place][value]
            else:
                faults.append(f"{place} = {value!r} is unknown; use one of {', '.join(_NAMED[place])} or a table")
        elif dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            new[name] = _amend(old, value, f"{place}.", faults)
        else:
            try:
                new[name] = msgspec.convert(value, hints[name])
            except msgspec.ValidationError:
                faults.append(f"{place} = {value!r} does not fit {inspect.formatannotation(hints[name])}")
    try:
        return replace(record, **new)
    except InputError as error:
        faults.append(str(error).rstrip("."))
        return record
