"""Detectable effects: numbers of prompts -> the smallest change that they show with 80 % power, and the reverse.

Computed before a run, and for a run whose intervals contain a margin. Independent of models, texts and rows.
"""

from collections.abc import Callable

from scipy import stats

from rhumbline.evidence.relative_changes import paired_ratio
from rhumbline.evidence.statistics import difference_of_rates, rank_floor
from rhumbline.records.protocol_file import Detectable
from rhumbline.records.shared import ByLabel

POWER = 0.8
"""Probability of detecting a true effect."""
MOST_PROMPTS = 100_000
"""Largest number of prompts that is reported; more are not practical."""


def least_detectable(n: int, margin: float = 0.0, power: float = POWER) -> float | None:
    """The smallest true relative change that is shown with this power if all n prompts can change; None: not even 1.

    By enumeration: the largest count after the intervention whose interval is above the margin, then the binomial
    probability of at most that count.
    """
    above = [k for k in range(n + 1) if 1 - paired_ratio(n, k, k).high > margin]
    if not above:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        fall = (low + high) / 2
        enough = stats.binom.cdf(max(above), n, 1 - fall) >= power
        low, high = (low, fall) if enough else (fall, high)
    return float(high)


def prompts_to_decide(before: float, after: float, margin: float) -> int | None:
    """The smallest n for which the interval of before - after is on one side of the margin, if these are the rates.

    None if more than `MOST_PROMPTS` are needed.
    """

    def is_decided(n: int) -> bool:
        difference = difference_of_rates(before, after, n)
        return difference.low >= margin or difference.high < margin

    return _smallest(is_decided)


def prompts_for_change(before: float, change: float, margin: float) -> int | None:
    """The smallest n for which the interval of a relative change is on one side of the margin.

    `before` is the share of prompts that can change, and every prompt that is left after the change is one of these.
    Prompts are independent: an interval over categories is wider. None if more than `MOST_PROMPTS` are needed.
    """

    def is_decided(n: int) -> bool:
        after = n * before * max(0.0, 1 - change)
        interval = paired_ratio(n * before, after, min(after, n * before))
        return 1 - interval.high >= margin or 1 - interval.low < margin

    return _smallest(is_decided)


def _smallest(is_decided: Callable[[int], bool]) -> int | None:
    """The smallest number of prompts, at least 3, for which a monotone condition holds; None above `MOST_PROMPTS`."""
    n = 4
    while not is_decided(n):
        n *= 2
        if n > MOST_PROMPTS:
            return None
    low, high = n // 2, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high


def detectable(test_sizes: ByLabel[int], min_drop: float, draws: int) -> Detectable:
    """The detectable effects of one seed's test prompts, and the smallest rank p that a family of `draws` allows."""
    return Detectable(
        power=POWER,
        any=ByLabel(*(least_detectable(n) for n in (test_sizes.positive, test_sizes.negative))),
        rule=ByLabel(*(least_detectable(n, min_drop) for n in (test_sizes.positive, test_sizes.negative))),
        rank_floor=rank_floor(draws) if draws else None,
    )
