"""The settings of each stage, as records: fields with their defaults, and the checks of each by itself.

`protocol.py` puts them together and checks what depends on several of them. Independent of models and of execution.
"""

from dataclasses import dataclass
from typing import Literal

from rhumbline.arguments import check_fields
from rhumbline.errors import ProtocolError
from rhumbline.records.positions import Position

NULL_FAMILIES = ("isotropic", "covariance", "top-pc", "unrelated", "shuffled-site", "shuffled")
"""Null families, weakest first. The index in this tuple seeds the draws."""
SUBTRACTED_DRAWS = 2
"""Draws of each family that complete positives under subtraction: the fewest whose spread is known."""
MOST_DRAWS = 1000
"""Draws of a family that complete test prompts."""
MOST_COEFFICIENT = 1000
"""Largest coefficient of an addition."""


@dataclass(frozen=True)
class ExtractionSettings:
    """Where candidates are read."""

    positions: str = "post-instruction"
    """post-instruction: all template tokens after the instruction (the paper). last-token: the last of them, position
    -1 (the blog). last-instruction: the last token of the user's text. response-mean: the mean over the tokens of the
    response in the contrast. response:K: the K-th token of the response. auto: response-mean for a contrast of texts,
    otherwise post-instruction."""
    filter: bool = True
    """Keep only train and validation prompts whose metric has the sign of their class (positive or negative)."""

    def __post_init__(self):
        check_fields(self)
        known = ("post-instruction", "last-token", "last-instruction", "response-mean", "auto")
        if self.positions not in known and self.response_position is None:
            raise ProtocolError(
                f"extraction.positions is {self.positions!r}; use {', '.join(known)}, or response:K with K from 1 up."
            )

    @property
    def response_position(self) -> Position | None:
        """The position in the response that is read; None if positions of the prompt are read."""
        return Position.named(self.positions)


@dataclass(frozen=True)
class NullSettings:
    """The null directions that every arm is repeated with."""

    families: tuple[str, ...] = NULL_FAMILIES
    """isotropic: uniformly distributed directions. covariance: draws with the covariance of the negatives' activations.
    top-pc: directions in the span of their first principal components. unrelated: differences between topics of the
    negatives, or between the classes of another contrast. shuffled-site: differences between pseudo-classes at the same
    site. shuffled: the whole procedure, extraction and selection, on pseudo-classes."""
    draws: int = 3
    """Draws of each family, the first ones, that complete every test prompt."""
    wide: int = 99
    """Draws of each family that the metric evaluates. Their smallest p is 1 / (wide + 1). 0: none, and the rule cannot
    use ranks."""
    procedure: int = 19
    """The same for `shuffled`, whose draws repeat extraction and selection."""
    prompts: int = 16
    """Test prompts per class that the metric evaluates under every draw."""
    procedure_prompts: int = 8
    """Validation prompts per class on which a draw of `shuffled` is selected."""
    top: int = 10
    """Principal components that span `top-pc`."""
    completed: int = 0
    """Test prompts per class that each of the first `draws` completes, other ones for every draw; 0: all. A continuous
    score always reads all."""
    interim: int = 0
    """Draws of a family after which its wide nulls stop if the rule cannot be met any more (Besag and Clifford 1991);
    0: every draw is evaluated."""
    screen: int = 0
    """Sites of a draw of `shuffled` that are scored exactly, chosen by first-order estimates; 0: every site."""
    limit: int = 4
    """Draws are added until enough of them are comparable with the direction (`rule.same_cosine`, `rule.min_draws`), up
    to this many times the planned number."""
    unrelated: str = ""
    """File of another contrast for the family `unrelated`; empty: topics of the negatives, which are their categories
    or, if there are fewer than 7, clusters of their activations."""

    def __post_init__(self):
        check_fields(self)
        unknown = [f for f in self.families if f not in NULL_FAMILIES]
        if unknown or len(set(self.families)) != len(self.families):
            raise ProtocolError(
                f"nulls.families is {list(self.families)}; use each of {', '.join(NULL_FAMILIES)} at most once."
            )
        if not 1 <= self.draws <= MOST_DRAWS:
            raise ProtocolError(
                f"nulls.draws is {self.draws}; an effect is compared with 1 to {MOST_DRAWS:,} null draws. Use a number "
                "in this range."
            )
        for name, least in (
            ("wide", 0),
            ("procedure", 1),
            ("prompts", 2),
            ("procedure_prompts", 2),
            ("top", 1),
            ("completed", 0),
            ("interim", 0),
            ("screen", 0),
            ("limit", 1),
        ):
            if getattr(self, name) < least:
                raise ProtocolError(f"nulls.{name} is {getattr(self, name)}; use {least} or more.")

    def total(self, family: str) -> int:
        """Number of draws of a family, those that only the metric evaluates included."""
        return max(self.draws, self.wide and (min(self.wide, self.procedure) if family == "shuffled" else self.wide))


