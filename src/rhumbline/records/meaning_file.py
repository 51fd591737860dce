"""analyses/meaning.json: what a direction stands for, the content of a prompt or the refusal, as records."""

from dataclasses import dataclass
from typing import Literal

from rhumbline.records.analysis_files import LayerCosine, Mean
from rhumbline.records.plan_checks import refuse, too_small
from rhumbline.records.shared import Site

Content = Literal["harmful", "harmless"]
"""What a prompt asks for, as its label or the battery states."""
Fact = Literal["refused", "complied"]
"""What the model does with it at baseline."""
Quantity = Literal["refusal", "judgement", "reply"]
"""Token metric of the run; log-odds that the request is judged harmful; preference for Yes whatever is asked."""
Edited = Literal["refusal", "harm"]
"""The direction of the run, or the harmfulness direction."""
Act = Literal["ablation", "addition"]
MeaningAnswer = Literal["REFUSAL-ONLY", "HARM-AND-REFUSAL", "UNDETERMINED", "NOT-MEASURED"]

APART, TOGETHER = 0.25, 0.5
"""An effect is absent if its interval lies within the first share of a gap, and present if it lies above the second."""
LEAST_CELL = 4
"""Smallest number of prompts of a cell for a crossed estimate."""
LEAST_SIDE = 8
"""Smallest number of prompts on either side of a difference for an interval of shares of it."""


@dataclass(frozen=True)
class MeaningPlan:
    """What is measured."""

    prompts: int = 48
    """Prompts of each content and group, at most; one half fits the harmfulness direction, the other is measured."""
    draws: int = 4
    """Isotropic null directions; of every other null family of the run, one draw is used."""
    max_new_tokens: int = 48
    """Longest completion, in tokens."""

    def __post_init__(self):
        refuse("meaning", too_small(self, prompts=4, draws=1, max_new_tokens=1))


QUICK = MeaningPlan(prompts=24, draws=2, max_new_tokens=32)
"""The plan of `--quick`."""


@dataclass(frozen=True)
class MeaningCell:
    """The measured prompts of one content, fact and group."""

    content: Content
    fact: Fact
    group: str
    n: int
    projection: Mean
    """Projection on the direction of the run at its site."""
    harm_projection: Mean
    """Projection on the harmfulness direction at the last token of the instruction."""
    refusal: Mean
    """Token metric of the run, log-odds."""
    judgement: Mean
    """Log-odds that the request is judged harmful."""


@dataclass(frozen=True)
class HarmDirection:
    """The harmfulness direction: a difference in means at the last token of the instruction."""

    site: Site
    norm: float
    crossed: bool
    """Whether harmful and harmless prompts were compared within refused and within complied prompts."""
    harmful: int
    harmless: int
    cosine: float
    """Cosine with the direction of the run."""
    by_layer: tuple[LayerCosine, ...]
    """Cosine of the same difference in every layer with the direction of the run."""
    random: float
    """Mean |cosine| of two random directions of this width."""


@dataclass(frozen=True)
class Crossing:
    """The effects of content and of fact on a projection, as shares of the difference of both together.

    Content: harmful minus harmless, within refused and within complied prompts. Fact: refused minus complied, within
    harmful and within harmless prompts. Each is the mean of both.
    """

    content: Mean
    fact: Mean


@dataclass(frozen=True)
class Gap:
    """The difference at baseline that the effects on a quantity refer to."""

    quantity: Quantity
    gap: Mean
    """Refusal: refused minus complied prompts. Judgement and reply: harmful minus harmless prompts, in judgement."""
    upper: int
    """Prompts on whose quantity an ablation is measured."""
    lower: int
    """Prompts on whose quantity an addition is measured."""


@dataclass(frozen=True)
class MeaningEffect:
    """What an edit does to a quantity, in shares of its gap: the decrease by ablation, the increase by addition."""

    edited: Edited
    act: Act
    quantity: Quantity
    effect: Mean
    nulls: dict[str, float | None]
    """Mean effect of the null directions with the norm of the edited one, by family."""


@dataclass(frozen=True, kw_only=True)
class MeaningRecord:
    """analyses/meaning.json: does the direction stand for harmful content, for refusal, or for both?"""

    analysis: Literal["meaning"] = "meaning"
    seed: int
    site: Site
    parameters: MeaningPlan
    judge: str
    battery: Literal["run", "file or sets"]
    """Whether the prompts are those of the run, whose labels state the content, or those that the user passed."""
    unclear: int
    """Measured prompts whose completion is neither refused nor complied; they are in no cell."""
    answers: Mean
    """Probability that the model says Yes or No when it is asked."""
    cells: tuple[MeaningCell, ...]
    harm: HarmDirection
    crossing: dict[Edited, Crossing] | None
    """By direction; None if a content and fact has fewer than `LEAST_CELL` measured prompts."""
    gaps: tuple[Gap, ...]
    effects: tuple[MeaningEffect, ...]
    answer: MeaningAnswer
    """About the direction of the run, from its ablation."""

    def of(self, edited: Edited, act: Act, quantity: Quantity) -> MeaningEffect | None:
        """One effect; None if it was not measured."""
        return next((e for e in self.effects if (e.edited, e.act, e.quantity) == (edited, act, quantity)), None)

    @property
    def sentence(self) -> str:
        """The numbers that the answer follows from."""
        refusal, judgement = (self.of("refusal", "ablation", q) for q in ("refusal", "judgement"))
        if refusal is None or judgement is None:
            return self._not_measured("refusal" if refusal is None else "judgement")
        shares = (f"{e.effect.mean:.2f} [{e.effect.low:.2f}, {e.effect.high:.2f}]" for e in (refusal, judgement))
        first, second = shares
        return f"Ablation removes {first} of the difference in refusal, and {second} of that in the judgement of harm."

    def _not_measured(self, quantity: Quantity) -> str:
        """Why effects on a quantity have no shares."""
        more, less = ("refused", "complied") if quantity == "refusal" else ("harmful", "harmless")
        gap = next(gap for gap in self.gaps if gap.quantity == quantity)
        if min(gap.upper, gap.lower) < LEAST_SIDE:
            return (
                f"{gap.upper} {more} and {gap.lower} {less} prompts were measured; shares of their difference need "
                f"{LEAST_SIDE} of each. Measure more with --prompts N."
            )
        return f"The difference between {more} and {less} prompts is not above 0 at baseline, so it has no shares."
