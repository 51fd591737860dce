import numpy as np
import pytest

from rhumbline.evidence.verdict_rules import STYLE
from rhumbline.stages.completion_scores import is_separated_less


@pytest.mark.parametrize(
    ("positives", "negatives", "n", "is_less"),
    [
        (0, 0, 32, True),  # no completion has a marker
        (16, 16, 40, True),
        (30, 2, 32, False),
        (20, 12, 32, False),  # the interval contains the bound
        (0, 0, 6, False),  # too few completions to conclude it
    ],
)
def test_a_style_that_the_model_does_not_have_is_concluded_from_the_whole_interval(positives, negatives, n, is_less):
    scores = (np.array([0.3] * k + [0.0] * (n - k)) for k in (positives, negatives))
    assert is_separated_less(*scores, STYLE.min_separation) is is_less
