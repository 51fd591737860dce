"""What a suffix does to the direction: cosine per layer, what writes along it, and where the writing heads look.

Suffixes are the user's; random ones of the same length stand beside them. This module searches for none: it measures.
Everything is measured on test prompts; the heads that are looked at closer are chosen on validation prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.attribution import Attribution, Part, attribute
from rhumbline.analyses.subject import Subject, mean_record, residuals_at
from rhumbline.analyses.suffixes import encoded, random_suffixes, read_suffixes
from rhumbline.errors import InputError
from rhumbline.evidence.statistics import wilson_of_rate
from rhumbline.inference.interventions import BASELINE
from rhumbline.prompts.contrasts import LABELS, Prompt

NAME = "suffix"


def analyse(
    subject: Subject, suffixes: str | Path | Sequence[str], *, draws: int = 3, prompts: int = 50, heads: int = 8
) -> dict[str, Any]:
    """Measure and write what suffixes (a file, or texts) do.

    `draws` random suffixes beside each; `prompts` test prompts of either class; `heads` are looked at closer. Raises
    InputError, and ModelError where the model's writers are not proved.
    """
    texts = read_suffixes(suffixes) if isinstance(suffixes, str | Path) else list(suffixes)
    if draws < 1 or prompts < 2 or not texts:
        raise InputError(f"suffix: give 1 random draw or more ({draws}), 2 prompts or more ({prompts}), and a suffix.")
    positive = subject.splits.get("test", "positive")[:prompts]
    conditions: dict[str, tuple[Sequence[Prompt], list[str | None]]] = {
        "positive": (positive, [None]),
        "negative": (subject.splits.get("test", "negative")[:prompts], [None]),
    }
    for k, text in enumerate(texts, 1):
        conditions[f"suffix {k}"] = (positive, [text])
        conditions[f"random {k}"] = (positive, list(random_suffixes(subject.chat, text, draws, k)))
    chosen = _writing_heads(subject, heads)
    read = {name: _Condition(subject, *of) for name, of in conditions.items()}
    first = read["positive"].attribution
    record = {
        "conditions": [condition.record(name, conditions[name][1]) for name, condition in read.items()],
        "effects": [_effect(read, k) for k in range(1, len(texts) + 1)],
        "attribution": {
            "error": max(c.attribution.error() for c in read.values()),
            "whole": [{"layer": at, "module": name, "reason": why} for (at, name), why in first.whole.items()],
            "parts": [
                part._asdict() | {name: float(c.attribution.values[:, i].mean()) for name, c in read.items()}
                for i, part in enumerate(first.parts)
            ],
        },
        "heads": [_head(read, part) for part in chosen],
        "n": len(positive),
    }
    given = {"suffixes": len(texts), "draws": draws, "prompts": prompts, "heads": heads}
    return subject.save(NAME, given, record)


class _Condition:
    """One kind of prompt: every reading is a mean over its texts, so that a prompt counts once."""

    def __init__(self, subject: Subject, prompts: Sequence[Prompt], texts: Sequence[str | None]):
        direction, runner = subject.selected(), subject.runner
        self.sequences = [encoded(subject.chat, prompts, text) for text in texts]
        h = torch.stack([residuals_at(runner, s, direction.position) for s in self.sequences])
        self.cosine: Float[Tensor, "prompt layer"] = torch.cosine_similarity(h, direction.vector, dim=-1).mean(0)
        self.projection: Float[Tensor, " prompt"] = (h[:, :, direction.layer] @ direction.vector).mean(0)
        metric = [subject.scorer.read(s, [BASELINE]).metric[0] for s in self.sequences]
        self.metric = torch.stack(metric).mean(0)
        self.share = (torch.stack(metric) > 0).double().mean(0)
        # One text is attributed: its parts already answer where the projection comes from.
        self.attribution: Attribution = attribute(
            subject.model, self.sequences[0], direction.vector, position=direction.position, layer=direction.layer
        )
        self.regions = [_regions(subject, p, ids) for p, ids in zip(prompts, self.sequences[0], strict=True)]

    def record(self, name: str, texts: Sequence[str | None]) -> dict[str, Any]:
        """What is written of it."""
        return {
            "name": name,
            "texts": [t for t in texts if t is not None],
            "cosine": [{"layer": k, **mean_record(c)} for k, c in enumerate(self.cosine.T)],
            "projection": mean_record(self.projection),
            "metric": mean_record(self.metric),
            "rate": self._rate(),
        }

    def _rate(self) -> dict[str, Any]:
        """Wilson's interval: a bootstrap of a rate of 0 or 1 has no width."""
        value, n = float(self.share.mean()), len(self.share)
        low, high = wilson_of_rate(value, n)
        return {"mean": value, "low": low, "high": high, "n": n}


def _effect(read: Mapping[str, _Condition], k: int) -> dict[str, Any]:
    """How far suffix k lowers projection and metric on the same prompts, and how much further than random ones do."""
    plain, suffix, random = (read[n] for n in ("positive", f"suffix {k}", f"random {k}"))
    found: dict[str, Any] = {"suffix": k}
    for what in ("projection", "metric"):
        before, after, control = (getattr(c, what) for c in (plain, suffix, random))
        found[what] = {
            "drop": mean_record(before - after),
            "random": mean_record(before - control),
            "beyond_random": mean_record(control - after),
        }
    return found


def _writing_heads(subject: Subject, n: int) -> list[Part]:
    """The heads whose mean contribution differs most between the classes, on validation prompts."""
    direction = subject.selected()
    means = []
    for label in LABELS:
        sequences = encoded(subject.chat, subject.splits.get("val", label)[:16])
        found = attribute(
            subject.model, sequences, direction.vector, position=direction.position, layer=direction.layer
        )
        means.append((found.parts, found.values.mean(0)))
    (parts, positive), (_, negative) = means
    apart = {part: float(positive[i] - negative[i]) for i, part in enumerate(parts) if part.kind == "head"}
    return sorted(apart, key=lambda part: -abs(apart[part]))[:n]


def _head(read: Mapping[str, _Condition], part: Part) -> dict[str, Any]:
    """What one head writes along the direction, and the share of its attention on instruction, suffix and template."""
    contribution, attention = {}, {}
    for name, condition in read.items():
        found = condition.attribution
        contribution[name] = mean_record(found.values[:, found.parts.index(part)])
        shares: dict[str, list[float]] = {}
        for weights, regions in zip(found.attention, condition.regions, strict=True):
            w = weights[part.layer, part.head]  # type: ignore[index]
            for region, span in regions.items():
                shares.setdefault(region, []).append(float(w[span].sum()))
        attention[name] = {region: mean_record(torch.tensor(values)) for region, values in shares.items()}
    return {**part._asdict(), "contribution": contribution, "attention": attention}


def _regions(subject: Subject, prompt: Prompt, ids: Sequence[int]) -> dict[str, slice]:
    """Where instruction, suffix and the template's ends stand in one chat."""
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
