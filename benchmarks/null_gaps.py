"""How often a gap to a null family is shown, by the number of draws and of prompts that each draw completes.

    python benchmarks/null_gaps.py [--repeats 400]     a table on standard output

Simulated completions: a draw removes the behaviour from each prompt with its own probability, from a beta distribution
with the mean and the standard deviation of its family. *Power* is the share of runs in which all gaps of both effects
are shown, for a direction that removes 97 %, among families as `MEANS` lists them (about those of a taught model,
docs/results.md). *Errors* is the share in which a gap above 0.25 is shown to a family whose true gap is 0.25: three of
four of its draws remove everything, or every draw removes 0.75. One process.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from rhumbline.evidence.relative_changes import Paired, gap_to_nulls, relative_change

MARGIN = 0.25
MEANS = {
    "suppression": ((0.02, 0.05), (0.2, 0.2), (0.25, 0.25), (0.1, 0.2), (0.2, 0.2), (0.3, 0.25)),
    "induction": ((0.03, 0.05), (0.1, 0.2), (0.05, 0.1), (0.1, 0.2), (0.02, 0.05), (0.1, 0.13)),
}
"""Mean and standard deviation, over the draws, of the share that a draw of each family removes."""
ERRORS = {"draws differ": (0.75, 0.43), "draws are alike": (0.75, 0.0)}
PLANS = ((24, 1, 12), (24, 2, 6), (24, 3, 4), (24, 6, 2), (100, 6, 9), (100, 10, 5), (100, 18, 3))
"""Test prompts, draws of a family, prompts of a draw."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    print("| prompts, baseline | draws x prompts | power | " + " | ".join(f"errors: {name}" for name in ERRORS) + " |")
    print("| --- " * (3 + len(ERRORS)) + "|")
    for n, draws, prompts in PLANS:
        for base in (1.0, 0.6):
            rng = np.random.default_rng(0)
            power = sum(all(_all_shown(rng, n, base, 0.97, some, draws, prompts) for some in MEANS.values())
                        for _ in range(repeats)) / repeats  # fmt: skip
            others = ((0.0, 0.0),) * 5
            errors = [
                sum(_shown(rng, n, base, 1.0, (family, *others), draws, prompts)[0] for _ in range(repeats)) / repeats
                for family in ERRORS.values()
            ]
            cells = (f"{n}, {base:g}", f"{draws} x {prompts}", *(f"{x:.3f}" for x in (power, *errors)))
            print("| " + " | ".join(cells) + " |", flush=True)


def _all_shown(rng: np.random.Generator, *case) -> bool:
    return all(_shown(rng, *case))


def _shown(
    rng: np.random.Generator,
    n: int,
    base: float,
    removed: float,
    families: Sequence[tuple[float, float]],
    draws: int,
    prompts: int,
) -> list[bool]:
    """Whether the gap to each family is shown in one simulated run."""
    before = (rng.random(n) < base).astype(float)
    direct = relative_change(before, before * (rng.random(n) > removed))
    drawn = [[_draw(rng, before, mean, sd, i, prompts) for i in range(draws)] for mean, sd in families]
    return [gap_to_nulls(direct, some, drawn).low > MARGIN for some in drawn]


def _draw(rng: np.random.Generator, before: np.ndarray, mean: float, sd: float, i: int, prompts: int) -> Paired:
    places = [(i * prompts + k) % len(before) for k in range(prompts)]
    present = before[places]
    share = _share(rng, mean, sd)
    return Paired([str(k) for k in places], present, present * (rng.random(prompts) > share), [None] * prompts)


def _share(rng: np.random.Generator, mean: float, sd: float) -> float:
    """A draw from the beta distribution with this mean and standard deviation."""
    if sd == 0:
        return mean
    size = mean * (1 - mean) / min(sd**2, 0.999 * mean * (1 - mean)) - 1
    return float(rng.beta(mean * size, (1 - mean) * size))


if __name__ == "__main__":
    main()
