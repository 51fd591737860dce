"""The candidates for which the rounding of scores can change the selection.

A score depends on the shape of its batch by rounding. If no score changes by more than a bound, the candidates returned
here, scored again in one shape, give the same selection as all candidates scored again. Independent of models.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rhumbline.evidence.selection_rules import SelectionRule, why_discarded
from rhumbline.records.reasons import Discard
from rhumbline.records.seed_files import Candidate, Rounding

SMALLEST = 5e-6
"""Smallest bound on rounding: that of float32, which the few measured values can miss."""
STANDARD_ERRORS = 4
"""Standard errors of the mean that a rounding bound contains in addition to the largest change measured."""


def rounding_bound(changes: Float[np.ndarray, "candidate prompt"], n: int) -> float:
    """Bound on the change of a mean over n prompts with the shape of its batch, from changes of values on some of them.

    The largest mean change of a candidate, plus `STANDARD_ERRORS` standard errors of a mean change. On fewer than n
    prompts the first term is larger, because it contains more noise.
    """
    finite = changes[np.isfinite(changes).all(1)]
    if not finite.size:
        return SMALLEST
    error = math.sqrt(float((finite**2).mean()) / n)
    return max(SMALLEST, float(np.abs(finite.mean(1)).max()) + STANDARD_ERRORS * error)


def criterion_bound(rule: SelectionRule, rounding: Rounding) -> float:
    """Bound on the change of the criterion of one candidate."""
    return rounding.bypass + (0.0 if rule.criterion == "lowest-bypass" else rounding.induce)


def can_survive(row: Candidate, n_layers: int, rule: SelectionRule, rounding: Rounding) -> bool:
    """Whether the rule keeps the candidate, or could keep it if its scores changed by rounding."""
    return _reason(row, n_layers, rule, rounding, 1) is None


def surely_survives(row: Candidate, n_layers: int, rule: SelectionRule, rounding: Rounding) -> bool:
    """Whether the rule keeps the candidate for every change of its scores by rounding."""
    return _reason(row, n_layers, rule, rounding, -1) is None


def _reason(row: Candidate, n_layers: int, rule: SelectionRule, rounding: Rounding, sign: int) -> Discard | None:
    """Why the candidate is discarded if its scores change in its favour (sign 1), or against it (sign -1)."""
    kl, induce = (
        None if score is None else score - sign * direction * bound
        for score, direction, bound in ((row.kl, 1, rounding.kl), (row.induce, -1, rounding.induce))
    )
    return why_discarded(
        Candidate(row.position, row.layer, row.bypass, induce, kl, row.norm, row.discarded, row.content, row.moved),
        n_layers,
        rule,
    )


def contenders(table: Sequence[Candidate], n_layers: int, rule: SelectionRule, rounding: Rounding) -> list[Candidate]:
    """The candidates that could be selected if scores changed by rounding; a single one only if it could be discarded.

    A rule that needs completions compares all survivors later. Its contenders are those that could survive or not.
    """
    possible = [row for row in table if can_survive(row, n_layers, rule.metric_only(), rounding)]
    sure = [row for row in possible if surely_survives(row, n_layers, rule.metric_only(), rounding)]
    if rule != rule.metric_only():
        return [row for row in possible if row not in sure]
    limit = min((rule.criterion_of(row) for row in sure), default=math.inf) + 2 * criterion_bound(rule, rounding)
    close = [row for row in possible if rule.criterion_of(row) <= limit]
    return [] if len(close) == 1 and close[0] in sure else close
