"""Arms of a seed: the interventions of every identity, the arms of each stage in order, and arms that do not exist."""

from dataclasses import replace

import pytest
import torch

from rhumbline.errors import InputError
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.records.arms import (
    ABLATION,
    ADDITION,
    ADDITION_ALL,
    ADDITION_PROMPT,
    BASELINE,
    DIRECTION,
    EDITED,
    SUBTRACTION,
    ArmId,
    ArmKind,
)
from rhumbline.stages.arms import AdditionParameters, SeedArms
from rhumbline.stages.seed_artefacts import Null

FAMILIES = ("isotropic", "covariance")


def direction(seed: int) -> Direction:
    return Direction.from_vector(torch.randn(8, generator=torch.Generator().manual_seed(seed)), -1, 2)


OWN = direction(0)
NULLS = [Null(f, d, direction(1 + 10 * i + d), 0.0, 0.1) for i, f in enumerate(FAMILIES) for d in range(3)]
ARMS = SeedArms(OWN, NULLS, AdditionParameters(1.5, "all"))
NOTHING = SeedArms(None, [], AdditionParameters(1.0, "all"))


def null(family: str, draw: int, kind: ArmKind) -> ArmId:
    return ArmId.null(family, draw, kind)


@pytest.mark.parametrize(
    ("arm", "interventions"),
    [
        (BASELINE, ()),
        (ABLATION, (Ablate(OWN),)),
        (ADDITION, (Add(OWN, 1.5, "all"),)),
        (ADDITION_ALL, (Add(OWN, 1.5, "all"),)),
        (ADDITION_PROMPT, (Add(OWN, 1.5, "prompt"),)),
        (SUBTRACTION, (Add(OWN, -1.5, "all"),)),
        (null("covariance", 2, ArmKind.ABLATION), (Ablate(NULLS[5].direction),)),
        (null("isotropic", 1, ArmKind.ADDITION), (Add(NULLS[1].direction, 1.5, "all"),)),
    ],
)
def test_the_identity_of_an_arm_gives_its_interventions(arm, interventions):
    assert ARMS.arm(arm) == Arm(str(arm), interventions)


def test_additions_use_the_positions_of_the_run():
    at_prompt = SeedArms(OWN, NULLS, AdditionParameters(1.5, "prompt"))
    assert at_prompt.arm(ADDITION).interventions == (Add(OWN, 1.5, "prompt"),)
    assert list(at_prompt.outcomes("negative", ())) == [BASELINE, ADDITION, ADDITION_ALL, ABLATION]
    assert list(ARMS.outcomes("negative", ())) == [BASELINE, ADDITION, ADDITION_PROMPT, ABLATION]


def test_some_draws_of_every_family_complete_test_prompts():
    ablations = [null(f, d, ArmKind.ABLATION) for f in FAMILIES for d in range(3)]
    additions = [null(f, d, ArmKind.ADDITION) for f in FAMILIES for d in range(3)]
    subtracted = [arm for arm in additions if arm.draw < 2]
    assert list(ARMS.outcomes("positive", (0, 1, 2))) == [BASELINE, ABLATION, SUBTRACTION, *ablations, *subtracted]
    # Only the first two draws of a family are nulls of the subtraction.
    assert {a.kind for a in ARMS.outcomes("positive", (2,)) if a.is_null} == {ArmKind.ABLATION}
    assert list(ARMS.outcomes("negative", (0, 1, 2)))[4:] == additions
    assert {a.draw for a in ARMS.outcomes("negative", (2,)) if a.is_null} == {2}


def test_the_same_draws_complete_the_test_prompts_under_another_system_prompt():
    for label, own, kind in (
        ("positive", [BASELINE, ABLATION], ArmKind.ABLATION),
        ("negative", [BASELINE, ABLATION, ADDITION], ArmKind.ADDITION),
    ):
        assert list(ARMS.conditions(label, (0, 1))) == [*own, *(null(f, d, kind) for f in FAMILIES for d in range(2))]
        assert list(ARMS.conditions(label, ())) == own


