"""The protocol: everything that is fixed before the first forward pass.

Guarantees: all faults are listed at once. The presets are in `presets/protocols.py`. Independent of models and of
execution.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from rhumbline.arguments import check_fields
from rhumbline.errors import ProtocolError
from rhumbline.evidence.selection_rules import ARDITI2024, SelectionRule
from rhumbline.evidence.verdict_rules import Rule
from rhumbline.evidence.verdict_rules import rule as named_rule
from rhumbline.judging.judge_names import CLASS_JUDGES, CONTINUOUS_JUDGES, LITERAL_JUDGES, ClassJudge, class_judge
from rhumbline.judging.languages import known_languages
from rhumbline.judging.refusal_phrases import LONGEST_PHRASE
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Sizes
from rhumbline.prompts.sampling import Sampling
from rhumbline.records.codec import JsonObject, to_json
from rhumbline.records.next_steps import RunFacts
from rhumbline.records.user_files import control_character
from rhumbline.settings import (
    AblationSettings,
    AdditionSettings,
    DoseSettings,
    ExtractionSettings,
    NullSettings,
    SecondSettings,
    SideEffectSettings,
    StabilitySettings,
    TextScoreSettings,
)

MOST = 1_000_000
"""Largest whole number of a protocol, apart from seeds."""
LARGEST_SEED = 2**32 - 1
"""The largest seed of NumPy and scikit-learn."""
LONGEST_WORD = 100
"""Characters of a name that verdicts and reports contain."""
LONGEST_LIST = 1000
"""Entries of a list or table of a protocol."""
MOST_PHRASES = 500
"""Further refusal phrases of all languages together: the time of a judge grows with them."""


def _faulty_values(value: Any, at: str = "") -> Iterator[str]:
    """The fault of every NaN, infinity, huge number and long list of a record, nested ones included."""
    match value:
        case float():
            if not math.isfinite(value):
                yield f"{at} is {value}; use a finite number"
        case int():
            most = LARGEST_SEED if at.startswith("seeds[") else MOST
            if value > most:
                yield f"{at} is {value:.4g}; use at most {most:,}"
        case Mapping() | tuple() | list() if len(value) > LONGEST_LIST:
            yield f"{at} has {len(value):,} entries; use at most {LONGEST_LIST:,}"
        case Mapping():
            for key, part in value.items():
                yield from _faulty_values(part, f"{at}.{key}")
        case tuple() | list():
            for index, part in enumerate(value):
                yield from _faulty_values(part, f"{at}[{index}]")
        case _ if dataclasses.is_dataclass(value):
            for field_ in dataclasses.fields(value):
                yield from _faulty_values(getattr(value, field_.name), f"{at}.{field_.name}" if at else field_.name)


def _is_word(text: Any) -> bool:
    """Whether a text can stand in a sentence of a report: not empty, short, and without control characters."""
    return isinstance(text, str) and bool(text.strip()) and len(text) <= LONGEST_WORD and text.isprintable()


def _is_phrase(text: str) -> bool:
    return bool(text.strip()) and text.isprintable() and len(text) <= LONGEST_PHRASE


def _is_token(text: str) -> bool:
    return 0 < len(text) <= LONGEST_WORD


@dataclass(frozen=True)
class Protocol:
    """Everything that is fixed before the first forward pass."""

    preset: str
    """The preset from which the protocol was made."""
    behaviour: str = "refusal"
    """Word for the behaviour in verdicts and reports."""
    seeds: tuple[int, ...] = (0, 1)
    """Each seed samples new splits and fits a new direction."""
    sizes: Sizes = field(default_factory=Sizes)
    """Prompts per class in train, validation and test, unless the contrast fixes the splits."""
    reads: Sizes | None = None
    """Prompts per class that the run reads of each split, sampled or fixed: the first ones. None: all."""
    sampling: Sampling = "lots"
    """How prompts are sampled from the pools of a named contrast. `reference`: as in the authors' code."""
    chat: ChatOptions = field(default_factory=ChatOptions)
    extraction: ExtractionSettings = field(default_factory=ExtractionSettings)
    refusal_tokens: Literal["auto", "published"] | tuple[str, ...] = "auto"
    """First tokens of a refusal. `auto`: first tokens of the model's own baseline refusals of training positives.
    `published`: those of the paper for the family of the model, or else `auto`. protocol.json states which."""
    metric_threshold: Literal["even", "judged"] = "even"
    """Log-odds of the refusal tokens where the metric is 0. `even`: 0, as in the paper. `judged`: where the judge
    begins to see the behaviour in the completions that gave the tokens. Given tokens: 0."""
    selection: SelectionRule = ARDITI2024
    nulls: NullSettings = field(default_factory=NullSettings)
    ablation: AblationSettings = field(default_factory=AblationSettings)
    addition: AdditionSettings = field(default_factory=AdditionSettings)
    dose: DoseSettings = field(default_factory=DoseSettings)
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    second: SecondSettings = field(default_factory=SecondSettings)
    side_effects: SideEffectSettings = field(default_factory=SideEffectSettings)
    conditions: Mapping[str, str] = field(default_factory=dict)
    """By name: a system prompt (empty: none) under which the test prompts run again with the direction of the run."""
    judge: str = "refusal-learned"
    """The judge of the completions: one that gives classes, or `markers` or `classifier` for a continuous score."""
    phrases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further refusal phrases by the code of their language, such as `ja`; "..." stands for up to six words. The judge
    reads texts in these languages, too."""
    text_score: TextScoreSettings = field(default_factory=TextScoreSettings)
    max_new_tokens: int = 64
    """Longest completion, in tokens. A judge that reads too few tokens misses late refusals."""
    rule: Rule = field(default_factory=lambda: named_rule("rhumbline"))
    screen: int = 0
    """Candidates that are scored exactly, chosen by first-order estimates; the others only if none of these passes.
    0: every candidate. A rule that needs completions, and the paired log-odds, score every candidate."""
    full_grid: bool = False
    """Compute every score, without a screen. Otherwise only scores that can change the selection are computed."""
    save_completions: bool = False
    """Write the completions with their scores."""
    quick: bool = False
    """Whether `quick` made the protocol smaller for a first answer."""
    early_stop: bool = False
    """Stop a completion under a null once its class is settled; `new_tokens` counts the tokens up to there. The arms of
    the direction always complete in full, because other judges and lengths read them too."""

    def __post_init__(self):
        check_fields(self)
        checks = (_faulty_values(self), self._faulty_samples(), self._faulty_rule(), self._faulty_judge())
        if faults := [fault for check in checks for fault in check]:
            raise ProtocolError("; ".join(faults) + ".")
        if not self.is_continuous:
            self.class_judge(self.judge)

    def _faulty_samples(self) -> Iterator[str]:
        """The faults of seeds, sampling, words and texts."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            yield f"seeds is {list(self.seeds)}; use different whole numbers of 0 or more"
        if self.screen < 0:
            yield f"screen is {self.screen}; use 0 or more"
        if self.max_new_tokens < 1:
            yield f"max_new_tokens is {self.max_new_tokens}; use 1 or more"
        if self.sampling not in typing.get_args(Sampling):
            yield f"sampling is {self.sampling!r}; use lots or reference"
        if not _is_word(self.behaviour):
            yield (
                f"behaviour is {self.behaviour[:40]!r}; use a word such as refusal, of at most {LONGEST_WORD} "
                "printable characters"
            )
        if not self.refusal_tokens:
            yield "refusal_tokens is empty; use auto, published, or the first tokens of a refusal"
        if isinstance(self.refusal_tokens, tuple) and not all(map(_is_token, self.refusal_tokens)):
            yield "refusal_tokens has an empty text or a long one; use first tokens, such as I or As"
        for name, text in self.conditions.items():
            if not _is_word(name) or not isinstance(text, str):
                yield (
                    f"conditions has {repr(name)[:40]} = {repr(text)[:40]}; use a name of at most {LONGEST_WORD} "
                    "printable characters, and the text of a system prompt"
                )
            elif (control := control_character(text)) is not None:
                yield f"conditions has the control character {control} in the prompt {name!r}; remove it"

    def _faulty_rule(self) -> Iterator[str]:
        """Null families and draws that the rule needs and the nulls lack."""
        if lacking := sorted(set(self.rule.families) - set(self.nulls.families)):
            yield (
                f"rule {self.rule.name} needs null families that are not drawn: {', '.join(lacking)}; add them to "
                "nulls.families"
            )
        elif self.rule.max_p is not None:
            nulls, least = self.nulls, max(self.rule.needed_draws, self.rule.min_draws or 0)
            if (min(nulls.total(f) for f in self.rule.families) if nulls.wide else 0) < least:
                both = f"set both to {least} or more in an experiment file"
                yield (
                    f"nulls.wide is {nulls.wide} and nulls.procedure is {nulls.procedure}; rule {self.rule.name} "
                    f"requires p <= {self.rule.max_p:g}, which needs {least} draws of each null family; "
                    + (f"pass --wide-nulls {least} or more" if nulls.procedure >= least else both)
                )

    def _faulty_judge(self) -> Iterator[str]:
        """Settings that the judge does not read, or needs."""
        if self.early_stop and self.save_completions:
            yield "early_stop shortens completions, so save_completions would write parts of them; use one of the two"
        if self.early_stop and not (self.judge in CLASS_JUDGES and class_judge(self.judge).can_decide_early):
            able = ", ".join(name for name in CLASS_JUDGES if class_judge(name).can_decide_early)
            yield (
                f"early_stop needs a judge that can settle a class by the beginning of a completion ({able}); "
                f"{self.judge} reads the whole completion, because later degeneration changes the class"
            )
        if self.phrases and self.judge in (*CONTINUOUS_JUDGES, *LITERAL_JUDGES):
            yield f"phrases are given, which judge {self.judge} does not read; use another judge"
        if odd := sorted(set(self.phrases) - known_languages()):
            known = ", ".join(sorted(known_languages()))
            yield f"phrases has the language {odd[0]!r}; use codes among {known}"
        if empty := [language for language, some in self.phrases.items() if not some or not all(map(_is_phrase, some))]:
            yield (
                f"phrases has no phrase, an empty one or a long one for {empty[0]}; list phrases of at most "
                f"{LONGEST_PHRASE} printable characters, or remove the language"
            )
        if (n := sum(map(len, self.phrases.values()))) > MOST_PHRASES:
            yield f"phrases has {n:,} phrases; use at most {MOST_PHRASES}, the beginnings of refusals"
        if any(len(marker) > LONGEST_PHRASE for marker in self.text_score.markers):
            yield f"text_score.markers has a long phrase; use at most {LONGEST_PHRASE} characters for each"
        if self.conditions and self.is_continuous:
            yield f"conditions compare rates, and judge {self.judge} gives a continuous score; remove the conditions"
        if self.judge == "classifier" and not self.text_score.classifier:
            yield "judge is classifier, but text_score.classifier is false; set it to true, or use judge markers"

    @property
    def planned(self) -> Sizes:
        """Prompts per class of each sampled split that the run reads."""
        reads = self.reads or self.sizes
        return Sizes(*map(min, dataclasses.astuple(self.sizes), dataclasses.astuple(reads)))

    @property
    def completed(self) -> int:
        """Test prompts per class that each null draw completes; 0: all. A level is paired, so it reads all."""
        return 0 if self.is_continuous else self.nulls.completed

    @property
    def is_continuous(self) -> bool:
        """Whether the judge gives a continuous score instead of a class."""
        return self.judge in CONTINUOUS_JUDGES

    def class_judge(self, name: str | None = None) -> ClassJudge:
        """The judge of that name (None: that of the protocol) with the phrases of the protocol."""
        name = name or self.judge
        return class_judge(name, None if name in LITERAL_JUDGES else self.phrases)

    def facts(self) -> RunFacts:
        """What the next steps after a run depend on."""
        return RunFacts(
            behaviour=self.behaviour,
            judge=self.judge,
            max_new_tokens=self.max_new_tokens,
            min_baseline=self.rule.min_baseline,
            wide_nulls=self.nulls.wide,
            is_quick=self.quick,
            has_texts=self.save_completions,
            sizes=(self.sizes.train, self.sizes.val),
            spared=self.ablation.spared,
            coefficient=self.addition.selection_coefficient,
        )

    def record(self) -> JsonObject:
        """The JSON value of the protocol."""
        return to_json(self)

    @classmethod
    def of(cls, record: JsonObject, source: str | Path = "protocol") -> "Protocol":
        """The protocol of a JSON value: that of `record()`, or that of protocol.json, which contains further keys.

        A field that an older run lacks has its default. The text of the chat template is not in protocol.json. Raises
        ProtocolError that names the source and the faulty field.
        """
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            raise ProtocolError(
                f"{source}: {error}. Rerun the experiment, or use the version of rhumbline that wrote the protocol."
            ) from error
