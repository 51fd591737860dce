"""Sections on parts of the test: other system prompts, positives by their class at baseline, and categories."""

from collections.abc import Iterable

from rhumbline.records.results import CategoryRate, SeedResult
from rhumbline.report import page
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord


def system_prompts(run: RunRecord) -> Html:
    """Return rates under other system prompts."""
    head = ["System prompt", "Arm", "Set", "n", "Rate [95 %]", "Change from the baseline"]
    parts = []
    for seed in run.seeds:
        rows = [
            [
                row.condition,
                row.arm,
                row.side,
                row.n,
                page.interval(row.rate, row.low, row.high),
                page.interval(row.change, row.change_low, row.change_high, signed=True),
            ]
            for row in seed.conditions
        ]
        if rows:
            parts.append((f"Seed {seed.seed}", page.table(head, rows, left=3)))
    return page.optional_section(
        "System prompts",
        parts,
        "The direction of the run, tested again on the same test prompts under other system prompts. Nothing is fitted "
        "or selected again. Changes are paired within a condition.",
    )


def which_prompts(run: RunRecord) -> Html:
    """Return rates of positives by their class at baseline, and rates by category."""
    parts = [(f"Seed {seed.seed}", content) for seed in run.seeds if (content := _breakdown(seed))]
    return page.optional_section(
        "Which prompts",
        parts,
        "Only positives that show the behaviour at baseline can lose it; the others are listed separately. Categories "
        "are those of the contrast. n is small in each category, so the intervals are wide.",
    )


def _breakdown(seed: SeedResult) -> Html:
    by_baseline = [row for row in seed.by_baseline if row.n]
    tables = []
    if any(row.baseline in ("not refused", "not shown") for row in by_baseline):
        rows = [[row.baseline, row.arm, row.n, page.interval(row.rate, row.low, row.high)] for row in by_baseline]
        tables.append(page.table(["Positives, at baseline", "Arm", "n", "Rate [95 %]"], rows, left=2))
    if seed.categories:
        tables.append(page.fold("Rates by category", *_category_tables(seed.categories)))
    return page.join(tables)


def _category_tables(rates: Iterable[CategoryRate]) -> list[Html]:
    tables = []
    for side in ("positive", "negative"):
        rows = [row for row in rates if row.side == side]
        arms = list(dict.fromkeys(row.arm for row in rows))
        cells = {(row.category, row.arm): row for row in rows}
        body = []
        for category in sorted({row.category for row in rows}):
            measured = [cells[category, arm] for arm in arms]
            body.append([category, measured[0].n, *(page.interval(row.rate, row.low, row.high) for row in measured)])
        if body:
            tables.append(page.table([f"Category of {side}s", "n", *arms], body))
    return tables