COEFFICIENTS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Coefficients that `validation` selects from."""
ROWS_PER_JOB = 192
"""Completions of one job, about. A processor decodes at most as many together, and a stopped run loses these."""


@dataclass(frozen=True)
class AblationSettings:
    """Where the direction is ablated."""

    spared: int = 0
    """Tokens at the start of a text that are not edited. 0: everywhere, as in the paper."""

    def __post_init__(self):
        check_fields(self)
        if not 0 <= self.spared <= 1000:
            raise ProtocolError(f"ablation.spared is {self.spared}; use a number of tokens from 0 to 1000.")


@dataclass(frozen=True)
class AdditionSettings:
    """How the direction is added on negatives."""

    coefficient: float | Literal["validation"] = 1.0
    """In units of the difference in means. `validation`: the smallest of 0.5, 0.75, 1, 1.5 and 2 under which 9 of 10
    validation negatives have a positive metric, or else the one under which most do."""
    positions: Literal["all", "prompt"] = "all"
    """`all`: at generated tokens too. `prompt`: at prompt tokens only. The other one is a further arm."""

    def __post_init__(self):
        check_fields(self)
        if self.positions not in ("all", "prompt"):
            raise ProtocolError(f"addition.positions is {self.positions!r}; use all or prompt.")
        if isinstance(self.coefficient, str) and self.coefficient != "validation":
            raise ProtocolError(f"addition.coefficient is {self.coefficient!r}; use a number or validation.")
        if isinstance(self.coefficient, float | int) and abs(self.coefficient) > MOST_COEFFICIENT:
            raise ProtocolError(
                f"addition.coefficient is {self.coefficient:g}; use a number from -{MOST_COEFFICIENT} to "
                f"{MOST_COEFFICIENT}, or validation."
            )
        if self.coefficient == 0:
            raise ProtocolError("addition.coefficient is 0, which adds nothing; use another number, or validation.")

    @property
    def selection_coefficient(self) -> float:
        """The coefficient of the induce scores. `validation` is selected for the selected direction, after them."""
        return 1.0 if isinstance(self.coefficient, str) else self.coefficient


@dataclass(frozen=True)
class DoseSettings:
    """Dose curves: the metric on test prompts over strengths of an intervention."""

    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    """Strengths a of the ablation, x - a r r^T x. Empty: no curve."""
    coefficients: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """Coefficients of the addition: negative ones (subtraction) on positives, the others on negatives. Empty: no
    curve."""
    draws: int = 2
    """Draws of each null family that have curves too."""
    prompts: int = 24
    """Test prompts per class."""

    def __post_init__(self):
        check_fields(self)
        if any(not 0 <= a <= 2 for a in self.strengths):
            raise ProtocolError(f"dose.strengths is {list(self.strengths)}; use strengths from 0 to 2.")
        if self.draws < 0 or self.prompts < 2:
            raise ProtocolError("dose: use 0 draws or more, and 2 prompts or more.")

    @property
    def subtractions(self) -> tuple[float, ...]:
        """Coefficients on positives: the negative ones, and 0 if they are part of a curve."""
        negative = tuple(c for c in self.coefficients if c < 0)
        return (*negative, *(c for c in self.coefficients if c == 0)) if negative else ()

    @property
    def additions(self) -> tuple[float, ...]:
        """Coefficients on negatives."""
        return tuple(c for c in self.coefficients if c >= 0)


@dataclass(frozen=True)
class StabilitySettings:
    """Bootstrap refits: extraction and selection again, on resampled prompts."""

    refits: int = 20
    """Number of refits; 0: stability is not measured."""
    sites: int = 4
    """The best candidates, among which a refit selects."""
    prompts: int = 16
    """Validation prompts per class on which a refit selects."""

    def __post_init__(self):
        check_fields(self)
        if self.refits < 0 or self.sites < 1 or self.prompts < 2:
            raise ProtocolError("stability: use 0 refits or more, 1 site or more, and 2 prompts or more.")


@dataclass(frozen=True)
class SecondSettings:
    """A second direction, orthogonal to the selected one, for the claim *unique*."""

    screen: int = 4
    """Candidates that are scored exactly, chosen by first-order estimates; the others only if none of these passes. 0:
    no second direction is measured."""
    prompts: int = 24
    """Test prompts per class."""

    def __post_init__(self):
        check_fields(self)
        if self.screen < 0 or self.prompts < 2:
            raise ProtocolError(
                f"second.screen is {self.screen} and second.prompts {self.prompts}; use 0 candidates or more, and 2 "
                "prompts or more."
            )


@dataclass(frozen=True)
class SideEffectSettings:
    """Side effects on the losses of whole texts."""

    documents: int = 24
    """Documents of each text that are evaluated under every arm; 0: none."""
    max_tokens: int = 256
    """Tokens of a plain document or of a response that are evaluated, from its beginning (256 in the paper)."""
    controls: tuple[str, ...] = ("isotropic", "covariance")
    """Null families whose first draw is evaluated too, if the run draws them."""

    def __post_init__(self):
        check_fields(self)
        unknown = [f for f in self.controls if f not in NULL_FAMILIES]
        if unknown:
            raise ProtocolError(
                f"side_effects.controls is {list(self.controls)}; use some of {', '.join(NULL_FAMILIES)}."
            )
        for name, least in (("documents", 0), ("max_tokens", 2)):
            if getattr(self, name) < least:
                raise ProtocolError(f"side_effects.{name} is {getattr(self, name)}; use {least} or more.")


@dataclass(frozen=True)
class TextScoreSettings:
    """How the judges `markers` and `classifier` score completions."""

    markers: tuple[str, ...] = ()
    """The marker phrases. Empty: estimated on training texts of both classes (responses of the contrast, or else the
    model's own baseline completions)."""
    classifier: bool = True
    """Whether a classifier is fitted on the training texts too; needs scikit-learn and topics."""
    content_prompts: int = 32
    """Validation prompts per class on which the content of completions is measured."""

    def __post_init__(self):
        check_fields(self)
        if self.content_prompts < 2:
            raise ProtocolError(f"text_score.content_prompts is {self.content_prompts}; use 2 or more.")
