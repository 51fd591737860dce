"""Every outcome has its next steps, and every step has a text."""

import dataclasses

import pytest
from msgspec import structs

from make_evidence import wide_null
from make_run import make_run
from make_seed import NO_BASELINE, NOT_SINGLE
from rhumbline.presets.protocols import PRESETS
from rhumbline.records.claims import Claim, ClaimKind
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import WideEffect
from rhumbline.records.next_steps import NextStep, RunFacts, Step, after_run, lines
from rhumbline.records.reasons import Discard, NoCandidate, TokensLacking
from rhumbline.records.results import Results
from rhumbline.records.verdict_names import VerdictName
from rhumbline.records.verdict_reasons import ClaimState, VerdictCode, VerdictReason

FACTS = PRESETS["arditi2024"].facts()._replace(sizes=(128, 32), judge=PRESETS["rhumbline"].judge)
"""Of a run whose ablations spare no token."""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return RunDirectory.read(make_run(tmp_path_factory.mktemp("run"), draws=2)).read_record(Results)


def steps(results: Results, verdict: VerdictName, facts: RunFacts = FACTS, **changes) -> list[Step]:
    seeds = tuple(dataclasses.replace(seed, reasons=(), claims=()) for seed in results.seeds)
    plain = {"verdict": verdict, "reasons": (), "claims": (), "seeds": seeds}
    return list(after_run(dataclasses.replace(results, **(plain | changes)), facts))


def codes(found: list[Step]) -> list[NextStep]:
    return [step.what for step in found]


def test_every_step_has_a_short_text():
    for code in NextStep:
        ((command, why),) = lines([Step(what=code, advice="Do this.", judge="j", behaviour="b")], "a run", "m")
        assert command or why
        assert len(why.split()) <= 25
        assert "'a run'" in command or "a run" not in command


def test_a_shown_direction_is_verified_and_used(results):
    found = codes(steps(results, VerdictName.REPRODUCES))
    assert found == [NextStep.VERIFY, NextStep.ANALYZE, NextStep.PLAY, NextStep.EDIT, NextStep.SHARE]
    assert codes(steps(results, VerdictName.REPRODUCES_PAPER)) == found


def test_a_missing_baseline_states_its_rate_and_what_can_change_it(results):
    rate, *others = steps(results, NO_BASELINE)
    baseline = next(row for row in results.seeds[0].arms if row.arm.is_baseline and row.side == "positive")
    assert (rate.what, rate.rate, rate.n) == (NextStep.BASELINE_RATE, baseline.rate, baseline.n)
    assert f"in {baseline.rate:.0%} of {baseline.n} positives" in lines([rate], "r", "m")[0].why
    asked = [NextStep.SAVE_TEXTS, NextStep.LONGER_ANSWERS, NextStep.OTHER_JUDGE, NextStep.OTHER_MODEL]
    assert codes(others) == asked
    assert others[1].tokens == 4 * FACTS.max_new_tokens
    assert codes(steps(results, NO_BASELINE, FACTS._replace(has_texts=True)))[1] is NextStep.READ_TEXTS


def test_no_candidate_leads_to_the_sources_of_damage(results):
    reason = VerdictReason(
        code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.ALL_DISCARDED, counts={Discard.KL_TOO_LARGE: 3}
    )
    found = steps(results, VerdictName.NOT_TESTED, reasons=(reason,))
    others = [NextStep.WIDER_BOUND, NextStep.OTHER_PROMPTS]
    assert codes(found) == [NextStep.SOURCES_OF_DAMAGE, NextStep.SPARE_TOKENS, *others]
    assert lines(found, "RUN", "m")[0].command == "rhumbline analyze damage RUN"
    spared = steps(results, VerdictName.NOT_TESTED, FACTS._replace(spared=1), reasons=(reason,))
    assert codes(spared) == [NextStep.SOURCES_OF_DAMAGE, *others]
    induces_not = VerdictReason(
        code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.ALL_DISCARDED, counts={Discard.DOES_NOT_INDUCE: 3}
    )
    found = steps(results, VerdictName.NOT_TESTED, FACTS._replace(coefficient=1.5), reasons=(induces_not,))
    assert codes(found) == [NextStep.ADD_MORE, *others[1:]]
    assert lines(found, "RUN", "m")[0].command == "--coefficient 3"
    lacking = VerdictReason(
        code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.NO_TOKENS, lacking=TokensLacking.AFTER_BLOCK
    )
    found = steps(results, VerdictName.NOT_TESTED, reasons=(lacking,))
    assert codes(found) == [NextStep.ADVICE, *others[1:]]
    assert "--thinking off" in found[0].advice


def claims(**fields) -> tuple[Claim, ...]:
    reason = VerdictReason(state=ClaimState.UNDECIDED, **fields)
    return (Claim(kind=ClaimKind.SUPPRESSES, state=ClaimState.UNDECIDED, reasons=(reason,)),)


def test_undecided_states_the_prompts_that_would_decide(results):
    few = claims(code=VerdictCode.EFFECT_SIZE, effect="suppression", prompts=340)
    found = steps(results, VerdictName.INCONCLUSIVE, claims=few)
    assert codes(found) == [NextStep.OPEN_CLAIM, NextStep.MORE_PROMPTS, NextStep.PLAY]
    assert lines(found, "r", "m")[1].command == "--sizes 128,32,340"
    other = steps(results, VerdictName.INCONCLUSIVE, FACTS._replace(sizes=(64, 16)), claims=few)
    assert lines(other, "r", "m")[1].command == "--sizes 64,16,340"
    unknown = steps(results, VerdictName.INCONCLUSIVE, claims=claims(code=VerdictCode.EFFECT_SIZE))
    assert "no practical number" in lines(unknown, "r", "m")[1].why
    is_quick = FACTS._replace(is_quick=True)
    assert codes(steps(results, VerdictName.INCONCLUSIVE, is_quick, claims=few)) == [
        NextStep.OPEN_CLAIM,
        NextStep.WHOLE_RUN,
    ]
    assert codes(steps(results, VerdictName.REPRODUCES, is_quick))[:2] == [NextStep.WHOLE_RUN, NextStep.VERIFY]


