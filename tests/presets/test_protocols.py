"""Presets, and quick protocols: the same rule with fewer prompts and draws."""

import pytest

from rhumbline.presets.protocols import PRESETS, preset, quick


def test_only_the_default_preset_is_screened():
    assert PRESETS["rhumbline"].screen > 0
    for name in ("arditi2024", "blog2026", "style"):
        preset_ = PRESETS[name]
        assert (preset_.screen, preset_.nulls.completed, preset_.nulls.screen) == (0, 0, 0)
    assert PRESETS["arditi2024"].full_grid


@pytest.mark.parametrize("name", PRESETS)
def test_a_quick_protocol_has_the_rule_of_the_whole_one(name):
    whole = preset(name)
    first = quick(whole)
    assert first.rule == whole.rule
    assert first.selection == whole.selection
    assert first.quick
    assert not whole.quick
    assert len(first.seeds) == 1
    assert first.sizes == whole.sizes  # the same sample, of which it reads the first prompts
    assert first.reads is not None
    assert whole.reads is None
    if whole.rule.max_p is not None:
        # As few draws as the rule permits, and not fewer.
        assert all(1 / (first.nulls.total(f) + 1) <= whole.rule.max_p + 1e-9 for f in whole.rule.families)
    assert quick(first) == first