def test_aligned_draws_complete_nothing():
    nulls = [replace(n, cosine=0.8) if n.draw == 0 else n for n in NULLS]
    nulls = [replace(n, cosine=-0.8) if n.family == "covariance" else n for n in nulls]
    arms = SeedArms(OWN, nulls, AdditionParameters(1.5, "all"), same_cosine=0.5)
    drawn = [arm for arm in arms.outcomes("positive", (0, 1)) if arm.is_null]
    ablations = [null("isotropic", draw, ArmKind.ABLATION) for draw in (1, 2)]
    assert drawn == [*ablations, *(null("isotropic", draw, ArmKind.ADDITION) for draw in (1, 2))]
    assert next(arm for arm in arms.losses(FAMILIES) if arm.is_null) == null("isotropic", 1, ArmKind.ABLATION)


def test_the_metric_evaluates_the_arms_of_the_direction_once():
    assert list(ARMS.wide("positive")) == [BASELINE, ABLATION]
    assert list(ARMS.wide("negative")) == [BASELINE, ABLATION, ADDITION]


def test_doses_are_strengths_of_ablation_and_coefficients_of_addition():
    strengths, coefficients = (ARMS.doses(kind, (0.5, 1.0), draws=1) for kind in ("ablation", "addition"))
    firsts = [DIRECTION, *(ArmId.null(f, 0) for f in FAMILIES)]
    assert [(a.id, a.dose) for a in strengths] == [(arm, dose) for arm in firsts for dose in (0.5, 1.0)]
    assert strengths[0].arm.interventions == (Ablate(OWN, 0.5),)
    assert coefficients[3].arm.interventions == (Add(NULLS[0].direction, 1.0, "all"),)
    subtracted = ARMS.doses("subtraction", (-1.0,), draws=0)
    assert [a.arm.interventions for a in subtracted] == [(Add(OWN, -1.0, "all"),)]
    every = [*strengths, *coefficients, *subtracted]
    assert len({a.arm.name for a in every}) == len(every)


def test_losses_have_subtraction_and_the_first_draw_of_the_controls():
    controls = [null("covariance", 0, kind) for kind in (ArmKind.ABLATION, ArmKind.ADDITION)]
    assert list(ARMS.losses(("covariance", "top-pc"))) == [BASELINE, ABLATION, ADDITION, SUBTRACTION, *controls]


def test_every_arm_of_a_run_can_be_made():
    assert len(set(ARMS.every())) == len(ARMS.every()) == 6 + 2 * len(NULLS)
    assert list(ARMS.arms(ARMS.every())) == ARMS.every()


def test_without_a_direction_the_baseline_is_the_only_arm():
    assert NOTHING.every() == [BASELINE]
    for label in ("positive", "negative"):
        assert list(NOTHING.outcomes(label, (0, 1, 2))) == list(NOTHING.conditions(label, (0, 1))) == [BASELINE]
    with pytest.raises(InputError, match="no candidate was selected"):
        NOTHING.arm(ABLATION)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (null("isotropic", 9, ArmKind.ABLATION), "was not drawn; the run drew covariance, isotropic"),
        (null("shuffled", 0, ArmKind.ADDITION), "was not drawn"),
        (EDITED, "has no intervention"),
        (DIRECTION, "has no intervention"),
    ],
)
def test_an_arm_that_the_run_does_not_have_is_refused(arm, words):
    with pytest.raises(InputError, match=words):
        ARMS.arm(arm)


def test_every_ablation_spares_the_tokens_of_the_protocol():
    sparing = SeedArms(OWN, NULLS, AdditionParameters(1.5, "all"), spared=3)
    for arms, expected in ((sparing, {3}), (ARMS, {0})):
        made = [*arms.outcomes("positive", (0,)).values(), *(dose.arm for dose in arms.doses("ablation", (0.5,), 1))]
        ablations = [i for arm in made for i in arm.interventions if isinstance(i, Ablate)]
        assert len(ablations) > 2
        assert {ablation.spared for ablation in ablations} == expected
