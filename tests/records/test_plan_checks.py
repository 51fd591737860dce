"""Every number and name of the plan of an analysis is checked, and all faults are listed at once."""

import math
from dataclasses import MISSING, fields, replace

import pytest

from rhumbline.errors import InputError
from rhumbline.records.circuit_file import CircuitPlan
from rhumbline.records.directions_file import DirectionsPlan, DirectionsRule
from rhumbline.records.frontier_file import GROUPS, INTERVENTIONS, FrontierPlan, FrontierRule
from rhumbline.records.meaning_file import MeaningPlan
from rhumbline.records.sheet_files import RobustnessPlan
from rhumbline.records.steering_file import SteeringPlan
from rhumbline.records.style_doses_file import StyleDosesPlan
from rhumbline.records.trajectory_file import TrajectoryPlan

PLANS = (
    *(CircuitPlan, DirectionsPlan, DirectionsRule, FrontierPlan, FrontierRule, MeaningPlan, RobustnessPlan),
    *(SteeringPlan, StyleDosesPlan, TrajectoryPlan),
)
CHOICES = {"judge", "control_tokens"}
"""Texts that are checked where they are read."""
MAY_BE_EMPTY = {(StyleDosesPlan, "ranks")}


def faulty(plan, name, default):
    """Values with which nothing is measured."""
    match default:
        case int() | float():
            return [-1, math.nan]
        case str():
            return ["", " \n"]
        case (str(), *_):
            return [(), (*default, default[0]), (*default, "best")]
        case (first, *_):
            lists = [(-1.0,), (math.nan,), (0,), (first, first)]
            return lists if (plan, name) in MAY_BE_EMPTY else [(), *lists]


@pytest.mark.parametrize("plan", PLANS)
def test_a_field_with_which_nothing_is_measured_is_named(plan):
    checked = [f for f in fields(plan) if f.default is not MISSING and f.name not in CHOICES]
    assert checked
    for field in checked:
        for value in faulty(plan, field.name, field.default):
            with pytest.raises(InputError, match=field.name):
                replace(plan(), **{field.name: value})


@pytest.mark.parametrize(
    ("plan", "changes", "words"),
    [
        (TrajectoryPlan(max_new_tokens=48), {"tokens": (48,)}, "from 1 to below 48"),
        (CircuitPlan(), {"sizes": (2, 2)}, "sizes has a number twice"),
        (SteeringPlan(), {"sizes": (17.0,)}, "up to 16"),
        (MeaningPlan(), {"prompts": 3, "draws": 0}, "prompts is 3, expected 4 or more; draws is 0, expected 1 or more"),
        (DirectionsPlan(), {"sources": ("best",), "max_rank": 1}, "unknown sources best .*; max_rank is 1"),
        (DirectionsRule(), {"margin": 0}, "margin is 0"),
        (FrontierPlan(), {"doses": (0.2, 0.1)}, "ascend"),
        (FrontierPlan(), {"doses": (5e-4,)}, "doses is .*, expected numbers from 0.001 to 5"),
        (FrontierPlan(), {"interventions": ("leace",)}, "lacks ablation"),
        (FrontierPlan(), {"tolerance": 0.6}, "tolerance"),
        (RobustnessPlan(), {"doses": (0.1, 0.05)}, "ascend"),
        (RobustnessPlan(), {"doses": (5e-4,)}, "doses is .*, expected numbers from 0.001 to 5"),
        (RobustnessPlan(), {"doses": (9.0,)}, "from 0.001 to 5"),
        (RobustnessPlan(), {"strengths": (0.5, 2.1)}, "up to 2"),
        (RobustnessPlan(), {"sizes": replace(RobustnessPlan().sizes, test=0)}, "sizes.test is 0"),
        (StyleDosesPlan(), {"strengths": (2.1,)}, "up to 2"),
        (StyleDosesPlan(), {"ranks": (1, 2)}, "ranks is .*, expected numbers of 2 or more"),
        (StyleDosesPlan(), {"depths": (1.0,)}, "below 1"),
        (StyleDosesPlan(), {"least_content": 1.1, "prompts": 1}, "prompts is 1, .*; least_content is 1.1"),
    ],
)
def test_the_faults_are_stated_with_what_is_expected(plan, changes, words):
    with pytest.raises(InputError, match=words):
        replace(plan, **changes)


def test_the_ends_of_the_ranges_are_permitted():
    """The contrary case."""
    assert FrontierPlan(doses=(1e-3, 5.0), tolerance=0.5, interventions=("ablation",)).prompts == 64
    assert RobustnessPlan(doses=(1e-3, 5.0), strengths=(2.0,), ranks=1).strengths == (2.0,)
    assert StyleDosesPlan(strengths=(2.0,), ranks=(), doses=(100.0,), least_content=0.0).ranks == ()
    assert TrajectoryPlan(tokens=(1,), max_new_tokens=2).tokens == (1,)
    assert SteeringPlan(sizes=(16.0,), prompts=2, draws=1).draws == 1
    assert set(INTERVENTIONS) == set(GROUPS)
