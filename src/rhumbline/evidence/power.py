"""What a sample of prompts can show: said before the run, and again where a run could not decide.

Knows counting. Does not know models, texts or rows, and imports no torch.
"""

from typing import Any

from scipy import stats

from rhumbline.evidence.statistics import difference_of_rates

POWER = 0.8
"""Chance of showing what is there."""
MOST_PROMPTS = 100_000
"""A sample that nobody will collect."""


def least_detectable(n: int, margin: float = 0.0, power: float = POWER, level: float = 0.95) -> float | None:
    """The smallest true fall of a rate, from 1, whose interval lies above `margin` with the power asked for.

    By enumeration: the largest count that the interval tells from 1 by more than the margin, then the binomial chance
    of no more than that. None where not even a fall to 0 would do. By symmetry the same for a rise from 0.
    """
    above = [k for k in range(n + 1) if difference_of_rates(1.0, k / n, n, level).low > margin]
    if not above:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        fall = (low + high) / 2
        enough = stats.binom.cdf(max(above), n, 1 - fall) >= power
        low, high = (low, fall) if enough else (fall, high)
    return float(high)


def prompts_to_settle(before: float, after: float, margin: float, level: float = 0.95) -> int | None:
    """How many prompts would put the interval of before - after on one side of the margin, were the rates these.

    None for more than `MOST_PROMPTS`.
    """

    def settled(n: int) -> bool:
        found = difference_of_rates(before, after, n, level)
        return found.low >= margin or found.high < margin

    n = 4
    while not settled(n):
        n *= 2
        if n > MOST_PROMPTS:
            return None
    low, high = n // 2, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


def plan(sizes: dict[str, dict[str, int]], min_drop: float, draws: int) -> dict[str, Any]:
    """What the test prompts of one seed can show at all, and how small a rank p can be."""
    test = sizes["test"]
    return {
        "power": POWER,
        "any": {label: least_detectable(n) for label, n in test.items()},
        "rule": {label: least_detectable(n, min_drop) for label, n in test.items()},
        "rank_floor": 1 / (1 + draws) if draws else None,
    }
