"""Affine edits, rotations and ablation by layer: their algebra, and that a batch of arms equals the arms alone."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.errors import DirectionError, ProtocolError
from rhumbline.inference.batch_edits import ablate
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.inference.stream_edits import AblateByLayer, Affine, Rotate, affine, rotate, window
from tolerances import rounding, tolerance

POSITIVE = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44], [9, 9, 3]]


def plane_of(d=16, seed=0):
    return torch.linalg.qr(torch.randn(d, 2, generator=torch.Generator().manual_seed(seed))).Q.T.contiguous()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(0, math.pi), st.floats(1e-3, 1e3))
def test_a_rotation_keeps_every_norm_and_is_idempotent(seed, angle, size):
    h = size * torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed))
    plane = plane_of(seed=seed + 1)
    once = rotate(h, plane, angle)
    torch.testing.assert_close(once.norm(dim=-1), h.norm(dim=-1), rtol=1e-5, atol=0)
    torch.testing.assert_close(rotate(once, plane, angle), once, rtol=1e-4, atol=1e-4 * size)
    part = once @ plane.T
    assert (torch.atan2(part[..., 1], part[..., 0]).abs() >= angle - 1e-3).all()
    # Outside of the plane nothing moves.
    torch.testing.assert_close(once - part @ plane, h - (h @ plane.T) @ plane, rtol=1e-4, atol=1e-4 * size)


def test_the_angle_0_changes_nothing_and_ablation_does_not_keep_norms():
    h, plane = torch.randn(3, 5, 16), plane_of()
    assert torch.equal(rotate(h, plane, 0.0), h)
    assert float((ablate(h, plane[0]).norm(dim=-1) - h.norm(dim=-1)).abs().max()) > 1e-2


def test_an_affine_edit_moves_the_component_to_that_of_its_centre():
    h, centre, r = torch.randn(3, 5, 16), torch.randn(16), plane_of()[:1]
    whole = affine(h, r, r, centre, 1.0)
    torch.testing.assert_close((whole @ r[0]), (centre @ r[0]).expand(3, 5), **tolerance())
    torch.testing.assert_close(affine(h, r, r, torch.zeros(16), 1.0), ablate(h, r[0]), **tolerance())
    half = affine(h, r, r, centre, 0.5)
    torch.testing.assert_close(half, (h + whole) / 2, **tolerance())
    assert (whole @ r[0]).abs().max() > 1e-2  # unlike an ablation, whose component is 0


def test_a_window_falls_linearly_on_both_sides():
    assert window(7, 3, 2.0, 0.8) == pytest.approx((0, 0, 0.4, 0.8, 0.4, 0, 0))


def test_edits_act_on_the_device_of_the_stream():
    """Blocks can be on several devices; the meta device stands for a second one."""
    h, plane = torch.randn(1, 5, 16, device="meta"), plane_of()
    assert affine(h, plane, plane, plane[0], 1.0).device == h.device
    assert rotate(h, plane, 1.0).device == h.device


ARMS = [BASELINE, *(Arm(name) for name in ("affine", "rotated", "by layer", "both", "ablated"))]


def arms_of(model):
    g = torch.Generator().manual_seed(3)
    d, depth = model.d_model, model.n_layers
    plane, centre = plane_of(d), torch.randn(d, generator=g)
    direction = Direction.from_vector(plane[0] * 2, -1, 1)
    edits = {
        "affine": (Affine(1, plane[:1], plane[:1], centre, 0.7, spared=2),),
        "rotated": (Rotate(plane, 1.5),),
        "by layer": (AblateByLayer(plane[1], window(depth, 1, 2.0, 0.9)),),
        "both": (Add(direction, 0.5), Affine(1, plane, plane, centre), Rotate(plane, 1.0)),
        "ablated": (Ablate(direction, 0.4),),
    }
    return [replace(arm, interventions=edits.get(arm.name, ())) for arm in ARMS]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_arms_batched_equal_arms_alone(family, family_model):
    """In prompts and in completions; and every arm differs from the baseline."""
    model = family_model(family)
    arms, runner = arms_of(model), Runner(model)

    def logits(some):
        table = {}
        for rows, values in runner.last_logits(POSITIVE, some):
            table |= {(a, p): v for a, p, v in zip(rows.arm.tolist(), rows.prompt.tolist(), values, strict=True)}
        return table

    together = logits(arms)
    written, _ = runner.generate(POSITIVE, arms, max_new_tokens=4)
    for k, arm in enumerate(arms):
        alone, own = logits([arm]), runner.generate(POSITIVE, [arm], max_new_tokens=4)[0]
        for prompt in range(len(POSITIVE)):
            torch.testing.assert_close(together[k, prompt], alone[0, prompt], **tolerance())
            if k:
                assert (together[k, prompt] - together[0, prompt]).abs().max() > 10 * rounding()
        assert own[0] == written[k]


def test_ablation_by_layer_equals_an_edit_of_the_weights(family_model):
    """W - a r r^T W for the output matrices of attention and MLP, with the strength of their layer (heretic)."""
    model = family_model("llama")
    r, strengths = plane_of(model.d_model)[0], window(model.n_layers, 1, 1.5, 0.8)
    hooked = next(iter(Runner(model).last_logits(POSITIVE[:1], [Arm("a", (AblateByLayer(r, strengths),))])))[1]
    edited = replace(model, model=deepcopy(model.model))
    with torch.no_grad():
        for block, a in zip(edited.model.model.layers, strengths, strict=True):
            for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                for written in layer.parameters():  # the bias is written, too
                    written.sub_(a * torch.tensordot(r, r @ written, 0))
        expected = edited.model(torch.tensor(POSITIVE[:1])).logits[:, -1]
    torch.testing.assert_close(hooked, expected, **tolerance())


def test_what_does_not_fit_the_model_is_refused(family_model):
    model = family_model("llama")
    plane = plane_of(model.d_model)
    wide = plane_of(model.d_model + 2)
    for edit in (
        Affine(model.n_layers, plane, plane, plane[0]),
        Rotate(wide, 1.0),
        AblateByLayer(plane[0], (1.0,)),
    ):
        with pytest.raises(DirectionError, match="does not fit"):
            list(Runner(model).last_logits(POSITIVE, [Arm("a", (edit,))]))
    for make, error in (
        (lambda: Rotate(plane * 2, 1.0), DirectionError),
        (lambda: Rotate(plane, 4.0), ProtocolError),
        (lambda: Affine(0, plane, plane, plane[0], strength=3.0), ProtocolError),
        (lambda: AblateByLayer(plane[0], (3.0,)), ProtocolError),
        (lambda: AblateByLayer(2 * plane[0], (1.0,)), DirectionError),
    ):
        with pytest.raises(error):
            make()
