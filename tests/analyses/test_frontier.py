"""Interventions at equal damage on planted models: the planted direction is best, and random vectors change nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finished_runs import QUICK, finished_run
from rhumbline.analyses import frontier_fits, trajectory_kl
from rhumbline.analyses.frontier import analyse
from rhumbline.analyses.frontier_fits import Fits, massive_tokens
from rhumbline.analyses.judged import change_over_draws
from rhumbline.analyses.spans import energy
from rhumbline.analyses.trajectory_kl import Trajectories, right_answers, takes_system, with_system
from rhumbline.errors import ProtocolError, TemplateError
from rhumbline.evidence.class_rates import SHOWN_OR_DEGENERATE, indicators
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm
from rhumbline.judging.metric import TokenMetric
from rhumbline.models.chat_model import forward
from rhumbline.models.hooks import hooked
from rhumbline.organisms import Planted
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.frontier_file import GROUPS, INTERVENTIONS, FrontierPlan, FrontierRecord
from rhumbline.records.shared import ByLabel
from rhumbline.report.frontier_section import frontier
from rhumbline.report.page import Canvas

PLAN = FrontierPlan(
    doses=(0.03,), prompts=40, kl_prompts=6, answer_tokens=6, max_new_tokens=6, draws=2, steps=2, members=4
)
RUN = replace(QUICK, sizes=Sizes(32, 16, 40))
ONE, TWO = (
    Planted(effect=2.0, n_layers=5, prompts=120),
    Planted(axes=2, effect=2.0, jitter=0.05, n_layers=5, prompts=120),
)


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory):
    made = {}

    def get(spec, seed=0):
        if (spec, seed) not in made:
            made[spec, seed] = finished_run(spec, tmp_path_factory.mktemp("frontier"), replace(RUN, seeds=(seed,)))
        return made[spec, seed]

    return get


@pytest.fixture(scope="module")
def records(subject_of):
    """The planted direction with two seeds, and two planted axes."""
    nulls = [name for name in INTERVENTIONS if GROUPS[name] == "null"]
    cases = {
        "one": (ONE, 0, INTERVENTIONS),
        "other seed": (ONE, 1, ("ablation", "subtraction", "som", *nulls)),
        "two": (TWO, 0, ("ablation", "som")),
    }
    return {
        case: analyse(subject_of(spec, seed), replace(PLAN, interventions=names))
        for case, (spec, seed, names) in cases.items()
    }


def by_name(record):
    return {curve.name: curve for curve in record.curves}


def rate_left(curve):
    return min(point.remaining.rate for point in curve.points)


@pytest.mark.parametrize("name", ["one", "other seed"])
def test_the_planted_direction_is_best_and_one_is_enough(name, records):
    record = records[name]
    curves = by_name(record)
    assert record.baseline.remaining.rate == 1
    assert rate_left(curves["ablation"]) == 0
    others = [c for c in record.curves if c.name == "subtraction" or c.group in ("several directions", "null")]
    assert all(c.half is None or c.half.kl > curves["ablation"].half.kl for c in others)
    assert record.answers.one_direction == "ONE-IS-ENOUGH", record.answers.one_direction_reason
    assert record.answers.at_equal_cost == "NOTHING-BETTER", record.answers.at_equal_cost_reason


def test_of_two_planted_axes_several_directions_remove_more(records):
    """The contrary case: one direction leaves half of the prompts, at any damage."""
    curves, answers = by_name(records["two"]), records["two"].answers
    assert rate_left(curves["ablation"]) > 0.3
    assert rate_left(curves["som"]) == 0
    assert (answers.one_direction, answers.at_equal_cost) == ("MORE-HELPS", "SOMETHING-BETTER")
    assert by_name(records["two"])["ablation"].half is None


@pytest.mark.parametrize("name", ["one", "other seed"])
def test_random_vectors_are_flat_at_every_dose(name, records):
    record = records[name]
    nulls = [curve for curve in record.curves if curve.group == "null"]
    assert len(nulls) == 4
    assert all(point.remaining.rate > 0.9 for curve in nulls for point in curve.points)
    assert all(curve.half is None and curve.draws == PLAN.draws for curve in nulls)
    assert sum(len(curve.dosed) for curve in nulls) == 2 * len(PLAN.doses)  # the additions reach every dose
    assert record.answers.nulls == "FLAT", record.answers.nulls_reason


def test_where_damage_alone_removes_the_behaviour_random_vectors_are_not_flat(subject_of):
    """The contrary case: a random vector that is much larger than the stream leaves nothing of the decision."""
    names = ("ablation", "matched-addition")
    record = analyse(subject_of(ONE), replace(PLAN, doses=(2.0,), interventions=names))
    assert record.answers.nulls == "NOT-FLAT"
    assert [curve.name for curve in record.curves] == list(names)


def test_the_order_does_not_depend_on_the_seed(records):
    def order(record):
        halves = {n: c.half for n, c in by_name(record).items()}
        known = [n for n in ("ablation", "som", "subtraction") if halves[n] is not None]
        return sorted(known, key=lambda n: halves[n].kl), [n for n in halves if GROUPS[n] == "null" and halves[n]]

    assert order(records["one"]) == order(records["other seed"]) == (["ablation", "som", "subtraction"], [])


def test_every_dose_has_its_kl_or_is_not_reached(records):
    for record in records.values():
        for curve in record.curves:
            if curve.unavailable is None and curve.name != "system-prompt":
                assert {*curve.dosed, *(n.dose for n in curve.not_reached)} >= set(PLAN.doses)
            for dose, point in curve.dosed.items():
                assert point.dosed_kl == pytest.approx(dose, rel=PLAN.tolerance + 1e-6)
                assert len(point.strengths) == curve.draws
            if curve.not_reached:
                assert curve.points[-1].dose is None
                assert curve.points[-1].dosed_kl < max(n.dose for n in curve.not_reached)
            assert all(n.reason == "largest strength costs less" for n in curve.not_reached)


def test_the_record_is_read_as_it_was_written_and_has_a_section(records, subject_of):
    assert subject_of(TWO).directory.read_record(FrontierRecord) == records["two"]
    canvas = Canvas()
    html = str(frontier(records["one"], canvas))
    assert "ONE-IS-ENOUGH" in html
    assert "not reached" in html
    assert [drawing.chart.name for drawing in canvas.drawings] == ["frontier-one", "frontier-several", "frontier-null"]


# -- the cost


def test_the_trajectory_kl_is_that_of_the_plain_loop(subject_of):
    """Mean over tokens of KL(baseline || edited) along the baseline's answer; 0 for the baseline; also for a prompt."""
    subject = subject_of(ONE)
    prompts = subject.prompts("val", "negative")[:4]
    answers = Trajectories.of(subject.runner, subject.chat, prompts, 6)
    arms = [BASELINE, Arm("a", (Ablate(subject.direction),)), Arm("b", (Add(subject.direction, 2.0),))]
    found = answers.divergence(arms)
    assert found.means[0] == 0
    assert (found.agreed[0] == found.tokens).all()

    def log_p(ids, edits):
        tokens = torch.tensor([list(ids)])
        with torch.no_grad(), hooked(subject.model, edits):
            return forward(subject.model, tokens, torch.ones_like(tokens), keep=0)[0].double().log_softmax(-1)

    def divergence(p, q):
        return float((p.exp() * (p - q)).sum())

    edits = [BatchEdits.of([arm], subject.model).on(torch.tensor([0])) for arm in arms]
    for k in (1, 2):
        total = 0.0
        for ids, start in answers.documents:
            p, q = log_p(ids, {})[start - 1 : -1], log_p(ids, edits[k])[start - 1 : -1]
            total += divergence(p, q)
        assert found.means[k] == pytest.approx(total / found.tokens.sum(), rel=1e-3, abs=1e-7)
    system, total = "Be kind.", 0.0
    for prompt, (ids, start) in zip(prompts, answers.documents, strict=True):
        other = [*subject.chat.encode(with_system(prompt, system, subject.chat)), *ids[start:]]
        total += divergence(log_p(ids, {})[start - 1 : -1], log_p(other, {})[-len(ids[start:]) - 1 : -1])
    assert answers.under_system(system).means[0] == pytest.approx(total / found.tokens.sum(), rel=0.02)