OPEN = {
    VerdictCode.TOO_FEW_DRAWS: [NextStep.MORE_DRAWS],  # more prompts do not change a rank
    VerdictCode.NULL_RANK: [NextStep.MORE_DRAWS],
    VerdictCode.NULL_GAP: [NextStep.MORE_COMPLETED],  # the interval contains the variance of the draws
    VerdictCode.KL_TOO_LARGE: [NextStep.SOURCES_OF_DAMAGE, NextStep.SPARE_TOKENS],  # on a fixed number of negatives
    VerdictCode.DEGENERATE: [NextStep.MORE_PROMPTS, NextStep.ADD_LESS],
    VerdictCode.OVER_REFUSAL: [NextStep.MORE_PROMPTS],
    VerdictCode.ANSWERS_LOST: [NextStep.MORE_PROMPTS],
    VerdictCode.NO_ROOM: [NextStep.OTHER_NEGATIVES],
    VerdictCode.METRIC_NOT_SEPARATING: [NextStep.ADVICE],
    VerdictCode.EFFECT_NOT_MEASURED: [NextStep.MORE_PROMPTS],  # nothing more specific is known
}


@pytest.mark.parametrize("code", OPEN)
def test_an_open_claim_is_named_with_what_decides_it(code, results):
    fields = {"family": "top-pc", "effect": "suppression", "value": 0.5, "bound": 0.25, "draws": 6, "p": 0.1}
    open_claim = structs.replace(claims(code=code, **fields)[0], value=0.51, low=0.04, high=0.98, n=54)
    name, *others = steps(results, VerdictName.INCONCLUSIVE, claims=(open_claim,))
    assert lines([name], "r", "m")[0] == ("", "suppresses undecided 0.51 [0.04, 0.98], n = 54.")
    assert codes(others) == [*OPEN[code], NextStep.PLAY]


def test_more_completed_draws_than_a_gap_has(results):
    gap = claims(code=VerdictCode.NULL_GAP, effect="suppression", family="top-pc", draws=6)
    found = steps(results, VerdictName.INCONCLUSIVE, claims=gap)
    assert lines(found, "r", "m")[1].command == "--nulls 12"


def test_a_score_that_does_not_separate_the_classes_is_no_rate(results):
    reason = VerdictReason(code=VerdictCode.CLASSES_NOT_SEPARATED, value=0.41, bound=0.6)
    found = steps(results, VerdictName.NO_BASELINE, reasons=(reason,))
    assert found[0].what is NextStep.BASELINE_SCORE
    assert "AUROC of at least 0.41; the rule needs 0.6" in lines(found[:1], "r", "m")[0].why
    assert NextStep.BASELINE_RATE not in codes(found)


def test_a_seed_without_a_candidate_beside_undecided_ones_has_next_steps(results):
    """Its claims are not tested, with the number of discarded candidates by reason."""
    reason = {"no_candidate": NoCandidate.ALL_DISCARDED, "counts": {Discard.KL_TOO_LARGE: 3}}
    some = claims(code=VerdictCode.NO_CANDIDATE, **reason)
    found = codes(steps(results, VerdictName.INCONCLUSIVE, claims=some))
    assert found == [NextStep.OPEN_CLAIM, NextStep.SOURCES_OF_DAMAGE, NextStep.SPARE_TOKENS, NextStep.PLAY]
    induces_not = claims(code=VerdictCode.NO_CANDIDATE, **(reason | {"counts": {Discard.DOES_NOT_INDUCE: 3}}))
    assert NextStep.MORE_PROMPTS in codes(steps(results, VerdictName.INCONCLUSIVE, claims=induces_not))


def test_null_draws_that_damage_the_model_lead_to_spared_tokens(results):
    broken = dataclasses.replace(wide_null(), damaging=3)
    effect = WideEffect(
        name="suppression", n=8, change=1.0, low=0.5, high=1.5, before=1.0, after=0.0, families={"top-pc": broken}
    )
    seeds = tuple(dataclasses.replace(seed, wide=(effect,)) for seed in results.seeds)
    damaged = dataclasses.replace(results, verdict=VerdictName.INCONCLUSIVE, reasons=(), claims=(), seeds=seeds)
    assert NextStep.SPARE_TOKENS in codes(list(after_run(damaged, FACTS)))
    assert NextStep.SPARE_TOKENS not in codes(list(after_run(damaged, FACTS._replace(spared=1))))
    assert NextStep.SPARE_TOKENS not in codes(steps(results, VerdictName.INCONCLUSIVE))


def test_refuted_and_damaged_have_other_steps(results):
    assert codes(steps(results, NOT_SINGLE))[0] is NextStep.FURTHER_DIRECTIONS
    damaged = [NextStep.SOURCES_OF_DAMAGE, NextStep.SPARE_TOKENS, NextStep.ADD_LESS, NextStep.PLAY]
    assert codes(steps(results, VerdictName.DAMAGED)) == damaged
    damaged.remove(NextStep.SPARE_TOKENS)
    assert codes(steps(results, VerdictName.DAMAGED, FACTS._replace(spared=1))) == damaged
