import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from make_evidence import ranked, with_effects
from make_outcomes import outcome
from rhumbline.evidence import level_effects
from rhumbline.evidence.claims import seed_claims
from rhumbline.evidence.compared_arms import EFFECTS, NullComparison
from rhumbline.evidence.damage import damage_changes
from rhumbline.evidence.level_effects import Levels, neutral_level, pooled_level_effects
from rhumbline.evidence.statistics import auroc_interval
from rhumbline.evidence.verdict import SeedEvidence, decide
from rhumbline.evidence.verdict_rules import STYLE
from rhumbline.records.claims import ClaimKind, claim_of
from rhumbline.records.effect_results import Shift
from rhumbline.records.outcome_rows import NeutralOutcome
from rhumbline.records.shared import ByLabel
from rhumbline.records.verdict_reasons import ClaimState


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The rule decides by wide margins here: a few hundred bootstrap draws give the same verdicts."""
    monkeypatch.setattr(level_effects, "DRAWS", 200)


def outcomes(positive, negative, ablation, addition, null=0.0, n=60, seed=0):
    """Outcomes with normal scores around the given means; the nulls change the score by a share of the gap."""
    rng = np.random.default_rng(seed)
    noise = {side: rng.normal(0, 0.03, n) for side in ("positive", "negative")}
    gap = positive - negative
    means = {
        ("baseline", "positive"): positive,
        ("baseline", "negative"): negative,
        ("ablation", "positive"): ablation,
        ("ablation", "negative"): negative,
        ("addition", "negative"): addition,
        **{(f"null:{f}:{k}:ablation", "positive"): positive - null * gap for f in STYLE.families for k in range(3)},
        **{(f"null:{f}:{k}:addition", "negative"): negative + null * gap for f in STYLE.families for k in range(3)},
    }
    return [
        outcome(arm, side, str(i), "shown", score=mean + float(noise[side][i]))
        for (arm, side), mean in means.items()
        for i in range(n)
    ]


def verdict_of(rows):
    levels = Levels.of(rows)
    ranks = {family: ranked() for family in STYLE.families}
    shift = Shift(0.02, 0.01, 0.03, 16)
    evidence = SeedEvidence(levels.arms(), levels.effects(), shift=shift, damage=damage_changes(rows), unit=levels.unit)
    evidence = with_effects(evidence, wide=ranks)
    return decide(STYLE, evidence, "style").verdict


CASES = {
    "moves both ways": ((0.4, 0.0, 0.0, 0.36), "SINGLE-DIRECTION-REPRODUCES"),
    "suppresses only": ((0.4, 0.0, 0.0, 0.04), "NOT-SINGLE-DIRECTION"),
    "induces only": ((0.4, 0.0, 0.38, 0.36), "NOT-SINGLE-DIRECTION"),
    "equal classes": ((0.2, 0.2, 0.2, 0.2), "NO-BASELINE"),
}


@pytest.mark.parametrize(("means", "expected"), CASES.values(), ids=CASES)
def test_the_rule_reads_levels(means, expected):
    assert verdict_of(outcomes(*means)) == expected


def test_nulls_that_change_it_as_much_refute_a_single_direction():
    assert verdict_of(outcomes(0.4, 0.0, 0.0, 0.36, null=0.9)) == "NOT-SINGLE-DIRECTION"


def test_scores_without_any_gap_have_no_baseline():
    rows = [structs.replace(row, score=0.25) for row in outcomes(0.3, 0.3, 0.3, 0.3, n=10)]
    assert verdict_of(rows) == "NO-BASELINE"
    neutral = [NeutralOutcome(prompt_id=str(i), cls="shown", score=0.25, projection=None) for i in range(3)]
    assert neutral_level(Levels.of(rows).unit, neutral).level == 0.0


def scored_only(rows, n, *arms):
    """The same, with only the first n completions of some arms scored."""
    return [
        structs.replace(r, cls="unscored", score=None) if str(r.arm) in arms and int(r.prompt_id) >= n else r
        for r in rows
    ]


@pytest.mark.parametrize(("n", "is_known"), [(1, False), (7, False), (8, True)])
def test_few_scored_completions_show_and_refute_nothing(n, is_known):
    for mean, state in ((0.0, ClaimState.SHOWN), (0.39, ClaimState.REFUTED)):
        rows = scored_only(outcomes(0.4, 0.0, mean, 0.36), n, "ablation")
        levels = Levels.of(rows)
        (effect,) = levels.effects(effects=EFFECTS[:1])
        arm = next(row for row in levels.arms() if str(row.arm) == "ablation" and row.side == "positive")
        gap = effect.relative_gap["isotropic"]
        assert (arm.n, effect.n, effect.relative.n, gap.n) == (n,) * 4
        assert effect.relative.value == pytest.approx(1 - mean / 0.4, abs=0.2)
        for known in (arm, effect, effect.relative, gap):
            assert (known.low is not None, known.high is not None) == (is_known, is_known)
        evidence = SeedEvidence(levels.arms(), [effect], unit=levels.unit)
        claim = claim_of(ClaimKind.SUPPRESSES, seed_claims(STYLE, evidence))
        assert claim.state is (state if is_known else ClaimState.UNDECIDED)


def test_few_scored_completions_of_several_categories_show_nothing():
    rows = [structs.replace(r, category=str(int(r.prompt_id) % 5)) for r in outcomes(0.4, 0.0, 0.0, 0.36)]
    few, enough = (Levels.of(scored_only(rows, n, "ablation")).effects()[0].relative for n in (7, 20))
    assert (few.low, few.high, few.units) == (None, None, 5)
    assert enough.low < enough.value < enough.high


@pytest.mark.parametrize(("n", "is_separated"), [(1, False), (3, False), (8, True)])
def test_few_scored_baselines_do_not_separate_the_classes(n, is_separated):
    """Every score of a positive exceeds those of the negatives, so a bootstrap of the AUROC has no width."""
    levels = Levels.of(scored_only(outcomes(0.4, 0.0, 0.0, 0.36), n, "baseline"))
    unit = levels.unit
    assert unit.auroc == 1.0
    assert unit.auroc_low == auroc_interval(1.0, n, n).low
    assert (unit.auroc_low >= STYLE.min_separation) == (unit.low is not None) == is_separated
    old = Levels.of(scored_only(outcomes(0.4, 0.0, 0.0, 0.36), n, "baseline"), is_version_4=True).unit
    assert old.auroc_low == 1.0
    assert old.low is not None


def test_a_few_negatives_that_define_the_unit_give_no_interval():
    texts = ByLabel(positive=(0.4,) * 20, negative=(0.0,))
    suppression, induction = Levels.of(outcomes(0.4, 0.0, 0.0, 0.36), texts).effects()
    assert (suppression.low, induction.low, suppression.relative.low) == (None, None, None)
    assert induction.relative.low is not None  # its reference is the positives


def test_lost_content_is_damage():
    rows = [
        structs.replace(row, correct=0.2 if str(row.arm) == "addition" else 1.0)
        for row in outcomes(0.4, 0.0, 0.0, 0.36)
    ]
    assert verdict_of(rows) == "DAMAGED"


@given(st.floats(0.01, 50), st.floats(-5, 5))
@settings(max_examples=4, deadline=None)
def test_levels_do_not_depend_on_the_scale_of_the_score(factor, shift):
    rows = outcomes(0.4, 0.1, 0.15, 0.3)
    scaled = [structs.replace(row, score=row.score * factor + shift) for row in rows]
    for one, other in zip(Levels.of(rows).effects(), Levels.of(scaled).effects(), strict=True):
        assert one.drop == pytest.approx(other.drop, rel=1e-6)
        assert one.low == pytest.approx(other.low, rel=1e-6)


def test_a_change_is_relative_to_the_baseline_and_degenerate_completions_do_not_count():
    rows = outcomes(0.4, 0.1, 0.25, 0.4)
    texts = ByLabel(positive=(0.6,) * 20, negative=(0.1,) * 20)  # the model shows 0.6 of the style at baseline
    suppression, induction = Levels.of(rows, texts).effects()
    assert suppression.drop == pytest.approx(0.15 / 0.5, abs=0.01)
    assert suppression.relative.value == pytest.approx(0.15 / 0.3, abs=0.02)
    assert induction.relative.value == pytest.approx(0.3 / 0.5, abs=0.02)
    broken = [
        structs.replace(r, cls="degenerate") if str(r.arm) == "ablation" and int(r.prompt_id) < 30 else r for r in rows
    ]
    halved, _ = Levels.of(broken, texts).effects()
    assert halved.relative.value == pytest.approx(0.25, abs=0.02)
    assert halved.relative.most > 0.6


def test_draws_that_differ_widen_the_interval_of_a_gap_of_levels():
    alike = outcomes(0.4, 0.0, 0.0, 0.36)
    differ = [structs.replace(r, score=r.score - 0.3) if str(r.arm).endswith(":1:ablation") else r for r in alike]
    narrow, wide = (Levels.of(rows).effects()[0].relative_gap["isotropic"] for rows in (alike, differ))
    assert wide.low < narrow.low - 0.4
    assert wide.draws == 3


def test_an_ineffective_draw_counts_as_no_change_of_the_level():
    rows = outcomes(0.4, 0.0, 0.0, 0.36)
    moved = [structs.replace(r, score=0.0) if r.arm.is_null else r for r in rows]  # every null suppresses
    arms = frozenset(row.arm for row in moved if row.arm.is_null)
    measured, void = (Levels.of(moved).effects(NullComparison(ineffective=some))[0] for some in (frozenset(), arms))
    assert measured.relative_gap["isotropic"].value == pytest.approx(0.0, abs=0.02)
    assert void.relative_gap["isotropic"].value == pytest.approx(void.relative.value, abs=0.02)
    assert void.drop == measured.drop


def test_suppressing_draws_lose_a_share_of_the_level():
    rows = outcomes(0.4, 0.0, 0.0, 0.36)
    levels = Levels.of([structs.replace(r, score=0.0) if str(r.arm).endswith(":1:ablation") else r for r in rows])
    found = levels.suppressing_draws(0.5)
    assert found == {row.arm.null_draw for row in rows if str(row.arm).endswith(":1:ablation")}
    assert Levels.of(rows).suppressing_draws(0.5) == set()


def test_texts_define_the_unit_if_the_contrast_has_them():
    texts = ByLabel(positive=(0.5,) * 20, negative=(0.1,) * 20)
    levels = Levels.of(outcomes(0.4, 0.4, 0.2, 0.4), texts)
    suppression, _ = levels.effects()
    assert suppression.drop == pytest.approx(0.5)
    assert levels.unit.source == "texts"
    assert neutral_level(levels.unit, []) is None


def test_the_levels_of_the_baseline_are_one_and_zero():
    arms = {(str(row.arm), row.side): row for row in Levels.of(outcomes(0.4, 0.1, 0.1, 0.4)).arms()}
    assert arms["baseline", "positive"].rate == pytest.approx(1.0)
    assert arms["baseline", "negative"].rate == pytest.approx(0.0)
    assert arms["baseline", "positive"].score == pytest.approx(0.4, abs=0.02)


def test_a_class_without_scores_has_no_unit_and_no_levels():
    rows = [row for row in outcomes(0.4, 0.1, 0.1, 0.4, n=5) if row.side == "positive"]
    levels = Levels.of(rows)
    assert (levels.unit.gap, levels.unit.auroc, levels.unit.scale) == (None, None, 1.0)
    assert {row.rate for row in levels.arms()} == {None}


def test_effects_without_a_unit_are_unknown():
    """A warning of NumPy about means of nothing fails this test."""
    rows = [
        structs.replace(row, cls="unscored", score=None)
        if (str(row.arm), row.side) == ("baseline", "negative")
        else row
        for row in outcomes(0.4, 0.0, 0.1, 0.36, n=10)
    ]
    suppression, induction = Levels.of(rows).effects()
    assert (suppression.relative.value, suppression.low, induction.n) == (None, None, 0)
    assert Levels.of(rows).suppressing_draws(0.25) == set()


def test_pooled_effects_are_the_mean_and_the_range_of_the_seeds():
    seeds = [Levels.of(outcomes(0.4, 0.0, ablated, 0.36, n=20)) for ablated in (0.0, 0.2)]
    drops = [levels.effects()[0].drop for levels in seeds]
    pooled = pooled_level_effects(seeds)[0]
    assert pooled.drop == pytest.approx(sum(drops) / 2)
    assert (pooled.low, pooled.high, pooled.n) == (min(drops), max(drops), 2)


def test_an_unscored_completion_is_left_out_of_the_effects_and_of_n():
    rows = outcomes(0.4, 0.0, 0.1, 0.36, null=0.1, n=20)

    def effect_without(*arms, **options):
        lacking = [
            structs.replace(r, cls="unscored", score=None) if str(r.arm) in arms and r.prompt_id == "3" else r
            for r in rows
        ]
        return Levels.of(lacking, **options).effects(effects=EFFECTS[:1])[0]

    family = STYLE.families[0]
    whole, own = effect_without(), effect_without("ablation")
    assert (whole.n, own.n, own.relative.n) == (20, 19, 19)
    assert own.drop == pytest.approx(whole.drop, abs=0.02)
    assert own.relative.value == pytest.approx(whole.relative.value, abs=0.02)
    assert effect_without("baseline").n == 19
    # A null draw keeps its other prompts; a prompt that no draw scored is in no gap.
    one, every = (effect_without(*(f"null:{family}:{k}:ablation" for k in draws)) for draws in ((0,), (0, 1, 2)))
    assert (one.n, one.relative_gap[family].n, every.relative_gap[family].n) == (20, 20, 19)
    assert one.relative_gap[family].value == pytest.approx(whole.relative_gap[family].value, abs=0.02)
    assert None not in (one.gap[family], one.null[family].mean, own.gap[family])
    # Version 4 of the rule keeps its results: the effect is unknown.
    assert effect_without("ablation", is_version_4=True).drop is None


def test_an_arm_without_a_score_has_no_effect():
    rows = outcomes(0.4, 0.0, 0.1, 0.36, n=10)
    lacking = [structs.replace(r, cls="unscored", score=None) if str(r.arm) == "ablation" else r for r in rows]
    (suppression,) = Levels.of(lacking).effects(effects=EFFECTS[:1])
    assert (suppression.n, suppression.drop, suppression.relative.value) == (0, None, None)
