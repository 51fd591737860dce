"""The second direction: remainders are orthogonal to the first one and have its norm, and are scored as it was."""

import json

import pytest
import torch

from rhumbline import preset
from rhumbline.inference.interventions import Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.scorer import Scorer
from rhumbline.records.codec import convert, to_json
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Candidate
from rhumbline.settings import AblationSettings
from rhumbline.stages import second_direction
from rhumbline.stages.second_direction import (
    GradientCandidate,
    GradientCandidates,
    measure_second_direction,
    rescaled_remainders,
)
from rhumbline.stages.seed_run import SeedRun
from rhumbline.stages.stage_jobs import SeedJobs, Span
from tolerances import near

FIRST = Direction.from_vector(3 * torch.tensor([1.0, 0.0, 0.0, 0.0]), Position(-1), 1)


def test_a_remainder_is_orthogonal_to_the_direction_and_has_its_norm():
    candidates = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    remainders = rescaled_remainders(candidates, FIRST)
    assert (remainders @ FIRST.vector).abs().max() < 1e-5
    assert (candidates @ FIRST.vector).abs().max() > 0.1
    torch.testing.assert_close(remainders.norm(dim=-1), torch.full((2, 3), FIRST.norm))


@pytest.mark.parametrize("rest", [0.0, 1e-6])
def test_nothing_remains_of_a_candidate_along_the_direction(rest):
    along = 3 * FIRST.vector + rest * torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert rescaled_remainders(along[None, None], FIRST).norm() == 0
    apart = along + torch.tensor([0.0, 0.1, 0.0, 0.0])
    assert float(rescaled_remainders(apart[None, None], FIRST).norm()) == near(3.0)


class Scored(Exception):
    """Raised instead of scoring."""


class Run(SeedRun):
    """A run whose direction is the only candidate."""

    positions = (Position(-1),)
    direction = FIRST
    candidates = torch.stack([FIRST.vector, torch.ones(4)])[None]

    def __init__(self, protocol):
        object.__setattr__(self, "protocol", protocol)

    @property
    def applied_rule(self):
        return self.protocol.selection

    def scorer(self, stage):
        return object.__new__(Scorer)

    def kept_sequences(self, split):
        return [[1]], [[2]]


def test_a_paired_metric_has_no_candidates_by_gradient():
    """It has no tangents, so its screen is exact as well."""

    class Paired(Run):
        def scorer(self, stage):
            return Scorer(object.__new__(Runner), object.__new__(PairedLogOdds))

    assert second_direction._by_gradient(Paired(preset("rhumbline")), Span(0, 1)) == []


def test_a_candidate_by_gradient_comes_back_from_a_job_as_it_was_computed():
    """Its direction to the last bit, and a score that is not finite as NaN, which fails every bound."""
    direction = Direction.from_vector(torch.randn(64, generator=torch.Generator().manual_seed(1)), Position(-1), 1)
    row = Candidate(Position(-1), 1, 0.5, float("nan"), 0.1, norm=direction.norm)
    found = GradientCandidates((GradientCandidate(tuple(direction.vector.tolist()), row),))
    sent = json.loads(json.dumps(to_json(found)))
    (back,) = (one.scored() for one in convert(sent, GradientCandidates).candidates)
    assert torch.equal(back.direction.vector, direction.vector)
    assert back.direction.norm == direction.norm
    assert back.direction.layer == 1
    assert (back.row.bypass, back.row.kl) == (0.5, 0.1)
    assert back.row.induce != back.row.induce


def test_it_is_scored_with_the_spared_tokens_of_the_run(monkeypatch):
    def score(grid, **_):
        raise Scored(grid.spared)

    monkeypatch.setattr(second_direction, "score_candidates", score)
    monkeypatch.setattr(SeedJobs, "begin", lambda *_: list)  # the search by gradient
    for spared in (0, 2):
        run = Run(preset("rhumbline", ablation=AblationSettings(spared)))
        with pytest.raises(Scored, match=str(spared)):
            measure_second_direction(run, SeedJobs(run))
