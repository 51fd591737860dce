"""Sources of further directions, and the effects of their spans by rank.

    candidates   the run's other differences in means, over layers and positions
    clusters     prototypes of the positives (k-means) minus the mean of the negatives
    som          the same with a self-organising map (Piras et al. 2025)
    gradient     fitted one after the other by gradient, each orthogonal to those before (Wollschlaeger et al. 2025)
    cone         a cone fitted by gradient, each of whose directions should change the behaviour (ibid.)

Input: a finished run and a plan. Output: a `SourceRecord`. Independent of the verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.gradient_search import GradientSearch
from rhumbline.analyses.spans import Basis, cone_samples, energy, prototypes, random_span, span_of
from rhumbline.analyses.subject import AnalysisPrompts, Subject, mean_interval
from rhumbline.axes import Vector
from rhumbline.evidence.selection_rules import SelectionRule
from rhumbline.evidence.statistics import difference_of_rates, paired_difference, wilson, wilson_of_rate
from rhumbline.inference.independence import cosine_changes
from rhumbline.inference.interventions import BASELINE, AblateSpan, Arm, Direction
from rhumbline.inference.residuals import at_site
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.analysis_files import MeanRate, Rate
from rhumbline.records.directions_file import (
    SPAN_FAMILIES,
    ChosenRank,
    Cone,
    ConeEffects,
    ConeInduction,
    ConeSuppression,
    CosineChange,
    DirectionsParameters,
    Gain,
    Member,
    RandomSpans,
    RankedSpan,
    SourceName,
    SourceRecord,
    SpanFamily,
    Suppression,
    ValidationRank,
)
from rhumbline.records.shared import ByLabel

Members = Float[Tensor, "member d_model"]
"""Unit vectors."""
CONE_SEED = 9
"""Last entry of the seed of draws from cones."""
INDEPENDENCE_PROMPTS = 16
"""Validation positives on which changes of cosines are measured."""
SCREENED = 3
"""Candidates whose bypass score is measured, for each one that can be added."""
KL_CHECKS = 4
"""Members with the lowest metric whose KL divergence is checked, at each rank."""


@dataclass(frozen=True)
class _Spans:
    """Members, the span of each rank, and its effects on validation prompts."""

    members: Members
    spans: list[Tensor]
    """Orthonormal basis of every rank."""
    validation: list[ValidationRank]


@dataclass(frozen=True)
class SourceAnalysis:
    """One source of further directions: fits members, orders them, and measures their spans by rank."""

    subject: Subject
    prompts: AnalysisPrompts
    parameters: DirectionsParameters
    name: SourceName
    activations: ByLabel[Float[Tensor, "prompt d_model"]]
    """Activations of the training prompts at the site of the direction."""

    @classmethod
    def of(
        cls, subject: Subject, prompts: AnalysisPrompts, parameters: DirectionsParameters, name: SourceName
    ) -> "SourceAnalysis":
        """Read the activations of the training prompts."""
        d = subject.selected()
        h = (at_site(subject.runner, prompts.train[c], d.position, d.layer) for c in LABELS)
        return cls(subject, prompts, parameters, name, ByLabel(*h))

    @property
    def direction(self) -> Direction:
        """The direction of the run."""
        return self.subject.selected()

    def record(self) -> SourceRecord:
        """Every measurement of this source."""
        fitted = self._fitted()
        spans = self._in_given_order(fitted) if self.name == "gradient" else self._ordered(fitted)
        members, before = spans.members, self.prompts.test.metric([BASELINE])[0]
        ranks = [self._ranked(before, spans.spans[0], span, rank) for rank, span in enumerate(spans.spans, 1)]
        return SourceRecord(
            members=tuple(self._member(k, v) for k, v in enumerate(members, 1)),
            independence=self._independence(members),
            validation=tuple(spans.validation),
            ranks=tuple(ranks),
            gains=tuple(_gain(narrow, wide) for narrow, wide in pairwise(ranks)),
            chosen=self._chosen(spans.validation, ranks),
            cone=tuple(self._cone(self._cone_members(members, k)) for k in range(1, len(members) + 1)),
        )

    # Members

    def _fitted(self) -> Members:
        """Members from training prompts."""
        plan, h, train = self.parameters.plan, self.activations, self.prompts.train
        search = GradientSearch(
            self.subject.runner,
            *self.subject.after_start(train),
            self.subject.metric,
            self.direction,
            plan.steps,
            self.subject.spared,
            self.subject.coefficient,
        )
        match self.name:
            case "candidates":
                return self._other_candidates()
            case "clusters" | "som":
                return prototypes(h.positive, h.negative, self.name, plan.members, self.subject.seed)
            case "gradient":
                span = self.direction.vector[None]
                for k in range(1, plan.max_rank):
                    span = torch.cat([span, search.fit(span, seed=k)])
                return span[1:]
            case "cone":
                return search.fit(
                    self.direction.vector[None][:0], n=max(1, min(plan.max_rank, plan.members) - 1), seed=0
                )

    def _other_candidates(self) -> Members:
        """The other candidates below the rule's layer cut with the lowest bypass scores on validation prompts.

        Bypass scores are measured for those with the lowest first-order estimates of them.
        """
        subject, pool = self.subject, self.parameters.plan.pool
        rule = SelectionRule(**subject.directory.protocol["selection"])
        cut = rule.first_cut_layer(subject.model.n_layers)
        own = (subject.positions.index(self.direction.position), self.direction.layer)
        cells = [(p, layer) for p in range(len(subject.positions)) for layer in range(cut) if (p, layer) != own]
        candidates = [subject.candidates[cell] for cell in cells]
        known = [Direction.from_vector(v, -1, 0) for v in candidates if 0 < float(v.norm()) < math.inf]
        if not known:
            return self.direction.vector[None][:0]
        val = self.prompts.val
        estimates = val.scorer.estimates(val.positive, known, subject.spared).ablation.mean(1)
        units = torch.stack([d.vector for d in known])[estimates.argsort()[: SCREENED * pool]]
        bypass = val.metric([self._ablating(u[None]) for u in units]).mean(1)
        return units[bypass.argsort()[:pool]]

    def _ordered(self, fitted: Members) -> _Spans:
        """Add members one by one: at each rank the one with the lowest metric on validation positives.

        Among the first few, members within the bound of the KL divergence have priority.
        """
        first = self.direction.vector[None]
        members, spans, validation = first, [first], [self._on_validation(first)]
        left = list(fitted)
        while left and len(spans) < self.parameters.plan.max_rank:
            wider = [span_of(torch.cat([members, v[None]])) for v in left]
            grown = [i for i, span in enumerate(wider) if len(span) > len(spans[-1])]
            if not grown:
                break
            scores = self.prompts.val.metric([self._ablating(wider[i]) for i in grown]).mean(1).tolist()
            order = [i for _, i in sorted(zip(scores, grown, strict=True))]
            harmless = (i for i in order[:KL_CHECKS] if self._is_harmless(self._on_validation(wider[i])))
            best = next(harmless, order[0])
            members = torch.cat([members, left[best][None]])
            spans.append(wider[best])
            validation.append(self._on_validation(wider[best]))
            left = [left[i] for i in grown if i != best]
        return _Spans(members, spans, validation)

    def _in_given_order(self, fitted: Members) -> _Spans:
        """The spans of members whose order is fixed by their source."""
        members = torch.cat([self.direction.vector[None], fitted])
        spans = [members[:1], *(span_of(members[:k]) for k in range(2, len(members) + 1))]
        return _Spans(members, spans, [self._on_validation(span) for span in spans])

    def _on_validation(self, span: Basis) -> ValidationRank:
        metric = self.prompts.val.metric([self._ablating(span)])[0]
        return ValidationRank(
            rank=len(span),
            rate=float((metric > 0).double().mean()),
            metric=float(metric.mean()),
            kl=float(self.prompts.val.kl([self._ablating(span)]).mean()),
            n=len(metric),
        )

    def _is_harmless(self, on_validation: ValidationRank) -> bool:
        """Whether the KL divergence on validation negatives is within the bound."""
        kl = on_validation.kl
        return kl is not None and kl <= self.parameters.rule.max_kl

    # Spans on test prompts

    def _ranked(self, before: Tensor, first: Float[Tensor, "1 d_model"], span: Basis, rank: int) -> RankedSpan:
        """Suppression, KL divergence and energy of a span, and of random spans of the same rank."""
        arms = [self._ablating(span)]
        metric, kl = self.prompts.test.metric(arms), self.prompts.test.kl(arms).mean(0)
        drop = paired_difference(before.numpy() > 0, metric[0].numpy() > 0)
        energy_removed = energy(self._all_activations, span)
        return RankedSpan(
            rank=rank,
            suppression=_suppression(metric, MeanRate(*drop)),
            kl=mean_interval(kl),
            values=tuple(round(v, 5) for v in metric[0].tolist()),
            energy=energy_removed,
            random={f: self._random(before, first, rank, f, energy_removed) for f in SPAN_FAMILIES if rank > 1},
        )

    def _random(
        self, before: Tensor, first: Float[Tensor, "1 d_model"], rank: int, family: SpanFamily, energy_removed: float
    ) -> RandomSpans:
        """Random spans that contain the first direction, over all draws together."""
        # Every source has the same draws, so that isotropic spans are measured once.
        rng = np.random.default_rng([self.subject.seed, rank, SPAN_FAMILIES.index(family)])
        match = energy_removed if family == "energy-matched" else None
        h, negative = self._all_activations, self.activations.negative
        spans = [random_span(first, rank, negative, rng, match, h) for _ in range(self.parameters.plan.draws)]
        arms = [self._ablating(span) for span in spans]
        metric, kl = self.prompts.test.metric(arms), self.prompts.test.kl(arms).mean(0)
        shown = metric > 0
        drop = paired_difference((before > 0).numpy(), shown.double().mean(0).numpy())
        return RandomSpans(
            suppression=_suppression(metric, MeanRate(*drop)),
            kl=mean_interval(kl),
            energy=float(np.mean([energy(h, span) for span in spans])),
        )

    @property
    def _all_activations(self) -> Float[Tensor, "prompt d_model"]:
        return torch.cat([self.activations.positive, self.activations.negative])

    def _chosen(self, validation: Sequence[ValidationRank], ranks: Sequence[RankedSpan]) -> ChosenRank | None:
        """The rank with the lowest rate on validation positives, on test prompts."""
        wider = validation[1:]
        harmless = [v for v in wider if self._is_harmless(v)]
        best = min(harmless or wider, key=lambda v: (v.rate, v.rank), default=None)
        if best is None:
            return None
        row = ranks[best.rank - 1]
        rate, n = row.suppression.rate, row.suppression.drop.n
        return ChosenRank(
            rank=best.rank,
            val_rate=best.rate,
            val_metric=best.metric,
            gain=_gain(ranks[0], row),
            beyond_random={
                f: MeanRate(*difference_of_rates(r.suppression.rate, rate, n)) for f, r in row.random.items()
            },
            kl=row.kl,
        )

    def _ablating(self, span: Basis) -> Arm:
        return Arm("span", (AblateSpan(span, spared=self.subject.spared),))

    # Single members

    def _member(self, rank: int, v: Vector) -> Member:
        """Effects of one member by itself, ablated or added."""
        return Member(
            rank=rank,
            cosine=float(v @ self.direction.vector),
            suppressed=_rate(self.prompts.test.metric([self._ablating(v[None])])[0]),
            induced=_rate(self.prompts.test.induced([self._adding(v)])[0]),
        )

    def _adding(self, v: Vector) -> Arm:
        """Addition of a member with the norm and the site of the run's direction."""
        d = self.direction
        member = Direction.from_vector(v / v.norm() * d.norm, d.position, d.layer)
        return Arm("member", (self.subject.addition(member),))

    # Cones

    def _cone_members(self, members: Members, rank: int) -> Float[Tensor, "cone_member d_model"]:
        """Members that span the cone of a rank: the first ones; of source `cone` those that were fitted as a cone."""
        return members[1:rank] if self.name == "cone" and rank > 1 else members[:rank]

    def _cone(self, members: Members) -> Cone:
        """Effects of directions drawn in the cone of the members, and in a random cone of the same dimension."""
        rng = np.random.default_rng([self.subject.seed, len(members), CONE_SEED])
        noise = torch.tensor(rng.standard_normal((len(members) - 1, members.shape[1])), dtype=torch.float32)
        random = torch.cat([self.direction.vector[None], torch.nn.functional.normalize(noise, dim=-1)])
        effects, control = self._cone_effects(members, rng), self._cone_effects(random, rng)
        n = self.parameters.plan.samples
        return Cone(len(members), n, effects.suppressed, effects.induced, control)

    def _cone_effects(self, members: Members, rng: np.random.Generator) -> ConeEffects:
        drawn = cone_samples(members, self.parameters.plan.samples, rng)
        left = self.prompts.test.metric([self._ablating(v[None]) for v in drawn]) > 0
        ablated = left.double().mean(1)
        shown = self.prompts.test.induced([self._adding(v) for v in drawn]) > 0
        added = shown.double().mean(1)
        low, high = wilson_of_rate(float(added.mean()), shown.shape[1])
        return ConeEffects(
            ConeSuppression(float(ablated.mean()), float(ablated.max())),
            ConeInduction(float(added.mean()), float(added.min()), low, high),
        )

    # Independence

    def _independence(self, members: Members) -> tuple[CosineChange, ...]:
        """Mean |change| of the stream's cosine with one member under ablation of another, for every ordered pair.

        Measured over validation positives and layers, at the position of the direction. Two directions are
        representationally independent if it is 0 both ways (Wollschlaeger et al. 2025).
        """
        sequences = self.prompts.val.positive[:INDEPENDENCE_PROMPTS]
        changes = cosine_changes(self.subject.runner, members, self.direction.position, sequences, self.subject.spared)
        return tuple(
            CosineChange(i + 1, j + 1, value)
            for i, row in enumerate(changes)
            for j, value in enumerate(row)
            if i != j and not math.isnan(value)
        )


def _suppression(metric: Float[Tensor, "arm prompt"], drop: MeanRate) -> Suppression:
    """Rate and metric over the draws together."""
    return Suppression(float((metric > 0).double().mean()), drop, mean_interval(metric.mean(0)))


def _gain(narrow: RankedSpan, wide: RankedSpan) -> Gain:
    """Further decrease by the wider span on the same prompts."""
    a, b = (np.array(span.values) for span in (narrow, wide))
    difference = paired_difference(a > 0, b > 0)
    return Gain(lower=narrow.rank, higher=wide.rank, **difference._asdict(), metric=mean_interval(a - b))


def _rate(metric: Float[Tensor, " prompt"]) -> Rate:
    shown, n = int((metric > 0).sum()), len(metric)
    low, high = wilson(shown, n)
    return Rate(shown / n, low, high, n)
