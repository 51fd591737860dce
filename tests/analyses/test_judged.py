import pytest
import torch

from rhumbline.analyses.judged import beyond, change_of, first_comparable
from rhumbline.inference.interventions import Direction
from rhumbline.stages.seed_artefacts import Null


def along(*x: float) -> Direction:
    return Direction.from_vector(torch.tensor(x), -1, 2)


def test_a_null_is_aligned_with_none_of_the_directions_that_it_is_compared_with():
    """The first draw is along the second direction; its recorded cosine is that with the first one."""
    run, other = along(1.0, 0.0, 0.0), along(0.0, 1.0, 0.0)
    draws = [along(0.0, 0.9, 0.1), along(0.9, 0.0, 0.1), along(0.1, 0.1, 0.9)]
    nulls = [Null("top-pc", k, d, float(d.vector @ run.vector), 0.1) for k, d in enumerate(draws)]
    assert first_comparable(nulls, [run], 0.5) == {"top-pc": draws[0]}
    assert first_comparable(nulls, [run, other], 0.5) == {"top-pc": draws[2]}
    assert first_comparable(nulls, [run, other], None) == {"top-pc": draws[0]}
    assert first_comparable(nulls[:2], [run, other], 0.5) == {}


@pytest.mark.parametrize(
    ("after", "effect"),
    [
        (["complied"] * 20, 1.0),
        (["degenerate"] * 20, 0.0),  # broken text is no removal
        (["complied"] * 12 + ["degenerate"] * 8, 0.6),
        (["complied"] * 12 + ["unscored"] * 8, 1.0),
    ],
)
def test_broken_text_is_no_effect_beyond_the_nulls(after, effect):
    """The nulls change nothing, so that it is the effect itself."""
    before = ["refused"] * 20
    own = beyond(after, {"isotropic": [before, before], "covariance": [["unscored"] * 20]})
    assert own.mean == pytest.approx(effect)
    assert change_of(before, after).change.mean == pytest.approx(effect)
    assert own.low <= effect <= own.high


def test_the_null_family_with_the_largest_effect_is_compared():
    nulls = {"isotropic": [["complied"] * 20], "covariance": [["refused"] * 5 + ["complied"] * 15] * 2}
    assert beyond(["refused"] * 20, nulls, rises=True).mean == pytest.approx(0.75)
    assert beyond(["complied"] * 20, nulls).mean == pytest.approx(0.0)
    assert beyond(["unscored"] * 20, nulls) is beyond(["complied"] * 20, {}) is None
