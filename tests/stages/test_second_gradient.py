"""Second directions by gradient on planted models whose truth is known."""

from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from rhumbline import load, read_contrast
from rhumbline.inference.independence import cosine_changes
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.organisms.planted import Planted, build
from rhumbline.stages.second_gradient import CANDIDATES, _changes, gradient_candidates, largest

N = 24


class Model(NamedTuple):
    """A planted model with the direction that mediates its refusal, and training and test prompts."""

    scorer: Scorer
    axes: torch.Tensor
    direction: Direction
    positive: list[list[int]]
    negative: list[list[int]]

    def rates(self, vector: torch.Tensor) -> tuple[float, float]:
        """Rate of refusal on test positives under the ablation, and on test negatives under the addition."""
        d = Direction.from_vector(vector * self.direction.norm, -1, self.direction.layer)
        suppressed = self.scorer.read(self.positive[N:], [Arm("ablation", (Ablate(d),))]).metric
        induced = self.scorer.read(self.negative[N:], [Arm("addition", (Add(d),))]).metric
        return float((suppressed > 0).double().mean()), float((induced > 0).double().mean())

    def candidates(self) -> torch.Tensor:
        return gradient_candidates(self.scorer, self.positive[:N], self.direction)


@pytest.fixture(scope="module")
def planted_model(tmp_path_factory):
    def make(**spec) -> Model:
        folder = build(Planted(prompts=2 * N, seed=5, jitter=0.05, **spec), tmp_path_factory.mktemp("planted"))
        model, contrast = load(str(folder), device="cpu", dtype="float32"), read_contrast(folder / "contrast.jsonl")
        chat, truth = Chat.of(model.tokenizer), load_file(folder / "truth.safetensors")
        prompts = [[chat.encode(p) for p in contrast.prompts if p.label == c] for c in ("positive", "negative")]
        direction = Direction.from_vector(truth["direction"] * 1.2, -1, 3)
        scorer = Scorer(Runner(model), TokenMetric((chat.first_token("I"),)))
        return Model(scorer, truth["axes"], direction, *prompts)

    return make


def test_the_gradient_finds_a_planted_second_direction(planted_model):
    """Either axis induces. Ablating their difference leaves less of each prompt than the decision needs."""
    model = planted_model(axes=2, effect=0.85)
    difference = (model.axes[0] - model.axes[1]) / 2**0.5
    assert model.rates(model.direction.vector) == (0.0, 1.0)
    cosines = model.candidates() @ difference
    assert float(cosines.abs().max()) > 0.9
    found = model.candidates()[int(cosines.abs().argmax())]
    left, induced = max((model.rates(s * found) for s in (1, -1)), key=lambda rates: rates[1])
    assert left < 0.3
    assert induced > 0.9
    assert abs(float(found @ model.direction.vector)) < 1e-5
    pair = torch.stack([model.direction.vector, found])
    changes = cosine_changes(model.scorer.runner, pair, model.direction.position, model.positive[N:])
    assert max(changes[0][1], changes[1][0]) < 0.05


def test_neither_the_input_nor_the_output_of_a_single_direction_is_a_second_one(planted_model):
    model = planted_model(effect=1.2)
    assert model.rates(model.direction.vector) == (0.0, 1.0)
    assert len(model.candidates()) == CANDIDATES
    for vector in model.candidates():
        assert abs(float(vector @ model.direction.vector)) < 1e-5
        for sign in (1, -1):
            assert model.rates(sign * vector)[1] < 0.5, "a vector that depends on the direction induces"


def test_repeated_constraints_exclude_no_further_vector():
    form = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    once = torch.eye(4)[:1]
    assert len(largest(form, once, 4)) == 3
    assert len(largest(form, once.repeat(3, 1), 4)) == 3
    torch.testing.assert_close(largest(form, once.repeat(3, 1), 1).abs(), torch.eye(4)[1:2])


def test_an_ablation_that_spares_every_token_changes_no_cosine(planted_model):
    model = planted_model(effect=1.2)
    pair = torch.stack([model.direction.vector, model.axes[0]])
    arguments = model.scorer.runner, pair, model.direction.position, model.positive[N:]
    everything = max(map(len, model.positive))
    assert torch.tensor(cosine_changes(*arguments, everything)).abs().max() == 0
    assert torch.tensor(cosine_changes(*arguments)).abs().max() > 0.1
    # The same in the constraints of the search: nothing is written under such an ablation.
    none = _changes(model.scorer.runner, model.positive[:4], Ablate(model.direction, spared=everything))
    some = _changes(model.scorer.runner, model.positive[:4], Ablate(model.direction))
    assert none.norm() == 0
    assert some.norm() > 0.1


def test_a_product_of_two_axes_has_one_direction_that_induces(planted_model):
    """The ablation of either axis suppresses, and the addition of either induces nothing: together they decide."""
    model = planted_model(axes=2, effect=1.6, readout="all")
    for axis in model.axes:
        suppressed, induced = model.rates(axis)
        assert suppressed == 0.0
        assert induced < 0.2
    both = model.axes.sum(0) / 2**0.5
    assert model.rates(both)[0] == 0.0
    assert model.rates(2 * both)[1] > 0.9


def test_eigenvectors_are_orthogonal_to_the_fixed_vectors_and_lower_the_metric():
    form = torch.diag(torch.tensor([5.0, 3.0, 1.0, -2.0]))
    eye = torch.eye(4)
    torch.testing.assert_close(largest(form, eye[:1], 8).abs(), eye[[1, 2]])
    torch.testing.assert_close(largest(form, eye[1:2], 1).abs(), eye[[0]])
    assert len(largest(-form.abs(), eye[:1], 8)) == 0
    assert len(largest(form * torch.nan, eye[:1], 8)) == 0
