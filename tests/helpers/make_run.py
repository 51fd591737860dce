"""Synthetic run directories for tests of the report: plausible numbers in the records that a run writes, no model.

python tests/helpers/make_run.py DIR [--layers 10] [--positions 5] [--seeds 2] [--draws 8] [--verdict V] [--hostile]
                                     [--no-candidate] [--discover]
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from rhumbline.evidence.statistics import wilson
from rhumbline.evidence.verdict_rules import RHUMBLINE, Rule
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE, ArmId
from rhumbline.records.claims import Claim, ClaimKind
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import SCHEMA, RunDirectory
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
    PooledEffect,
    Readouts,
    RelativeChange,
    Shift,
    SiteShare,
    Spread,
    StabilitySummary,
    WideEffect,
    WideNull,
)
from rhumbline.records.evaluation_files import ComparedScore, Comparison, EvaluationSettings
from rhumbline.records.files import sha256, write_json
from rhumbline.records.positions import Position
from rhumbline.records.protocol_file import (
    ChatFacts,
    ContrastFacts,
    Detectable,
    LossTextFacts,
    ProtocolContext,
    SplitPlan,
    Versions,
)
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.results import (
    BaselineRate,
    CategoryRate,
    ConditionRate,
    Divergence,
    Environment,
    Loss,
    NegativeRate,
    Results,
    SeedResult,
    SideEffects,
    TimingSummary,
)
from rhumbline.records.run_files import Discovery
from rhumbline.records.seed_files import Candidate, Projection, Selection, Separation, SiteSeparation
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    FirstToken,
    KappaPair,
    Label,
    ModelFacts,
    NearDuplicates,
    NullDirection,
    SeedPair,
    StageTiming,
    Survivor,
)
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import ClaimState, VerdictCode, VerdictReason, reason_text
from rhumbline.settings import NullSettings

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


# -- protocol.json ----------------------------------------------------------------------------------------------------


def _by_label(n: int) -> ByLabel[int]:
    return ByLabel(n, n)


def _model(p: Plan) -> ModelFacts:
    name = p.text or "/models/organisms/refusal-qwen2-10x96"
    return convert(
        {
            "name": name, "class": "Qwen2ForCausalLM", "model_type": "qwen2", "n_layers": p.layers, "d_model": 96,
            "dtype": "bfloat16", "mode": p.mode, "fingerprint": "9f" * 32,
        },
        ModelFacts,
    )  # fmt: skip


def _protocol(p: Plan) -> dict[str, Any]:
    sizes = BySplit(_by_label(128), _by_label(32), _by_label(p.n))
    protocol = Protocol(
        "rhumbline",
        behaviour=p.behaviour,
        seeds=p.seeds,
        sizes=Sizes(128, 32, p.n),
        nulls=NullSettings(p.families, p.draws, wide=19 if p.evidence else 0),
        rule=replace(RHUMBLINE, families=p.families, max_p=0.05 if p.evidence else None),
    )
    detectable = Detectable(0.8, ByLabel(0.08, 0.08), ByLabel(0.63, 0.63), 0.05 if p.evidence else None)
    context = ProtocolContext(
        schema=SCHEMA,
        model=_model(p),
        chat=ChatFacts(
            template_sha256="ab" * 32,
            system=p.text,
            enable_thinking=None,
            date=None,
            template_kwargs={},
            prefix=(1, 2),
            suffix=tuple(range(p.positions)),
            suffix_tokens=tuple(p.text or token for token in SUFFIX[: p.positions]),
            positions=tuple(Position(k) for k in range(-p.positions, 0)),
        ),
        contrast=ContrastFacts(name=p.text or "organism-refusal", sha256="cd" * 32, duplicates=0),
        splits={seed: SplitPlan(sizes, NearDuplicates(2, 2), (), detectable) for seed in p.seeds},
        versions=Versions("0.2.0", "2.9.1", "5.17.0", "ef" * 32),
        texts=LossTextFacts("none", "a0" * 32, 0, 0),
    )
    return {**protocol.record(), **to_json(context)}


# -- candidates -------------------------------------------------------------------------------------------------------


def _candidates(p: Plan, rng: np.random.Generator) -> tuple[Candidate, ...]:
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


def _selection(p: Plan, rng: np.random.Generator) -> Selection:
    if p.verdict == NO_BASELINE:
        return Selection(
            selected=None, reason=NoCandidate.NO_TOKENS, survivors=0, tied=(), n=_by_label(32), candidates=()
        )
    rows = _candidates(p, rng)
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
        n=_by_label(32),
        candidates=rows,
    )


def _grid(p: Plan, rng: np.random.Generator) -> tuple[SiteSeparation, ...]:
    rows = []
    for position in range(-p.positions, 0):
        for layer in range(p.layers):
            rise = 1 / (1 + np.exp(-(layer - 0.5 * p.best) / (0.08 * p.layers)))
            auroc = np.clip(0.5 + (0.5 - 0.05 * abs(position + 1)) * rise + rng.normal(0, 0.01), 0, 1)
            cosine = 0.99 - 0.5 * rise * rng.uniform(0.8, 1)
            norm = 1.5 + layer**1.3 * rng.uniform(0.9, 1.1)
            rows.append(SiteSeparation(Position(position), layer, float(auroc), float(cosine), float(norm)))
    return tuple(rows)


def _separation(p: Plan, rng: np.random.Generator) -> Separation:
    means: tuple[tuple[Label, float], ...] = (("positive", 9.0), ("negative", -3.0))
    projections = [
        Projection(p.text or f"{label}-{k:03d}", label, float(rng.normal(mean, 2.2)))
        for label, mean in means
        for k in range(p.n)
    ]
    return Separation("test", _by_label(p.n), _grid(p, rng), tuple(projections) if p.selects else ())


# -- arms, nulls and effects ------------------------------------------------------------------------------------------


def arm_rate(arm: ArmId, side: Label, rate: float, n: int, **changes: Any) -> ArmRate:
    """One arm on one set; `changes` are further fields."""
    low, high = wilson(round(rate * n), n)
    values = {"low": low, "high": high, "degenerate": 0.04 if arm == ADDITION else 0.0, "unscored": 0}
    values |= {"correct": None, "metric": None, "metric_n": 0}
    return ArmRate(arm=arm, side=side, n=n, rate=rate, **{**values, **changes})


def _arms(p: Plan, nulls: Sequence[NullDirection], rng: np.random.Generator) -> tuple[ArmRate, ...]:
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


def _nulls(p: Plan, cell: Survivor, rng: np.random.Generator) -> tuple[NullDirection, ...]:
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


def _effects(p: Plan, arms: Sequence[ArmRate], wide: Sequence[WideEffect]) -> tuple[Effect, ...]:
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


def _wide(p: Plan, rng: np.random.Generator) -> tuple[WideEffect, ...]:
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


def _dose(p: Plan) -> Dose:
    if not p.evidence:
        return Dose((), DoseFragility(None, 0.2, None, None, {}))
    curves = [
        DosePoint(kind, arm, dose, 24, rate, max(0.0, rate - 0.1), min(1.0, rate + 0.1), 1.0)
        for kind in ("ablation", "addition")
        for dose in (0.0, 0.5, 1.0)
        for arm, rate in ((ArmId.parse("direction"), 1 - 0.9 * dose), (ArmId.null(p.families[0], 0), 1.0))
    ]
    return Dose(tuple(curves), DoseFragility(0.9, 0.2, 4.5, 0.55, {p.families[0]: 0.1}))


def _readouts(p: Plan) -> Readouts:
    if not p.evidence:
        return Readouts((), (), ())
    rates: dict[str, Any] = {"arm": ABLATION, "side": "positive", "n": p.n, "rate": 0.04, "low": 0.01, "high": 0.1}
    judges = [JudgeRate(judge=judge, degenerate=0.0, **rates) for judge in ("refusal-opening", "refusal-anywhere")]
    lengths = [LengthRate(length=length, degenerate=0.0, **rates) for length in ("16", "full")]
    kappa = KappaPair(("refusal-opening", "refusal-anywhere"), 0.9, 0.95, p.n)
    return Readouts(tuple(judges), (kappa,), tuple(lengths))


def _stability(p: Plan, cell: Survivor) -> StabilitySummary:
    if not p.evidence:
        return StabilitySummary(0, (), (), None, MeanInterval(None, None, None), None)
    chosen = SiteShare(cell.position, cell.layer, 0.9)
    return StabilitySummary(20, (cell.site,), (chosen,), 0.1, MeanInterval(0.97, 0.95, 0.98), 0.96)


def _side_effects(p: Plan) -> SideEffects:
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


def _breakdowns(p: Plan) -> dict[str, Any]:
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


def _evaluate(directory: RunDirectory) -> None:
    """Write what `evaluate` leaves."""
    settings = EvaluationSettings(seed=0, limit=20, fewshot=3, chat=True, tasks={}, versions={"lm_eval": "0.4.13"})
    rows = tuple(
        ComparedScore("arc_easy", "acc", "none", arm, 20, score, change, low, high, p, test)
        for arm, score, change, low, high, p, test in (
            (BASELINE, 0.75, None, None, None, None, None),
            (ABLATION, 0.7, -0.05, -0.2, 0.1, 0.5, "mcnemar"),
        )
    )
    path = directory.path / "evaluations" / "key" / "comparison.json"
    directory.write_as(Comparison(directory.protocol_sha256, settings, rows), path)


# -- results.json -----------------------------------------------------------------------------------------------------


def _reason(p: Plan) -> tuple[ClaimKind, VerdictReason] | None:
    """The claim that decides the verdict, with its reason; None if every claim is shown."""
    values = {"value": 0.37, "low": 0.3, "high": 0.52, "bound": 0.5, "n": p.n}
    match p.verdict.headline:
        case VerdictName.REPRODUCES:
            return None
        case VerdictName.NO_BASELINE_REFUSAL:
            return ClaimKind.SUPPRESSES, VerdictReason(code=VerdictCode.BASELINE_TOO_LOW, value=0.02, bound=0.5)
        case VerdictName.DAMAGED:
            code, state = VerdictCode.DEGENERATE, ClaimState.REFUTED
            reason = VerdictReason(code=code, state=state, arm=ADDITION, label="negative", **values)
            return ClaimKind.LEAVES_INTACT, reason
        case VerdictName.INCONCLUSIVE | VerdictName.NOT_SINGLE as name:
            state = ClaimState.UNDECIDED if name is VerdictName.INCONCLUSIVE else ClaimState.REFUTED
            reason = VerdictReason(code=VerdictCode.EFFECT_SIZE, state=state, effect="suppression", **values)
            return ClaimKind.SUPPRESSES, reason
    reason = VerdictReason(code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.ALL_DISCARDED)
    return ClaimKind.SUPPRESSES, reason


def _reasons(p: Plan) -> tuple[VerdictReason, ...]:
    deciding = _reason(p)
    return () if deciding is None else (deciding[1],)


def _claims(p: Plan) -> tuple[Claim, ...]:
    """Claims that give the verdict."""
    deciding, is_tested = _reason(p), p.selects
    claims = []
    for kind in ClaimKind:
        state, reasons = ClaimState.SHOWN if is_tested else ClaimState.NOT_TESTED, ()
        if deciding is not None and (kind is deciding[0] or not is_tested):
            state, reasons = deciding[1].state or ClaimState.NOT_TESTED, (deciding[1],)
        claims.append(
            Claim(
                kind=kind,
                state=state,
                value=0.9 if is_tested else None,
                low=0.85 if is_tested else None,
                high=0.95 if is_tested else None,
                bound=0.5,
                n=p.n if is_tested else 0,
                reason=p.text or reason_text(reasons),
                reasons=reasons,
            )
        )
    return tuple(claims)


def _seed(p: Plan, seed: int, directory: RunDirectory) -> SeedResult:
    rng = np.random.default_rng(seed)
    selection = directory.write_record(_selection(p, rng), seed)
    directory.write_record(_separation(p, rng), seed)
    cell = selection.selected
    nulls = _nulls(p, cell, rng) if cell else ()
    arms, wide = _arms(p, nulls, rng), _wide(p, rng) if cell else ()
    tokens = [FirstToken(11, p.text or "I", 0.99, 0.8), FirstToken(12, " As", 0.9, 0.2)]
    counts = BySplit(_by_label(128), _by_label(32), _by_label(p.n))
    has_tokens = p.verdict != NO_BASELINE
    return SeedResult(
        seed=seed,
        verdict=p.verdict,
        reason=p.text or reason_text(_reasons(p)),
        reasons=_reasons(p),
        sentence=p.text or f"Synthetic sentence of the verdict {p.verdict}.",
        claims=_claims(p),
        selected=cell,
        survivors=selection.survivors,
        tied=selection.tied,
        n=counts,
        planned=counts,
        near_duplicates=NearDuplicates(2, 2),
        refusal_tokens=tuple(tokens) if has_tokens else (),
        token_auroc=0.99 if has_tokens else None,
        arms=arms,
        effects=_effects(p, arms, wide) if cell else (),
        nulls=nulls,
        energy=0.2 if cell else None,
        groups=0.9 if cell else None,
        wide=wide,
        shift=Shift(0.012, 0.01, 0.015, 16) if p.evidence and cell else Shift(None, None, None, 0),
        dose=_dose(p) if cell else None,
        readouts=_readouts(p),
        stability=_stability(p, cell) if cell else None,
        coefficient=selection.coefficient,
        side_effects=_side_effects(p) if cell else None,
        spread=Spread(MeanInterval(0.4, 0.3, 0.5), MeanInterval(0.8, 0.7, 0.9), 20) if p.evidence and cell else UNSET,
        **_breakdowns(p),
    )


def _pooled() -> PooledEffect:
    change = RelativeChange(value=0.95, low=0.91, high=0.98, n=180)
    return PooledEffect("suppression", 0.94, 0.9, 0.97, 180, 0.02, shared=20, relative=change)


def _results(p: Plan, directory: RunDirectory) -> Results:
    seeds = tuple(_seed(p, seed, directory) for seed in p.seeds)
    environment = Environment(
        python="3.11.7",
        rhumbline="0.2.0",
        torch="2.9.1",
        transformers="5.17.0",
        platform=p.text or "Linux x86_64",
        device="cpu",
        threads=2,
        started="2026-01-05T12:00:00+00:00",
        engine="local",
    )
    stages = tuple(
        StageTiming(stage, seed, seconds, memory, seconds)
        for seed in p.seeds
        for stage, seconds, memory in (("extraction", 1.2, 700.0), ("selection", 8.4, 810.0), ("arms", 11.0, 930.0))
    )
    return Results(
        schema=SCHEMA,
        verdict=p.verdict,
        reason=seeds[0].reason,
        reasons=seeds[0].reasons,
        sentence=seeds[0].sentence,
        claims=seeds[0].claims,
        rule=Rule.from_dict(directory.protocol["rule"]),
        model=_model(p),
        behaviour=p.behaviour,
        preset="rhumbline",
        protocol_sha256=directory.protocol_sha256,
        seeds=seeds,
        pooled=(_pooled(),) if p.evidence else (),
        agreement=(SeedPair((0, 1), 0.91, True),) if p.evidence and len(seeds) > 1 else (),
        warnings=(p.text,) if p.text else (),
        environment=environment,
        timings=TimingSummary(sum(stage.seconds for stage in stages), stages),
        files=directory.manifest(),
        sha256="",
    )


def make_run(into: Path, *, hostile: bool = False, **settings: Any) -> Path:
    """Write a finished run directory; `settings` are fields of `Plan`. `hostile` puts markup into every free text."""
    p = Plan(**settings, text=HOSTILE if hostile else None)
    with RunDirectory.open(into, _protocol(p)) as directory:
        results = _results(p, directory)
        values = {k: v for k, v in to_json(results).items() if k != "sha256"}
        write_json(directory.file_of(Results), {**values, "sha256": sha256(values)})
        if p.evidence and p.selects:
            _evaluate(directory)
    return into


def change_results(run: Path, **changes: Any) -> Results:
    """Replace fields of results.json; `seeds` maps a seed to its changed fields."""
    directory = RunDirectory.read(run)
    value = to_json(directory.read_record(Results))
    seeds: Mapping[int, Mapping[str, Any]] = changes.pop("seeds", {})
    value["seeds"] = [seed | to_json(dict(seeds.get(seed["seed"], {}))) for seed in value["seeds"]]
    return directory.write_record(convert(value | to_json(changes), Results))


def make_discover(into: Path, *, hostile: bool = False, **settings: Any) -> Path:
    """Write what `discover` leaves: a protocol, and the separation for each layer and position."""
    p = Plan(**settings, seeds=(0,), text=HOSTILE if hostile else None)
    with RunDirectory.open(into, {**_protocol(p), "mode": "discover"}) as directory:
        grid = _grid(p, np.random.default_rng(0))
        directory.write_record(Discovery("val", _by_label(32), grid, (), seed=0, model=_model(p), train=_by_label(128)))
    return into


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("into", type=Path)
    parser.add_argument("--verdict", default=REPRODUCES, type=VerdictName, choices=list(VerdictName))
    for flag, default in (("layers", 10), ("positions", 5), ("seeds", 2), ("draws", 8)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    for flag in ("hostile", "no-candidate", "discover"):
        parser.add_argument(f"--{flag}", action="store_true")
    o = parser.parse_args()
    grid = {"layers": o.layers, "positions": o.positions}
    if o.discover:
        make_discover(o.into, hostile=o.hostile, **grid)
    else:
        seeds = tuple(range(o.seeds))
        make_run(
            o.into, hostile=o.hostile, seeds=seeds, verdict=o.verdict, draws=o.draws, candidate=not o.no_candidate,
            evidence=True, **grid,
        )  # fmt: skip
