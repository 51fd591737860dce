"""How a contrast was made from a model's answers: the first line of its file, and a field of protocol.json."""

from dataclasses import dataclass, fields

from msgspec import Struct

from rhumbline.records.shared import ByLabel


@dataclass(frozen=True)
class MadeLosses:
    """Prompts whose answers are not in the contrast, by the reason."""

    no_answer: int = 0
    """One of the answers has no words, or a think block that is not closed."""
    degenerate: int = 0
    same: int = 0
    """Both answers have the same words."""
    length: int = 0
    """No cut gives the two answers similar lengths."""

    def __add__(self, other: "MadeLosses") -> "MadeLosses":
        """The sum of every reason."""
        return MadeLosses(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        """Prompts that are left out."""
        return sum(getattr(self, f.name) for f in fields(self))

    def __str__(self) -> str:
        """The reasons that occur, with their numbers."""
        counts = ((f.name.replace("_", " "), getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{n} {reason}" for reason, n in counts if n) or "none"


class MadeBy(Struct, frozen=True, kw_only=True):
    """What the answers of a made contrast depend on. Two commands with the same values have the same answers."""

    model: str
    fingerprint: str
    """Of the weights as loaded."""
    revision: str | None
    """Commit of a model from the hub; None for other models."""
    template_sha256: str
    systems: ByLabel[str]
    """The system prompt of either class."""
    prompts: str
    """Name of the prompts: a stem of a file, or of the embedded set."""
    prompts_sha256: str
    n_prompts: int
    max_new_tokens: int
    temperature: float
    """0: greedy decoding."""
    seed: int
    """Of the sampled answers and of the splits."""
    rhumbline: str
    """Version."""


class MadeContrast(MadeBy, frozen=True, kw_only=True):
    """A made contrast as its file and protocol.json describe it."""

    match: str
    """How the two answers to a prompt were cut to similar lengths: at `sentences` or at `words`."""
    with_systems: bool
    """Whether the rows have the system prompts."""
    pairs: int
    left_out: MadeLosses
    words: ByLabel[float]
    """Mean words of an answer, after cutting."""


@dataclass(frozen=True)
class StoredAnswers:
    """Both answers to one prompt, as they are stored until the contrast is written; None: no answer."""

    id: str
    positive: str | None
    negative: str | None
