"""Meaning: does a direction stand for harmful content or for refusal? Crossed prompts under edits of two directions.

Prompts are harmful or harmless by their labels, and refused or complied in fact. The direction of the run, a
harmfulness direction (a difference in means at the last token of the instruction) and null directions are ablated and
added; the effects on refusal and on the judgement of harm (harm_judgement.py) are shares of the differences at
baseline. Zhao et al. 2025, arXiv 2507.11878. Descriptive.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.analyses.crossed_prompts import CrossedPrompts, content_difference, shares, two_sample_mean
from rhumbline.analyses.harm_judgement import Judgements, ask
from rhumbline.analyses.judged import null_directions
from rhumbline.analyses.subject import Subject, mean_interval, protocol_with_classes, residuals_at
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import bootstrap_share
from rhumbline.inference.interventions import BASELINE, Add, Arm, Direction
from rhumbline.prompts.batteries import CONTENTS, BatteryPrompt, of_contrast
from rhumbline.records.analysis_files import LayerCosine, Mean
from rhumbline.records.meaning_file import (
    APART,
    LEAST_SIDE,
    TOGETHER,
    Act,
    Crossing,
    Edited,
    Gap,
    HarmDirection,
    MeaningAnswer,
    MeaningCell,
    MeaningEffect,
    MeaningPlan,
    MeaningRecord,
    Quantity,
)
from rhumbline.records.shared import Site
from rhumbline.records.verdict_rule import is_number

EDITED: tuple[Edited, ...] = get_args(Edited)
ACTS: tuple[Act, ...] = get_args(Act)
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
LEAST = 2
"""Smallest number of prompts of either content whose difference is measured. Effects need `LEAST_SIDE`."""


def analyse(subject: Subject, battery: Sequence[BatteryPrompt] = (), plan: MeaningPlan | None = None) -> MeaningRecord:
    """Measure what the direction stands for, and write analyses/meaning.json.

    Without a battery, the prompts are those of the run: training prompts fit the harmfulness direction, and test
    prompts are measured. InputError if a content has too few prompts.
    """
    plan, direction, protocol = plan or MeaningPlan(), subject.selected(), protocol_with_classes(subject.directory)
    fitted, measured = (
        CrossedPrompts.of(subject, some, plan.max_new_tokens) for some in _halves(subject, battery, plan)
    )
    harm, facts = _harm_direction(subject, direction, fitted)
    readings = _read(subject, measured, _edits(subject, direction, harm, plan), {"refusal": direction, "harm": harm})
    effects = tuple(readings.effects())
    record = MeaningRecord(
        seed=subject.seed,
        site=subject.selected_site(),
        parameters=plan,
        judge=protocol.judge,
        battery="file or sets" if battery else "run",
        unclear=measured.unclear,
        answers=mean_interval(readings.judged.mass),
        cells=tuple(readings.cells()),
        harm=facts,
        crossing=readings.crossing(),
        gaps=tuple(readings.gap(quantity) for quantity in QUANTITIES),
        effects=effects,
        answer=_answer(effects),
    )
    return subject.save(record)


def _halves(
    subject: Subject, battery: Sequence[BatteryPrompt], plan: MeaningPlan
) -> tuple[list[BatteryPrompt], list[BatteryPrompt]]:
    """The prompts that fit, and those that are measured: half of `plan.prompts` of each content and group."""
    half = plan.prompts // 2
    if not battery:
        train, test = (
            [subject.prompts(split, label)[:half] for label in ("positive", "negative")] for split in ("train", "test")
        )
        fitted, measured = list(of_contrast(*train)), list(of_contrast(*test))
    else:
        fitted, measured = [], []
        for cell in dict.fromkeys((row.content, row.group) for row in battery):
            rows = [row for row in battery if (row.content, row.group) == cell]
            # In an order that depends on the number of rows only: files are often sorted by topic.
            order = np.random.default_rng([subject.seed, len(rows)]).permutation(len(rows))[: plan.prompts]
            fitted += [rows[i] for i in order[::2]]
            measured += [rows[i] for i in order[1::2]]
    for content in CONTENTS:
        n = min(sum(row.content == content for row in some) for some in (fitted, measured))
        if n < LEAST:
            raise InputError(
                f"the battery has too few {content} prompts: {n} of them would be fitted or measured, and {LEAST} of "
                f"either are needed. Pass {2 * LEAST} or more."
            )
    return fitted, measured


def _harm_direction(subject: Subject, direction: Direction, fitted: CrossedPrompts) -> tuple[Direction, HarmDirection]:
    """The harmfulness direction in the layer of the direction, and its description."""
    position, d = subject.chat.instruction_position, subject.model.d_model
    h = residuals_at(subject.runner, fitted.sequences, position)
    difference = content_difference(h, fitted.is_harmful, fitted.is_refused, fitted.is_crossed).float()
    harm = Direction.from_vector(difference[direction.layer], position, direction.layer)
    cosines = torch.cosine_similarity(difference, direction.vector, dim=-1).tolist()
    by_layer = tuple(
        LayerCosine(k, v if n > 0 else None)
        for k, (v, n) in enumerate(zip(cosines, difference.norm(dim=1), strict=True))
    )
    n = int(fitted.is_harmful.sum())
    return harm, HarmDirection(
        Site(position, direction.layer),
        harm.norm,
        fitted.is_crossed,
        n,
        len(fitted.is_harmful) - n,
        float(harm.vector @ direction.vector),
        by_layer,
        float((2 / (np.pi * d)) ** 0.5),
    )


# -- arms -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edit:
    """An arm, and what it is."""

    arm: Arm
    edited: Edited
    act: Act
    family: str | None = None
    """Null family; None for the direction itself."""


def _edits(subject: Subject, direction: Direction, harm: Direction, plan: MeaningPlan) -> list[_Edit]:
    """Ablation and addition of both directions, and of null directions with the norm of each."""
    edits: list[_Edit] = []
    positions = subject.addition(direction).positions
    strengths: dict[Edited, tuple[Direction, float]] = {
        "refusal": (direction, subject.coefficient),
        "harm": (harm, 1.0),
    }
    for edited, (own, c) in strengths.items():
        nulls = null_directions(subject, own, plan.draws)
        vectors = [(None, own), *((family, d) for family, some in nulls.items() for d in some)]
        for act in ACTS:
            for family, d in vectors:
                scaled = Direction.from_vector(d.vector * own.norm, own.position, own.layer)
                change = subject.ablation(d) if act == "ablation" else Add(scaled, c, positions)
                edits.append(_Edit(Arm(f"{edited} {act} {len(edits)}", (change,)), edited, act, family))
    return edits


# -- readings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Readings:
    """The quantities of the measured prompts at baseline (row 0) and under every edit."""

    prompts: CrossedPrompts
    edits: Sequence[_Edit]
    refusal: Float[Tensor, "arm prompt"]
    judged: Judgements
    projections: Mapping[Edited, Float[Tensor, " prompt"]]

    def values(self, quantity: Quantity) -> Float[np.ndarray, "arm prompt"]:
        """A quantity under every arm."""
        match quantity:
            case "refusal":
                return self.refusal.numpy()
            case "judgement":
                return self.judged.judgement.numpy()
            case "reply":
                return self.judged.reply.numpy()

    def sides(self, quantity: Quantity) -> tuple[Bool[np.ndarray, " prompt"], Bool[np.ndarray, " prompt"]]:
        """The prompts with more of a quantity, on which ablations are measured, and those with less of it."""
        if quantity == "refusal":
            return self.prompts.is_refused, self.prompts.is_complied
        return self.prompts.is_harmful, ~self.prompts.is_harmful

    def gap(self, quantity: Quantity) -> Gap:
        """The difference at baseline that effects on a quantity refer to."""
        upper, lower = self.sides(quantity)
        values = self.values("judgement" if quantity == "reply" else quantity)[0]
        return Gap(quantity, two_sample_mean(values[upper], values[lower]), int(upper.sum()), int(lower.sum()))

    def effects(self) -> Iterator[MeaningEffect]:
        """The effects of both directions on every quantity whose gap is above 0."""
        for quantity in QUANTITIES:
            gap, (upper, lower) = self.gap(quantity), self.sides(quantity)
            whole = gap.gap.mean
            if whole is None or not (gap.gap.low or 0.0) > 0 or min(gap.upper, gap.lower) < LEAST_SIDE:
                continue
            values = self.values(quantity)
            at_baseline = self.values("judgement" if quantity == "reply" else quantity)[0]
            for edited in EDITED:
                for act in ACTS:
                    side, sign = (upper, -1) if act == "ablation" else (lower, 1)
                    change = sign * (values[1:, side] - values[0, side])
                    rows = [i for i, e in enumerate(self.edits) if (e.edited, e.act) == (edited, act)]
                    families = dict.fromkeys(f for i in rows if (f := self.edits[i].family) is not None)
                    own = next(change[i] for i in rows if self.edits[i].family is None)
                    groups = at_baseline[upper], at_baseline[lower]
                    share = bootstrap_share(own, *groups, np.random.default_rng(0), of_upper=act == "ablation")
                    nulls = {f: [change[i].mean() for i in rows if self.edits[i].family == f] for f in families}
                    yield MeaningEffect(
                        edited=edited,
                        act=act,
                        quantity=quantity,
                        effect=Mean(*share),
                        nulls={family: float(np.mean(some)) / whole for family, some in nulls.items()},
                    )

    def cells(self) -> Iterator[MeaningCell]:
        """Projections and quantities at baseline, by content, fact and group."""
        for content, fact, group, chosen in self.prompts.cells():
            yield MeaningCell(
                content=content,
                fact=fact,
                group=group,
                n=int(chosen.sum()),
                projection=mean_interval(self.projections["refusal"].numpy()[chosen]),
                harm_projection=mean_interval(self.projections["harm"].numpy()[chosen]),
                refusal=mean_interval(self.values("refusal")[0, chosen]),
                judgement=mean_interval(self.values("judgement")[0, chosen]),
            )

    def crossing(self) -> dict[Edited, Crossing] | None:
        """The shares of content and of fact in the projection on either direction."""
        if not self.prompts.is_crossed:
            return None
        p = self.prompts
        return {
            edited: Crossing(*shares(values.double().numpy(), p.is_harmful, p.is_refused, p.is_complied))
            for edited, values in self.projections.items()
        }


def _read(
    subject: Subject, prompts: CrossedPrompts, edits: Sequence[_Edit], directions: Mapping[Edited, Direction]
) -> _Readings:
    """Read the metric, the judgement and the projections of the prompts under every edit."""
    arms = [BASELINE, *(edit.arm for edit in edits)]

    def projection(d: Direction) -> Float[Tensor, " prompt"]:
        return residuals_at(subject.runner, prompts.sequences, d.position)[:, d.layer] @ d.vector

    return _Readings(
        prompts,
        edits,
        subject.scorer.read(prompts.sequences, arms).metric,
        ask(subject, prompts.rows, arms),
        {edited: projection(d) for edited, d in directions.items()},
    )


def _answer(effects: Sequence[MeaningEffect]) -> MeaningAnswer:
    """About the ablation of the direction of the run: whether it removes the judgement of harm as well as refusal."""
    at = {e.quantity: e for e in effects if (e.edited, e.act) == ("refusal", "ablation")}
    if not {"refusal", "judgement"} <= at.keys():
        return "NOT-MEASURED"
    refusal, judgement = at["refusal"], at["judgement"]
    largest = max((abs(v) for e in (refusal, judgement) for v in e.nulls.values() if v is not None), default=0.0)
    removed, low, high = refusal.effect.low, judgement.effect.low, judgement.effect.high
    if not (is_number(removed) and is_number(low) and is_number(high)):
        return "UNDETERMINED"
    if removed < TOGETHER or largest > APART:
        return "UNDETERMINED"
    if low >= -APART and high <= APART:
        return "REFUSAL-ONLY"
    return "HARM-AND-REFUSAL" if low >= TOGETHER else "UNDETERMINED"
