"""What the stages of one seed share: what the run was given, and what the artefacts on disk say so far.

Promises: a stage learns of an earlier one through its artefact alone, so that a resumed run, a worker of a pool and an
unbroken run see the same. Does not know what a stage computes, nor their order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rhumbline.axes import Candidates, TokenIds
from rhumbline.evidence.selection_rules import SelectionRule
from rhumbline.inference.batching import CPU_TOKENS
from rhumbline.inference.interventions import Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.keyword_judges import judge
from rhumbline.judging.metric import Metric, TokenMetric, own_tokens
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.judging.score import TextJudge
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.prompts.contrasts import LABELS, SPLITS, Label, Prompt, Split, Splits
from rhumbline.prompts.loss_texts import NO_TEXTS, LossTexts
from rhumbline.protocol import Protocol
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.selection_files import Selection
from rhumbline.stages.metric_on_test import additions
from rhumbline.stages.nulls import Null
from rhumbline.stages.style_judge import Styling, read_styling
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
    """Tokens of a forward pass: measured on an accelerator."""
    texts: LossTexts = NO_TEXTS
    """What losses are measured on, beside the model's own completions."""
    chats: Mapping[str, Chat] = field(default_factory=dict)
    """The chat of every condition."""
    neutral: tuple[Prompt, ...] = ()
    """Prompts of neither class, which are only measured."""

    @property
    def folder(self) -> Path:
        """Where the artefacts of this seed lie."""
        return self.directory.seed(self.seed)

    def runner(self, stage: str) -> Runner:
        """The model, with progress told of under the stage's name."""
        return Runner(self.model, self.tokens, tick=lambda rows: self.timings.tick(stage, rows))

    # Prompts

    @property
    def positions(self) -> tuple[Position, ...]:
        """Where candidates are read."""
        in_response = self.protocol.extraction.response_position
        if in_response is not None:
            return (in_response,)
        last = self.protocol.extraction.positions == "last-instruction"
        return (self.chat.instruction_position,) if last else self.chat.positions

    def prompts(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> list[Prompt]:
        """The prompts of one class of a split, or those of them that are kept."""
        return [p for i, p in enumerate(self.splits.get(split, label)) if kept is None or kept[i]]

    def read(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> list[Prompt]:
        """The rows that activations are read from: of texts, both responses. Validation prompts are asked once each."""
        if self.protocol.extraction.response_position is None or split == "val":
            return self.prompts(split, label, kept)
        return [p for i, p in enumerate(self.splits.texts(split, label)) if kept is None or kept[i]]

    def sequences(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> list[list[int]]:
        """The same as tokens, up to where the answer begins."""
        return [self.chat.encode(p) for p in self.prompts(split, label, kept)]

    def encoded(self, prompts: Sequence[Prompt]) -> Sequence[TokenIds]:
        """Prompts as activations are read from them."""
        return encoded(self.chat, prompts, self.positions)

    def kept(self, split: Split) -> tuple[Sequence[TokenIds], Sequence[TokenIds]]:
        """What the metric's sign keeps of either class; of train as activations are read from them."""
        kept = self.extraction["kept"][split]
        if split == "train":
            positive, negative = (self.encoded(self.read(split, c, kept[c])) for c in LABELS)
        else:
            positive, negative = (self.sequences(split, c, kept[c]) for c in LABELS)
        return positive, negative

    # Who reads the completions, and the fast metric in their place

    @cached_property
    def styling(self) -> Styling:
        """The judges of a continuous score, as they lie on disk."""
        record = self._load("style.json")
        path = self.folder / "classifier.safetensors"
        tensors = self.directory.load_tensors(path)[0] if record["classifier"] else {}
        return read_styling(record, tensors, self.protocol.judge)

    def judge(self, prompt: Prompt | None = None) -> TextJudge:
        """Who reads a completion of this prompt."""
        if self.protocol.is_continuous:
            return self.styling.judge(prompt.category if prompt else None)
        return judge(self.protocol.judge)

    @cached_property
    def pairs(self) -> PairedLogOdds | None:
        """The fast metric that needs no tokens, where the contrast's prompts allow it."""
        if not self.protocol.is_continuous:
            return None
        train, *others = ([p for c in LABELS for p in self.prompts(split, c)] for split in SPLITS)
        return PairedLogOdds.of(self.chat, [*train, *(p for some in others for p in some)], train)

    @cached_property
    def metric(self) -> Metric | None:
        """The fast metric that `metric.json` names; None where the model has no refusal tokens."""
        record = self._load("metric.json")
        if record["how"] == "pairs":
            return self.pairs
        return TokenMetric(tuple(t["id"] for t in record["tokens"])) if record["tokens"] else None

    def scorer(self, stage: str) -> Scorer:
        """The fast metric of many arms."""
        assert self.metric is not None
        without = tuple(own_tokens(self.metric)) if self.protocol.selection.kl_outside else ()
        return Scorer(self.runner(stage), self.metric, without)

    # What was found

    def _load(self, name: str) -> dict[str, Any]:
        return self.directory.load(self.folder / name)

    @cached_property
    def extraction(self) -> dict[str, Any]:
        """The artefact of the extraction."""
        return self._load("extraction.json")

    @cached_property
    def candidates(self) -> Candidates:
        """The un-normalised candidates."""
        return self.directory.load_tensors(self.folder / "directions.safetensors")[0]["candidates"]

    def direction_at(self, position: Position, layer: int) -> Direction:
        """One candidate."""
        return Direction.from_vector(self.candidates[self.positions.index(position), layer], position, layer)

    @cached_property
    def selection(self) -> Selection:
        """The artefact of the selection."""
        return self.directory.read_record(Selection, self.seed)

    @cached_property
    def rule(self) -> SelectionRule:
        """The rule that selected the direction."""
        rule = self.protocol.selection
        return rule if self.selection.has_room else rule.without_induce_and_kl()

    @cached_property
    def direction(self) -> Direction | None:
        """The chosen direction, or None where no candidate passed."""
        cell = self.selection.selected
        return None if cell is None else self.direction_at(cell.position, cell.layer)

    @property
    def how(self) -> dict[str, Any]:
        """The arguments of every addition."""
        return additions(self.selection.addition_coefficient, self.protocol.addition.positions)

    @cached_property
    def nulls(self) -> list[Null]:
        """The null directions; none where nothing was selected."""
        return [] if self.direction is None else read_nulls(self.directory, self.seed)


def encoded(chat: Chat, prompts: Sequence[Prompt], positions: Sequence[Position]) -> Sequence[TokenIds]:
    """The prompts as activations are read from them: with their responses where positions lie in these."""
    if any(p.is_in_response for p in positions):
        return [chat.encode_answered(p) for p in prompts]
    return [chat.encode(p) for p in prompts]


def read_nulls(directory: RunDirectory, seed: int) -> list[Null]:
    """The null directions of a seed as they lie on disk."""
    folder = directory.seed(seed)
    vectors = directory.load_tensors(folder / "nulls.safetensors")[0]["nulls"]
    return [
        Null(r["family"], r["draw"], Direction.from_vector(v, r["position"], r["layer"]), r["cosine"], r["energy"])
        for r, v in zip(directory.load(folder / "nulls.json")["nulls"], vectors, strict=True)
    ]
