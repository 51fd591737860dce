"""What protocol.json states of the detectable effects."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rhumbline.presets.protocols import preset
from rhumbline.prompts.contrasts import LABELS, SPLITS
from rhumbline.records.shared import NearDuplicates
from rhumbline.stages.run_plan import RunPlan


@pytest.mark.parametrize(
    ("name", "wide", "procedure", "floor"),
    [
        ("rhumbline", 39, 19, 0.05),
        ("rhumbline", 39, 39, 0.025),
        ("rhumbline", 19, 99, 0.05),
        ("blog2026", 39, 19, 0.025),  # its rule does not read `shuffled`
        ("blog2026", 0, 19, None),
    ],
)
def test_the_smallest_rank_p_is_that_of_the_family_with_the_fewest_draws(name, wide, procedure, floor):
    protocol = preset(name)
    protocol = replace(protocol, nulls=replace(protocol.nulls, wide=wide, procedure=procedure))
    sizes = {split: dict.fromkeys(LABELS, 10) for split in SPLITS}
    splits = SimpleNamespace(sizes=lambda: sizes, record=lambda: NearDuplicates(0, 0), fixed=())
    assert RunPlan._split_plan(SimpleNamespace(protocol=protocol), splits).detectable.rank_floor == floor
