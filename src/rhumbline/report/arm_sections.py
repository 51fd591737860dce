"""Sections on the arms of a run: figure and table of every arm, and null draws with their effects."""

from typing import Any

from rhumbline.records.effect_results import ArmRate
from rhumbline.records.results import SeedResult
from rhumbline.report import arm_figures, page
from rhumbline.report.run_record import RunRecord


def arms_figure(run: RunRecord, draw: page.Canvas) -> page.Html:
    """Return the rates or levels of every arm, as a figure."""
    rule = run.protocol.rule
    charts = arm_figures.arms(run.seeds, rule)
    if not charts:
        return page.section("Arms", page.note("No arm was measured."))
    marks = "■ baseline, with its 95 % interval. "
    lines = f"Dashed line: the lowest baseline that the rule accepts ({page.number(rule.min_baseline)}). "
    if any(seed.selected for seed in run.seeds):
        marks = (
            "■ baseline and ● direction, each with its 95 % interval. Open marks: one null draw each; ❙ the mean of "
            "their family. "
        )
        if run.has_baseline:
            lines = (
                f"Dashed line: the baseline moved by the margin of the rule ({page.number(rule.min_drop)}). Brackets: "
                f"the mean of a null family moved by its margin ({page.number(rule.min_gap)}). Shaded: the values that "
                "the rule requires of the direction. "
            )
    return page.section("Arms", draw(charts), page.note(marks, lines, "Point at a mark to see its numbers."))


def null_draws(run: RunRecord, draw: page.Canvas) -> page.Html:
    """Return each null draw with its cosine and its effect, as a figure."""
    charts = {seed.seed: arm_figures.nulls(seed) for seed in run.seeds if seed.selected}
    parts = [(f"Seed {seed}", draw(drawn)) for seed, drawn in charts.items() if drawn]
    if not parts:
        return page.section("Nulls", page.note("No null was drawn, because no direction was selected."))
    note = page.note(
        "Each open mark is one null draw: its cosine with the direction, and the change of the "
        f"{run.measure} that it causes in the expected direction. A null with a large effect and a large cosine is "
        "nearly the direction itself and not evidence against it."
    )
    return page.section("Null draws compared with the direction", page.per_seed(parts), note)


def arms_table(run: RunRecord) -> page.Html:
    """Return every arm as a table."""
    measure = run.measure.capitalize()
    head = ["Seed", "Arm", "Set", "n", measure, "Low", "High", "Degenerate", "Unscored", "Mean metric"]
    rows = [(row.arm.is_null, _arm_row(seed, row)) for seed in run.seeds for row in seed.arms]
    own = [cells for is_null, cells in rows if not is_null]
    nulls = [cells for is_null, cells in rows if is_null]
    folds = [page.fold(f"Baseline, ablation and addition ({len(own)} rows)", page.table(head, own, left=3))]
    if nulls:
        folds.append(page.fold(f"Null draws ({len(nulls)} rows)", page.table(head, nulls, left=3)))
    note = page.note(
        "Ablation on negative prompts measures side effects. Low and high: ends of the 95 % interval. Degenerate: "
        "share of completions."
    )
    return page.section("Every arm", *folds, note)


def _arm_row(seed: SeedResult, row: ArmRate) -> list[Any]:
    numbers = [page.number(value, 3) for value in (row.rate, row.low, row.high, row.degenerate)]
    return [seed.seed, row.arm, row.side, row.n, *numbers, row.unscored, page.number(row.metric, 3)]
