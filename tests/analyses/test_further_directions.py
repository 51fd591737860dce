"""Is one direction enough? One-, two- and cone-shaped organisms, resumption, and the rule as a pure function."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finished_runs import finished_run
from rhumbline.analyses import further_directions
from rhumbline.analyses.direction_sources import SourceAnalysis
from rhumbline.analyses.further_directions import decide
from rhumbline.analyses.subject import AnalysisPrompts, Subject
from rhumbline.errors import ProtocolError
from rhumbline.organisms import Planted
from rhumbline.records.analysis_files import Mean, MeanRate, Rate
from rhumbline.records.directions_file import (
    ChosenRank,
    DirectionsParameters,
    DirectionsPlan,
    DirectionsRule,
    Gain,
    RankedSpan,
    SourceRecord,
    Suppression,
)

QUICK = DirectionsPlan(sources=("clusters", "gradient", "cone"), max_rank=2, members=3, draws=1, samples=2, steps=12)
SHAPES = {
    "one": (Planted(prompts=100), "ONE-IS-ENOUGH"),
    "two": (Planted(axes=2, effect=2.0, jitter=0.05, prompts=100), "MORE-HELPS"),
    "cone": (Planted(axes=2, effect=1.3, jitter=0.05, readout="sum", prompts=100), "ONE-IS-ENOUGH"),
}


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    made = {}

    def get(shape):
        if shape not in made:
            subject = finished_run(SHAPES[shape][0], tmp_path_factory.mktemp(shape))
            plan = replace(QUICK, max_rank=3 if shape == "two" else 2)
            made[shape] = subject, further_directions.analyse(subject, plan)
        return made[shape]

    return get


@pytest.mark.parametrize("shape", SHAPES)
def test_the_planted_shape_is_recognised(shape, analysed):
    _, record = analysed(shape)
    assert record.verdict.answer == SHAPES[shape][1], record.verdict.reason
    for source in record.sources.values():
        assert [r.rank for r in source.ranks] == list(range(1, len(source.ranks) + 1))
        assert all(g.low <= g.mean <= g.high for g in source.gains)
        for r in source.ranks[1:]:
            matched = r.random["energy-matched"]
            assert matched.energy == pytest.approx(r.energy, abs=0.05) or matched.energy < r.energy


def test_clusters_recover_both_of_two_axes(analysed):
    _, record = analysed("two")
    ranks = record.sources["clusters"].ranks
    assert ranks[0].suppression.rate > 0.3  # ablating the mean of both leaves one
    assert ranks[1].suppression.rate < 0.1  # ablating their span leaves none
    assert min(r.suppression.rate for r in ranks[1].random.values()) > 0.3  # random planes do not have this effect
    assert record.sources["clusters"].chosen.gain.low > 0.1


def test_clusters_of_a_cone_induce_singly_and_one_direction_is_enough(analysed):
    _, record = analysed("cone")
    clusters = record.sources["clusters"]
    others = clusters.members[1:]
    assert all(m.induced.rate > 0.9 for m in others)  # every direction of the cone induces ...
    assert max(m.suppressed.rate for m in others) > 0.3  # ... and ablating one of them alone is not enough,
    assert clusters.ranks[0].suppression.rate < 0.1  # while the first direction removes everything.
    cone = record.sources["cone"].cone[-1]
    assert cone.induced.worst > 0.5
    assert cone.random.induced.mean <= cone.induced.mean


def test_a_stopped_analysis_resumes_and_removes_its_parts(analysed, monkeypatch):
    subject, record = analysed("one")
    folder = subject.directory.path / "analyses"
    assert sorted(p.name for p in folder.iterdir()) == ["directions.json"]
    plan = replace(QUICK, sources=("clusters", "candidates"))
    record_of, seen = SourceAnalysis.record, []

    def stopped(self):
        seen.append(self.name)
        if self.name == "candidates" and len(seen) == 2:
            raise KeyboardInterrupt
        return record_of(self)

    monkeypatch.setattr(SourceAnalysis, "record", stopped)
    with pytest.raises(KeyboardInterrupt):
        further_directions.analyse(subject, plan)
    again = further_directions.analyse(subject, plan)
    assert seen == ["clusters", "candidates", "candidates"]  # the first source was not measured again
    assert again.sources["clusters"] == record.sources["clusters"]
    assert sorted(p.name for p in folder.iterdir()) == ["directions.json"]


def test_a_run_without_a_direction_is_refused(analysed):
    subject, _ = analysed("one")
    with pytest.raises(ProtocolError, match="no candidate passed"):
        further_directions.analyse(replace(subject, direction=None), QUICK)


# -- the rule


def source(gain, beyond=(0.5, 0.3, 0.6), kl=0.05, drop=(1.0, 0.9, 1.0), val=0.0):
    def mean(value, kind=MeanRate):
        return kind(*value, 64)

    metric = Mean(-3.0, -4.0, -2.0, 64)
    first = Suppression(0.0, mean(drop), metric)
    chosen = ChosenRank(
        rank=2,
        val_rate=val,
        val_metric=-3.0,
        gain=Gain(lower=1, higher=2, **dict(zip(("mean", "low", "high"), gain, strict=True)), n=64, metric=metric),
        beyond_random={"isotropic": mean(beyond)},
        kl=Mean(kl, kl, kl, 64),
    )
    ranks = (RankedSpan(1, first, metric, (), 0.1, {}),)
    return SourceRecord((), (), (), ranks, (), chosen, ())


BASE = Rate(1.0, 0.9, 1.0, 64)
NONE, LARGE, WIDE = (0.0, -0.04, 0.04), (0.5, 0.4, 0.6), (0.1, 0.02, 0.2)


@pytest.mark.parametrize(
    ("sources", "answer"),
    [
        ({"clusters": source(NONE)}, "ONE-IS-ENOUGH"),
        ({"clusters": source(NONE), "som": source(WIDE)}, "UNDETERMINED"),
        ({"clusters": source(LARGE)}, "MORE-HELPS"),
        ({"clusters": source(LARGE, beyond=(0.1, -0.1, 0.3))}, "UNDETERMINED"),
        ({"clusters": source(LARGE, kl=0.5)}, "UNDETERMINED"),
        # A KL divergence that was not measured does not count as within the bound.
        ({"clusters": source(LARGE, kl=None)}, "UNDETERMINED"),
        # The source with the lowest validation rate decides, not the one with the largest gain on test prompts.
        ({"clusters": source(NONE, val=0.0), "som": source(LARGE, val=0.2)}, "UNDETERMINED"),
        # A first direction without effect is not enough, even if no further direction has an effect.
        ({"clusters": source(NONE, drop=(0.0, -0.04, 0.04))}, "UNDETERMINED"),
    ],
)
def test_the_rule(sources, answer):
    assert decide(BASE, sources, DirectionsRule()).answer == answer
    assert decide(replace(BASE, rate=0.2), sources, DirectionsRule()).answer == "NO-BASELINE"


def test_without_a_further_direction_nothing_is_known_about_several():
    none = replace(source(NONE), chosen=None)
    assert decide(BASE, {"clusters": none}, DirectionsRule()).answer == "UNDETERMINED"
    assert decide(BASE, {"clusters": none, "som": source(NONE)}, DirectionsRule()).answer == "ONE-IS-ENOUGH"


def test_members_are_added_as_the_run_adds(analysed, monkeypatch):
    subject, _ = analysed("one")
    prompts = AnalysisPrompts.of(subject, 2)
    source = SourceAnalysis.of(subject, prompts, DirectionsParameters(QUICK, DirectionsRule()), "clusters")
    (add,) = source._adding(subject.selected().vector).interventions
    assert add.coefficient == subject.coefficient
    monkeypatch.setattr(Subject, "coefficient", 2.0)
    (add,) = source._adding(subject.selected().vector).interventions
    assert add.coefficient == 2.0


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_the_two_answers_exclude_each_other(gain, kl, drop):
    low, mean, high = sorted(gain)
    rule, some = DirectionsRule(), source((mean, low, high), kl=kl, drop=(drop, drop, drop))
    answer = decide(BASE, {"clusters": some}, rule).answer
    if answer == "MORE-HELPS":
        assert low >= rule.margin
    if answer == "ONE-IS-ENOUGH":
        assert high < rule.margin
