"""What the fast metric is asked on test prompts: many nulls, and strengths. And how the choice is probed on validation.

Knows arms and metrics. Does not know files; the stages (controls.py) write what these return.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import TokenIds
from rhumbline.evidence.selection_rules import SelectionRule
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.scorer import Scorer
from rhumbline.prompts.contrasts import Label, Prompt
from rhumbline.protocol import COEFFICIENTS, Dose
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.selection_files import Candidate
from rhumbline.stages.nulls import Null
from rhumbline.stages.refits import Site

ENOUGH = 0.9
"""Share of validation negatives that must open as a refusal for a coefficient to be large enough."""

QUIET = -2.2
"""A negative with a larger metric at baseline (a probability of the behaviour above 0.1) tends to the behaviour. Of a
paired metric, which is no probability, no negative does."""

LABELS: tuple[Label, Label] = ("positive", "negative")


class Sample(NamedTuple):
    """Test prompts that the fast metric reads."""

    ids: list[str]
    sequences: list[TokenIds]


def sample(prompts: Sequence[Prompt], encoded: Sequence[TokenIds], n: int, seed: int) -> Sample:
    """At most `n` prompts, drawn by the seed, in the order of the split."""
    kept = sorted(np.random.default_rng([seed, n]).permutation(len(prompts))[:n].tolist())
    return Sample([prompts[i].id for i in kept], [encoded[i] for i in kept])


def additions(coefficient: float, positions: Literal["all", "prompt"]) -> dict[str, Any]:
    """The arguments of every addition of a run."""
    return {"coefficient": coefficient, "positions": positions}


# -- wide nulls -------------------------------------------------------------------------------------------------------


def wide(
    scorer: Scorer,
    samples: Mapping[Label, Sample],
    direction: Direction,
    nulls: Sequence[Null],
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Every null draw's ablation on positives and addition on negatives, beside the baseline's and the direction's.

    {"prompts": {label: ids}, "rows": [{"arm", "set", "metric": [...]}], "kl": [...]}: kl of ablation on negatives, None
    on those that tend to the behaviour at baseline.
    """
    rows, kl = [], []
    for label in LABELS:
        kind, make = ("ablation", Ablate) if label == "positive" else ("addition", None)
        arms = [BASELINE]
        if label == "negative":
            arms += [Arm("ablation", (Ablate(direction),))]
        arms.append(Arm(kind, (make(direction) if make else Add(direction, **how),)))
        arms += [
            Arm(f"null:{n.family}:{n.draw}:{kind}", (make(n.direction) if make else Add(n.direction, **how),))
            for n in nulls
        ]
        sequences = samples[label].sequences
        metric = scorer.read(sequences, arms).metric
        rows += [{"arm": a.name, "set": label, "metric": _short(m)} for a, m in zip(arms, metric, strict=True)]
        if label == "negative":
            moved = scorer.read(sequences, arms[1:2], scorer.baseline(sequences)).kl[0]
            # Where a negative tends to the behaviour at baseline, losing that is the effect and no damage.
            quiet = math.inf if isinstance(scorer.metric, PairedLogOdds) else QUIET
            kl = [k if before <= quiet else None for k, before in zip(_short(moved), metric[0].tolist(), strict=True)]
    return {"prompts": {label: s.ids for label, s in samples.items()}, "rows": rows, "kl": kl}


def _short(values: Float[Tensor, " prompt"]) -> list[float]:
    return [float(f"{v:.6g}") for v in values.tolist()]


# -- dose -------------------------------------------------------------------------------------------------------------


def dose(
    scorer: Scorer,
    samples: Mapping[Label, Sample],
    direction: Direction,
    nulls: Sequence[Null],
    plan: Dose,
    positions: Literal["all", "prompt"],
) -> dict[str, Any]:
    """The metric over strengths of ablation (positives) and coefficients of addition (negatives), nulls included.

    {"prompts", "rows": [{"kind", "arm", "dose", "set", "metric": [...]}]}.
    """
    named = [("direction", direction), *((f"null:{n.family}:{n.draw}", n.direction) for n in nulls)]
    rows = []
    for label in LABELS:
        doses = plan.strengths if label == "positive" else plan.coefficients
        cells = [(name, d, a) for name, d in named for a in doses]
        arms = [
            Arm(f"{name} {a}", (Ablate(d, a) if label == "positive" else Add(d, a, positions),)) for name, d, a in cells
        ]
        if not arms:
            continue
        kind = "ablation" if label == "positive" else "addition"
        metric = scorer.read(samples[label].sequences, arms).metric
        rows += [
            {"kind": kind, "arm": name, "dose": a, "set": label, "metric": _short(m)}
            for (name, _, a), m in zip(cells, metric, strict=True)
        ]
    return {"prompts": {label: s.ids for label, s in samples.items()}, "rows": rows}


def coefficient_on_validation(scorer: Scorer, negative: Sequence[TokenIds], direction: Direction) -> float:
    """The smallest coefficient under which enough negatives open as a refusal; else the one under which most do."""
    arms = [Arm(f"{c}", (Add(direction, c),)) for c in COEFFICIENTS]
    shares = (scorer.read(negative, arms).metric > 0).double().mean(1).tolist()
    enough = [c for c, share in zip(COEFFICIENTS, shares, strict=True) if share >= ENOUGH]
    return enough[0] if enough else COEFFICIENTS[shares.index(max(shares))]


# -- sites ------------------------------------------------------------------------------------------------------------


def scored_sites(table: Sequence[Candidate], positions: Sequence[Position]) -> list[Site]:
    """Every site with an induce score: the sites that a refit of the whole procedure can select."""
    return [(list(positions).index(r.position), r.layer) for r in table if r.induce is not None]


def best_sites(table: Sequence[Candidate], positions: Sequence[Position], rule: SelectionRule, n: int) -> list[Site]:
    """The n best candidates by the rule: survivors, and those whose KL score could not change the selection."""
    eligible = (row for row in table if row.bypass is not None and row.induce is not None)
    alive = [row for row in eligible if row.discarded in (None, Discard.NOT_NEEDED)]
    return [(list(positions).index(r.position), r.layer) for r in sorted(alive, key=rule.criterion_of)[:n]]
