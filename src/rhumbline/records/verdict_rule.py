"""The rule of a verdict as a record: named margins and bounds. The named rules are in `evidence.verdict_rules`."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeGuard

import msgspec

from rhumbline.errors import ProtocolError
from rhumbline.records.codec import JsonObject


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether a value is known: a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Rule:
    """When one direction is sufficient: both effects reach `min_drop`, and exceed every null family by `min_gap`."""

    name: str
    """Its name in reports."""
    min_baseline: float = 0.5
    """Smallest rate of the behaviour on positives at baseline; below it there is too little to suppress."""
    min_drop: float = 0.5
    """Smallest change of the rate from the baseline: the fall under ablation, the rise under addition."""
    min_gap: float = 0.25
    """Smallest difference between that change and the mean change of a null family."""
    families: tuple[str, ...] = ("isotropic",)
    """Null families that both effects must exceed. Other families are reported only."""
    reads: Literal["estimate", "interval"] = "estimate"
    """What must reach a margin: the estimate (the blog), or the whole 95 % interval. A margin inside the interval
    is then INCONCLUSIVE."""
    max_p: float | None = None
    """Largest rank p in the metric, in every family, for both effects. All must be met, so each is tested at its own
    level (an intersection-union test) and none is adjusted. None: no condition."""
    same_cosine: float | None = None
    """A null draw with a larger |cosine| is aligned with the direction. It does not count in the rank, nor in the gap
    unless no other draw is left. None: every draw counts."""
    min_group_cosine: float | None = None
    """Smallest cosine between the directions of two groups of positives; below it the behaviour has several directions,
    and none of them is the single one."""
    one_group_cosine: float | None = None
    """From this cosine on, the two directions count as one. Between `min_group_cosine` and this value they are one
    direction with noise or a narrow cone of several, and the verdict is INCONCLUSIVE. None: no such band."""
    max_degenerate: float | None = None
    """Largest rise of the share of degenerate completions under an intervention; more is DAMAGED."""
    max_kl: float | None = None
    """Largest mean KL divergence of ablation on negative test prompts, nats; more is DAMAGED."""
    max_accuracy_loss: float | None = None
    """Largest fall of the share of right answers on negatives under ablation, if these are known; more is DAMAGED."""
    min_separation: float | None = None
    """For a continuous score: smallest AUROC between the classes at baseline, at the lower end of its 95 % interval.
    Below it the gap between the classes is no usable unit: NO-BASELINE. Rates are then levels: 0 is the mean of the
    negatives at baseline, 1 that of the positives. None: the behaviour has a rate."""
    max_negative: float | None = None
    """Largest rate of negatives at baseline for which induction is tested. Above it a rise of `min_drop` is not
    possible, and losing the behaviour is not damage. Only suppression is decided then; if it is shown, the verdict is
    INCONCLUSIVE. None: induction is always tested."""
    content_everywhere: bool = False
    """Whether the bound on lost content (`max_accuracy_loss`) also applies to ablation on positives and to addition on
    negatives: a change of style keeps the content, a refusal does not."""

    open_if_unmeasured: bool = False
    """Whether the verdict is INCONCLUSIVE if the baseline or an effect was not measured, or if no metric could score
    the candidates of a model that shows the behaviour. False, as in runs of older versions: such a claim fails."""

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
            raise ProtocolError(f"Rule {self.name!r}: {'; '.join(faults)}. Correct these fields of the rule.")

    def to_dict(self) -> JsonObject:
        """The rule as JSON."""
        return {**asdict(self), "families": list(self.families)}

    @classmethod
    def from_dict(cls, table: JsonObject) -> "Rule":
        """The rule of a JSON or TOML table; a missing field has its default. One family may be a text."""
        known = [field.name for field in fields(cls)]
        if not set(table) <= set(known) or "name" not in table:
            raise ProtocolError(
                f"The table of a rule has the fields {', '.join(table) or 'none'}: expected `name` and any of "
                f"{', '.join(known[1:])}. Correct the names."
            )
        families = table.get("families", cls.families)
        try:
            return msgspec.convert({**table, "families": [families] if isinstance(families, str) else families}, cls)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"Rule {table['name']!r}: {error}. Correct this field of the rule.") from error