def test_questions_need_a_tokenizer_with_their_words(subject_of):
    subject = subject_of(ONE)
    assert right_answers(subject.runner, subject.chat, [BASELINE]).shape == (1, 0)


def test_a_template_without_system_prompts_has_none_measured(subject_of, monkeypatch):
    def refuse(*_):
        raise TemplateError("no system prompts")

    subject = subject_of(ONE)
    assert takes_system(subject.chat, "Be kind.")
    monkeypatch.setattr(trajectory_kl, "check_system", refuse)
    curves = by_name(analyse(subject, replace(PLAN, prompts=4, interventions=("ablation", "system-prompt"))))
    assert curves["system-prompt"].unavailable == "no system prompt in the template"
    assert (curves["system-prompt"].points, curves["system-prompt"].half) == ((), None)


# -- fits and plans


def test_random_vectors_are_orthogonal_unit_vectors(subject_of):
    fits = Fits(subject_of(ONE), PLAN)
    r = fits.direction.vector
    for name in ("isotropic-addition", "matched-addition"):
        for draw in fits.dosed()[name].draws:
            add = draw(2.0)
            assert abs(float(add.direction.vector @ r)) < 1e-5
            assert add.direction.norm == pytest.approx(fits.direction.norm, rel=1e-4)
    assert fits.spared >= 1


