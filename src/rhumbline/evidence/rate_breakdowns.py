"""Breakdowns: outcomes -> rates by category, by the class at baseline, and under other system prompts."""

from collections.abc import Sequence

from rhumbline.evidence.class_rates import SHOWN, class_rate, is_no_sample, is_read, measured_outcomes
from rhumbline.evidence.compared_arms import NullComparison
from rhumbline.evidence.rate_effects import rate_effects
from rhumbline.evidence.side_effects import class_change
from rhumbline.records.arms import BASELINE, ArmId
from rhumbline.records.outcome_rows import ConditionOutcome, Outcome
from rhumbline.records.results import BaselineClass, BaselineRate, CategoryRate, ConditionEffects, ConditionRate
from rhumbline.records.shared import Class, Label


def rates_by_category(outcomes: Sequence[Outcome]) -> tuple[CategoryRate, ...]:
    """Rates of the direction's own arms by category of the prompt, in the order of the rows.

    Empty for a class of prompts with a single category.
    """
    cells: dict[tuple[str, ArmId, Label], list[Class]] = {}
    for row in outcomes:
        if row.arm.is_own and row.category is not None:
            cells.setdefault((row.category, row.arm, row.side), []).append(row.cls)
    sides = [side for _, side in {(category, side) for category, _, side in cells}]
    return tuple(
        CategoryRate(category=category, arm=arm, side=side, **class_rate(classes)._asdict())
        for (category, arm, side), classes in cells.items()
        if sides.count(side) > 1
    )


def rates_by_baseline_class(outcomes: Sequence[Outcome]) -> tuple[BaselineRate, ...]:
    """Rates on positives that show the behaviour at baseline, and on those that do not.

    Ablation can remove the behaviour from the first only, so the drop over all positives also depends on how many
    these are.
    """
    positive = [row for row in outcomes if row.side == "positive" and row.arm.is_own]
    before = {row.prompt_id: row.cls for row in positive if row.arm == BASELINE}
    is_continuous = not {"shown", "absent"}.isdisjoint(before.values())
    names: tuple[BaselineClass, ...] = ("shown", "not shown") if is_continuous else ("refused", "not refused")
    rates = []
    for name in names:
        prompts = {i for i, cls in before.items() if cls != "unscored" and (cls in SHOWN) == (name in SHOWN)}
        for arm in dict.fromkeys(row.arm for row in positive if row.arm != BASELINE):
            classes = [row.cls for row in positive if row.arm == arm and row.prompt_id in prompts]
            rates.append(BaselineRate(name, arm, **class_rate(classes)._asdict()))
    return tuple(rates)


def rates_by_condition(rows: Sequence[ConditionOutcome]) -> tuple[ConditionRate, ...]:
    """Rates under each system prompt, and their paired change from the baseline under the same system prompt."""
    by_cell: dict[tuple[str, ArmId, Label], list[ConditionOutcome]] = {}
    for row in (row for row in rows if not row.arm.is_null):
        by_cell.setdefault((row.condition, row.arm, row.side), []).append(row)
    cells: dict[tuple[str, ArmId, Label], dict[str, Class]] = {
        key: {row.prompt_id: "unscored" if is_unread else row.cls for row in some}
        for key, some in by_cell.items()
        for is_unread in [is_no_sample([not is_read(row.cls, row.uncovered) for row in some])]
    }
    rates = []
    for (condition, arm, side), classes in cells.items():
        base = cells[condition, BASELINE, side]
        pairs: list[tuple[Class, Class]] = [
            (base[i], cls) for i, cls in classes.items() if "unscored" not in (cls, base[i])
        ]
        change = (None, None, None) if arm == BASELINE else class_change(pairs)
        rates.append(
            ConditionRate(
                condition=condition,
                arm=arm,
                side=side,
                **class_rate(list(classes.values()))._asdict(),
                change=change[0],
                change_low=change[1],
                change_high=change[2],
            )
        )
    return tuple(rates)


def effects_by_condition(rows: Sequence[ConditionOutcome], compared: NullComparison) -> tuple[ConditionEffects, ...]:
    """Suppression and induction under each system prompt with the gaps to its nulls; empty if no null was run there."""
    if not any(row.arm.is_null for row in rows):
        return ()
    by_condition: dict[str, list[Outcome]] = {}
    for row in rows:
        by_condition.setdefault(row.condition, []).append(_as_outcome(row))
    return tuple(
        ConditionEffects(name, rate_effects(measured_outcomes(some), compared)) for name, some in by_condition.items()
    )


def _as_outcome(row: ConditionOutcome) -> Outcome:
    """The row as one of a run. A condition has neither scores nor a metric."""
    return Outcome(
        arm=row.arm,
        side=row.side,
        prompt_id=row.prompt_id,
        cls=row.cls,
        score=None,
        evidence="",
        metric=None,
        new_tokens=row.new_tokens,
        category=row.category,
        uncovered=row.uncovered,
    )
