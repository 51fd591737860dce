"""Human labels of some completions -> the accuracy of the judge, and rates and effects corrected for its errors.

The judge reads every completion, a person reads some. A *stratum* is one class of the judge under one arm, on one set
of prompts. Completions are drawn at random within strata. With w_s the share of the completions in stratum s, c_s the
share of its labels that are clear, and h_s the share of its clear labels that show the behaviour,

    corrected rate = sum_s w_s c_s h_s / sum_s w_s c_s

This is prediction-powered inference (Angelopoulos et al. 2023, arXiv 2301.09633) with the judge's classes as
predictions. As with every rate of a run, the interval is about prompts like these, not about these prompts alone.

Intervals are quantiles of random draws (melded intervals: Fay, Proschan and Brittain 2015, Biometrics 71:146):

    w ~ Dirichlet(n + e), where e is 1 for one stratum at random and 0 for the others
    h_s ~ Beta(k_s, m_s - k_s + 1) or Beta(k_s + 1, m_s - k_s), with equal probabilities

with k_s of m_s clear labels showing the behaviour. For one stratum this is the mid-p interval of Clopper and Pearson.
The tests simulate the coverage. Independent of texts and files.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rhumbline.records.human_files import Estimate

DRAWS = 4000
"""Random draws of an interval."""


class RowLabel(NamedTuple):
    """The human label of one completion, in fractions if several annotators differ."""

    prompt: str
    """Links the completions of a prompt under two arms."""
    shown: float
    """1 if the behaviour is seen."""
    clear: float = 1.0
    """0 if the label is `unclear`."""


Stratum = Sequence[RowLabel]
"""The labels of a stratum."""


class Accuracy(NamedTuple):
    """Agreement of the judge with the labels."""

    sensitivity: Estimate
    specificity: Estimate


def corrected_rate(sizes: Sequence[float], strata: Sequence[Stratum], rng: np.random.Generator) -> Estimate:
    """The share of completions in which a person sees the behaviour, from the sizes and labels of the strata.

    Not measured if a stratum with completions has no label.
    """
    used = [s for s, size in enumerate(sizes) if size]
    n, labels = np.array([sizes[s] for s in used], dtype=float), [strata[s] for s in used]
    value = _rate(n, labels)
    draws = None if value is None else _rates(_shares(n, rng), labels, rng)
    return _estimate(value, draws, n, labels)


def corrected_change(
    sizes: Float[np.ndarray, "before after"],
    before: Sequence[Stratum],
    after: Sequence[Stratum],
    rng: np.random.Generator,
) -> Estimate:
    """rate(before) - rate(after) on the same prompts, from the number of prompts in every pair of strata.

    The shares of the pairs are drawn together, so prompts that the judge reads alike in both arms add no variance. The
    labels of the arms are drawn independently, which is conservative if they agree on a prompt. If they tend to be
    opposite, the interval is widened by their covariance.
    """
    rows, columns = (np.flatnonzero(sizes.sum(axis)).tolist() for axis in (1, 0))
    n, one, other = sizes[np.ix_(rows, columns)], [before[s] for s in rows], [after[s] for s in columns]
    ends = _rate(n.sum(1), one), _rate(n.sum(0), other)
    if ends[0] is None or ends[1] is None:
        return _estimate(None, None, n, [*one, *other])
    shares = _shares(n.ravel(), rng).reshape(DRAWS, *n.shape)
    draws = _rates(shares.sum(2), one, rng) - _rates(shares.sum(1), other, rng)
    influence, of_other = _influence(n.sum(1), one), _influence(n.sum(0), other)
    covariance = min(0.0, sum(influence[prompt] * of_other[prompt] for prompt in influence.keys() & of_other.keys()))
    centre, variance = draws.mean(), draws.var()
    if covariance:
        draws = centre + (draws - centre) * math.sqrt(1 - 2 * covariance / variance)
    return _estimate(ends[0] - ends[1], np.clip(draws, -1, 1), n, [*one, *other])


def judge_accuracy(
    sizes: Sequence[float], strata: Sequence[Stratum], finds: Sequence[bool], rng: np.random.Generator
) -> Accuracy:
    """Sensitivity and specificity of the judge; `finds` states which strata it reads as showing the behaviour.

    Labels are weighted by the size of their stratum. A class that the judge never gave is a stratum of size 0.
    """
    missing = [found for found in (True, False) if found not in finds]
    n, found = np.array([*sizes, *(0 for _ in missing)], dtype=float), np.array([*finds, *missing])
    labels = [*strata, *(() for _ in missing)]
    counts = np.array([_counts(stratum) for stratum in labels])
    shares, (shown, absent) = _shares(n, rng), _label_draws(labels, rng)
    if any(size and not stratum for size, stratum in zip(n, labels, strict=True)):
        return Accuracy(_estimate(None, None, n, labels), _estimate(None, None, n, labels))
    per_label = n / np.maximum(1, counts.sum(1))
    estimates = []
    for points, mass, hit in (
        (per_label * counts[:, 0], shares * shown, found),
        (per_label * counts[:, 1], shares * absent, ~found),
    ):
        if points.any():
            draws = mass[:, hit].sum(1) / mass.sum(1)
            estimates.append(_estimate(float(points[hit].sum() / points.sum()), draws, n, labels))
        else:
            estimates.append(_estimate(None, None, n, labels))
    return Accuracy(*estimates)


def next_strata(sizes: Sequence[int]) -> Iterator[int]:
    """The stratum of each further label: one in every stratum, then in proportion to the sizes, until all are labelled.

    The next label goes to the stratum with the largest n / sqrt(m (m + 1)) (equal proportions, Huntington 1921).
    """
    labelled = [min(1, size) for size in sizes]
    yield from (s for s, size in enumerate(sizes) if size)
    for _ in range(sum(sizes) - sum(labelled)):
        unfinished = (s for s, size in enumerate(sizes) if labelled[s] < size)
        chosen = max(unfinished, key=lambda s: sizes[s] / math.sqrt(labelled[s] * (labelled[s] + 1)))
        labelled[chosen] += 1
        yield chosen


# -- points and draws -------------------------------------------------------------------------------------------------


def _counts(stratum: Stratum) -> tuple[float, float, float]:
    """Numbers of labels that show the behaviour, that show none, and that are unclear."""
    shown, clear = sum(row.shown for row in stratum), sum(row.clear for row in stratum)
    return shown, max(0.0, clear - shown), max(0.0, len(stratum) - clear)


def _rate(n: Float[np.ndarray, " stratum"], strata: Sequence[Stratum]) -> float | None:
    """The corrected rate; None if a stratum has no label, or no label is clear."""
    if not len(n) or not all(strata):
        return None
    counts = np.array([_counts(stratum) for stratum in strata])
    per_label = n / counts.sum(1)
    clear = float(per_label @ counts[:, :2].sum(1))
    return float(per_label @ counts[:, 0]) / clear if clear else None


def _influence(n: Float[np.ndarray, " stratum"], strata: Sequence[Stratum]) -> dict[str, float]:
    """By how much the label of each prompt moves the corrected rate from its expected value."""
    rate = _rate(n, strata)
    assert rate is not None
    counts = np.array([_counts(stratum) for stratum in strata])
    clear = float(n @ (counts[:, :2].sum(1) / counts.sum(1)))
    moves: dict[str, float] = {}
    for size, stratum in zip(n, strata, strict=True):
        residuals = [row.shown - rate * row.clear for row in stratum]
        mean, m = sum(residuals) / len(residuals), len(residuals)
        for row, residual in zip(stratum, residuals, strict=True):
            # The spread of m labels around their own mean is too small by (m - 1) / m.
            move = size / clear / m * (residual - mean) * math.sqrt(m / max(1, m - 1))
            moves[row.prompt] = moves.get(row.prompt, 0.0) + move
    return moves


def _shares(n: Float[np.ndarray, " stratum"], rng: np.random.Generator) -> Float[np.ndarray, "draw stratum"]:
    extra = np.eye(len(n))[rng.integers(len(n), size=DRAWS)]
    gamma = rng.standard_gamma(n + extra)  # divided by its sum a Dirichlet variable; the shape 0 gives 0
    return gamma / gamma.sum(1, keepdims=True)


def _label_draws(
    strata: Sequence[Stratum], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "draw stratum"], Float[np.ndarray, "draw stratum"]]:
    """Shares of every stratum that show the behaviour clearly, and that clearly show none."""
    counts = np.array([_counts(stratum) for stratum in strata])
    size = DRAWS, len(counts)
    is_high = rng.random(size) < 0.5
    shown = rng.standard_gamma(counts[:, 0] + is_high)
    absent = rng.standard_gamma(counts[:, 1] + ~is_high)
    whole = shown + absent + rng.standard_gamma(np.broadcast_to(counts[:, 2], size))
    return shown / whole, absent / whole


def _rates(
    shares: Float[np.ndarray, "draw stratum"], strata: Sequence[Stratum], rng: np.random.Generator
) -> Float[np.ndarray, " draw"]:
    shown, absent = _label_draws(strata, rng)
    return (shares * shown).sum(1) / (shares * (shown + absent)).sum(1)


def _estimate(
    value: float | None,
    draws: Float[np.ndarray, " draw"] | None,
    n: Float[np.ndarray, "*strata"],
    strata: Sequence[Stratum],
) -> Estimate:
    total, labelled = round(float(n.sum())), sum(row.clear > 0 for stratum in strata for row in stratum)
    if value is None or draws is None:
        return Estimate(None, None, None, total, labelled)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value), total, labelled)
