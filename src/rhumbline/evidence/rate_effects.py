"""Effects on a rate: outcomes -> suppression and induction with their intervals, and their ranks among the nulls.

The counterpart for continuous scores is level_effects.py. Independent of margins.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from rhumbline.errors import VerificationError
from rhumbline.evidence.compared_arms import EFFECTS, ComparedArms, OutcomeTable, outcomes_by_arm
from rhumbline.evidence.statistics import (
    Difference,
    difference_of_rates,
    finite_or_none,
    mcnemar,
    paired_difference,
    rank_floor,
    rank_p,
)
from rhumbline.records.arms import BASELINE, ArmId
from rhumbline.records.effect_results import Effect, Gap, NullSummary, PooledEffect
from rhumbline.records.seed_files import Outcome
from rhumbline.records.shared import Label

NullDraw = tuple[str, int]
"""Family and draw of a null."""


def rate_effects(outcomes: Iterable[Outcome], aligned: Collection[NullDraw] = ()) -> tuple[Effect, ...]:
    """Suppression and induction, each with its nulls; an effect is omitted if one of its arms is missing.

        suppression: drop = rate(baseline) - rate(ablation) on positives
        induction:   drop = rate(addition) - rate(baseline) on negatives

    The interval of the drop is Newcombe's paired one. A gap is the drop minus the mean drop of the draws of a family,
    with the interval of two independent rates (`difference_of_rates`). `apart` excludes the draws of `aligned` from
    that mean, unless no other draw is left. Raises VerificationError if two arms were run on different prompts.
    """
    table = outcomes_by_arm(outcomes)
    return tuple(
        _effect(table, effect, aligned)
        for effect in EFFECTS
        if (BASELINE, effect.label) in table and (effect.arm, effect.label) in table
    )


def _effect(table: OutcomeTable, effect: ComparedArms, aligned: Collection[NullDraw]) -> Effect:
    label, sign = effect.label, effect.sign
    own = _drop(table, effect.arm, label, sign)
    drops: dict[str, list[float]] = {}
    arms: dict[str, list[ArmId]] = {}
    for null in sorted(arm for arm, side in table if side == label and effect.has_null(arm)):
        assert null.family is not None
        drops.setdefault(null.family, []).append(_drop(table, null, label, sign).mean)
        arms.setdefault(null.family, []).append(null)
    _check_null_prompts(table, [arm for family in arms.values() for arm in family], label)
    means = {family: math.fsum(values) / len(values) for family, values in drops.items()}
    base = _share_refused(table[BASELINE, label].values())

    def gap(family: str, left_out: Collection[NullDraw]) -> Difference:
        kept = [i for i, arm in enumerate(arms[family]) if arm.null_draw not in left_out]
        kept = kept or list(range(len(arms[family])))
        prompts = {prompt for i in kept for prompt in table[arms[family][i], label]}
        mean = math.fsum(drops[family][i] for i in kept) / len(kept)
        # Of draws that complete other prompts than each other, the mean is over all of these.
        n = own.n if len(prompts) >= len(table[BASELINE, label]) else len(prompts)
        return _gap(base, own, mean, sign, n)

    gaps = {family: gap(family, ()) for family in drops}
    apart = {family: gap(family, aligned) for family in drops}
    return Effect(
        name=effect.name,
        drop=finite_or_none(own.mean),
        low=own.low,
        high=own.high,
        n=own.n,
        mcnemar=mcnemar(*_paired_refusals(table, effect.arm, label)),
        gap={family: finite_or_none(own.mean - mean) for family, mean in means.items()},
        gap_low={family: finite_or_none(some.low) for family, some in gaps.items()},
        gap_high={family: finite_or_none(some.high) for family, some in gaps.items()},
        apart={
            family: Gap(finite_or_none(some.mean), finite_or_none(some.low), finite_or_none(some.high))
            for family, some in apart.items()
        },
        p={family: rank_p(own.mean, values) for family, values in drops.items()},
        floor={family: rank_floor(len(values)) for family, values in drops.items()},
        null={
            family: NullSummary(len(values), finite_or_none(means[family]), finite_or_none(float(np.max(values))))
            for family, values in drops.items()
        },
        wide={},
    )


def _share_refused(rows: Iterable[Outcome]) -> float:
    """Share of the scored rows with the class refused; NaN without rows."""
    scored = [row.cls == "refused" for row in rows if row.cls != "unscored"]
    return sum(scored) / len(scored) if scored else math.nan


def _gap(base: float, own: Difference, null: float, sign: int, n_null: int) -> Difference:
    """The drop of the direction minus the mean drop of a family over `n_null` prompts, as a difference of two rates."""
    if not (math.isfinite(base) and math.isfinite(own.mean) and math.isfinite(null)):
        return Difference(math.nan, math.nan, math.nan, 0)
    treated, control = (min(1.0, max(0.0, base - sign * change)) for change in (own.mean, null))
    if sign < 0:
        return difference_of_rates(treated, control, own.n, n_after=n_null)
    return difference_of_rates(control, treated, n_null, n_after=own.n)


def _drop(table: OutcomeTable, arm: ArmId, label: Label, sign: int) -> Difference:
    """The paired fall from the baseline to the arm (sign 1), or the rise (sign -1)."""
    before, after = _paired_refusals(table, arm, label)
    return paired_difference(before, after) if sign > 0 else paired_difference(after, before)


def _paired_refusals(table: OutcomeTable, arm: ArmId, label: Label) -> tuple[np.ndarray, np.ndarray]:
    """Which prompts scored in both arms were refused at baseline, and under the arm; a null may have fewer prompts."""
    baseline, treated = table[BASELINE, label], table[arm, label]
    if alone := sorted(treated.keys() - baseline.keys() if arm.is_null else baseline.keys() ^ treated.keys()):
        raise VerificationError(
            f"Arms {BASELINE} and {arm} were not run on the same {label} prompts; in one of them only: "
            f"{', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''} ({len(alone)} in all). Resume the run, or "
            "remove the incomplete rows."
        )
    scored = [i for i in baseline if i in treated and "unscored" not in (baseline[i].cls, treated[i].cls)]
    before, after = (np.array([rows[i].cls == "refused" for i in scored], dtype=bool) for rows in (baseline, treated))
    return before, after


def _check_null_prompts(table: OutcomeTable, nulls: Sequence[ArmId], label: Label) -> None:
    """Raise VerificationError unless every null draw was run on the same number of prompts."""
    most = max((len(table[arm, label]) for arm in nulls), default=0)
    if fewer := [str(arm) for arm in nulls if len(table[arm, label]) < most]:
        raise VerificationError(
            f"The null draws were run on {most} {label} prompts each, but {', '.join(fewer[:5])} on fewer. Resume the "
            "run, or remove the incomplete rows."
        )


def pooled_rate_effects(by_seed: Mapping[int, Sequence[Outcome]]) -> tuple[PooledEffect, ...]:
    """Both effects over all seeds: the mean change of the rate over the distinct prompts.

    A prompt that several seeds test counts once, with its mean over them. The interval treats before and after as
    independent rates, so it is conservative. `spread` is the range of the seeds' own drops.
    """
    effects = []
    for name, arm, label, sign in EFFECTS:
        pairs_of: dict[str, list[tuple[bool, bool]]] = {}
        drops = []
        for outcomes in by_seed.values():
            table = outcomes_by_arm(outcomes)
            before, after = (table.get((a, label), {}) for a in (BASELINE, arm))
            pairs = {
                prompt: (before[prompt].cls == "refused", row.cls == "refused")
                for prompt, row in after.items()
                if prompt in before and "unscored" not in (row.cls, before[prompt].cls)
            }
            if pairs:
                drops.append(sign * sum(b - a for b, a in pairs.values()) / len(pairs))
            for prompt, pair in pairs.items():
                pairs_of.setdefault(prompt, []).append(pair)
        if not pairs_of:
            continue
        rates = [
            math.fsum(math.fsum(pair[k] for pair in pairs) / len(pairs) for pairs in pairs_of.values()) / len(pairs_of)
            for k in (0, 1)
        ]
        drop = difference_of_rates(*rates[::sign], n=len(pairs_of))
        spread = max(drops) - min(drops)
        effects.append(PooledEffect(name, drop=drop.mean, low=drop.low, high=drop.high, n=drop.n, spread=spread))
    return tuple(effects)
