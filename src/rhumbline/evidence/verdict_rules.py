"""The named rules of verdicts: margins and bounds that are fixed before the data. verdict.py applies them."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from rhumbline.errors import ProtocolError
from rhumbline.records.verdict_names import Criteria
from rhumbline.records.verdict_rule import VERSION, Rule

__all__ = ["ARDITI2024", "BLOG2026", "RHUMBLINE", "RULES", "STYLE", "Rule", "criteria", "rule"]

BLOG2026 = Rule("blog2026", version=VERSION)
"""The margins of the reproduction blog, against norm-matched isotropic directions."""
ARDITI2024 = Rule("arditi2024", version=VERSION)
"""The paper fixes no rule. These are the margins of the blog, under the name of the preset that they apply to."""
RHUMBLINE = Rule(
    "rhumbline",
    version=VERSION,
    min_contrast=0.1,
    families=("isotropic", "covariance", "top-pc", "unrelated", "shuffled-site", "shuffled"),
    reads="interval",
    max_p=0.05,
    min_draws=19,
    same_cosine=0.5,
    max_degenerate=0.3,
    max_kl=0.2,
    max_accuracy_loss=0.2,
    max_over_refusal=0.2,
    max_negative=0.5,
    min_cosine=0.8,
)
"""Relative margins applied to intervals, against null families that match what an ablation removes, with bounds on the
damage."""
STYLE = replace(
    RHUMBLINE,
    name="style",
    min_contrast=None,
    min_separation=0.65,
    content_everywhere=True,
    max_over_refusal=None,
)
"""The same margins in units of the gap between the classes, with the content bounded under every intervention."""

RULES: Mapping[str, Rule] = MappingProxyType({r.name: r for r in (ARDITI2024, BLOG2026, RHUMBLINE, STYLE)})
"""Every named rule."""


def rule(name: str) -> Rule:
    """The rule of that name."""
    if name not in RULES:
        raise ProtocolError(f"Unknown rule {name!r}: expected one of {', '.join(RULES)}. Use one of these names.")
    return RULES[name]


def criteria(rule: Rule) -> Criteria:
    """What qualifies the verdicts of a rule; empty if it is at least as strict as the default for its kind of score."""
    if not rule.is_weaker_than(RHUMBLINE if rule.min_separation is None else STYLE):
        return ""
    known: dict[Rule, Criteria] = {ARDITI2024: "by the paper's criteria", BLOG2026: "by the blog's criteria"}
    return known.get(rule, "by weaker criteria")
