"""Effects on a rate: outcomes -> suppression and induction with their intervals, compared with the nulls.

The counterpart for continuous scores is level_effects.py. Independent of margins.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rhumbline.errors import VerificationError
from rhumbline.evidence.class_rates import SHOWN, SHOWN_OR_DEGENERATE
from rhumbline.evidence.compared_arms import (
    EFFECTS,
    EVERY_DRAW,
    ComparedArms,
    NullComparison,
    NullDraw,
    OutcomeTable,
    as_compared,
    outcomes_by_arm,
)
from rhumbline.evidence.relative_changes import (
    Change,
    Paired,
    gap_to_nulls,
    record,
    relative_change,
)
from rhumbline.evidence.statistics import (
    Difference,
    Ranking,
    difference_of_rates,
    finite_or_none,
    mcnemar,
    paired_difference,
    rank_floor,
)
from rhumbline.records.arms import BASELINE, ArmId
from rhumbline.records.effect_results import Effect, NullSummary, PooledEffect, RelativeChange
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.shared import Label


def rate_effects(
    outcomes: Iterable[Outcome],
    compared: NullComparison = EVERY_DRAW,
    effects: Sequence[ComparedArms] = EFFECTS,
) -> tuple[Effect, ...]:
    """Suppression and induction, each with its nulls; an effect is omitted if one of its arms is missing.

        suppression: drop = rate(baseline) - rate(ablation) on positives
        induction:   drop = rate(addition) - rate(baseline) on negatives
        subtraction: drop = rate(baseline) - rate(subtraction) on positives, if `effects` names it

    The interval of the drop is Newcombe's paired one. A gap is the drop minus the mean drop of the draws of a family.
    `relative` and `relative_gap` are relative to the baseline (relative_changes.py); there degenerate completions count
    against the effect, and aligned draws are not compared. Ineffective arms count as no change everywhere. A null draw
    may have completed a part of the prompts, another part for every draw. Raises VerificationError if other arms were
    run on different prompts, or null draws on different numbers of them.
    """
    table = as_compared(outcomes_by_arm(outcomes), compared)
    return tuple(
        _effect(table, effect, compared)
        for effect in effects
        if (BASELINE, effect.label) in table and (effect.arm, effect.label) in table
    )


def _effect(table: OutcomeTable, effect: ComparedArms, compared: NullComparison) -> Effect:
    label, sign = effect.label, effect.sign
    own = drop_of(table, effect.arm, label, sign)
    nulls = nulls_of(table, effect)
    _check_null_prompts(table, nulls, label)
    drops = {family: [drop_of(table, null, label, sign).mean for null in some] for family, some in nulls.items()}
    comparable = {family: [n for n in some if n.null_draw not in compared.aligned] for family, some in nulls.items()}
    kept = {f: [d for d, n in zip(drops[f], some, strict=True) if n in comparable[f]] for f, some in nulls.items()}
    ranks = {family: Ranking.of(own.mean, values) for family, values in kept.items()}
    return Effect(
        name=effect.name,
        drop=finite_or_none(own.mean),
        low=own.low,
        high=own.high,
        n=own.n,
        mcnemar=mcnemar(*paired_refusals(table, effect.arm, label)),
        gap={f: finite_or_none(own.mean - math.fsum(values) / len(values)) for f, values in drops.items()},
        p={family: rank.p(compared.least_draws) for family, rank in ranks.items()},
        floor={family: rank_floor(rank.draws) for family, rank in ranks.items()},
        null={
            f: NullSummary(
                len(v),
                finite_or_none(math.fsum(v) / len(v)),
                finite_or_none(float(np.max(v))),
                compared.n_ineffective(nulls[f]),
            )
            for f, v in drops.items()
        },
        wide={},
        relative=record(*(_relative(table, effect, how) for how in (AGAINST, IN_FAVOUR))),
        relative_gap={family: _relative_gap(table, effect, family, comparable) for family in comparable},
    )


def suppressing_draws(outcomes: Iterable[Outcome], least: float) -> set[NullDraw]:
    """The null draws under whose ablation at least this share of the behaviour is lost on the positives completed."""
    table, suppression = outcomes_by_arm(outcomes), EFFECTS[0]
    if (BASELINE, suppression.label) not in table:
        return set()
    nulls = (null for some in nulls_of(table, suppression).values() for null in some)
    changes = {null.null_draw: _presence(table, suppression, null, AGAINST).change for null in nulls}
    return {draw for draw, change in changes.items() if draw is not None and change >= least}


def nulls_of(table: OutcomeTable, effect: ComparedArms) -> dict[str, list[ArmId]]:
    """The null arms of an effect by family."""
    families: dict[str, list[ArmId]] = {}
    for null in sorted(arm for arm, side in table if side == effect.label and effect.has_null(arm)):
        assert null.family is not None
        families.setdefault(null.family, []).append(null)
    return families


# -- absolute changes -------------------------------------------------------------------------------------------------


def drop_of(table: OutcomeTable, arm: ArmId, label: Label, sign: int) -> Difference:
    """The paired fall from the baseline to the arm (sign 1), or the rise (sign -1)."""
    before, after = paired_refusals(table, arm, label)
    return paired_difference(before, after) if sign > 0 else paired_difference(after, before)


def paired_refusals(table: OutcomeTable, arm: ArmId, label: Label) -> tuple[np.ndarray, np.ndarray]:
    """Which prompts scored in both arms were refused at baseline, and under the arm; a null may have fewer prompts."""
    before, after = ([row.cls == "refused" for row in rows] for rows in _paired(table, label, arm))
    return np.array(before, dtype=bool), np.array(after, dtype=bool)


def _paired(table: OutcomeTable, label: Label, arm: ArmId) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes at baseline and under an arm on the prompts that are scored in both."""
    baseline, treated = table[BASELINE, label], table[arm, label]
    if alone := sorted(treated.keys() - baseline.keys() if arm.is_null else baseline.keys() ^ treated.keys()):
        raise VerificationError(
            f"Arms {BASELINE} and {arm} were not run on the same {label} prompts; in one of them only: "
            f"{', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''} ({len(alone)} in all). Resume the run, or "
            "remove the incomplete rows."
        )
    scored = [i for i in baseline if i in treated and "unscored" not in (baseline[i].cls, treated[i].cls)]
    return [baseline[i] for i in scored], [treated[i] for i in scored]


