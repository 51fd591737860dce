"""Stage *levels*: what the level of a continuous score is computed from, besides the outcomes (levels.json)."""

from rhumbline.inference.interventions import BASELINE
from rhumbline.inference.residuals import at_site
from rhumbline.judging.score import score_of
from rhumbline.prompts.contrasts import LABELS, Label
from rhumbline.records.outcome_rows import LevelTexts, NeutralOutcome
from rhumbline.records.shared import ByLabel
from rhumbline.stages.completions import complete
from rhumbline.stages.seed_run import SeedRun


def measure_levels(run: SeedRun) -> LevelTexts:
    """Scores of the contrast's own test texts, and the neutral prompts at baseline and along the direction."""
    of_texts = run.protocol.extraction.response_position is not None
    texts = ByLabel(*(_text_scores(run, label) for label in LABELS)) if of_texts else None
    return LevelTexts(texts, tuple(_neutral(run)))


def _text_scores(run: SeedRun, label: Label) -> tuple[float, ...]:
    """Scores of the test texts of one class."""
    rows = run.splits.texts("test", label)
    return tuple(run.style.judge(p.category)(p.response or "").value or 0.0 for p in rows)


def _neutral(run: SeedRun) -> list[NeutralOutcome]:
    """Neutral prompts: the score of the baseline completion, and the projection on a direction read in the prompt."""
    if not run.neutral:
        return []
    runner, direction = run.runner("levels"), run.direction
    (completions,) = complete(runner, run.chat, run.neutral, [BASELINE], run.protocol.max_new_tokens, run.header)
    along: list[float | None] = [None] * len(completions)
    if direction is not None and not direction.position.is_in_response:
        h = at_site(runner, [run.chat.encode(p) for p in run.neutral], direction.position, direction.layer)
        along = (h @ direction.vector).tolist()
    rows = []
    for prompt, text, projection in zip(run.neutral, completions, along, strict=True):
        score = score_of(run.style.judge(prompt.category), text)
        rows.append(NeutralOutcome(prompt_id=prompt.id, cls=score.cls, score=score.value, projection=projection))
    return rows
