"""Synthetic records of one seed: candidates, arms, nulls, effects and evidence, with plausible numbers. No model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhumbline.evidence.statistics import wilson
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId
from rhumbline.records.effect_results import (
    ArmRate,
    Dose,
    DoseFragility,
    DosePoint,
    Effect,
    JudgeRate,
    LengthRate,
    MeanInterval,
    NullSummary,
    Readouts,
    RelativeChange,
    SiteShare,
    StabilitySummary,
    WideEffect,
    WideNull,
)
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.results import (
    BaselineRate,
    CategoryRate,
    ConditionRate,
    Divergence,
    Loss,
    NegativeRate,
    SideEffects,
)
from rhumbline.records.seed_files import Candidate, Projection, Selection, Separation, SiteSeparation
from rhumbline.records.shared import (
    ByLabel,
    KappaPair,
    Label,
    NullDirection,
    Survivor,
)
from rhumbline.records.verdict_names import VerdictName

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\u202e\u2028\'"`${x}'
SUFFIX = ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n", "<|start_header_id|>", "<|end_header_id|>", "\n\n")
REPRODUCES = VerdictName.REPRODUCES
NO_BASELINE = VerdictName.NO_BASELINE_REFUSAL
NOT_SINGLE = VerdictName.NOT_SINGLE
EFFECTS = (("suppression", ABLATION, "positive", 1), ("induction", ADDITION, "negative", -1))
"""Effect, arm, set, and the sign that makes a fall or a rise positive."""


@dataclass(frozen=True)
class Plan:
    """What a synthetic run consists of."""

    seeds: tuple[int, ...] = (0, 1)
    verdict: VerdictName = REPRODUCES
    layers: int = 10
    positions: int = 5
    families: tuple[str, ...] = ("isotropic", "shuffled")
    draws: int = 8
    n: int = 100
    """Test prompts per class."""
    candidate: bool = True
    """Whether a candidate survives."""
    evidence: bool = False
    """Whether wide nulls, dose curves, readouts, refits, side effects and a benchmark were measured."""
    behaviour: str = "refusal"
    mode: str = "exact"
    text: str | None = None
    """Put into every free text of the run."""

    @property
    def selects(self) -> bool:
        """Whether a direction is selected; without a baseline there are no refusal tokens, so that none is."""
        return self.candidate and self.verdict != NO_BASELINE

    @property
    def best(self) -> int:
        """The best layer."""
        return int(0.45 * self.layers)


def by_label(n: int) -> ByLabel[int]:
    return ByLabel(n, n)


# -- candidates -------------------------------------------------------------------------------------------------------


def candidates_of(p: Plan, rng: np.random.Generator) -> tuple[Candidate, ...]:
    return tuple(
        _candidate(p, rng, Position(position), layer)
        for position in range(-p.positions, 0)
        for layer in range(p.layers)
    )


def _candidate(p: Plan, rng: np.random.Generator, position: Position, layer: int) -> Candidate:
    near = np.exp(-(((layer - p.best) / (0.18 * p.layers)) ** 2)) * (1 - 0.13 * abs(int(position) + 1) % 0.8)
    bypass = float(6.1 - 14 * near + rng.normal(0, 0.7))
    induce = float(-7 + 12 * near + rng.normal(0, 0.7) - (0 if p.candidate else 9))
    late = 0.4 * max(0.0, layer / p.layers - 0.45) ** 2
    kl = float(0.02 + late + 0.1 * near * rng.random() + (0.5 if layer == 0 else 0))
    norm = float(2 + layer**1.3)
    if layer >= int(0.8 * p.layers):
        return Candidate(position, layer, None, None, None, norm, Discard.TOO_LATE)
    discarded = Discard.KL_TOO_LARGE if kl > 0.1 else Discard.DOES_NOT_INDUCE if induce < 0 else None
    return Candidate(position, layer, bypass, induce, kl, norm, discarded)


def selection_of(p: Plan, rng: np.random.Generator) -> Selection:
    if p.verdict == NO_BASELINE:
        return Selection(
            selected=None, reason=NoCandidate.NO_TOKENS, survivors=0, tied=(), n=by_label(32), candidates=()
        )
    rows = candidates_of(p, rng)
    cells = [
        Survivor(row.position, row.layer, row.norm, row.bypass)
        for row in rows
        if row.discarded is None and row.norm is not None and row.bypass is not None
    ]
    cells.sort(key=lambda cell: cell.bypass)
    return Selection(
        selected=cells[0] if cells else None,
        reason=None if cells else NoCandidate.ALL_DISCARDED,
        survivors=len(cells),
        tied=tuple(cell for cell in cells[1:3] if cell.bypass - cells[0].bypass < 0.5),
        baseline=ByLabel(6.1, -7.0),
        coefficient=1.0,
        room=True,
        n=by_label(32),
        candidates=rows,
    )


def grid_of(p: Plan, rng: np.random.Generator) -> tuple[SiteSeparation, ...]:
    rows = []
    for position in range(-p.positions, 0):
        for layer in range(p.layers):
            rise = 1 / (1 + np.exp(-(layer - 0.5 * p.best) / (0.08 * p.layers)))
            auroc = np.clip(0.5 + (0.5 - 0.05 * abs(position + 1)) * rise + rng.normal(0, 0.01), 0, 1)
            cosine = 0.99 - 0.5 * rise * rng.uniform(0.8, 1)
            norm = 1.5 + layer**1.3 * rng.uniform(0.9, 1.1)
            rows.append(SiteSeparation(Position(position), layer, float(auroc), float(cosine), float(norm)))
    return tuple(rows)


def separation_of(p: Plan, rng: np.random.Generator) -> Separation:
    means: tuple[tuple[Label, float], ...] = (("positive", 9.0), ("negative", -3.0))
    projections = [
        Projection(p.text or f"{label}-{k:03d}", label, float(rng.normal(mean, 2.2)))
        for label, mean in means
        for k in range(p.n)
    ]
    return Separation("test", by_label(p.n), grid_of(p, rng), tuple(projections) if p.selects else ())


# -- arms, nulls and effects ------------------------------------------------------------------------------------------


def arm_rate(arm: ArmId, side: Label, rate: float, n: int, **changes: Any) -> ArmRate:
    """One arm on one set; `changes` are further fields."""
    low, high = wilson(round(rate * n), n)
    values = {"low": low, "high": high, "degenerate": 0.04 if arm == ADDITION else 0.0, "unscored": 0}
    values |= {"correct": None, "metric": None, "metric_n": 0}
    return ArmRate(arm=arm, side=side, n=n, rate=rate, **{**values, **changes})


def arms_of(p: Plan, nulls: Sequence[NullDirection], rng: np.random.Generator) -> tuple[ArmRate, ...]:
    n, baseline = p.n, 0.02 if p.verdict == NO_BASELINE else 0.98
    arms = [
        arm_rate(BASELINE, "positive", baseline, n, metric=6.1, metric_n=n),
        arm_rate(BASELINE, "negative", 0.03, n, metric=-7.0, metric_n=n),
    ]
    if not p.selects:
        return tuple(arms)
    strong = p.verdict == REPRODUCES
    arms += [
        arm_rate(ABLATION, "positive", 0.04 if strong else 0.61, n, metric=-5.2, metric_n=n),
        arm_rate(ABLATION, "negative", 0.0, n, metric=-7.4, metric_n=n),
        arm_rate(ADDITION, "negative", 0.91 if strong else 0.33, n, metric=4.4, metric_n=n),
    ]
    for null in nulls:
        spread = 0.02 if null.family == "isotropic" else 0.12
        down = np.clip(baseline - abs(rng.normal(0, spread)) - 0.4 * abs(null.cosine), 0, 1)
        up = np.clip(0.03 + abs(rng.normal(0, spread)) + 0.5 * max(null.cosine, 0), 0, 1)
        ablation, addition = (ArmId.null(*null.null_draw, arm.kind) for arm in (ABLATION, ADDITION))
        arms.append(arm_rate(ablation, "positive", float(np.round(down * n) / n), n))
        arms.append(arm_rate(addition, "negative", float(np.round(up * n) / n), n))
    return tuple(arms)


def nulls_of(p: Plan, cell: Survivor, rng: np.random.Generator) -> tuple[NullDirection, ...]:
    return tuple(
        NullDirection(
            family,
            draw,
            float(rng.normal(0, 0.06 if family == "isotropic" else 0.16)),
            0.01,
            cell.position,
            cell.layer,
        )
        for family in p.families
        for draw in range(p.draws)
    )


def effects_of(p: Plan, arms: Sequence[ArmRate], wide: Sequence[WideEffect]) -> tuple[Effect, ...]:
    rates = {(row.arm, row.side): row.rate or 0.0 for row in arms}
    ranks = {effect.name: effect.families for effect in wide}
    effects = []
    for name, arm, side, sign in EFFECTS:
        drop = sign * (rates[BASELINE, side] - rates[arm, side])
        drops = {
            family: [
                sign * (rates[BASELINE, side] - rates[ArmId.null(family, k, arm.kind), side]) for k in range(p.draws)
            ]
            for family in p.families
        }
        gaps = {family: drop - float(np.mean(values)) for family, values in drops.items()}
        effects.append(
            Effect(
                name=name,
                drop=drop,
                low=drop - 0.06,
                high=min(1.0, drop + 0.05),
                n=p.n,
                mcnemar=0.001,
                gap=gaps,
                relative=RelativeChange(value=drop, low=drop - 0.06, high=min(1.0, drop + 0.05), n=p.n),
                relative_gap={
                    family: RelativeChange(value=gap, low=gap - 0.05, high=gap + 0.05, n=p.n, draws=p.draws)
                    for family, gap in gaps.items()
                },
                p={family: (1 + sum(v >= drop for v in values)) / (1 + p.draws) for family, values in drops.items()},
                floor={family: 1 / (1 + p.draws) for family in drops},
                null={family: NullSummary(p.draws, float(np.mean(v)), max(v)) for family, v in drops.items()},
                wide=ranks.get(name, {}),
            )
        )
    return tuple(effects)


# -- evidence ---------------------------------------------------------------------------------------------------------


def wide_of(p: Plan, rng: np.random.Generator) -> tuple[WideEffect, ...]:
    effects = []
    for name, *_ in EFFECTS if p.evidence else ():
        families = {}
        for family in p.families:
            values = [round(float(v), 4) for v in rng.normal(0.2, 1, 19)]
            mean, largest = float(np.mean(values)), max(values)
            families[family] = WideNull(
                19, mean, largest, 0.05, 0.05, None, 0.01, tuple(values), comparable=19, beaten=0, p_holm=0.4
            )
        effects.append(WideEffect(name, 16, 9.2, 8.8, 9.6, 1.0, 0.0, families))
    return tuple(effects)


def dose_of(p: Plan) -> Dose:
    if not p.evidence:
        return Dose((), DoseFragility(None, 0.2, None, None, {}))
    curves = [
        DosePoint(kind, arm, dose, 24, rate, max(0.0, rate - 0.1), min(1.0, rate + 0.1), 1.0)
        for kind in ("ablation", "addition")
        for dose in (0.0, 0.5, 1.0)
        for arm, rate in ((ArmId.parse("direction"), 1 - 0.9 * dose), (ArmId.null(p.families[0], 0), 1.0))
    ]
    return Dose(tuple(curves), DoseFragility(0.9, 0.2, 4.5, 0.55, {p.families[0]: 0.1}))


def readouts_of(p: Plan) -> Readouts:
    if not p.evidence:
        return Readouts((), (), ())
    rates: dict[str, Any] = {"arm": ABLATION, "side": "positive", "n": p.n, "rate": 0.04, "low": 0.01, "high": 0.1}
    judges = [JudgeRate(judge=judge, degenerate=0.0, **rates) for judge in ("refusal-opening", "refusal-anywhere")]
    lengths = [LengthRate(length=length, degenerate=0.0, **rates) for length in ("16", "full")]
    kappa = KappaPair(("refusal-opening", "refusal-anywhere"), 0.9, 0.95, p.n)
    return Readouts(tuple(judges), (kappa,), tuple(lengths))


def stability_of(p: Plan, cell: Survivor) -> StabilitySummary:
    if not p.evidence:
        return StabilitySummary(0, (), (), None, MeanInterval(None, None, None), None)
    chosen = SiteShare(cell.position, cell.layer, 0.9)
    return StabilitySummary(20, (cell.site,), (chosen,), 0.1, MeanInterval(0.97, 0.95, 0.98), 0.96)


def side_effects_of(p: Plan) -> SideEffects:
    if not p.evidence:
        return SideEffects((), (), 0, ())
    losses = [
        Loss("completions", arm, 24, 900, 1.2 + change, 3.3, change, change - 0.01, change + 0.01)
        for arm, change in ((ABLATION, 0.02), (ADDITION, 0.4), (ArmId.null(p.families[0], 0, ABLATION.kind), 0.01))
    ]
    negatives = NegativeRate(ABLATION, p.n, 0.0, 0.0, 0.04, -0.03, -0.08, 0.01, 0.0, 0.9, 40, -0.02, -0.1, 0.05)
    return SideEffects(
        tuple(losses), (Divergence(ABLATION, 24, 900, 0.02, 0.01, 0.03, 0.1, 2.0, 0.05),), 3, (negatives,)
    )


def breakdowns_of(p: Plan) -> dict[str, Any]:
    """Rates of parts of the test prompts."""
    if not (p.evidence and p.selects):
        return {"categories": (), "by_baseline": (), "conditions": ()}
    n = p.n // 2
    interval: dict[str, Any] = {"n": n, "rate": 0.1, "low": 0.05, "high": 0.2}
    return {
        "categories": tuple(
            CategoryRate(category=p.text or category, arm=ABLATION, side="positive", **interval)
            for category in ("theft", "weapons")
        ),
        "by_baseline": tuple(BaselineRate(group, ABLATION, **interval) for group in ("refused", "not refused")),
        "conditions": tuple(
            ConditionRate(
                condition=p.text or "system", arm=arm, side="positive", **interval, change=change, change_low=change,
                change_high=change,
            )
            for arm, change in ((BASELINE, None), (ABLATION, -0.9))
        ),
    }  # fmt: skip
