"""What the stages of one seed share: the inputs of the run, and the artefacts that earlier stages wrote.

A stage depends on earlier stages only through their artefacts. A resumed run, a worker of a pool and an uninterrupted
run therefore read the same values. Independent of what a stage computes and of the order of the stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rhumbline.axes import Candidates, TokenIds
from rhumbline.evidence.selection_rules import SelectionRule, rule_applied
from rhumbline.inference.batching import CPU_TOKENS
from rhumbline.inference.interventions import Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import Metric, TokenMetric, own_tokens
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.score import Score, TextJudge, score_of
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import LABELS, SPLITS, Label, Prompt, Split, Splits
from rhumbline.prompts.loss_texts import NO_TEXTS, LossTexts
from rhumbline.protocol import Protocol
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.seed_files import Extracted, MetricTokens, Selection, StyleJudges
from rhumbline.settings import ExtractionSettings
from rhumbline.stages.arms import AdditionParameters, SeedArms
from rhumbline.stages.common_start import header_text
from rhumbline.stages.fitted_style import FittedStyle
from rhumbline.stages.seed_artefacts import Null, SeedArtefacts
from rhumbline.stages.timings import Timings


@dataclass(frozen=True)
class SeedRun:
    """One seed of a run."""

    directory: RunDirectory
    timings: Timings
    model: ChatModel
    chat: Chat
    splits: Splits
    protocol: Protocol
    seed: int
    tokens: int = CPU_TOKENS
    """Tokens of a forward pass; measured on an accelerator."""
    texts: LossTexts = NO_TEXTS
    """Texts on which losses are measured, in addition to the completions of the model."""
    chats: Mapping[str, Chat] = field(default_factory=dict)
    """The chat of every condition."""
    neutral: tuple[Prompt, ...] = ()
    """Prompts of neither class. They are only measured."""

    @property
    def folder(self) -> Path:
        """The folder of the artefacts of this seed."""
        return self.directory.seed(self.seed)

    def runner(self, stage: str) -> Runner:
        """The model, with progress reported under the name of the stage."""
        return Runner(self.model, self.tokens, tick=lambda rows: self.timings.tick(stage, rows))

    # Prompts

    @property
    def positions(self) -> tuple[Position, ...]:
        """Positions at which candidates are read."""
        return read_positions(self.protocol.extraction, self.chat)

    def prompts(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> list[Prompt]:
        """The prompts of one class of a split, or the kept ones of them."""
        return [p for i, p in enumerate(self.splits.get(split, label)) if kept is None or kept[i]]

    def rows(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> list[Prompt]:
        """The rows that activations are read from: of a contrast of texts both responses, but on validation prompts."""
        if self.protocol.extraction.response_position is None or split == "val":
            return self.prompts(split, label, kept)
        return [p for i, p in enumerate(self.splits.texts(split, label)) if kept is None or kept[i]]

    def sequences(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> list[list[int]]:
        """Token ids of the prompts, up to where the response begins."""
        return [self.chat.encode(p) for p in self.prompts(split, label, kept)]

    def encoded(self, prompts: Sequence[Prompt]) -> Sequence[TokenIds]:
        """Token ids of prompts as activations are read from them."""
        return encoded(self.chat, prompts, self.positions)

    def kept_sequences(self, split: Split) -> tuple[Sequence[TokenIds], Sequence[TokenIds]]:
        """Token ids of the positives and negatives that the sign of the metric keeps; of train with their responses."""
        kept = self.extraction.kept["train" if split == "train" else "val"]
        if split == "train":
            positive, negative = (self.encoded(self.rows(split, c, kept[c])) for c in LABELS)
        else:
            positive, negative = (self.sequences(split, c, kept[c]) for c in LABELS)
        return positive, negative

    # The judge of completions, and the metric

    @cached_property
    def style(self) -> FittedStyle:
        """The judges of a continuous score."""
        record = self.artefacts.read(StyleJudges)
        tensors = self.artefacts.tensors("classifier.safetensors") if record.classifier else {}
        return FittedStyle.of(record, tensors, self.protocol.judge)

    def judge(self, prompt: Prompt | None = None) -> TextJudge:
        """The judge of the completions of this prompt."""
        if self.protocol.is_continuous:
            return self.style.judge(prompt.category if prompt else None)
        return self.protocol.class_judge()

    def score(self, prompt: Prompt, ids: Sequence[int]) -> Score:
        """The score of a completion of this prompt. Needs metric.json."""
        return score_of(self.judge(prompt), self.answer(ids))

    @cached_property
    def pairs(self) -> PairedLogOdds | None:
        """The metric without tokens; None unless every prompt of the contrast has a response of either class."""
        if not self.protocol.is_continuous:
            return None
        train, *others = ([p for c in LABELS for p in self.prompts(split, c)] for split in SPLITS)
        return PairedLogOdds.of(self.chat, [*train, *(p for some in others for p in some)], train)

    @cached_property
    def metric(self) -> Metric | None:
        """The metric that metric.json states; None if the model has no refusal tokens."""
        record = self.artefacts.read(MetricTokens)
        if record.how == "pairs":
            return self.pairs and self.pairs.after(self.start_tokens)
        return TokenMetric(tuple(t.id for t in record.tokens), record.threshold) if record.tokens else None

    def scorer(self, stage: str) -> Scorer:
        """Evaluates the metric for many arms, and the KL divergence as the selection rule defines it."""
        assert self.metric is not None
        excluded = tuple(own_tokens(self.metric)) if self.protocol.selection.kl_outside else ()
        return Scorer(self.runner(stage), self.metric, excluded, self.start_tokens)

    @cached_property
    def start_tokens(self) -> tuple[int, ...]:
        """The tokens after which metric.json reads the metric and the KL divergence; empty: after the prompt."""
        start = self.artefacts.read(MetricTokens).start
        return () if start is None else start.tokens

    @cached_property
    def header(self) -> str:
        """The text of the common start that precedes the answer; empty if the start is a part of the answer."""
        return header_text(self.chat, self.artefacts.read(MetricTokens).start)

    def answer(self, ids: Sequence[int], chat: Chat | None = None) -> str | None:
        """The answer of a completion, after a header that all baseline completions have; None if it has no answer.

        `chat` is that of a condition; None: that of the run. Needs metric.json.
        """
        text = (chat or self.chat).answer(ids).text
        return None if text is None else text.removeprefix(self.header)

    # Results of earlier stages

    @cached_property
    def artefacts(self) -> SeedArtefacts:
        """The files that earlier stages wrote."""
        return SeedArtefacts(self.directory, self.seed)

    @property
    def extraction(self) -> Extracted:
        """Positions and kept prompts."""
        return self.artefacts.extraction

    def direction_at(self, position: Position, layer: int) -> Direction:
        """The candidate at one site, normalised."""
        return self.artefacts.direction_at(position, layer)

    @property
    def candidates(self) -> Candidates:
        """Differences in means, not normalised."""
        return self.artefacts.candidates

    @property
    def selection(self) -> Selection:
        """The scores of the candidates and the selected one."""
        return self.artefacts.selection

    @property
    def rule(self) -> SelectionRule:
        """The rule of the selection, with every attempt."""
        rule = self.protocol.selection
        return rule if self.selection.induction_is_testable else rule.without_induce_and_kl()

    @property
    def applied_rule(self) -> SelectionRule:
        """The attempt that selected the direction."""
        return rule_applied(self.selection, self.model.n_layers, self.rule)

    @property
    def direction(self) -> Direction | None:
        """The selected direction; None if no candidate was selected."""
        return self.artefacts.direction

    @property
    def nulls(self) -> list[Null]:
        """The null directions; empty if no candidate was selected."""
        return self.artefacts.nulls

    @property
    def arms(self) -> SeedArms:
        """The arms of the direction and of its nulls."""
        addition = AdditionParameters(self.artefacts.coefficient, self.protocol.addition.positions)
        return SeedArms(
            self.direction, self.nulls, addition, self.protocol.ablation.spared, self.protocol.rule.same_cosine
        )


def read_positions(extraction: ExtractionSettings, chat: Chat) -> tuple[Position, ...]:
    """The positions of the candidates in a chat."""
    if extraction.response_position is not None:
        return (extraction.response_position,)
    match extraction.positions:
        case "last-instruction":
            return (chat.instruction_position,)
        case "last-token":
            return chat.positions[-1:]
    return chat.positions


def encoded(chat: Chat, prompts: Sequence[Prompt], positions: Sequence[Position]) -> Sequence[TokenIds]:
    """Token ids of prompts as activations are read from them: with their responses if a position is in the response."""
    if any(p.is_in_response for p in positions):
        return [chat.encode_text(p) for p in prompts]
    return [chat.encode(p) for p in prompts]
