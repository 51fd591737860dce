"""Refits: weighted sums are means, and the sites that a refit can select."""

import torch

from rhumbline.evidence.selection_rules import ARDITI2024, BLOG2026
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.seed_files import Candidate
from rhumbline.stages.refits import best_sites, scored_sites, weighted_sums
from tolerances import tolerance


def test_weighted_sums_are_the_means_they_weight(family_model):
    runner = Runner(family_model("qwen2"), tokens_per_forward=40)
    prompts = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16], [5, 9, 12]]
    weights = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    sums = weighted_sums(runner, prompts, (Position(-2), Position(-1)), weights)
    torch.testing.assert_close(sums[0], extract(runner, prompts, (-2, -1)).stats.mean(), **tolerance())
    torch.testing.assert_close(sums[1], extract(runner, prompts[:1], (-2, -1)).stats.mean(), **tolerance())


def test_a_refit_can_select_scored_survivors_and_those_whose_kl_was_not_needed():
    def row(layer, bypass, induce, discarded=None):
        return Candidate(Position(-1), layer, bypass, induce, None, 1.0, discarded)

    table = [
        row(0, None, None, Discard.TOO_LATE),
        row(1, -1.0, 9.0),
        row(2, -3.0, 0.0, Discard.NOT_NEEDED),
        row(3, -9.0, 0.0, Discard.KL_TOO_LARGE),
        row(4, None, -1.0, Discard.DOES_NOT_INDUCE),
    ]
    assert [site.layer for site in scored_sites(table)] == [1, 2, 3, 4]
    assert [site.layer for site in best_sites(table, ARDITI2024, 5)] == [2, 1]
    assert [site.layer for site in best_sites(table, BLOG2026, 1)] == [1]
