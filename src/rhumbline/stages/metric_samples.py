"""Test prompts that only the metric evaluates, for wide nulls and dose curves."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rhumbline.prompts.contrasts import LABELS, Label
from rhumbline.records.shared import ByLabel
from rhumbline.stages.seed_run import SeedRun


class Sample(NamedTuple):
    """Test prompts of one class."""

    ids: list[str]
    sequences: list[list[int]]


def sample(run: SeedRun, label: Label, n: int) -> Sample:
    """At most `n` test prompts of a class, drawn with the seed, in the order of the split."""
    prompts = run.splits.get("test", label)
    kept = sorted(np.random.default_rng([run.seed, n]).permutation(len(prompts))[:n].tolist())
    return Sample([prompts[i].id for i in kept], [run.chat.encode(prompts[i]) for i in kept])


def samples(run: SeedRun, n: int) -> ByLabel[Sample]:
    """The same for both classes."""
    return ByLabel(*(sample(run, label, n) for label in LABELS))


def six_digits(values: Float[Tensor, " prompt"]) -> tuple[float, ...]:
    """The values rounded to six significant digits, as files contain them."""
    return tuple(float(f"{v:.6g}") for v in values.tolist())
