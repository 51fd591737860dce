"""The rule of a verdict as a record: named margins and bounds. The named rules are in `evidence.verdict_rules`."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeGuard

import msgspec

from rhumbline.arguments import check_fields
from rhumbline.errors import ProtocolError
from rhumbline.records.codec import JsonObject


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether a value is known: a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def is_comparable(cosine: float, same_cosine: float | None) -> bool:
    """Whether a null draw is compared with the direction: it is not aligned with it. None: every draw is compared."""
    return same_cosine is None or abs(cosine) <= same_cosine


VERSION = 5
"""Version of the rule that new runs use."""


@dataclass(frozen=True)
class Rule:
    """When the claims about one direction are shown: margins, null families and bounds.

    A rule of version 4 decides finished runs only; what differs there is said with each field.
    """

    name: str
    """Its name in reports."""
    version: int = 4
    """Version of the decision and its statistics. A file without it has version 4; named rules have the current one."""
    min_baseline: float = 0.5
    """Smallest rate of the behaviour on positives at baseline; below it there is too little to suppress."""
    min_contrast: float | None = None
    """Smallest difference between the rates of positives and negatives at baseline, at the lower end of its interval.
    Below it the labels say too little about the behaviour to test anything. None: no condition."""
    min_drop: float = 0.5
    """Smallest change by an effect. A rule that reads intervals: relative to the baseline, 1 - after / before of the
    behaviour (suppression) or of its absence (induction). Otherwise, and in version 4: the difference of two rates."""
    min_gap: float = 0.25
    """Smallest difference between that change and the mean change of a null family."""
    families: tuple[str, ...] = ("isotropic",)
    """Null families that both effects must exceed. Other families are reported only."""
    reads: Literal["estimate", "interval"] = "estimate"
    """What must reach a margin: the estimate (the blog), or the whole 95 % interval. A claim whose interval contains
    its margin is undecided."""
    max_p: float | None = None
    """Largest rank p in the metric, in every family, for both effects. All must be met, so each is tested at its own
    level (an intersection-union test) and none is adjusted. None: no condition."""
    min_draws: int | None = None
    """Smallest number of comparable draws of a family for which its p is known. None: any number."""
    same_cosine: float | None = None
    """A null draw with a larger |cosine| is aligned with the direction and not compared with it. In version 4 it still
    counts as a draw of the rank. None: every draw is comparable."""
    min_group_cosine: float | None = None
    """Version 4 only: smallest cosine between the directions of two groups of positives."""
    one_group_cosine: float | None = None
    """Version 4 only: below this cosine of two groups the verdict is INCONCLUSIVE."""
    open_if_unmeasured: bool = False
    """Version 4 only: whether the verdict is INCONCLUSIVE if the baseline or an effect was not measured, or if no
    metric could score the candidates. From version 5 on such a claim is not tested."""
    max_degenerate: float | None = None
    """Largest rise of the share of degenerate completions under an intervention."""
    max_kl: float | None = None
    """Largest mean KL divergence of ablation on negative test prompts, nats."""
    max_accuracy_loss: float | None = None
    """Largest fall of the share of right answers on negatives under ablation, if these are known."""
    max_over_refusal: float | None = None
    """Largest rise of the rate of the behaviour on negatives under ablation."""
    min_separation: float | None = None
    """For a continuous score: smallest AUROC between the classes at baseline, at the lower end of its 95 % interval.
    Below it the gap between the classes is no usable unit: NO-BASELINE. Rates are then levels: 0 is the mean of the
    negatives at baseline, 1 that of the positives. None: the behaviour has a rate."""
    max_negative: float | None = None
    """Largest rate of negatives at baseline for which induction is tested. Above it most negatives show the behaviour
    already. None: induction is always tested."""
    content_everywhere: bool = False
    """Whether the bound on lost content (`max_accuracy_loss`) also applies to ablation on positives and to addition on
    negatives: a change of style keeps the content, a refusal does not."""
    min_cosine: float | None = None
    """Smallest cosine with the direction of refits on resampled prompts, and between seeds, for the claim *stable*.
    None: not tested."""

    def __post_init__(self):
        check_fields(self)
        faults = [
            f"{field} is {value}, expected a number in (0, 1]"
            for field in ("min_baseline", "min_drop", "min_gap")
            if not (is_number(value := getattr(self, field)) and 0 < value <= 1)
        ]
        faults += [
            f"{field} is {value}, expected a positive number or nothing"
            for field in (
                *("max_p", "same_cosine", "min_group_cosine", "one_group_cosine", "max_degenerate", "max_kl"),
                *("max_accuracy_loss", "max_over_refusal", "min_separation", "max_negative", "min_contrast"),
                *("min_cosine", "min_draws"),
            )
            if (value := getattr(self, field)) is not None and not (is_number(value) and value > 0)
        ]
        if self.reads not in ("estimate", "interval"):
            faults.append(f"reads is {self.reads!r}, expected estimate or interval")
        if self.version not in (4, VERSION):
            faults.append(f"version is {self.version}, expected 4 (finished runs) or {VERSION}")
        if self.version > 4 and (self.min_group_cosine, self.one_group_cosine) != (None, None):
            faults.append("min_group_cosine and one_group_cosine are not part of rules from version 5 on; remove them")
        if not self.name:
            faults.append("name is empty, expected a word")
        if not self.families or len(set(self.families)) < len(self.families):
            faults.append(f"families is {self.families}, expected one or more distinct names")
        faults += [f"family {f!r} is empty or contains a colon" for f in self.families if not f or ":" in f]
        if faults:
            raise ProtocolError(f"Rule {self.name!r}: {'; '.join(faults)}. Correct these fields of the rule.")

    @property
    def is_relative(self) -> bool:
        """Whether margins are relative to the baseline: shares of the behaviour, or of its absence."""
        return self.reads == "interval" and self.version > 4

    @property
    def needed_draws(self) -> int:
        """Comparable draws of a family that a p of `max_p` needs: p is at least 1 / (draws + 1). 0 without a bound."""
        return 0 if self.max_p is None else math.ceil(1 / self.max_p - 1e-9) - 1

    def is_weaker_than(self, other: "Rule") -> bool:
        """Whether some condition of `other` is missing or less strict in this rule."""

        def is_less_strict(name: str, sign: int) -> bool:
            own, bound = getattr(self, name), getattr(other, name)
            return bound is not None and (own is None or sign * own < sign * bound)

        floors = (
            *("version", "min_baseline", "min_contrast", "min_separation", "min_drop", "min_gap", "min_draws"),
            "min_cosine",
        )
        ceilings = ("max_p", "max_degenerate", "max_kl", "max_accuracy_loss", "max_over_refusal", "max_negative")
        excludes_more = self.same_cosine is not None and (other.same_cosine or math.inf) > self.same_cosine
        return (
            (other.reads == "interval" and self.reads == "estimate")
            or excludes_more
            or (other.content_everywhere and not self.content_everywhere)
            or not set(other.families) <= set(self.families)
            or any(is_less_strict(name, 1) for name in floors)
            or any(is_less_strict(name, -1) for name in ceilings)
        )

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
