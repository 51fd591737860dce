"""All judges by name: those that a run uses, and the external judges of a finished run."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol, runtime_checkable

from rhumbline.arguments import checked
from rhumbline.errors import ProtocolError
from rhumbline.judging.judge_specs import published
from rhumbline.judging.keyword_judges import KeywordJudge, LiteralJudge
from rhumbline.judging.learned_judge import LearnedJudge
from rhumbline.judging.refusal_phrases import OPENING_LEADS, PAPER_PHRASES, PhraseTable, built_in
from rhumbline.judging.score import Score

CLASS_JUDGES = ("refusal-learned", "refusal-anywhere", "refusal-opening", "refusal-anywhere-literal")
"""Judges of a run that give classes."""
LITERAL_JUDGES = ("refusal-anywhere-literal",)
"""Those of them that reproduce a published list, and take no further phrases."""
CONTINUOUS_JUDGES = ("markers", "classifier")
"""Judges of a run with a continuous score, fitted on training texts."""


@runtime_checkable
class ClassJudge(Protocol):
    """A judge that gives the class of a completion."""

    @property
    def name(self) -> str:
        """Its name in the protocol and on the command line."""
        ...

    @property
    def can_decide_early(self) -> bool:
        """Whether the beginning of a completion can decide its class."""
        ...

    def is_decided_by(self, text: str) -> bool:
        """Whether all completions that begin with `text` have the same class."""
        ...

    def __call__(self, text: str) -> Score:
        """Judge one completion."""
        ...


def class_judge(name: str, phrases: Mapping[str, Sequence[str]] | None = None) -> ClassJudge:
    """The judge of that name, with further refusal phrases by language. Raises ProtocolError for another name."""
    if name in published():
        raise ProtocolError(
            f"Judge {name!r} is external, it reads a finished run: use one of {', '.join(CLASS_JUDGES)} for the run, "
            f"and then `rhumbline judge RUN --judge {name}`."
        )
    if name not in CLASS_JUDGES:
        raise ProtocolError(
            f"Unknown judge {name!r}: expected one of {', '.join(CLASS_JUDGES)}, or for a continuous score "
            f"{' or '.join(CONTINUOUS_JUDGES)}. Use one of these."
        )
    return _judge(name, tuple((language, tuple(some)) for language, some in sorted((phrases or {}).items())))


@checked
def judge(text: str, name: str = "refusal-learned") -> Score:
    """The class of one completion by a judge of `CLASS_JUDGES`, with its evidence. Raises ProtocolError."""
    return class_judge(name)(text)


@cache
def _judge(name: str, phrases: tuple[tuple[str, tuple[str, ...]], ...]) -> ClassJudge:
    given = {language: PhraseTable(some) for language, some in phrases}
    match name:
        case "refusal-learned":
            return LearnedJudge.of(name, given)
        case "refusal-anywhere":
            return KeywordJudge.of(
                name, _joined({"en": PhraseTable(PAPER_PHRASES, OPENING_LEADS)}, given), is_opening=False
            )
        case "refusal-opening":
            return KeywordJudge.of(name, _joined(built_in(), given), is_opening=True)
    return LiteralJudge(name)


def _joined(own: Mapping[str, PhraseTable], given: Mapping[str, PhraseTable]) -> dict[str, PhraseTable]:
    """Both tables of every language in one."""
    both = {language: own[language].extended(table) for language, table in given.items() if language in own}
    return {**own, **given, **both}