def test_the_reference_spares_what_the_run_spares_and_so_do_spans_and_nulls(subject_of):
    subject = subject_of(ONE)
    plan = replace(PLAN, interventions=("ablation", "everywhere-ablation", "som", "isotropic-ablation"))
    spares = replace(
        subject,
        directory=replace(subject.directory, protocol={**subject.directory.protocol, "ablation": {"spared": 2}}),
    )
    fitted = Fits(spares, plan).dosed()
    assert {name: one.draws[0](1.0).spared for name, one in fitted.items()} == {
        "ablation": 2,
        "everywhere-ablation": 0,
        "som": 2,
        "isotropic-ablation": 2,
    }
    plain = Fits(subject, plan)
    assert "everywhere-ablation" not in plain.dosed()
    assert plain.unfitted == {"everywhere-ablation": "equal to the ablation of the run"}
    assert Fits(spares, plan).unfitted == {}


def test_massive_activations_are_sought_in_the_template_only(subject_of, monkeypatch):
    subject = subject_of(ONE)
    ids = subject.sequences("train", "negative")[0]
    monkeypatch.setattr(frontier_fits, "MASSIVE", 0.0)  # every token is massive
    assert massive_tokens(subject.model, ids, 3) == 3
    assert massive_tokens(subject.model, ids, 0) == 0
    monkeypatch.setattr(frontier_fits, "MASSIVE", 1e9)
    assert massive_tokens(subject.model, ids, 3) == 0


def test_broken_text_is_neither_a_removal_nor_an_induction():
    for before, rises in (("refused", False), ("complied", True)):
        changed = "complied" if before == "refused" else "refused"
        broken, whole = (change_over_draws([before] * 20, [[cls] * 20], rises=rises) for cls in ("degenerate", changed))
        assert (broken.mean, whole.mean) == (0, 1)
    counted = indicators(["refused", "degenerate", "complied", "unscored"], SHOWN_OR_DEGENERATE)
    assert counted[:3].tolist() == [1, 1, 0]
    assert np.isnan(counted[3])


@pytest.mark.parametrize("size", [2.0, 4.0])
def test_matched_random_vectors_have_the_energy_of_the_direction(size, subject_of):
    """With a main axis of the negatives that is nearly the direction, too."""
    fits = Fits(subject_of(ONE), PLAN)
    r, rng = fits.direction.vector, torch.Generator().manual_seed(0)
    h = torch.randn(2, 60, len(r), generator=rng) + size * torch.randn(2, 60, 1, generator=rng) * r
    h += 6 * torch.randn(2, 60, 1, generator=rng) * torch.roll(r, 7)
    fits.__dict__["activations"] = ByLabel(*h)
    shares = [energy(h.flatten(0, 1), v[None]) / energy(h.flatten(0, 1), r[None]) for v in fits._random(matched=True)]
    assert shares == pytest.approx([1] * PLAN.draws, rel=0.05)


def test_a_run_without_a_direction_is_refused(subject_of):
    with pytest.raises(ProtocolError, match="no candidate passed"):
        analyse(replace(subject_of(ONE), direction=None), PLAN)


def test_without_a_token_metric_the_cone_is_not_measured(subject_of):
    plan = replace(PLAN, doses=(0.02,), interventions=("ablation", "cone", "system-prompt"))
    curves = by_name(analyse(replace(subject_of(ONE), metric=TokenMetric(())), plan))
    assert curves["cone"].unavailable == "no token metric"
    assert curves["cone"].points == ()
    assert np.isfinite(curves["system-prompt"].points[0].kl.mean)
