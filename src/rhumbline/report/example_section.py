"""Section on examples: the first test prompts with their completions before, under ablation and with addition.

Only runs that saved their completions have it.
"""

from collections.abc import Sequence

from rhumbline.evidence.compared_arms import outcomes_by_arm
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import Label
from rhumbline.report import page
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord

N_EXAMPLES = 3
"""Prompts of each class."""
LONGEST = 280
"""Characters of a text, at most."""

_NAMES = {BASELINE: "Before", ABLATION: "Ablation", ADDITION: "Addition"}


def examples(run: RunRecord) -> Html:
    """Return prompts with their completions in every arm; closed unless the model is an organism."""
    if not run.protocol.save_completions:
        return Html()
    seed = run.seeds[0].seed
    rows = run.directory.read_rows(Outcome, seed)
    tables = [table for side in ("positive", "negative") if (table := _table(rows, side))]
    note = page.note(f"The first test prompts of seed {seed}. They illustrate the rates; no claim rests on them.")
    make = page.section if run.results.model.is_organism else page.detail
    return make("Examples", page.tag("div", *tables, class_="grid"), note) if tables else Html()


def _table(rows: Sequence[Outcome], side: Label) -> Html:
    """Return the first prompts of a class; empty without texts. The direction is added to negatives only."""
    outcomes = outcomes_by_arm(row for row in rows if row.side == side and row.arm in _NAMES)
    arms: list[ArmId] = [arm for arm in _NAMES if (arm, side) in outcomes]
    texts = {
        row.prompt: [outcomes[arm, side].get(name) for arm in arms]
        for name, row in outcomes.get((BASELINE, side), {}).items()
        if row.prompt is not None
    }
    if not texts:
        return Html()
    body = [
        [_short(prompt), *(_short(row.completion) if row else None for row in completions)]
        for prompt, completions in list(texts.items())[:N_EXAMPLES]
    ]
    head = [f"{side.capitalize()} prompt", *(_NAMES[arm] for arm in arms)]
    return page.table(head, body, left=len(head))


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}…"
