"""Scores of candidates by whole completions: `content` and `moved`, for rules that need them.

Validation prompts only. The scores by the metric are computed before (candidate_scores.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from rhumbline.evidence.selection_rules import SelectionRule, choose
from rhumbline.evidence.statistics import auroc, auroc_interval
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.judging.score import TextJudge, score_of
from rhumbline.prompts.contrasts import LABELS, Label, Prompt
from rhumbline.records.seed_files import Candidate
from rhumbline.stages.completions import complete
from rhumbline.stages.seed_run import SeedRun

Scores = Float[np.ndarray, " prompt"]
LEAST_SCORES = 8
"""Smallest number of scored completions of each class from which a missing baseline is concluded."""


@dataclass(frozen=True)
class CompletionScores:
    """Scores candidates by completions of the first validation prompts (`text_score.content_prompts` of each class)."""

    run: SeedRun
    prompts: Mapping[Label, Sequence[Prompt]]
    """Kept validation prompts."""

    def induction_is_testable(self) -> bool:
        """Whether validation negatives score low enough at baseline for a rise (`rule.max_negative`).

        The level of the negatives' own completions is read between the responses of the two classes. If prompts make
        the classes, the negatives are the zero of the level, so the answer is True.
        """
        most = self.run.protocol.rule.max_negative
        if most is None or not self._of_texts:
            return True
        prompts = self._first_prompts()
        judges = {label: self._judges(some) for label, some in prompts.items()}
        high, low = (_mean_score(judges[c], _responses(prompts[c])) for c in LABELS)
        (completions,) = self._complete(prompts["negative"], [])
        return _mean_score(judges["negative"], completions) - low <= most * (high - low)

    def lacks_baseline(self) -> bool:
        """Whether the score does not separate the classes at baseline, by its AUROC on validation completions.

        The whole 95 % interval must be below the bound of the rule. A contrast of texts takes its unit from these.
        """
        least = self.run.protocol.rule.min_separation
        if least is None or self._of_texts:
            return False
        scores = []
        for label in LABELS:
            prompts = self.prompts[label]
            (completions,) = self._complete(prompts, [])
            values = (score_of(j, t).value for j, t in zip(self._judges(prompts), completions, strict=True))
            scores.append(np.array([value for value in values if value is not None]))
        positive, negative = scores
        return is_separated_less(positive, negative, least)

    def added_to(
        self,
        table: Sequence[Candidate],
        rule: SelectionRule,
        coefficient_of: Callable[[Direction], float],
        labels: Sequence[Label] = LABELS,
    ) -> list[Candidate]:
        """The table with `content` and `moved` of the candidates that pass the criteria of the metric.

        `content` is the smaller of two shares of the baseline's content: under ablation on positives, and under
        addition on negatives with the coefficient and the positions of the run. `moved` is the smaller of the two
        changes of the score, divided by the gap between the classes at baseline (of a contrast of texts: between the
        responses). If induction is not testable, `labels` are the positives alone, and both are those of ablation.
        """
        if rule.min_content is None and rule.criterion != "most-moved":
            return list(table)
        result = choose(table, self.run.model.n_layers, rule.metric_only())
        eligible = [row for row in result.candidates if row.discarded is None]
        if not eligible:
            return list(table)
        directions = [self.run.direction_at(row.position, row.layer) for row in eligible]
        positions, spared = self.run.protocol.addition.positions, self.run.protocol.ablation.spared
        arms = {
            "positive": [Arm("ablation", (Ablate(d, spared=spared),)) for d in directions],
            "negative": [Arm("addition", (Add(d, coefficient_of(d), positions),)) for d in directions],
        }
        content, score, start = {}, {}, {}
        for label, prompts in self._first_prompts().items():
            completions = self._complete(prompts, arms[label])
            judges = self._judges(prompts)
            content[label] = [self._content(texts, completions[0], prompts) for texts in completions]
            score[label] = [_mean_score(judges, texts) for texts in completions]
            start[label] = _mean_score(judges, _responses(prompts)) if self._of_texts else score[label][0]
        gap = start["positive"] - start["negative"]
        rows = {row.site: row for row in table}
        for i, row in enumerate(eligible, start=1):
            kept = min(content[c][i] / max(1e-9, content[c][0]) for c in labels)
            changes = {
                "positive": score["positive"][0] - score["positive"][i],
                "negative": score["negative"][i] - score["negative"][0],
            }
            moved = min(changes[c] for c in labels) / gap if gap > 0 else 0.0
            rows[row.site] = replace(rows[row.site], content=kept, moved=moved)
        return list(rows.values())

    @property
    def _of_texts(self) -> bool:
        return self.run.protocol.extraction.response_position is not None

    def _first_prompts(self) -> dict[Label, Sequence[Prompt]]:
        return {label: self.prompts[label][: self.run.protocol.text_score.content_prompts] for label in LABELS}

    def _judges(self, prompts: Sequence[Prompt]) -> list[TextJudge]:
        return [self.run.style.judge(p.category) for p in prompts]

    def _complete(self, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> list[list[str | None]]:
        """Completions at baseline, then under each arm."""
        length = self.run.protocol.max_new_tokens
        runner, header = self.run.runner("selection"), self.run.header
        return complete(runner, self.run.chat, prompts, [BASELINE, *arms], length, header)

    def _content(self, texts: Sequence[str | None], baseline: Sequence[str | None], prompts: Sequence[Prompt]) -> float:
        # A completion without an answer has lost its content.
        rows = zip(texts, baseline, prompts, strict=True)
        values = [
            0.0 if text is None else self.run.style.content(text, before, prompt)
            for text, before, prompt in rows
            if before is not None
        ]
        return sum(values) / max(1, len(values))


def is_separated_less(positive: Scores, negative: Scores, least: float) -> bool:
    """Whether the whole 95 % interval of the AUROC is below a bound; False for few scores."""
    if min(len(positive), len(negative)) < LEAST_SCORES:
        return False
    return auroc_interval(auroc(positive, negative), len(positive), len(negative)).high < least


def _responses(prompts: Sequence[Prompt]) -> list[str | None]:
    return [p.response or "" for p in prompts]


def _mean_score(judges: Sequence[TextJudge], texts: Sequence[str | None]) -> float:
    """The mean score of the texts that have one."""
    scores = [score_of(judge, text).value for judge, text in zip(judges, texts, strict=True)]
    values = [value for value in scores if value is not None]
    return sum(values) / max(1, len(values))
