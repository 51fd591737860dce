"""Is one enough? One-, two- and cone-shaped organisms, spans and their randomness, the rule as a pure function."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finished_runs import finished_run
from rhumbline.analyses import directions
from rhumbline.analyses.direction_sources import SourceAnalysis
from rhumbline.analyses.directions import decide
from rhumbline.analyses.gradient import GradientSearch
from rhumbline.analyses.spans import (
    cone_samples,
    energy,
    k_means,
    prototypes,
    random_span,
    self_organising_map,
    span_of,
)
from rhumbline.errors import DirectionError, InputError, ProtocolError
from rhumbline.inference.interventions import BASELINE, Ablate, AblateSpan, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.organisms import Planted
from rhumbline.records.analysis_values import Mean, MeanRate, Rate
from rhumbline.records.directions_file import (
    ChosenRank,
    DirectionsPlan,
    DirectionsRule,
    Gain,
    RankedSpan,
    SourceRecord,
    Suppression,
)
from tolerances import WITH_SOFTMAX, rounding, tolerance

QUICK = DirectionsPlan(sources=("clusters", "gradient", "cone"), max_rank=3, members=3, draws=2, samples=3, steps=20)
SHAPES = {
    "one": (Planted(), "ONE-IS-ENOUGH"),
    "two": (Planted(axes=2, effect=2.0, jitter=0.05), "MORE-HELPS"),
    "cone": (Planted(axes=2, effect=1.3, jitter=0.05, readout="sum"), "ONE-IS-ENOUGH"),
}


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    made = {}

    def get(shape):
        if shape not in made:
            subject = finished_run(SHAPES[shape][0], tmp_path_factory.mktemp(shape))
            made[shape] = subject, directions.analyse(subject, QUICK)
        return made[shape]

    return get


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_that_was_planted_is_told(shape, analysed):
    _, record = analysed(shape)
    assert record.verdict.answer == SHAPES[shape][1], record.verdict.reason
    for source in record.sources.values():
        assert [r.rank for r in source.ranks] == list(range(1, len(source.ranks) + 1))
        assert all(g.low <= g.mean <= g.high for g in source.gains)
        for r in source.ranks[1:]:
            matched = r.random["energy-matched"]
            assert matched.energy == pytest.approx(r.energy, abs=0.05) or matched.energy < r.energy


def test_two_axes_are_both_found_by_the_clusters(analysed):
    _, record = analysed("two")
    ranks = record.sources["clusters"].ranks
    assert ranks[0].suppression.rate > 0.3  # the mean of both leaves one
    assert ranks[1].suppression.rate < 0.1  # the span of two leaves none
    assert min(r.suppression.rate for r in ranks[1].random.values()) > 0.3  # random planes do not do it
    assert record.sources["clusters"].chosen.gain.low > 0.1


def test_a_cone_has_clusters_that_each_induce_and_still_one_is_enough(analysed):
    _, record = analysed("cone")
    clusters = record.sources["clusters"]
    others = clusters.members[1:]
    assert all(m.induced.rate > 0.9 for m in others)  # every direction of the cone induces ...
    assert max(m.suppressed.rate for m in others) > 0.3  # ... and ablating one of them alone is not enough,
    assert clusters.ranks[0].suppression.rate < 0.1  # while the first direction takes everything.
    cone = record.sources["cone"].cone[-1]
    assert cone.induced.worst > 0.5
    assert cone.random.induced.mean <= cone.induced.mean


def test_nothing_is_left_of_the_parts_and_a_killed_analysis_goes_on(analysed, monkeypatch):
    subject, record = analysed("one")
    folder = subject.directory.path / "analyses"
    assert sorted(p.name for p in folder.iterdir()) == ["directions.json"]
    plan = replace(QUICK, sources=("clusters", "candidates"))
    real, seen = SourceAnalysis.record, []

    def killed(self):
        seen.append(self.name)
        if self.name == "candidates" and len(seen) == 2:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(SourceAnalysis, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        directions.analyse(subject, plan)
    again = directions.analyse(subject, plan)
    assert seen == ["clusters", "candidates", "candidates"]  # the first source was not measured again
    assert again.sources["clusters"] == record.sources["clusters"]
    assert sorted(p.name for p in folder.iterdir()) == ["directions.json"]


def test_plans_and_rules_are_checked(analysed):
    with pytest.raises(InputError, match=r"unknown sources best.*max_rank is 1"):
        DirectionsPlan(sources=("best",), max_rank=1)
    with pytest.raises(InputError, match="margin is 0"):
        DirectionsRule(margin=0)
    subject, _ = analysed("one")
    with pytest.raises(ProtocolError, match="no candidate passed"):
        directions.analyse(replace(subject, direction=None), QUICK)


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


# -- spans


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_a_span_does_not_depend_on_the_order_of_its_members(seed, k):
    rng = torch.Generator().manual_seed(seed)
    members = torch.randn(k, 12, generator=rng)
    one, other = span_of(members), span_of(members[torch.randperm(k, generator=rng)])
    torch.testing.assert_close(one.T @ one, other.T @ other, **tolerance(terms=WITH_SOFTMAX))
    torch.testing.assert_close(one @ one.T, torch.eye(k), **tolerance())
    assert len(span_of(torch.cat([members, members[:1] * -3]))) == k  # what adds nothing is left out


def test_results_do_not_depend_on_the_basis(family_model):
    model = family_model("llama")
    rng = torch.Generator().manual_seed(0)
    span = span_of(torch.randn(3, 32, generator=rng))
    turned = torch.linalg.qr(torch.randn(3, 3, generator=rng)).Q @ span
    prompts = [[5, 9, 70, 11, 33, 8], [7, 100, 3, 9]]
    one_direction = Direction.from_vector(span[0], -1, 0)
    arms = [
        Arm("a", (AblateSpan(span),)),
        Arm("b", (AblateSpan(turned),)),
        Arm("c", (AblateSpan(span[:1]),)),
        Arm("d", (Ablate(one_direction),)),
        BASELINE,
    ]
    found = torch.zeros(len(arms), len(prompts), model.model.config.vocab_size)
    for rows, logits in Runner(model).last_logits(prompts, arms):
        found[rows.arm, rows.prompt] = logits
    torch.testing.assert_close(found[0], found[1], **tolerance())
    torch.testing.assert_close(found[2], found[3], **tolerance())
    assert (found[0] - found[4]).abs().max() > 1e-2
    for _, h, _ in Runner(model).residuals(prompts, (-1,), arms[0]):
        assert (h @ span.T).abs().max() < rounding()  # gone after
    for _, h, _ in Runner(model).residuals(prompts, (-1,)):
        assert (h @ span.T).abs().max() > 1e-1  # present before


def test_a_basis_that_is_none_is_refused(family_model):
    with pytest.raises(DirectionError, match="orthonormal"):
        AblateSpan(torch.ones(2, 32))
    span = AblateSpan(torch.eye(32)[:2])
    with pytest.raises(ProtocolError, match="ablates twice"):
        list(Runner(family_model("llama")).last_logits([[1, 2]], [Arm("x", (span, span))]))
    with pytest.raises(DirectionError, match="does not fit"):
        list(Runner(family_model("llama")).last_logits([[1, 2]], [Arm("x", (AblateSpan(torch.eye(16)[:2]),))]))


def test_random_spans_hold_what_is_given_and_match_the_energy():
    rng = np.random.default_rng(0)
    h = torch.randn(200, 24) * torch.linspace(3, 0.1, 24)
    given_, own = torch.eye(24)[20:21], torch.eye(24)[[20, 3]]
    plain = random_span(given_, 2, h, rng)
    matched = random_span(given_, 2, h, rng, energy(h, own))
    for span in (plain, matched):
        assert (given_ - given_ @ span.T @ span).abs().max() < rounding()
        assert len(span) == 2
    assert energy(h, matched) == pytest.approx(energy(h, own), rel=0.05)
    assert energy(h, torch.eye(24)) == pytest.approx(1)


# -- prototypes


def clouds(n=60, d=8, apart=6.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    centres = apart * torch.eye(d)[:3]
    return torch.cat([torch.randn(n, d, generator=rng) + c for c in centres]), centres


def test_k_means_and_the_map_find_planted_clouds():
    h, centres = clouds()
    found = k_means(h, 3, np.random.default_rng(0))
    assert torch.cdist(centres, found).min(1).values.max() < 1.0
    neurons = self_organising_map(h, 2, np.random.default_rng(0))
    assert len(neurons) == 4
    assert torch.cdist(centres, neurons).min(1).values.max() < 2.0
    # One cloud: every prototype's direction is nearly the mean's.
    one, negative = h[:60], torch.randn(60, 8) - 6 * torch.eye(8)[0]
    for how in ("clusters", "som"):
        members = prototypes(one, negative, how, 3, 0)
        mean = one.mean(0) - negative.mean(0)
        assert torch.cosine_similarity(members, mean, dim=-1).min() > 0.9


def test_more_clusters_than_prompts_are_no_more_than_the_prompts():
    h = torch.randn(2, 4)
    assert len(k_means(h, 5, np.random.default_rng(0))) == 2
    assert len(k_means(torch.ones(4, 3), 2, np.random.default_rng(0))) == 1


def test_cones_hold_their_members_side():
    members = torch.eye(6)[:3]
    for v in cone_samples(members, 20, np.random.default_rng(1)):
        assert float((members @ v).min()) >= 0
        assert float(v.norm()) == pytest.approx(1)


# -- gradient


def test_gradients_leave_the_model_as_it_was_and_stay_orthogonal(analysed):
    subject, _ = analysed("one")
    given_ = subject.selected().vector[None]
    weights = [p.requires_grad for p in subject.model.model.parameters()]
    train = [subject.sequences("train", c) for c in ("positive", "negative")]
    search = GradientSearch(subject.model, *train, subject.tokens, subject.selected(), steps=3)
    u = search.fit(given_)
    assert (u @ given_.T).abs().max() < 1e-5
    assert [p.requires_grad for p in subject.model.model.parameters()] == weights
    assert all(p.grad is None for p in subject.model.model.parameters())
    assert torch.equal(u, search.fit(given_))
