"""A style over doses: ablation, subtraction and addition of a direction, on the prompts of a made contrast.

The direction is a mean of paired differences on training prompts, read at the last token of the template under the two
system prompts, or over the responses. Validation prompts select the site. On test prompts, ablation and subtraction act
under the first system prompt and addition under the second: style, content and damage are read at every dose, beside
nulls of the same norm or rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.analyses.spans import span_of
from rhumbline.analyses.stored_parts import resumable_runner
from rhumbline.analyses.style_readouts import Completions, Gap, StyleReaders, answer, dose_of, mean_of
from rhumbline.errors import InputError
from rhumbline.evidence.frontier_answers import simultaneous
from rhumbline.inference.interventions import BASELINE, Ablate, AblateSpan, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.embeddings import SentenceEmbeddings
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import LABELS, SPLITS, ContrastSet, Label, Prompt, Sizes, Split, split_contrast
from rhumbline.records.analysis_files import Mean
from rhumbline.records.positions import Position
from rhumbline.records.protocol_file import ControlText
from rhumbline.records.shared import ByLabel, BySplit
from rhumbline.records.style_doses_file import (
    EmbeddingModel,
    Intervention,
    NullFamily,
    SideOf,
    Source,
    StyleCondition,
    StyleDose,
    StyleDosesPlan,
    StyleDosesRecord,
    StyleSelection,
)

SOURCES: tuple[Source, Source] = ("template", "response")
READ_AT: dict[Source, Position] = {"template": Position(-1), "response": Position(0)}
"""The last token of the template, and the mean over the response."""
INTERVENTIONS: tuple[Intervention, ...] = ("ablation", "subtraction", "addition")
LEVEL = 0.95
Differences = Float[Tensor, "pair d_model"]
"""First minus second style, for each pair of training prompts, at one site."""


class Site(NamedTuple):
    """Where differences are read."""

    source: Source
    layer: int


class StyleArm(NamedTuple):
    """An arm and the condition that names it."""

    arm: Arm
    condition: StyleCondition


def measure(
    model: ChatModel,
    contrast: ContrastSet,
    plan: StyleDosesPlan | None = None,
    *,
    embeddings: SentenceEmbeddings | None = None,
    control_tokens: ControlText = "error",
    tick: Callable[[int], None] = lambda rows: None,
    keep: str | Path | None = None,
) -> StyleDosesRecord:
    """Measure one model on a contrast that it made. Content is measured by `embeddings`, too, if they are given.

    Completions are kept in the directory `keep`, from which a stopped call resumes.

    Raises InputError if the prompts of the classes are not the same under two system prompts, with both responses.
    """
    plan = plan or StyleDosesPlan()
    pairs = pairs_of(contrast, plan)
    chat = Chat.of(model.tokenizer, ChatOptions(control_tokens=control_tokens), contrast.prompts)
    study = _Study(resumable_runner(model, tick, keep), chat, pairs, plan)
    readers, detectors = StyleReaders.fit(pairs["train"].positive, pairs["train"].negative, embeddings)
    selection, site = study.select(readers)
    arms = study.arms(study.differences[site], site.layer)
    doses, gap, (reference, similarity) = study.doses(arms, readers)
    answers = tuple(answer(i, doses, plan, gap, similarity or reference) for i in INTERVENTIONS)
    findings = ", ".join(f"{a.intervention}: {a.finding}" for a in answers)
    return StyleDosesRecord(
        plan=plan,
        model=model.name,
        contrast=contrast.name,
        contrast_sha256=contrast.sha256,
        n=BySplit(*(len(pairs[split].positive) for split in SPLITS)),
        markers=readers.markers.phrases,
        detectors=tuple(detectors),
        selection=tuple(selection),
        gap=gap,
        reference=reference,
        doses=tuple(doses),
        answers=answers,
        sentence=f"Direction at layer {site.layer} ({site.source}): {findings}.",
        similarity_reference=similarity,
        embeddings=None if embeddings is None else EmbeddingModel(embeddings.name, embeddings.sha256),
    )


def pairs_of(contrast: ContrastSet, plan: StyleDosesPlan) -> dict[Split, ByLabel[list[Prompt]]]:
    """The prompts of every split under both system prompts, in the same order. Raises InputError."""
    splits = split_contrast(contrast, Sizes(), plan.seed)
    pairs: dict[Split, ByLabel[list[Prompt]]] = {}
    for split in SPLITS:
        sides = [{p.text: p for p in splits.get(split, label)} for label in LABELS]
        if sides[0].keys() != sides[1].keys() or not all(p.other_response for side in sides for p in side.values()):
            raise InputError(
                f"{contrast.name}: the {split} prompts of the classes are not the same with both responses each. Pass "
                "a contrast of `rhumbline contrast make`, with its system prompts."
            )
        texts = [*sides[0]][: plan.prompts if split == "test" else None]
        pairs[split] = ByLabel(*([side[text] for text in texts] for side in sides))
    return pairs


@dataclass(frozen=True)
class _Study:
    """The measurements on one model."""

    runner: Runner
    chat: Chat
    pairs: dict[Split, ByLabel[list[Prompt]]]
    plan: StyleDosesPlan

    # -- directions --

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that are compared."""
        depth = self.runner.model.n_layers
        return tuple(dict.fromkeys(min(depth - 1, max(1, round(share * depth))) for share in self.plan.depths))

    @cached_property
    def differences(self) -> dict[Site, Differences]:
        """The paired differences of the training prompts at every site."""
        train = self.pairs["train"]
        at_template = [self._inputs([self.chat.encode(p) for p in train[c]], "template") for c in LABELS]
        # Each response is read after both system prompts, so that the difference is one of responses.
        responses: list[Tensor] = []
        for label in LABELS:
            other: Label = "negative" if label == "positive" else "positive"
            own = [p.response or "" for p in train[label]]
            contexts = [
                [self.chat.encode_with_response(p, text) for p, text in zip(some, own, strict=True)]
                for some in (train[label], train[other])
            ]
            responses.append((self._inputs(contexts[0], "response") + self._inputs(contexts[1], "response")) / 2)
        found = {"template": at_template[0] - at_template[1], "response": responses[0] - responses[1]}
        return {Site(source, layer): found[source][:, k] for source in SOURCES for k, layer in enumerate(self.layers)}

    def _inputs(self, sequences: Sequence[Sequence[int]], source: Source) -> Float[Tensor, "pair layer d_model"]:
        """Block inputs at the position of a source, at every compared layer; float64 on the CPU."""
        shape = len(sequences), len(self.layers), self.runner.model.d_model
        inputs = torch.zeros(*shape, dtype=torch.float64)
        for prompt, h, _ in self.runner.residuals(sequences, [READ_AT[source]], layers=self.layers):
            inputs[prompt] = h[:, 0].double().cpu()
        return inputs

    # -- completions --

    def complete(self, split: Split, label: Label, arms: Sequence[Arm]) -> list[Completions]:
        """The completions of one class of a split under every arm."""
        sequences, stop = self.sequences(split, label), stop_ids(self.runner.model, self.chat)
        ids = self.runner.completions(sequences, arms, max_new_tokens=self.plan.max_new_tokens, stop=stop)
        return [Completions(of_arm, [self.chat.answer(i).text or "" for i in of_arm]) for of_arm in ids]

    def sequences(self, split: Split, label: Label) -> list[list[int]]:
        """Token ids of the prompts of one class."""
        return [self.chat.encode(p) for p in self.pairs[split][label]]

    def select(self, readers: StyleReaders) -> tuple[list[StyleSelection], Site]:
        """The site whose subtraction and addition move the detector most on validation prompts.

        A site whose completions are degenerate more often than the unedited ones, by more than the plan's bound, is
        selected only if all are.
        """
        sites = [site for site, rows in self.differences.items() if float(rows.mean(0).norm()) > 0]
        if not sites:
            raise InputError("the two system prompts have equal activations everywhere. Use two different ones.")
        steered = {site: Direction.from_vector(self.differences[site].mean(0), -1, site.layer) for site in sites}
        values: dict[Label, list[np.ndarray]] = {}
        broken = np.zeros(len(sites) + 1)
        for label in LABELS:
            sign = -1.0 if label == "positive" else 1.0
            arms = [BASELINE, *(Arm(f"{s}", (Add(d, sign),)) for s, d in steered.items())]
            completed = self.complete("val", label, arms)
            values[label] = [readers.detect(c.texts, self.pairs["val"][label]) for c in completed]
            broken += [sum(degeneration(t) is not None for t in c.texts) / (2 * len(c.texts)) for c in completed]
        before = Gap(values["positive"][0], values["negative"][0])
        gap = float((before.positive - before.negative).mean())
        moved = [
            float((before.positive - down + up - before.negative).mean()) / (2 * gap) if gap > 0 else 0.0
            for down, up in zip(values["positive"][1:], values["negative"][1:], strict=True)
        ]
        keeps = [share <= broken[0] + self.plan.most_degenerate for share in broken[1:]]
        best = max(range(len(sites)), key=lambda i: (keeps[i], moved[i]))
        rows = [
            StyleSelection(*site, steered[site].norm, moved[i], float(broken[i + 1]), i == best)
            for i, site in enumerate(sites)
        ]
        return rows, sites[best]

    # -- arms --

    def arms(self, rows: Differences, layer: int) -> list[StyleArm]:
        """Every arm of the direction and of its nulls."""
        direction = Direction.from_vector(rows.mean(0), -1, layer)
        basis = self._dimensions(rows)
        arms = [_named("ablation", s, (Ablate(direction, s),)) for s in self.plan.strengths]
        arms += [_named("ablation", 1.0, (AblateSpan(basis[:k]),), rank=k) for k in self.plan.ranks if k <= len(basis)]
        rng = np.random.default_rng([self.plan.seed, 20])
        for draw in range(self.plan.nulls):
            for family, vector in self._nulls(rows, rng).items():
                null = Direction.from_vector(vector / vector.norm() * direction.norm, -1, layer)
                arms += [
                    _named("ablation", s, (Ablate(null, s),), family=family, draw=draw) for s in self.plan.strengths
                ]
                arms += _doses(null, self.plan.doses, family, draw)
            for k in self.plan.ranks:
                span = span_of(torch.from_numpy(rng.standard_normal((k, rows.shape[1]))))
                arms.append(_named("ablation", 1.0, (AblateSpan(span),), rank=k, family="isotropic", draw=draw))
        return [*arms, *_doses(direction, self.plan.doses)]

    def _dimensions(self, rows: Differences) -> Float[Tensor, "rank d_model"]:
        """The mean difference, then the main axes of the differences from it, orthonormal."""
        mean = rows.mean(0)
        rest = rows - mean - ((rows - mean) @ mean)[:, None] / (mean @ mean) * mean
        axes = torch.linalg.svd(rest, full_matrices=False).Vh
        return span_of(torch.cat([mean[None], axes[: max(self.plan.ranks, default=1) - 1]]))

    def _nulls(self, rows: Differences, rng: np.random.Generator) -> dict[NullFamily, Tensor]:
        """One draw of each family; the signs are balanced, so that the mean difference cancels."""
        signs = torch.ones(len(rows), dtype=torch.float64)
        signs[rng.permutation(len(rows))[: len(rows) // 2]] = -1
        return {
            "isotropic": torch.from_numpy(rng.standard_normal(rows.shape[1])),
            "flipped pairs": (signs[:, None] * rows).mean(0),
        }

    # -- doses --

    def doses(
        self, arms: Sequence[StyleArm], readers: StyleReaders
    ) -> tuple[list[StyleDose], Mean, tuple[Mean, Mean | None]]:
        """Every arm with its readouts on the test prompts, and the gap between the baselines.

        Also the reference content by words, and by embeddings where they are given.
        """
        test, completed = self.pairs["test"], {}
        for label in LABELS:
            own = [one for one in arms if one.condition.side == label]
            completed[label] = own, self.complete("test", label, [BASELINE, *(one.arm for one in own)])
        baseline = {label: completed[label][1][0] for label in LABELS}
        gap = Gap(*(readers.detect(baseline[label].texts, test[label]) for label in LABELS))
        texts = baseline["negative"].texts, baseline["positive"].texts
        similarity = readers.similarity(*texts)
        reference = mean_of(readers.content(*texts)), None if similarity is None else mean_of(similarity)
        level = simultaneous(LEVEL, self.plan.comparisons)
        rows = []
        for label in LABELS:
            own, of_arms = completed[label]
            conditions = [StyleCondition(label, None, 0.0, 1, None, 0), *(one.condition for one in own)]
            for condition, of_arm in zip(conditions, of_arms, strict=True):
                before = None if condition.intervention is None else baseline[label]
                sequences = self.sequences("test", label)
                readouts = readers.read(self.runner, test[label], sequences, of_arm, before)
                rows.append(dose_of(condition, readouts, gap, level))
        return rows, gap.mean, reference


def _doses(
    direction: Direction, doses: Sequence[float], family: NullFamily | None = None, draw: int = 0
) -> Iterator[StyleArm]:
    """Subtraction and addition at every dose."""
    for dose in doses:
        yield _named("subtraction", dose, (Add(direction, -dose),), family=family, draw=draw)
        yield _named("addition", dose, (Add(direction, dose),), family=family, draw=draw)


def _named(
    intervention: Intervention,
    dose: float,
    interventions: tuple,
    *,
    rank: int = 1,
    family: NullFamily | None = None,
    draw: int = 0,
) -> StyleArm:
    condition = StyleCondition(SideOf[intervention], intervention, dose, rank, family, draw)
    return StyleArm(Arm(f"{condition.series} {dose:g} {draw}", interventions), condition)
