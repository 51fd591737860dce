"""Damage: outcomes -> what the direction's own arms change apart from the effect, on the same prompts as the baseline.

Independent of bounds and of what is measured on texts (side_effects.py).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from rhumbline.evidence.class_rates import SHOWN
from rhumbline.evidence.compared_arms import outcomes_by_arm
from rhumbline.evidence.statistics import LEAST_RESAMPLED, Difference, bootstrap_mean, finite_or_none, paired_difference
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId
from rhumbline.records.effect_results import DamageChange, Quantity
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import Label

ARMS: tuple[tuple[ArmId, Label], ...] = ((ABLATION, "positive"), (ADDITION, "negative"), (ABLATION, "negative"))
"""The arms whose damage is measured."""
DRAWS = 2000
"""Bootstrap draws."""


def damage_changes(outcomes: Iterable[Outcome]) -> tuple[DamageChange, ...]:
    """Every measured change apart from the effects.

    Degenerate completions and (on negatives under ablation) the behaviour: rise of the rate. Known answers and content:
    fall of the share.
    """
    table = outcomes_by_arm(outcomes)
    changes = []
    for arm, label in ARMS:
        base, rows = table.get((BASELINE, label), {}), table.get((arm, label), {})
        pairs = [(base[i], row) for i, row in rows.items() if i in base and "unscored" not in (base[i].cls, row.cls)]
        if not pairs:
            continue
        rises: dict[Quantity, Difference] = {"degenerate": _rise(pairs, {"degenerate"})}
        if (arm, label) == (ABLATION, "negative"):
            rises["behaviour"] = _rise(pairs, set(SHOWN))
        known = [(b.correctness, a.correctness) for b, a in pairs if None not in (b.correctness, a.correctness)]
        if known:
            rises["correct"] = _fall(np.array(known, dtype=float))
        changes += [
            DamageChange(
                quantity=name,
                arm=arm,
                side=label,
                change=x.mean,
                low=finite_or_none(x.low),
                high=finite_or_none(x.high),
                n=x.n,
            )
            for name, x in rises.items()
        ]
    return tuple(changes)


def _rise(pairs: Sequence[tuple[Outcome, Outcome]], classes: set[str]) -> Difference:
    """Rise of the share of completions of some classes, with Newcombe's paired interval."""
    before, after = (np.array([pair[k].cls in classes for pair in pairs], dtype=bool) for k in (0, 1))
    return paired_difference(after, before)


def _fall(shares: np.ndarray) -> Difference:
    """Fall of the mean share: Newcombe's interval if every share is 0 or 1, and otherwise a bootstrap over prompts.

    The bootstrap interval is NaN with fewer than `LEAST_RESAMPLED` prompts.
    """
    if np.isin(shares, (0.0, 1.0)).all():
        return paired_difference(shares[:, 0] == 1, shares[:, 1] == 1)
    fall, rng = shares[:, 0] - shares[:, 1], np.random.default_rng(0)
    return Difference(*bootstrap_mean(fall, rng, draws=DRAWS, least=LEAST_RESAMPLED))