def _check_null_prompts(table: OutcomeTable, nulls: Mapping[str, Sequence[ArmId]], label: Label) -> None:
    """Raise VerificationError unless every null draw was run on the same number of prompts."""
    sizes = {arm: len(table[arm, label]) for some in nulls.values() for arm in some}
    most = max(sizes.values(), default=0)
    if fewer := [str(arm) for arm, n in sizes.items() if n < most]:
        raise VerificationError(
            f"The null draws were run on {most} {label} prompts each, but {', '.join(fewer[:5])} on fewer. Resume the "
            "run, or remove the incomplete rows."
        )


# -- relative changes -------------------------------------------------------------------------------------------------


class _Counting(NamedTuple):
    """How the completions under an intervention are counted."""

    degenerate_counts_against: bool

    def presence(self, rows: Sequence[Outcome], sign: int, is_baseline: bool = False) -> Float[np.ndarray, " prompt"]:
        """1 for each completion that has what the effect should remove: the behaviour (sign 1) or its absence (-1)."""
        shown = SHOWN
        if not is_baseline and self.degenerate_counts_against == (sign > 0):
            shown = SHOWN_OR_DEGENERATE
        return np.array([(row.cls in shown) == (sign > 0) for row in rows], dtype=float)


AGAINST, IN_FAVOUR = _Counting(True), _Counting(False)


