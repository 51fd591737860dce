"""Interventions: a strength removes that share, and what does not fit the model is refused."""

import pytest
import torch

from rhumbline.errors import DirectionError, ProtocolError
from rhumbline.inference.batch_edits import BatchEdits, ablate
from rhumbline.inference.interventions import Ablate, AblateSpan, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from tolerances import rounding, tolerance

POSITIVE = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44], [9, 9, 3]]


def test_directions_and_arms_fit_the_model(family_model):
    chat_model = family_model("llama")
    for vector in (torch.zeros(32), torch.full((32,), float("nan"))):
        with pytest.raises(DirectionError, match="norm"):
            Direction.from_vector(vector, -1, 0)
    wide, deep = Direction.from_vector(torch.ones(33), -1, 0), Direction.from_vector(torch.ones(32), -1, 4)
    for direction, words in ((wide, "width 33"), (deep, "layer 4")):
        with pytest.raises(DirectionError, match=words):
            list(Runner(chat_model).last_logits(POSITIVE, [Arm("a", (Add(direction),))]))
    ok = Direction.from_vector(torch.ones(32), -1, 0)
    with pytest.raises(ProtocolError, match="ablates twice"):
        list(Runner(chat_model).last_logits(POSITIVE, [Arm("a", (Ablate(ok), Ablate(ok)))]))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_an_ablation_of_some_strength_removes_that_share(strength, family_model):
    model = family_model("qwen2")
    r = Direction.from_vector(torch.randn(model.d_model), -1, 0)
    h = torch.randn(2, 5, model.d_model)
    edits = BatchEdits.of([Arm("a", (Ablate(r, strength),))], model).on(torch.zeros(2, dtype=torch.long))
    expected = h - strength * (h @ r.vector)[..., None] * r.vector
    moved = next(iter(edits.values()))(h) if edits else h
    torch.testing.assert_close(moved, expected, **tolerance())
    if strength == 1.0:
        torch.testing.assert_close(moved, ablate(h, r.vector), **tolerance())


def test_impossible_strengths_are_refused():
    r = Direction.from_vector(torch.ones(4), -1, 0)
    with pytest.raises(ProtocolError, match="strength"):
        Ablate(r, -0.1)


def test_an_arm_ablates_several_directions(family_model):
    chat_model = family_model("qwen2")
    basis = torch.linalg.qr(torch.randn(chat_model.d_model, 3, generator=torch.Generator().manual_seed(0))).Q.T
    directions = [Direction.from_vector(v, -1, 1) for v in basis]
    span, single = Arm("span", tuple(map(Ablate, directions))), Arm("one", (Ablate(directions[0]),))
    edits = BatchEdits.of([span, single], chat_model).on(torch.tensor([0, 1]))
    h = torch.randn(2, 4, chat_model.d_model)
    after = edits[chat_model.ablation_points[0]](h)
    assert (after[0] @ basis.T).abs().max() < rounding()  # the whole span is removed
    assert (after[1] @ basis[0]).abs().max() < rounding()
    # The other arm does not change the other directions.
    torch.testing.assert_close(after[1] @ basis[1:].T, h[1] @ basis[1:].T, **tolerance())
    skew = Direction.from_vector(basis[0] + basis[1], -1, 1)
    with pytest.raises(ProtocolError, match="not orthogonal"):
        BatchEdits.of([Arm("skew", (Ablate(directions[0]), Ablate(skew)))], chat_model)


def test_rows_that_are_not_a_basis_are_refused(family_model):
    with pytest.raises(DirectionError, match="orthonormal"):
        AblateSpan(torch.ones(2, 32))
    span = AblateSpan(torch.eye(32)[:2])
    with pytest.raises(ProtocolError, match="ablates twice"):
        list(Runner(family_model("llama")).last_logits([[1, 2]], [Arm("x", (span, span))]))
    with pytest.raises(DirectionError, match="does not fit"):
        list(Runner(family_model("llama")).last_logits([[1, 2]], [Arm("x", (AblateSpan(torch.eye(16)[:2]),))]))
