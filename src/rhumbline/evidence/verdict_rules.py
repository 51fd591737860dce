"""The named rules of verdicts: margins and bounds that are fixed before the data. verdict.py applies them."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from rhumbline.errors import ProtocolError
from rhumbline.records.verdict_rule import Rule

__all__ = ["ARDITI2024", "BLOG2026", "RHUMBLINE", "RULES", "STYLE", "Rule", "rule"]

BLOG2026 = Rule("blog2026", open_if_unmeasured=True)
"""The margins of the reproduction blog, against norm-matched isotropic directions."""
ARDITI2024 = Rule("arditi2024", open_if_unmeasured=True)
"""The paper fixes no rule. These are the margins of the blog, under the name of the preset that they apply to."""
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
    open_if_unmeasured=True,
)
"""The margins of the blog, applied to intervals, against null families that match what an ablation removes, with bounds
on the damage. An interval that contains a margin decides nothing, and a damaged model shows no effect."""

STYLE = replace(RHUMBLINE, name="style", min_separation=0.65, max_negative=0.5, content_everywhere=True)
"""The same margins in units of the gap between the classes, with the content bounded under every intervention."""

RULES: Mapping[str, Rule] = MappingProxyType({r.name: r for r in (ARDITI2024, BLOG2026, RHUMBLINE, STYLE)})
"""Every named rule."""


def rule(name: str) -> Rule:
    """The rule of that name."""
    if name not in RULES:
        raise ProtocolError(f"Unknown rule {name!r}: expected one of {', '.join(RULES)}. Use one of these names.")
    return RULES[name]
