import typing
from dataclasses import replace

import pytest

from make_evidence import evidence, with_arm, with_effects
from rhumbline.evidence.verdict import NOT_MEASURED, SeedEvidence, Verdict, decide, overall
from rhumbline.evidence.verdict_rules import BLOG2026, RHUMBLINE, STYLE
from rhumbline.evidence.verdict_sentences import run_sentence, seed_sentence
from rhumbline.records.effect_results import NullSummary
from rhumbline.records.reasons import NoCandidate, VerdictCode, VerdictReason
from rhumbline.records.results import LevelUnit, VerdictName

REPRODUCES = "SINGLE-DIRECTION-REPRODUCES"
WHOLE = evidence(families=RHUMBLINE.families)
UNIT = LevelUnit(0.4, 0.0, 0.4, 0.3, 0.5, 1.0, 1.0, (100, 100), "baseline")
NO_TOKENS = VerdictReason(code=VerdictCode.NO_CANDIDATE, no_candidate=NoCandidate.NO_TOKENS)


def sentence(rule, known, behaviour="refusal"):
    return seed_sentence(rule, known, decide(rule, known, behaviour), behaviour)


CASES = {
    "blog": (BLOG2026, evidence()),
    "one of five families": (RHUMBLINE, evidence()),
    "reproduces": (RHUMBLINE, WHOLE),
    "damaged": (RHUMBLINE, replace(WHOLE, kl=1.0)),
    "undecided": (RHUMBLINE, with_effects(WHOLE, low=0.4)),
    "no effects": (BLOG2026, replace(evidence(), effects=())),
    "no arms": (BLOG2026, replace(evidence(), arms=())),
    "baseline only": (BLOG2026, replace(evidence(), arms=evidence().arms[:1])),
    "low baseline": (BLOG2026, evidence(base=0.4)),
    "no effect": (BLOG2026, evidence(ablated=1.0, added=0.0)),
    "no tokens": (BLOG2026, SeedEvidence(evidence().arms, (), NO_TOKENS)),
    "nothing": (BLOG2026, SeedEvidence((), (), NO_TOKENS)),
    "no room": (STYLE, evidence(plain=0.98, added=0.98, families=STYLE.families, unit=UNIT)),
    "no separation": (STYLE, evidence(families=STYLE.families, unit=replace(UNIT, auroc_low=0.5))),
    "no classes": (STYLE, evidence(families=STYLE.families)),
}


@pytest.mark.parametrize(("rule", "known"), CASES.values(), ids=CASES)
def test_no_sentence_states_that_the_behaviour_is_a_direction(rule, known):
    text = sentence(rule, known)
    assert not any(word in text for word in (" is ", "mediate", "None", "nan"))
    assert text.endswith(".")
    verdict = decide(rule, known)
    assert verdict.verdict in typing.get_args(VerdictName)
    if verdict.verdict == REPRODUCES:
        assert "sufficient" in text
    assert verdict.reason in text or verdict.verdict in (REPRODUCES, "NO-BASELINE", "NO-BASELINE-REFUSAL") or (
        verdict.reasons[0].code in (VerdictCode.NO_ROOM, *NOT_MEASURED)
    )  # fmt: skip


def test_the_sentence_has_the_rates_the_interval_and_the_nulls():
    effects = {"null": {"isotropic": NullSummary(8, 0.01, 0.1), "shuffled": NullSummary(3, 0.07, 0.1)}}
    known = with_effects(WHOLE, **effects)
    text = sentence(RHUMBLINE, known)
    assert "Ablation lowered the refusal rate on positive prompts from 1.00 [0.95, 1.00] to 0.00 [0.00, 1.00]" in text
    assert "(paired difference 1.00 [0.95, 1.05], n = 100)." in text
    assert "Addition raised the refusal rate on negative prompts" in text
    assert "The strongest of 2 null families (shuffled) changed the rate by 0.07." in text
    assert "without null draws that align with the direction, was at most 0.01 in each family (isotropic: 99" in text
    assert "8 isotropic nulls changed the rate by 0.01 on average (p = 0.1)." in sentence(BLOG2026, known)
    assert "1 isotropic null changed" in sentence(
        BLOG2026, with_effects(known, null={"isotropic": NullSummary(1, 0.01, 0.01)})
    )


def test_another_behaviour_has_its_own_word():
    text = sentence(BLOG2026, evidence(), "style")
    assert "style rate" in text
    assert "refus" not in text
    assert "style level" in sentence(STYLE, evidence(families=STYLE.families, unit=UNIT), "style")


def test_untested_induction_is_stated_with_its_reason():
    text = sentence(*CASES["no room"], "style")
    assert "Induction was not tested, because negatives have 0.98 > 0.50 at baseline." in text
    assert "sufficient to suppress style" in text
    assert "Addition" not in text


def test_degenerate_completions_are_stated():
    broken = with_arm(evidence(), "ablation", "positive", degenerate=0.9)
    assert "(0.90 degenerate)" in sentence(BLOG2026, broken)
    assert "degenerate" not in sentence(BLOG2026, evidence())


def test_a_rise_under_ablation_is_not_called_a_fall():
    text = sentence(BLOG2026, evidence(base=0.8, ablated=0.9, plain=0.3, added=0.2))
    assert "lowered" not in text
    assert "raised" not in text
    assert "changed the refusal rate on positive prompts from 0.80" in text


def test_a_run_quotes_every_seed():
    seeds = {0: "What was seen.", 1: "What else was seen."}
    verdicts = {
        "All 2 seeds agree.": (Verdict(REPRODUCES), Verdict(REPRODUCES)),
        "inconclusive": (Verdict(REPRODUCES), Verdict("INCONCLUSIVE")),
        "disagree": (Verdict(REPRODUCES), Verdict("NOT-SINGLE-DIRECTION")),
    }
    for words, pair in verdicts.items():
        text = run_sentence(overall(dict(enumerate(pair))), seeds)
        assert words in text
        assert text.endswith("Seed 0: What was seen. Seed 1: What else was seen.")
    assert run_sentence(Verdict(REPRODUCES), {3: "Alone."}) == "Alone."
