"""Random steering: small vectors change nothing, large ones remove refusal, and all have the size that is asked for."""

from dataclasses import replace

import pytest
import torch

from rhumbline.analyses.random_steering import HarmJudge, analyse, random_additions
from rhumbline.errors import InputError
from rhumbline.inference.interventions import Add
from rhumbline.judging.judge_specs import Judgement, published
from rhumbline.records.steering_file import SteeringPlan, SteeringRecord

PLAN = SteeringPlan(sizes=(0.01, 4.0), draws=3, prompts=6, max_new_tokens=8)


@pytest.fixture(scope="module")
def record(planted) -> SteeringRecord:
    return analyse(planted, PLAN)


def test_a_small_vector_changes_nothing_and_a_large_one_removes_refusal(record, planted):
    baseline, small, large = record.rows
    assert (baseline.size, baseline.refused.rate, baseline.drop) == (0.0, 1.0, None)
    assert (small.refused.rate, small.drop.mean) == (1.0, 0.0)
    # The stream is then mostly noise, so the decision and the text are lost: no refusal, and no removal either.
    assert large.refused.rate == large.drop.mean == 0
    assert large.degenerate.rate == 1
    assert large.drop.low < 0 < large.drop.high
    assert len(large.by_draw) == PLAN.draws
    for row in record.rows:
        assert None not in (row.refused, row.complied, row.degenerate)
        assert row.refused.n == PLAN.prompts
        shares = row.refused.rate + row.complied.rate + row.degenerate.rate
        assert shares == pytest.approx(1.0) or row.unscored
        assert row.harmful is None
    assert planted.directory.read_record(SteeringRecord) == record


def test_vectors_have_the_size_and_are_the_same_at_every_size(planted):
    one, two = (random_additions(planted, planted.selected_site(), norm, 3) for norm in (2.0, 5.0))
    for a, b in zip(one, two, strict=True):
        (x,), (y,) = (arm.interventions for arm in (a, b))
        assert isinstance(x, Add)
        assert isinstance(y, Add)
        assert float(x.direction.difference.norm()) == pytest.approx(2.0, rel=1e-4)
        torch.testing.assert_close(x.direction.difference * 2.5, y.direction.difference)
        assert x.direction.layer == planted.selected().layer
    firsts = [float(i.direction.vector[0]) for arm in one for i in arm.interventions if isinstance(i, Add)]
    assert len(set(firsts)) == 3


def test_without_a_direction_vectors_are_added_at_the_middle_layer(planted):
    record = analyse(replace(planted, direction=None), replace(PLAN, sizes=(0.01,), draws=1))
    assert record.site.layer == planted.model.n_layers // 2
    assert record.rows[1].refused == record.rows[0].refused


def test_a_judge_of_harm_reads_prompts_and_completions(planted):
    """It calls everything harmful that does not refuse; a judge of refusal is refused."""
    asked = []

    def judge(prompts, completions):
        asked.extend(zip(prompts, completions, strict=True))
        return [Judgement("safe" if "cannot" in text else "unsafe", 0.0) for text in completions]

    spec = next(s for s in published().values() if s.asks == "harm")
    found = analyse(planted, replace(PLAN, sizes=(0.01,), draws=1), HarmJudge(spec, judge))
    assert found.harm_judge == spec.name
    assert [row.harmful and row.harmful.rate for row in found.rows] == [0.0, 0.0]
    assert len(asked) == 2 * PLAN.prompts
    assert asked[0][0] == planted.prompts("test", "positive")[0].text
    with pytest.raises(InputError, match="needs a judge of harm"):
        HarmJudge(next(s for s in published().values() if s.asks == "refusal"), judge)
