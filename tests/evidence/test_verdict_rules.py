import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from rhumbline.errors import ProtocolError
from rhumbline.evidence.verdict_rules import ARDITI2024, BLOG2026, RHUMBLINE, RULES, STYLE, Rule, rule
from rhumbline.records.verdict_rule import VERSION


def test_the_named_rules():
    assert RULES == {"arditi2024": ARDITI2024, "blog2026": BLOG2026, "rhumbline": RHUMBLINE, "style": STYLE}
    assert all(rule(name).name == name for name in RULES)
    margins = {(r.min_baseline, r.min_drop, r.min_gap) for r in RULES.values()}
    assert margins == {(0.5, 0.5, 0.25)}
    assert replace(ARDITI2024, name="blog2026") == BLOG2026
    assert RHUMBLINE.families == ("isotropic", "covariance", "top-pc", "unrelated", "shuffled-site", "shuffled")
    assert {r.version for r in RULES.values()} == {VERSION}
    assert (BLOG2026.reads, BLOG2026.max_p, BLOG2026.max_kl, BLOG2026.max_degenerate) == ("estimate", None, None, None)
    with pytest.raises(ProtocolError, match=r"'paper'.*arditi2024, blog2026, rhumbline"):
        rule("paper")


@pytest.mark.parametrize("named", RULES.values(), ids=RULES)
def test_a_rule_survives_json(named):
    assert Rule.from_dict(json.loads(json.dumps(named.to_dict()))) == named
    with pytest.raises(FrozenInstanceError):
        named.min_drop = 0.1


def test_a_stored_rule_without_a_version_has_version_4():
    assert Rule.from_dict({"name": "rhumbline", "min_group_cosine": 0.5}).version == 4
    with pytest.raises(ProtocolError, match="min_group_cosine and one_group_cosine are not part of rules"):
        replace(RHUMBLINE, min_group_cosine=0.5)
    with pytest.raises(ProtocolError, match="version is 3"):
        replace(RHUMBLINE, version=3)


def test_a_missing_field_has_its_default():
    assert Rule.from_dict({"name": "mine", "families": "isotropic"}) == Rule("mine")


def test_an_invalid_rule_lists_every_fault():
    with pytest.raises(ProtocolError) as caught:
        Rule("", min_baseline=0.0, min_drop=1.5, min_gap=math.nan, families=())
    for word in ("name is empty", "min_baseline is 0.0", "min_drop is 1.5", "min_gap is nan", "families is ()"):
        assert word in str(caught.value)
    for families in (("isotropic", "isotropic"), ("null:isotropic",), ("",)):
        with pytest.raises(ProtocolError, match="famil"):
            Rule("mine", families=families)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"min_drop": 0.3}, "expected `name` and any of version, min_baseline, min_contrast, min_drop, min_gap"),
        (
            {"name": "mine", "margin": 0.3},
            "expected `name` and any of version, min_baseline, min_contrast, min_drop, min_gap",
        ),
        ({"name": "mine", "min_drop": "much"}, r"\$\.min_drop"),
        ({"name": "mine", "min_drop": 2.0}, r"min_drop is 2\.0"),
    ],
)
def test_unknown_missing_and_invalid_fields_are_refused(table, message):
    with pytest.raises(ProtocolError, match=message):
        Rule.from_dict(table)