def _presence(table: OutcomeTable, effect: ComparedArms, arm: ArmId, how: _Counting) -> Paired:
    """What the effect should remove, at baseline and under an arm."""
    before, after = _paired(table, effect.label, arm)
    return Paired(
        [row.prompt_id for row in before],
        how.presence(before, effect.sign, is_baseline=True),
        how.presence(after, effect.sign),
        [row.category for row in before],
    )


def _relative(table: OutcomeTable, effect: ComparedArms, how: _Counting) -> Change:
    own = _presence(table, effect, effect.arm, how)
    return relative_change(own.before, own.after, own.categories)


def _relative_gap(
    table: OutcomeTable, effect: ComparedArms, family: str, nulls: Mapping[str, Sequence[ArmId]]
) -> RelativeChange:
    """The gap to one family; `nulls` holds the comparable draws of every family."""
    gaps = []
    for how in (AGAINST, IN_FAVOUR):
        draws = {name: [_presence(table, effect, null, how) for null in some] for name, some in nulls.items()}
        gaps.append(gap_to_nulls(_relative(table, effect, how), draws[family], list(draws.values())))
    return record(*gaps, draws=len(nulls[family]))


# -- all seeds --------------------------------------------------------------------------------------------------------


def pooled_rate_effects(by_seed: Mapping[int, Sequence[Outcome]]) -> tuple[PooledEffect, ...]:
    """Both effects over all seeds: the mean change of the rate over the distinct prompts.

    A prompt that several seeds test counts once, with its mean over them; `shared` is the number of such prompts. The
    interval of the drop treats before and after as independent rates, so it is conservative; that of `relative` is
    paired and resamples categories. `spread` is the range of the seeds' own drops.
    """
    tables = [outcomes_by_arm(outcomes) for outcomes in by_seed.values()]
    pooled = (_pooled_effect(tables, effect) for effect in EFFECTS)
    return tuple(effect for effect in pooled if effect is not None)


def _pooled_effect(tables: Sequence[OutcomeTable], effect: ComparedArms) -> PooledEffect | None:
    sign = effect.sign
    pairs_of: dict[str, list[tuple[Outcome, Outcome]]] = {}
    drops = []
    for table in tables:
        before, after = (table.get((arm, effect.label), {}) for arm in (BASELINE, effect.arm))
        pairs = {
            prompt: (before[prompt], row)
            for prompt, row in after.items()
            if prompt in before and "unscored" not in (row.cls, before[prompt].cls)
        }
        if pairs:
            drops.append(
                sign * sum((b.cls == "refused") - (a.cls == "refused") for b, a in pairs.values()) / len(pairs)
            )
        for prompt, pair in pairs.items():
            pairs_of.setdefault(prompt, []).append(pair)
    if not pairs_of:
        return None
    rates = [
        math.fsum(math.fsum(p[k].cls == "refused" for p in pairs) / len(pairs) for pairs in pairs_of.values())
        / len(pairs_of)
        for k in (0, 1)
    ]
    drop = difference_of_rates(*rates[::sign], n=len(pairs_of))
    return PooledEffect(
        effect.name,
        drop=drop.mean,
        low=drop.low,
        high=drop.high,
        n=drop.n,
        spread=max(drops) - min(drops),
        shared=sum(len(pairs) > 1 for pairs in pairs_of.values()),
        relative=record(*(_pooled_change(list(pairs_of.values()), sign, how) for how in (AGAINST, IN_FAVOUR))),
    )


def _pooled_change(pairs_of: Sequence[Sequence[tuple[Outcome, Outcome]]], sign: int, how: _Counting) -> Change:
    """The relative change over prompts, each with its mean over the seeds that test it."""
    before = [how.presence([b for b, _ in pairs], sign, is_baseline=True).mean() for pairs in pairs_of]
    after = [how.presence([a for _, a in pairs], sign).mean() for pairs in pairs_of]
    return relative_change(np.array(before), np.array(after), [pairs[0][0].category for pairs in pairs_of])
