import torch

from rhumbline.analyses.judged import first_comparable
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
