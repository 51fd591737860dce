"""Which null draws have the KL divergence of their ablation measured."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from msgspec import UNSET

from rhumbline.evidence.verdict_rules import BLOG2026, RHUMBLINE
from rhumbline.judging.metric import TokenMetric
from rhumbline.records.arms import ABLATION, BASELINE, ArmId, ArmKind
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import WideNulls, WideRow
from rhumbline.records.shared import NOT_FINITE, NullDirection
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.wide_nulls import RARELY_SHOWN, _damage, _kl, _with_damage

NULLS = [NullDirection("top-pc", d, cosine=0.0, energy=0.2, position=Position(-1), layer=4) for d in range(4)]


def row(arm, value, kl=UNSET):
    return WideRow(arm=arm, side="positive", metric=(value, value), kl=kl)


def of_draw(d):
    return ArmId.null("top-pc", d, ArmKind.ABLATION)


class Jobs:
    """Answers with a divergence of 0.5, and keeps the indices that were asked for."""

    def __init__(self):
        self.asked = []

    def request(self, kind, requests):
        self.asked += [i for request in requests for i in request.nulls]
        assert all(request.damage for request in requests)
        return [
            WideNulls({}, tuple(WideRow(arm=of_draw(i), side="positive", metric=(), kl=0.5) for i in request.nulls))
            for request in requests
        ]


def test_the_damage_of_draws_that_reach_the_suppression_is_measured_once():
    rows = [
        row(BASELINE, 5.0),
        row(ABLATION, -5.0),
        row(of_draw(0), -4.9),
        row(of_draw(1), -5.0),
        row(of_draw(2), -7.0),
    ]
    rows.append(row(of_draw(3), -6.0, kl=0.1))  # measured in an earlier round
    wide, jobs = WideNulls({"positive": ("a", "b")}, tuple(rows), kl=(0.0,)), Jobs()
    found = _with_damage(wide, NULLS, RHUMBLINE, jobs)
    assert jobs.asked == [1, 2]
    assert {r.arm.draw: r.kl for r in found.rows if r.arm.is_null} == {0: UNSET, 1: 0.5, 2: 0.5, 3: 0.1}
    assert replace(found, rows=()) == replace(wide, rows=())
    assert [r.metric for r in found.rows] == [r.metric for r in wide.rows]
    # A draw that suppresses in its completions is measured too, if the metric was read under it.
    completed = Jobs()
    assert _with_damage(wide, NULLS, RHUMBLINE, completed, {("top-pc", 0), ("top-pc", 9)}).rows[2].kl == 0.5
    assert completed.asked == [0, 1, 2]
    for rule in (BLOG2026, replace(RHUMBLINE, max_kl=None)):
        none = Jobs()
        assert _with_damage(wide, NULLS, rule, none) == wide
        assert none.asked == []


class FirstLogit(TokenMetric):
    """The first logit stands for the log-odds of the tokens."""

    def __call__(self, logits):
        return logits[:, 0] - self.threshold


@dataclass
class Scorer:
    """The first logit of two prompts of three is `shown`; every arm has the divergence of 100 times its prompt."""

    shown: float
    threshold: float = 0.0
    looked_at: int = 0

    @property
    def metric(self):
        return FirstLogit((), self.threshold)

    def baseline(self, sequences):
        self.looked_at += len(sequences)
        return torch.tensor([[self.shown if s[0] % 3 else -5.0] for s in sequences]).reshape(-1, 1)

    def kl(self, sequences, arms, baseline):
        assert len(sequences) == len(baseline)
        return torch.tensor([[100.0 * s[0] for s in sequences] for _ in arms])


class Run(SeedRun):
    """A seed with some negatives, whose only token is their number."""

    arms = SimpleNamespace(arm=lambda i: i)

    def __init__(self, scorer, negatives):
        prompts = [SimpleNamespace(id=str(i), number=i) for i in range(negatives)]
        parts = {
            "seed": 0,
            "splits": SimpleNamespace(get=lambda split, label: prompts),
            "chat": SimpleNamespace(encode=lambda prompt: [prompt.number]),
            "scorer": lambda stage: scorer,
            "protocol": SimpleNamespace(nulls=SimpleNamespace(prompts=8)),
        }
        for name, part in parts.items():
            object.__setattr__(self, name, part)


@pytest.mark.parametrize(
    ("shown", "negatives", "n"), [(3.0, 200, 16), (RARELY_SHOWN, 200, 16), (3.0, 9, 3), (3.0, 0, 0)]
)
def test_the_kl_is_measured_on_negatives_that_rarely_show_the_behaviour(shown, negatives, n):
    """A third of the negatives have a metric of -5; the others count if their metric is at the bound."""
    first, second = _kl(Run(Scorer(shown), negatives), [ABLATION, BASELINE])
    assert first == second
    assert len(first) == n
    if shown > RARELY_SHOWN:
        assert all(value / 100 % 3 == 0 for value in first)


@pytest.mark.parametrize(
    ("threshold", "shown", "n"),
    [
        (2.0, -1.0, 3),  # below the threshold by more than 2.2, but the tokens have a probability of 0.27
        (2.0, -2.5, 9),
        (-2.0, -2.5, 9),  # below the threshold by less than 2.2
        (-4.0, -3.0, 3),  # the metric predicts that the judge sees the behaviour
    ],
)
def test_the_cut_is_at_a_probability_of_the_tokens_wherever_the_metric_is_zero(threshold, shown, n):
    (kl,) = _kl(Run(Scorer(shown, threshold), 9), [ABLATION])
    assert len(kl) == n


@pytest.mark.parametrize(("negatives", "looked_at"), [(200, 64), (40, 40), (7, 7)])
def test_negatives_are_sought_until_there_are_enough(negatives, looked_at):
    run = Run(scorer := Scorer(3.0), negatives)
    (kl,) = _kl(run, [ABLATION])
    assert len(kl) == min(16, -(-negatives // 3))
    assert scorer.looked_at == looked_at  # of at most 64, a third of which rarely show the behaviour


@dataclass
class BreakingScorer(Scorer):
    """The second arm has infinite logits on every prompt, and the baseline has them on prompt 3."""

    def baseline(self, sequences):
        logits = super().baseline(sequences)
        logits[[s[0] == 3 for s in sequences]] = float("nan")
        return logits

    def kl(self, sequences, arms, baseline):
        kl = super().kl(sequences, arms, baseline)
        kl[1] = float("nan")
        return kl + 0 * baseline[:, 0]


def test_a_divergence_from_infinite_logits_is_not_finite():
    """Prompts on which the baseline is not finite say nothing, so they are not read."""
    first, second = _kl(Run(BreakingScorer(3.0), 12), [ABLATION, of_draw(0)])
    assert first == (0.0, 600.0, 900.0)
    assert second == (NOT_FINITE,) * 3
    rows = [_damage(of_draw(0), "positive", values) for values in (first, second, (), (0.5, NOT_FINITE))]
    assert [row.kl for row in rows] == [500.0, NOT_FINITE, None, NOT_FINITE]
    assert [row.kl_low for row in rows] == [None, NOT_FINITE, None, NOT_FINITE]  # three values have no interval
    (wide, narrow) = (_damage(of_draw(0), "positive", values) for values in ((0.1, 0.5) * 4, (0.3,) * 8))
    assert wide.kl == narrow.kl == narrow.kl_low == 0.3
    assert 0.1 < wide.kl_low < 0.2
