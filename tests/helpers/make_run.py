"""Synthetic run directories for tests of the report: plausible numbers in the records that a run writes, no model.

python tests/helpers/make_run.py DIR [--layers 10] [--positions 5] [--seeds 2] [--draws 8] [--verdict V] [--hostile]
                                     [--no-candidate] [--discover]
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from make_seed import (
    HOSTILE,
    NO_BASELINE,
    REPRODUCES,
    SUFFIX,
    Plan,
    arms_of,
    breakdowns_of,
    by_label,
    dose_of,
    effects_of,
    grid_of,
    nulls_of,
    readouts_of,
    selection_of,
    separation_of,
    side_effects_of,
    stability_of,
    wide_of,
)
from rhumbline.evidence.verdict_rules import RHUMBLINE, Rule
from rhumbline.prompts.contrasts import Sizes
from rhumbline.protocol import Protocol
from rhumbline.records.arms import ABLATION, ADDITION, BASELINE
from rhumbline.records.claims import Claim, ClaimKind
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import SCHEMA, RunDirectory
from rhumbline.records.effect_results import (
    MeanInterval,
    PooledEffect,
    RelativeChange,
    Shift,
    Spread,
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
from rhumbline.records.reasons import NoCandidate
from rhumbline.records.results import (
    Environment,
    Results,
    SeedResult,
    TimingSummary,
)
from rhumbline.records.run_files import Discovery
from rhumbline.records.shared import (
    ByLabel,
    BySplit,
    FirstToken,
    ModelFacts,
    NearDuplicates,
    SeedPair,
    StageTiming,
)
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import ClaimState, VerdictCode, VerdictReason, reason_text
from rhumbline.settings import NullSettings

# -- protocol.json ----------------------------------------------------------------------------------------------------


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
    sizes = BySplit(by_label(128), by_label(32), by_label(p.n))
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
    selection = directory.write_record(selection_of(p, rng), seed)
    directory.write_record(separation_of(p, rng), seed)
    cell = selection.selected
    nulls = nulls_of(p, cell, rng) if cell else ()
    arms, wide = arms_of(p, nulls, rng), wide_of(p, rng) if cell else ()
    tokens = [FirstToken(11, p.text or "I", 0.99, 0.8), FirstToken(12, " As", 0.9, 0.2)]
    counts = BySplit(by_label(128), by_label(32), by_label(p.n))
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
        effects=effects_of(p, arms, wide) if cell else (),
        nulls=nulls,
        energy=0.2 if cell else None,
        groups=0.9 if cell else None,
        wide=wide,
        shift=Shift(0.012, 0.01, 0.015, 16) if p.evidence and cell else Shift(None, None, None, 0),
        dose=dose_of(p) if cell else None,
        readouts=readouts_of(p),
        stability=stability_of(p, cell) if cell else None,
        coefficient=selection.coefficient,
        side_effects=side_effects_of(p) if cell else None,
        spread=Spread(MeanInterval(0.4, 0.3, 0.5), MeanInterval(0.8, 0.7, 0.9), 20) if p.evidence and cell else UNSET,
        **breakdowns_of(p),
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
        grid = grid_of(p, np.random.default_rng(0))
        directory.write_record(Discovery("val", by_label(32), grid, (), seed=0, model=_model(p), train=by_label(128)))
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
