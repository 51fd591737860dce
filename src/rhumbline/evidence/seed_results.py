"""The results of one seed: its artefacts -> `SeedResult`, with the verdict and what the run's summary needs.

Reads files of the run directory and calls the other modules of this package.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from rhumbline.evidence.class_rates import arm_rates, measured_outcomes
from rhumbline.evidence.compared_arms import SUBTRACTS, NullComparison
from rhumbline.evidence.damage import damage_changes
from rhumbline.evidence.dose_curves import dose_curves
from rhumbline.evidence.level_effects import Levels, neutral_level
from rhumbline.evidence.metric_effects import ineffective_arms, mean_kl, wide_effects
from rhumbline.evidence.rate_breakdowns import (
    effects_by_condition,
    rates_by_baseline_class,
    rates_by_category,
    rates_by_condition,
)
from rhumbline.evidence.rate_effects import rate_effects
from rhumbline.evidence.readouts import readouts
from rhumbline.evidence.second_effects import second_summary
from rhumbline.evidence.seed_evidence import NO_SHIFT, SeedEvidence, Verdict
from rhumbline.evidence.selection_rules import count_discards
from rhumbline.evidence.selection_stability import spread_summary, stability_summary
from rhumbline.evidence.side_effects import side_effects
from rhumbline.evidence.style_confounds import confounds
from rhumbline.evidence.verdict import decide, sentence
from rhumbline.evidence.version_4_effects import (
    version_4_level_effects,
    version_4_rate_effects,
    version_4_wide_null,
)
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.codec import R
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import Effect, SecondSummary, Shift, Spread, WideEffect
from rhumbline.records.outcome_rows import ConditionOutcome, DocumentLoss, LevelTexts, Outcome
from rhumbline.records.protocol_file import SplitPlan
from rhumbline.records.reasons import NoCandidate
from rhumbline.records.results import SeedResult, StyleSummary
from rhumbline.records.seed_files import (
    Doses,
    Extracted,
    MetricTokens,
    NullDirections,
    SecondDirection,
    Selection,
    Stability,
    StyleJudges,
    WideNulls,
)
from rhumbline.records.shared import BySplit, NullDirection
from rhumbline.records.verdict_reasons import VerdictCode, VerdictReason
from rhumbline.records.verdict_rule import VERSION, Rule, is_comparable


class SeedResults(NamedTuple):
    """The result of one seed, and the rows that effects over all seeds need."""

    result: SeedResult
    verdict: Verdict
    outcomes: list[Outcome]
    levels: Levels | None
    """The same rows as levels; None for a behaviour with classes."""


def seed_results(directory: RunDirectory, seed: int, plan: SplitPlan, rule: Rule, behaviour: str) -> SeedResults:
    """Everything of results.json that follows from the artefacts of one seed; wide nulls have no adjusted p yet."""
    metric = directory.read_record(MetricTokens, seed)
    extraction = directory.read_record(Extracted, seed)
    selection = directory.read_record(Selection, seed)
    outcomes = measured_outcomes(directory.read_rows(Outcome, seed))
    is_selected = selection.selected is not None
    nulls = _null_results(directory, seed, rule) if is_selected else NullResults((), None, None, UNSET, (), NO_SHIFT)
    compared = _compared(directory, seed, rule) if is_selected else NullComparison(least_draws=rule.min_draws or 0)
    levels = levels_of(directory, seed, outcomes, rule)
    stability = stability_summary(directory.read_record(Stability, seed)) if is_selected else None
    second = _second(directory, seed, nulls, rule)
    evidence = SeedEvidence(
        arms=arm_rates(outcomes) if levels is None else levels.arms(),
        effects=_effects(outcomes, levels, nulls, compared, rule),
        no_candidate=no_candidate_reason(selection, extraction, metric),
        shift=nulls.shift,
        damage=() if rule.version < VERSION else damage_changes(outcomes),
        stability=stability,
        second=None if second is UNSET else second,
        group_cosine=nulls.groups,
        metric_auroc=metric.auroc,
        unit=None if levels is None else levels.unit,
    )
    verdict = decide(rule, evidence, behaviour)
    conditions = _rows(directory, ConditionOutcome, seed, "condition-*.jsonl")
    result = SeedResult(
        seed=seed,
        verdict=verdict.verdict,
        reason=verdict.reason,
        reasons=verdict.reasons,
        sentence=sentence(verdict),
        claims=verdict.claims,
        selected=selection.selected,
        survivors=selection.survivors,
        tied=selection.tied,
        n=BySplit(train=extraction.n.train, val=extraction.n.val, test=plan.sizes.test),
        planned=plan.sizes,
        near_duplicates=plan.near_duplicates,
        refusal_tokens=metric.tokens,
        token_auroc=metric.auroc,
        threshold=UNSET if metric.threshold == 0 else metric.threshold,
        start=metric.start,
        arms=tuple(evidence.arms),
        effects=tuple(evidence.effects),
        **nulls._asdict(),
        dose=dose_curves(directory.read_record(Doses, seed), nulls.nulls, nulls.energy) if is_selected else None,
        readouts=readouts(outcomes),
        stability=stability,
        coefficient=selection.coefficient,
        side_effects=side_effects(_rows(directory, DocumentLoss, seed, "losses-*.jsonl"), outcomes)
        if is_selected
        else None,
        categories=rates_by_category(outcomes),
        by_baseline=rates_by_baseline_class(outcomes),
        conditions=rates_by_condition(conditions),
        condition_effects=effects_by_condition(conditions, compared) or UNSET,
        damage=tuple(evidence.damage),
        second=second,
        subtraction=_subtraction(outcomes, levels, compared),
    )
    if levels is not None:
        result = replace(result, style=_style(directory, seed, levels, outcomes))
    return SeedResults(result, verdict, outcomes, levels)


class NullResults(NamedTuple):
    """The results of one seed that come from the null directions; the fields are those of `SeedResult`."""

    nulls: tuple[NullDirection, ...]
    energy: float | None
    groups: float | None
    spread: Spread | UnsetType | None
    wide: tuple[WideEffect, ...]
    shift: Shift


def _null_results(directory: RunDirectory, seed: int, rule: Rule) -> NullResults:
    """The null directions and the effects in the metric; for a seed with a direction."""
    directions, wide = directory.read_record(NullDirections, seed), directory.read_record(WideNulls, seed)
    is_old = rule.version < VERSION
    rank = partial(version_4_wide_null, same_cosine=rule.same_cosine) if is_old else None
    effects = wide_effects(wide, directions.nulls, rule.same_cosine, rule.min_draws or 0, rank, rule.max_kl)
    spread = UNSET if is_old else spread_summary(directions.group_cosines)
    # Rules up to version 4 read the mean only, and recorded an interval for any number of prompts.
    shift = mean_kl(wide, least=1) if is_old else mean_kl(wide)
    return NullResults(directions.nulls, directions.energy, directions.groups, spread, effects, shift)


def _second(directory: RunDirectory, seed: int, nulls: NullResults, rule: Rule) -> SecondSummary | UnsetType:
    """The second direction; UNSET if none was measured."""
    if not directory.has(SecondDirection, seed):
        return UNSET
    wide = directory.read_record(WideNulls, seed)
    second = directory.read_record(SecondDirection, seed)
    return second_summary(second, wide, nulls.nulls, rule.same_cosine, rule.min_draws or 0, rule.max_kl)


def _compared(directory: RunDirectory, seed: int, rule: Rule) -> NullComparison:
    """How the rule compares the null draws with the direction; for a seed with a direction."""
    nulls, wide = directory.read_record(NullDirections, seed).nulls, directory.read_record(WideNulls, seed)
    is_old = rule.version < VERSION
    # Without a candidate a draw found no direction again, whatever the cosine of its stand-in.
    aligned = (n for n in nulls if not is_comparable(n.cosine, rule.same_cosine) and (is_old or n.passed))
    return NullComparison(
        frozenset(null.null_draw for null in aligned),
        frozenset() if is_old else ineffective_arms(wide, nulls, rule.max_kl),
        rule.min_draws or 0,
    )


def _subtraction(outcomes: list[Outcome], levels: Levels | None, compared: NullComparison) -> Effect | UnsetType:
    """The effect of the subtraction in rates or levels; UNSET if the arm was not run."""
    rest = compared, (SUBTRACTS,)
    effects = rate_effects(outcomes, *rest) if levels is None else levels.effects(*rest)
    return effects[0] if effects else UNSET


def _effects(
    outcomes: list[Outcome], levels: Levels | None, nulls: NullResults, compared: NullComparison, rule: Rule
) -> tuple[Effect, ...]:
    """Both effects in rates or levels, with their ranks among the wide nulls."""
    families = {effect.name: effect.families for effect in nulls.wide}
    if rule.version < VERSION:
        effects = (
            version_4_rate_effects(outcomes, compared.aligned)
            if levels is None
            else version_4_level_effects(levels, compared.aligned)
        )
    else:
        effects = rate_effects(outcomes, compared) if levels is None else levels.effects(compared)
    return tuple(replace(effect, wide=families.get(effect.name, {})) for effect in effects)


def no_candidate_reason(selection: Selection, extraction: Extracted, metric: MetricTokens) -> VerdictReason | None:
    """Why no candidate was selected, with its numbers; None if one was."""
    if selection.reason is None:
        return None
    counts, empty = None, ()
    if selection.reason is NoCandidate.ALL_DISCARDED:
        counts = count_discards(selection.candidates)
    if selection.reason is NoCandidate.NO_PROMPTS:
        splits = {"train": extraction.n.train, "val": extraction.n.val}
        empty = tuple(f"{split} {label}" for split, n in splits.items() for label in LABELS if n[label] == 0)
    lacking = metric.reason if selection.reason is NoCandidate.NO_TOKENS else None
    return VerdictReason(
        code=VerdictCode.NO_CANDIDATE, no_candidate=selection.reason, counts=counts, sets=empty, lacking=lacking
    )


def levels_of(directory: RunDirectory, seed: int, outcomes: list[Outcome], rule: Rule) -> Levels | None:
    """The outcomes as levels; None for a behaviour with classes."""
    if not directory.has(StyleJudges, seed):
        return None
    texts = directory.read_record(LevelTexts, seed).texts
    return Levels.of(outcomes, texts, is_version_4=rule.version < VERSION)


def _style(directory: RunDirectory, seed: int, levels: Levels, outcomes: list[Outcome]) -> StyleSummary:
    """What a continuous score adds to the results."""
    judges, texts = directory.read_record(StyleJudges, seed), directory.read_record(LevelTexts, seed)
    return StyleSummary(
        unit=levels.unit,
        texts=judges.texts,
        how=judges.how,
        markers=judges.markers,
        classifier=judges.classifier,
        chance=judges.chance,
        confounds=confounds(outcomes),
        neutral=neutral_level(levels.unit, texts.neutral),
        words=UNSET if judges.words is None else judges.words,
        matched=UNSET if judges.words is None else judges.matched,
    )


def _rows(directory: RunDirectory, kind: type[R], seed: int, pattern: str) -> list[R]:
    """The rows of all files of a kind, in the order of their names."""
    paths = sorted(directory.seed(seed).glob(pattern))
    return [row for path in paths for row in directory.read_rows_as(kind, path)]
