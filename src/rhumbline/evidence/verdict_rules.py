"""The rules of verdicts: named margins and bounds, fixed before the data. What they make of it is verdict.py's.

Imports no torch.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeGuard

from rhumbline.errors import ProtocolError


def is_number(value: Any) -> TypeGuard[float]:
    """Whether something was measured: a number, and a finite one."""
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Rule:
    """When one direction counts as sufficient: both effects reach `min_drop`, and exceed every null by `min_gap`."""

    name: str
    """What the report calls it."""
    min_baseline: float = 0.5
    """Least rate of the behaviour on the positive set at baseline; below it there is too little to suppress."""
    min_drop: float = 0.5
    """Least change of the rate against baseline: the fall under ablation, the rise under addition."""
    min_gap: float = 0.25
    """Least distance of that change from the mean change of a family of nulls."""
    families: tuple[str, ...] = ("isotropic",)
    """The families of nulls that both effects must exceed; others may be run and are only reported."""
    reads: Literal["estimate", "interval"] = "estimate"
    """What must reach a margin: the estimate (the blog), or the whole 95 % interval. An interval with the margin inside
    is INCONCLUSIVE."""
    max_p: float | None = None
    """Largest rank p by the fast metric, in every family, for both effects. Every one must hold, so each is tested at
    its own level (an intersection-union test): nothing is adjusted. None: not asked for."""
    same_cosine: float | None = None
    """A null draw with a |cosine| above this is the direction again, no competitor: the rank does not count it, nor the
    gap unless there is no other. None: every draw counts."""
    min_group_cosine: float | None = None
    """Least cosine between the directions of the two groups into which the positives fall; below it the behaviour is
    spread over several directions, and no one of them is the single one."""
    one_group_cosine: float | None = None
    """From this cosine on the two directions are taken for one. Between `min_group_cosine` and this they are one
    direction under noise or a narrow cone of several, and the verdict is INCONCLUSIVE. None: there is no such band."""
    max_degenerate: float | None = None
    """Largest share of degenerate completions under an intervention, beyond the baseline's; more is DAMAGED."""
    max_kl: float | None = None
    """Largest mean KL that ablation may cause on negative test prompts, nats; more is DAMAGED."""
    max_accuracy_loss: float | None = None
    """Largest loss of right answers on negatives under ablation, where the contrast knows them; more is DAMAGED."""
    min_separation: float | None = None
    """Of a continuous score: least chance that a positive has a larger score than a negative at baseline, read at the
    lower end of its 95 % interval; below it there is no gap in whose units an effect could be told: NO-BASELINE. Rates
    are then levels: 0 is how negatives score at baseline, 1 how positives do. None: the behaviour has a rate."""
    max_negative: float | None = None
    """Largest rate of the behaviour on negatives at baseline with which induction is tested. Above it a rise of
    `min_drop` has no room, and losing the behaviour there is no damage: only suppression is decided, and where it
    holds the verdict is INCONCLUSIVE, "suppresses; induction has no room". None: induction is always tested."""
    content_everywhere: bool = False
    """Whether the loss of content (`max_accuracy_loss`) is bounded under the ablation of positives and the addition to
    negatives too: right for a style, which leaves what is said alone; wrong for a refusal, which does not."""

    def __post_init__(self):
        faults = [
            f"{field} is {value}, expected a number in (0, 1]"
            for field in ("min_baseline", "min_drop", "min_gap")
            if not (is_number(value := getattr(self, field)) and 0 < value <= 1)
        ]
        faults += [
            f"{field} is {value}, expected a positive number or nothing"
            for field in (
                *("max_p", "same_cosine", "min_group_cosine", "one_group_cosine", "max_degenerate", "max_kl"),
                *("max_accuracy_loss", "min_separation", "max_negative"),
            )
            if (value := getattr(self, field)) is not None and not (is_number(value) and value > 0)
        ]
        if self.reads not in ("estimate", "interval"):
            faults.append(f"reads is {self.reads!r}, expected estimate or interval")
        if not self.name:
            faults.append("name is empty, expected a word")
        if not self.families or len(set(self.families)) < len(self.families):
            faults.append(f"families is {self.families}, expected one or more distinct names")
        faults += [f"family {f!r} is empty or contains a colon" for f in self.families if not f or ":" in f]
        if faults:
            raise ProtocolError(f"Rule {self.name!r}: {'; '.join(faults)}.")

    def to_dict(self) -> dict[str, Any]:
        """What goes into protocol.json."""
        return {**asdict(self), "families": list(self.families)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Rule":
        """The rule that `to_dict` wrote; a field left out has its default."""
        known = [field.name for field in fields(cls)]
        if not set(given) <= set(known) or "name" not in given:
            raise ProtocolError(
                f"A rule has the fields {', '.join(known)}, of which `name` is required; "
                f"given: {', '.join(given) or 'none'}."
            )
        families = given.get("families", cls.families)
        return cls(**{**given, "families": (families,) if isinstance(families, str) else tuple(families)})


BLOG2026 = Rule("blog2026")
"""The reproduction blog's: its margins, against norm-matched isotropic directions."""
ARDITI2024 = Rule("arditi2024")
"""The paper fixes no rule; this is the blog's, under the name of the preset whose numbers it judges."""
RHUMBLINE = Rule(
    "rhumbline",
    families=("isotropic", "covariance", "top-pc", "shuffled-site", "shuffled"),
    reads="interval",
    max_p=0.05,
    same_cosine=0.5,
    min_group_cosine=0.5,
    one_group_cosine=0.85,
    max_degenerate=0.3,
    max_kl=0.2,
    max_accuracy_loss=0.2,
)
"""The blog's margins, read with their intervals, held against nulls that match what an ablation removes, and bounded by
the damage done: a change that the sample cannot tell from the margin is no verdict, and a broken model no answer."""

STYLE = replace(RHUMBLINE, name="style", min_separation=0.65, max_negative=0.5, content_everywhere=True)
"""The same margins in units of the gap between the classes, and the content bounded wherever the style is moved."""

RULES: Mapping[str, Rule] = MappingProxyType({r.name: r for r in (ARDITI2024, BLOG2026, RHUMBLINE, STYLE)})
"""Every named rule."""


def rule(name: str) -> Rule:
    """The rule of that name."""
    if name not in RULES:
        raise ProtocolError(f"Unknown rule {name!r}; the rules are {', '.join(RULES)}.")
    return RULES[name]
