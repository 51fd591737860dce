"""Candidate directions from means. Knows vectors; the directions they are compared with are in nulls.py."""

from rhumbline.axes import Candidates


def difference_in_means(positive: Candidates, negative: Candidates) -> Candidates:
    """mean(positive) - mean(negative) for every position and layer, not normalised, float32.

    Arditi et al. 2024, section 2.3.
    """
    return (positive.double() - negative.double()).float()
