"""Effects of suffixes on the direction: cosine by layer, terms of the projection, and attention of the writing heads.

The user supplies the suffixes; each is compared with random suffixes of the same length. This module does not search
for suffixes. Everything is measured on test prompts; the heads are selected on validation prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.attribution import Attribution, Part, attribute
from rhumbline.analyses.subject import Subject, layer_means, mean_interval, residuals_at
from rhumbline.analyses.suffix_texts import by_condition, encoded, read_suffixes
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import wilson_of_rate
from rhumbline.inference.interventions import BASELINE
from rhumbline.prompts.contrasts import LABELS, Label, Prompt
from rhumbline.records.analysis_files import MeanRate
from rhumbline.records.suffix_file import (
    Attention,
    AttributedPart,
    ConditionName,
    SuffixAttribution,
    SuffixCondition,
    SuffixDrop,
    SuffixEffect,
    SuffixHead,
    SuffixParameters,
    SuffixRecord,
    WholeWriter,
    random_condition,
    suffix_condition,
)

HEAD_PROMPTS = 16
"""Validation prompts per class on which the heads are selected."""
Readings = Mapping[ConditionName, "_Reading"]


def analyse(
    subject: Subject, suffixes: str | Path | Sequence[str], *, draws: int = 3, prompts: int = 50, heads: int = 8
) -> SuffixRecord:
    """Measure the effects of suffixes (a file, or texts) and write analyses/suffix.json.

    `draws` is the number of random suffixes for each suffix, `prompts` the number of test prompts per class, `heads`
    the number of attention heads that are reported in detail. Raises InputError, and ModelError if the residual writers
    of the model are not proved.
    """
    texts = read_suffixes(suffixes)
    if draws < 1 or prompts < 2 or not texts:
        raise InputError(
            f"suffix: {draws} random draws, {prompts} prompts and {len(texts)} suffixes; use 1 random draw or more, "
            "2 prompts or more, and 1 suffix or more."
        )
    parts = _writing_heads(subject, heads)
    readings = {
        name: _Reading.of(subject, label, prompts, some)
        for name, (label, some) in _conditions(subject, texts, draws).items()
    }
    positive = readings["positive"]
    record = SuffixRecord(
        seed=subject.seed,
        site=subject.selected_site(),
        parameters=SuffixParameters(len(texts), draws, prompts, heads),
        conditions=tuple(reading.record(name) for name, reading in readings.items()),
        effects=tuple(_effect(readings, k) for k in range(1, len(texts) + 1)),
        attribution=_attribution(readings),
        heads=tuple(_head(readings, part) for part in parts),
        n=len(positive.projection),
    )
    return subject.save(record)


def _conditions(
    subject: Subject, texts: Sequence[str], draws: int
) -> dict[ConditionName, tuple[Label, Sequence[str | None]]]:
    """Class and suffixes of every condition; None: no suffix."""
    suffixed = by_condition(subject.chat, texts, draws)
    return {
        "positive": ("positive", [None]),
        "negative": ("negative", [None]),
        **{name: ("positive", some) for name, some in suffixed.items()},
    }


@dataclass(frozen=True)
class _Reading:
    """Measurements on one kind of prompt. Every value is a mean over the suffixes, so that a prompt counts once."""

    texts: Sequence[str | None]
    """The suffixes; None: no suffix."""
    cosine: Float[Tensor, "prompt layer"]
    projection: Float[Tensor, " prompt"]
    metric: Float[Tensor, " prompt"]
    share: Float[Tensor, " prompt"]
    """Share of the suffixes with a metric above 0."""
    attribution: Attribution
    """For the first suffix only; one text suffices to show which parts write the projection."""
    regions: Sequence[Mapping[str, slice]]
    """Regions of the chat of every prompt, with the first suffix."""

    @classmethod
    def of(cls, subject: Subject, label: Label, n: int, texts: Sequence[str | None]) -> "_Reading":
        """Read the first `n` test prompts of a class with every suffix."""
        direction, prompts = subject.selected(), subject.splits.get("test", label)[:n]
        position, layer = direction.position, direction.layer
        sequences = [encoded(subject.chat, prompts, text) for text in texts]
        h = torch.stack([residuals_at(subject.runner, s, position) for s in sequences])
        metric = torch.stack([subject.scorer.read(s, [BASELINE]).metric[0] for s in sequences])
        return cls(
            texts=texts,
            cosine=torch.cosine_similarity(h, direction.vector, dim=-1).mean(0),
            projection=(h[:, :, layer] @ direction.vector).mean(0),
            metric=metric.mean(0),
            share=(metric > 0).double().mean(0),
            attribution=attribute(subject.model, sequences[0], direction.vector, position=position, layer=layer),
            regions=[_regions(subject, p, ids) for p, ids in zip(prompts, sequences[0], strict=True)],
        )

    def record(self, name: ConditionName) -> SuffixCondition:
        """Means with their intervals."""
        return SuffixCondition(
            name=name,
            texts=tuple(t for t in self.texts if t is not None),
            cosine=layer_means(self.cosine.T),
            projection=mean_interval(self.projection),
            metric=mean_interval(self.metric),
            rate=self._rate(),
        )

    def _rate(self) -> MeanRate:
        # Wilson's interval: a bootstrap interval of a rate of 0 or 1 has no width.
        value, n = float(self.share.mean()), len(self.share)
        low, high = wilson_of_rate(value, n)
        return MeanRate(value, low, high, n)


def _effect(readings: Readings, k: int) -> SuffixEffect:
    """Decrease of projection and metric by suffix k on the same prompts, compared with its random suffixes."""
    plain, suffix, random = (readings[n] for n in ("positive", suffix_condition(k), random_condition(k)))

    def drop(before: Tensor, after: Tensor, control: Tensor) -> SuffixDrop:
        return SuffixDrop(*map(mean_interval, (before - after, before - control, control - after)))

    return SuffixEffect(
        suffix=k,
        projection=drop(plain.projection, suffix.projection, random.projection),
        metric=drop(plain.metric, suffix.metric, random.metric),
    )


def _attribution(readings: Readings) -> SuffixAttribution:
    """Every term of the projection, with its mean on each kind of prompt."""
    first = readings["positive"].attribution
    values = {name: r.attribution.values for name, r in readings.items()}
    terms = [
        AttributedPart(
            part.kind, part.layer, part.module, part.head, {name: float(v[:, i].mean()) for name, v in values.items()}
        )
        for i, part in enumerate(first.parts)
    ]
    whole = [WholeWriter(layer, module, reason) for (layer, module), reason in first.whole.items()]
    return SuffixAttribution.of(max(r.attribution.error() for r in readings.values()), whole, terms)


def _writing_heads(subject: Subject, n: int) -> list[Part]:
    """The heads whose mean contributions differ most between the classes, on validation prompts."""
    difference = {part: value for part, value in class_differences(subject).items() if part.kind == "head"}
    return sorted(difference, key=lambda part: -abs(difference[part]))[:n]


def class_differences(subject: Subject) -> dict[Part, float]:
    """The difference between the classes of the mean contribution of every part, on validation prompts."""
    direction = subject.selected()
    means = []
    for label in LABELS:
        sequences = encoded(subject.chat, subject.splits.get("val", label)[:HEAD_PROMPTS])
        attribution = attribute(
            subject.model, sequences, direction.vector, position=direction.position, layer=direction.layer
        )
        means.append((attribution.parts, attribution.values.mean(0)))
    (parts, positive), (_, negative) = means
    return {part: float(positive[i] - negative[i]) for i, part in enumerate(parts)}


def _head(readings: Readings, part: Part) -> SuffixHead:
    """Contribution of one head to the projection, and its attention on the regions of the chat."""
    assert part.layer is not None
    assert part.head is not None
    contribution, attention = {}, {}
    for name, reading in readings.items():
        attribution = reading.attribution
        contribution[name] = mean_interval(attribution.values[:, attribution.parts.index(part)])
        shares: dict[str, list[float]] = {}
        for weights, regions in zip(attribution.attention, reading.regions, strict=True):
            w = weights[part.layer, part.head]
            for region, span in regions.items():
                shares.setdefault(region, []).append(float(w[span].sum()))
        attention[name] = Attention(**{region: mean_interval(torch.tensor(v)) for region, v in shares.items()})
    return SuffixHead(part.kind, part.layer, part.module, part.head, contribution, attention)


def _regions(subject: Subject, prompt: Prompt, ids: Sequence[int]) -> dict[str, slice]:
    """Tokens of the instruction, of the suffix, and of the template before and after them, in one chat."""
    spans = subject.chat.spans(ids)
    plain = subject.chat.encode(prompt)
    same = 0
    while same < min(len(ids), len(plain)) and ids[same] == plain[same]:
        same += 1
    end = spans.instruction_end if list(ids) == plain else min(max(same, spans.prefix_end), spans.instruction_end)
    return {
        "before": slice(0, spans.prefix_end),
        "instruction": slice(spans.prefix_end, end),
        "suffix": slice(end, spans.instruction_end),
        "after": slice(spans.instruction_end, len(ids)),
    }
