"""All judges by name: those that a run uses, and the external judges of a finished run."""

from rhumbline.errors import ProtocolError
from rhumbline.judging.judge_specs import published
from rhumbline.judging.keyword_judges import KEYWORD_JUDGES, KeywordJudge

CONTINUOUS_JUDGES = ("markers", "classifier")
"""Judges of a run with a continuous score, fitted on training texts."""


def keyword_judge(name: str) -> KeywordJudge:
    """The keyword judge of that name. Raises ProtocolError for another name."""
    if name in published():
        raise ProtocolError(
            f"Judge {name!r} is external, it reads a finished run: use one of {', '.join(KEYWORD_JUDGES)} for the run, "
            f"and then `rhumbline judge RUN --judge {name}`."
        )
    if name not in KEYWORD_JUDGES:
        raise ProtocolError(
            f"Unknown judge {name!r}: expected one of {', '.join(KEYWORD_JUDGES)}, or for a continuous score "
            f"{' or '.join(CONTINUOUS_JUDGES)}. Use one of these."
        )
    return KEYWORD_JUDGES[name]
