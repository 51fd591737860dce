from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from make_run import make_run
from rhumbline.evidence.verdict_rules import ARDITI2024, RHUMBLINE
from rhumbline.records.arms import ABLATION
from rhumbline.records.results import Confounds, LevelUnit, StyleSummary
from rhumbline.records.verdict_names import VerdictName
from rhumbline.report import verdict_sections
from rhumbline.report.run_record import RunRecord, level_unit, read_run

RULES = (replace(RHUMBLINE, max_p=None), ARDITI2024)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunRecord:
    verdict = VerdictName.NOT_SINGLE
    return read_run(make_run(tmp_path_factory.mktemp("run"), seeds=(0,), draws=2, verdict=verdict))


def by_rule(run, rule):
    """The run under a rule with the null families that it has."""
    return replace(run, protocol=replace(run.protocol, rule=replace(rule, families=run.protocol.rule.families)))


def test_a_rule_that_reads_estimates_refutes_by_the_estimate(run):
    by_interval, by_estimate = (" ".join(verdict_sections._shown(by_rule(run, r))) for r in RULES)
    assert "the whole interval misses the margin" in by_interval
    assert "the estimate misses the margin" in by_estimate
    assert "interval misses" not in by_estimate


def test_how_degenerate_completions_count_is_that_of_the_rule(run):
    """Absolute changes are of the rate of refusals, in which broken text is no refusal."""
    (seed,) = run.seeds
    arms = tuple(changed(arm, degenerate=0.3) if arm.arm == ABLATION else arm for arm in seed.arms)
    broken = replace(run, results=replace(run.results, seeds=(replace(seed, arms=arms),)))
    relative, absolute = (" ".join(verdict_sections._limits(by_rule(broken, r))) for r in RULES)
    assert "30% of the completions under an intervention were degenerate. They count against both effects." in relative
    assert "under ablation in favour of the direction" in absolute
    assert "against both" not in absolute


def test_a_family_can_have_fewer_draws_than_the_others(run):
    """`shuffled` has 19 of 39."""
    results = replace(run.results, verdict=VerdictName.REPRODUCES)
    protocol = replace(run.protocol, nulls=replace(run.protocol.nulls, wide=39, procedure=19))
    limits = " ".join(verdict_sections._limits(replace(run, results=results, protocol=protocol)))
    assert "at most 39 draws of a null family, so it cannot be below 0.025" in limits


@pytest.mark.parametrize(
    ("source", "where"), [("baseline", "completions at baseline"), ("texts", "texts of the contrast")]
)
def test_the_unit_of_a_level_is_named_by_its_source(run, source, where):
    unit = LevelUnit(0.6, 0.1, 0.5, 0.4, 0.6, 0.9, 0.8, (100, 100), source)
    style = StyleSummary(unit, "responses", "estimated", (), None, 0.1, Confounds((), ()), None)
    assert where in level_unit([replace(run.seeds[0], style=style)])
