"""analyses/trajectory.json: the effect of a direction by the tokens that it is edited on, as records."""

from dataclasses import dataclass, field
from typing import Literal

from rhumbline.records.analysis_files import MeanRate, Rate
from rhumbline.records.plan_checks import outside, refuse, too_small
from rhumbline.records.shared import Site

WindowKind = Literal["all", "prompt", "completion", "first", "after", "block", "after block"]
"""Tokens on which an arm acts: `first` and `after` have a number of tokens of the completion."""
WindowedEffect = Literal["suppression", "induction"]
"""Ablation on positives, addition on negatives."""
Carrier = Literal["direct", "without block", "regenerated", "through"]
"""Where an ablation acts relative to the think block, in `BlockEffect`."""
NoBlock = Literal["the template has no think block", "the end of its think block is several tokens"]


@dataclass(frozen=True)
class TrajectoryPlan:
    """What is measured."""

    tokens: tuple[int, ...] = (1, 4, 16)
    """Numbers of tokens at the start of the completion, each of which divides it into two windows."""
    draws: int = 4
    """Isotropic null directions; of every other null family of the run, one draw is used."""
    prompts: int = 24
    """Test prompts per class, at most."""
    max_new_tokens: int = 48
    """Longest completion, in tokens."""

    def __post_init__(self):
        tokens = f"numbers from 1 to below {self.max_new_tokens}"
        refuse(
            "trajectory",
            outside("tokens", self.tokens, lambda k: 0 < k < self.max_new_tokens, tokens),
            too_small(self, draws=1, prompts=2, max_new_tokens=2),
        )


QUICK = TrajectoryPlan(tokens=(1, 8), draws=2, prompts=12, max_new_tokens=32)
"""The plan of `--quick`."""
LONG = TrajectoryPlan(tokens=(1, 16, 64), draws=4, prompts=100, max_new_tokens=1024)
"""The plan of `--preset yang2026`: room for the think block of a reasoning model."""


@dataclass(frozen=True)
class PublishedReversal:
    """Share of refused prompts that a model no longer refuses, as published."""

    carrier: Carrier
    reversal: float
    of: Literal["refused prompts", "the effect of `regenerated`"] = "refused prompts"


YANG2026 = (
    PublishedReversal("direct", 0.39),
    PublishedReversal("without block", 0.70),
    PublishedReversal("regenerated", 0.94),
    PublishedReversal("through", 0.48, "the effect of `regenerated`"),
)
"""DeepSeek-R1-Distill-Llama-8B under activation steering: Yang et al. 2026, arXiv 2605.26772, abstract."""


@dataclass(frozen=True)
class Change:
    """What an arm does to the rate of the behaviour."""

    rate: Rate | None
    """Share of the scored completions that shows the behaviour; None without any."""
    change: MeanRate | None
    """Decrease (suppression) or increase (induction) on the same prompts, from the baseline. A degenerate completion
    is no change: it counts as shown for a decrease, otherwise as not shown."""
    degenerate: float | None
    """Share of broken completions."""


@dataclass(frozen=True)
class NullChange:
    """The same change under the draws of a null family."""

    draws: int
    mean: float | None
    max: float | None
    degenerate: float | None = None
    """Mean share of broken completions: a draw that breaks the text removes the behaviour, too."""


@dataclass(frozen=True)
class WindowChange:
    """The effect of the direction on the tokens of one window."""

    effect: WindowedEffect
    window: WindowKind
    tokens: int | None
    """Of `first` and `after`: the number of tokens."""
    own: Change
    share: float | None
    """Share of the change under the window `all`; None if that change is 0 or was not measured."""
    nulls: dict[str, NullChange]
    """By null family, on the same tokens."""
    beyond: MeanRate | None
    """The change minus the mean change of the null family with the largest one."""


@dataclass(frozen=True)
class ThinkBlock:
    """The think block of the chat template."""

    closes: str
    """The text that ends it."""
    token: int
    completed: int
    """Baseline completions of positives that end their block and have an answer."""
    prompts: int


@dataclass(frozen=True)
class BlockEffect:
    """Ablation on positives with a fixed, an empty or a new think block.

    `direct`: the block of the baseline, ablation at all tokens. `without block`: an empty block, ablation at all
    tokens; compared with an empty block without ablation. `regenerated`: block and answer under ablation. `through`:
    the block that was generated under ablation, no ablation.
    """

    carrier: Carrier
    own: Change
    nulls: NullChange
    """Isotropic draws."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryRecord:
    """analyses/trajectory.json: where in the generation a direction acts."""

    analysis: Literal["trajectory"] = "trajectory"
    seed: int
    site: Site
    is_selected: bool
    """Whether the direction was selected; otherwise it is the best candidate that the rule discarded."""
    parameters: TrajectoryPlan
    judge: str
    baseline: dict[WindowedEffect, Rate | None]
    """Share of the behaviour without intervention: on positives for suppression, on negatives for induction."""
    windows: tuple[WindowChange, ...]
    block: ThinkBlock | None = None
    no_block: NoBlock | None = None
    """Why there is no window of a think block."""
    through: tuple[BlockEffect, ...] = field(default=())
    """Empty without a think block in the completions."""

    def of(self, effect: WindowedEffect, window: WindowKind, tokens: int | None = None) -> WindowChange:
        """The effect in one window."""
        rows = (r for r in self.windows if (r.effect, r.window, r.tokens) == (effect, window, tokens))
        return next(rows)
