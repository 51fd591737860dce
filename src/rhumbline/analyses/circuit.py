"""Circuit: which heads and MLPs carry the difference between positives and negatives, and the effect of suffixes.

The writes of the heads and MLPs with the largest contributions are replaced by those of a negative of about the same
length (patching.py), and so are random sets of others of the same size. With suffixes of the user, the writes under a
suffix are replaced by those without it, and the completions are judged. Parts are ordered on validation prompts,
everything else is measured on test prompts. Descriptive; Arditi et al. 2024, section 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.analyses.judged import Classes, change_of, change_over_draws, classes_of, rate_over_draws
from rhumbline.analyses.patching import Patching
from rhumbline.analyses.subject import Subject, mean_interval
from rhumbline.analyses.suffix_effects import class_differences
from rhumbline.analyses.suffix_texts import by_condition, encoded, read_suffixes, with_suffix
from rhumbline.errors import InputError, ModelError
from rhumbline.evidence.statistics import bootstrap_ratio
from rhumbline.inference.interventions import BASELINE
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.analysis_files import Mean
from rhumbline.records.circuit_file import (
    CircuitPart,
    CircuitPlan,
    CircuitRecord,
    PatchedCondition,
    PatchedQuantity,
    PatchedSet,
    PatchedShare,
    Senders,
    SuffixedRate,
)

DRAW_SEED = 29
"""Last entry of the seed of the random sets."""
QUANTITIES: tuple[PatchedQuantity, ...] = get_args(PatchedQuantity)
LISTED = 24
"""Parts that the record lists."""
Pairs = Sequence[tuple[list[int], list[int]]]
"""Token ids of prompts, each with those of its source."""


@dataclass(frozen=True)
class _Set:
    """Some senders."""

    senders: Senders
    size: int
    members: tuple[int, ...]


def analyse(
    subject: Subject, plan: CircuitPlan | None = None, suffixes: str | Path | Sequence[str] = ()
) -> CircuitRecord:
    """Patch the heads and MLPs that write the direction, and write analyses/circuit.json.

    `suffixes` is a file, or texts. Raises ModelError if the residual writers of the model are not proved, or none is
    before the site.
    """
    plan, direction = plan or CircuitPlan(), subject.selected()
    texts = read_suffixes(suffixes)
    _ = subject.scorer  # ProtocolError without a token metric
    differences = class_differences(subject)
    order = sorted((p for p in differences if p.kind in ("head", "writer")), key=lambda p: -abs(differences[p]))
    if not order:
        raise ModelError(f"{subject.model.name}: nothing writes before layer {direction.layer}. Use a later direction.")
    n = len(subject.chat.suffix) + len(subject.start)
    patching = Patching(
        subject.model,
        order,
        direction.vector,
        direction.layer,
        int(direction.position) - len(subject.start),
        n,
        subject.tokens,
    )
    sets = _sets(plan, len(order), subject.seed)
    positives = subject.prompts("test", "positive")[: plan.prompts]
    pairs = _matched(_ids(subject, positives), _ids(subject, subject.prompts("test", "negative")))
    conditions = [_condition("negative", patching, sets, [pairs])]
    suffixed = by_condition(subject.chat, texts, plan.random)
    for name, some in suffixed.items():
        groups = [_suffix_pairs(subject, positives, text) for text in some]
        conditions.append(_condition(name, patching, sets, groups))
    record = CircuitRecord(
        seed=subject.seed,
        site=subject.selected_site(),
        parameters=plan,
        parts=tuple(CircuitPart(p.kind, p.layer or 0, p.module, p.head, differences[p]) for p in order[:LISTED]),
        available=len(order),
        tokens=n,
        conditions=tuple(conditions),
        completions=tuple(_completions(subject, positives, suffixed, plan.max_new_tokens)) if texts else (),
        suffixes=tuple(texts),
    )
    return subject.save(record)


# -- prompts ----------------------------------------------------------------------------------------------------------


def _ids(subject: Subject, prompts: Sequence[Prompt], suffix: str | None = None) -> list[list[int]]:
    """Token ids of the prompts, followed by the tokens after which the metric is read."""
    return [[*ids, *subject.start] for ids in encoded(subject.chat, prompts, suffix)]


def _matched(targets: Sequence[list[int]], sources: Sequence[list[int]]) -> Pairs:
    """Every target with the source of the most similar length, each used once. InputError if sources are too few."""
    free = list(sources)
    if len(free) < len(targets):
        raise InputError(
            f"circuit: {len(targets)} test positives and {len(free)} test negatives, one of which is needed for each. "
            f"Pass --prompts {len(free)}."
        )
    return [(ids, free.pop(min(range(len(free)), key=lambda i: abs(len(free[i]) - len(ids))))) for ids in targets]


def _suffix_pairs(subject: Subject, prompts: Sequence[Prompt], text: str) -> Pairs:
    """The prompts with a suffix, each with the same prompt without it."""
    return list(zip(_ids(subject, prompts, text), _ids(subject, prompts), strict=True))


# -- sets of senders --------------------------------------------------------------------------------------------------


def _sets(plan: CircuitPlan, available: int, seed: int) -> list[_Set]:
    """The first senders of the order, random ones of the others, and all. Sizes without enough others have no draws."""
    sets, rng = [], np.random.default_rng([seed, DRAW_SEED])
    for size in (s for s in plan.sizes if s < available):
        sets.append(_Set("top", size, tuple(range(size))))
        if available - size >= size:
            for _ in range(plan.draws):
                others = size + rng.permutation(available - size)[:size]
                sets.append(_Set("random", size, tuple(others.tolist())))
    return [*sets, _Set("all", available, tuple(range(available)))]


def _mask(sets: Sequence[_Set], available: int) -> Bool[Tensor, "set sender"]:
    mask = torch.zeros(len(sets), available, dtype=torch.bool)
    for row, one in zip(mask, sets, strict=True):
        row[list(one.members)] = True
    return mask


# -- measurement ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Differences:
    """Of one quantity: prompt minus source, and prompt minus patched."""

    whole: Float[np.ndarray, " prompt"]
    patched: Float[np.ndarray, "set prompt"]

    def share(self, sets: Sequence[int]) -> Mean:
        """The share of the mean of some sets, with its bootstrap interval over prompts."""
        return Mean(*bootstrap_ratio(self.patched[list(sets)].mean(0), self.whole, np.random.default_rng(0)))


def _condition(name: str, patching: Patching, sets: Sequence[_Set], groups: Sequence[Pairs]) -> PatchedCondition:
    """The shares of every set; with several groups of pairs (random suffixes) the mean over them."""
    measured = [_differences(patching, sets, pairs) for pairs in groups]
    mean: dict[PatchedQuantity, _Differences] = {
        quantity: _Differences(
            np.mean([m[quantity].whole for m in measured], 0), np.mean([m[quantity].patched for m in measured], 0)
        )
        for quantity in QUANTITIES
    }
    # A suffix lowers the quantities, a negative has less of them: the difference is stated as a positive number.
    sign = 1 if name == "negative" else -1
    gaps = {quantity: mean_interval(sign * d.whole) for quantity, d in mean.items()}
    kept: dict[PatchedQuantity, _Differences] = {
        quantity: d for quantity, d in mean.items() if (gaps[quantity].low or 0.0) > 0
    }
    return PatchedCondition(name, gaps["projection"], gaps["metric"], tuple(_shares(sets, kept)))


def _shares(sets: Sequence[_Set], differences: dict[PatchedQuantity, _Differences]) -> Iterator[PatchedSet]:
    keys: dict[tuple[Senders, int], None] = dict.fromkeys((one.senders, one.size) for one in sets)
    for senders, size in keys:
        rows = [i for i, one in enumerate(sets) if (one.senders, one.size) == (senders, size)]
        shares = []
        for quantity, d in differences.items():
            draws = [d.share([i]).mean for i in rows] if senders == "random" else []
            largest = max((v for v in draws if v is not None), default=None)
            shares.append(PatchedShare(quantity, d.share(rows), largest))
        yield PatchedSet(senders, size, tuple(shares))


def _differences(patching: Patching, sets: Sequence[_Set], pairs: Pairs) -> dict[PatchedQuantity, _Differences]:
    """Read every pair: the prompt, its source, and the prompt with every set patched, in four forward passes."""
    mask = _mask(sets, len(patching.senders))
    rows: dict[PatchedQuantity, list[tuple[Tensor, Tensor, Tensor]]] = {
        "projection": [], "metric": [], "metric along the direction": []
    }  # fmt: skip
    for target, source in pairs:
        plain, (other, written) = patching.plain(target), patching.with_writes(source)
        patched = patching.read(target, written, mask)
        along = patching.read(target, written, mask, along_direction=True)
        rows["projection"].append((plain.projection, other.projection, patched.projection))
        rows["metric"].append((plain.metric, other.metric, patched.metric))
        rows["metric along the direction"].append((plain.metric, other.metric, along.metric))
    return {
        quantity: _Differences(
            torch.cat([a - b for a, b, _ in some]).numpy(), torch.stack([a - c for a, _, c in some], 1).numpy()
        )
        for quantity, some in rows.items()
    }


def _completions(
    subject: Subject, prompts: Sequence[Prompt], suffixed: Mapping[str, Sequence[str]], length: int
) -> Iterator[SuffixedRate]:
    """Rates of the completions without a suffix, and with the suffixes of every condition."""

    def classes(text: str | None) -> Classes:
        return classes_of(subject, with_suffix(prompts, text), [BASELINE], length)[0]

    plain = classes(None)
    own = change_of(plain, plain)
    yield SuffixedRate("no suffix", own.rate, None, own.degenerate)
    for name, some in suffixed.items():
        draws = [classes(text) for text in some]
        rate, broken = rate_over_draws(draws), rate_over_draws(draws, {"degenerate"})
        yield SuffixedRate(name, rate, change_over_draws(plain, draws), None if broken is None else broken.rate)
