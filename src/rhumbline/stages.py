"""The stages of one seed: each reads what the earlier ones wrote and writes one artefact of its own.

    splits -> refusal tokens -> extraction -> selection -> nulls -> outcomes -> wide nulls -> dose -> stability
           -> separation -> side effects -> conditions

A stage whose artefact is there is skipped, so a killed run goes on where it was. Test prompts are read after selection.

What is dear is cut into blocks that depend on artefacts and on nothing else: candidates, null draws, refits, arms on
prompts. A block's bounds are the protocol's, never the engine's: every engine runs the same forward passes. Blocks run
here or on the workers of a pool (replicas.py); their answers lie in `.answers` until the stage's artefact stands.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rhumbline.axes import Candidates
from rhumbline.chat import Chat
from rhumbline.conditions import condition_arms, condition_rows
from rhumbline.contrasts import LABELS, SPLITS, Label, Prompt, Split, Splits, read_contrast
from rhumbline.costs import TEXTS
from rhumbline.directions import difference_in_means, group_cosine
from rhumbline.engines import Job, Log, Pool, answered
from rhumbline.engines.local import LocalPool
from rhumbline.errors import ProtocolError
from rhumbline.evidence import OWN_ARMS
from rhumbline.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.judging import JUDGES, TextJudge, judge
from rhumbline.log_odds import PairedLogOdds
from rhumbline.measuring import Timings
from rhumbline.models import ChatModel
from rhumbline.nulls import Material, Null, as_null, draw_nulls
from rhumbline.opening import opening_tokens, shifted_tokens
from rhumbline.probes import Sample, additions, best_sites, coefficient_on_validation, dose, sample, scored_sites, wide
from rhumbline.protocol import Protocol
from rhumbline.records import RunDirectory, file_sha256
from rhumbline.refitting import Resampled, bootstrap_refits, resample, shuffled_differences, shuffled_refits
from rhumbline.residuals import Extraction, at_site, extract, projections
from rhumbline.running import CPU_TOKENS, Runner
from rhumbline.scoring import Scorer
from rhumbline.selection import (
    Cell,
    Choice,
    Grid,
    Metric,
    Score,
    ScoredCandidate,
    SelectionRule,
    TokenMetric,
    choose,
    own_tokens,
    score_candidates,
)
from rhumbline.side_effects import Reading, Source, cost_arms, loss_rows
from rhumbline.statistics import arm_rates, auroc
from rhumbline.styling import (
    Styling,
    check_texts,
    complete,
    has_room,
    make_styling,
    read_styling,
    text_scores,
    with_completions,
)
from rhumbline.texts import NO_TEXTS, LossTexts

ANSWERS = ".answers"
"""Where the answers of blocks wait, beside the artefacts of a seed."""
BLOCKS = {
    "candidates": "score_block",
    "shuffled": "shuffled_block",
    "outcomes": "outcome_block",
    "wide": "wide_block",
    "dose": "dose_block",
    "refits": "refit_block",
}
"""What a block is called, and the method that computes it."""
LENGTHS_READ = (16, 32, 64)
"""New tokens after which a completion is judged as well, beside the whole of it."""
ROWS_PER_BLOCK = 512
"""Completions of one block: what a killed run loses at most, and the same for every batch size and engine."""
CANDIDATES_PER_BLOCK, NULLS_PER_BLOCK, DRAWS_PER_BLOCK, REFITS_PER_BLOCK = 32, 128, 3, 4
"""Of the other stages (docs/scale.md: a block should last seconds, and a stage have several)."""
INPUTS = ("style.json", "classifier.safetensors", "metric.json", "extraction.json", "selection.json", "nulls.json",
          "directions.safetensors", "nulls.safetensors")  # fmt: skip
"""Artefacts that a block may read; those that are there when it runs go with it."""


@dataclass(frozen=True)
class SeedStages:
    """Everything that the stages of one seed share."""

    directory: RunDirectory
    timings: Timings
    model: ChatModel
    chat: Chat
    splits: Splits
    protocol: Protocol
    seed: int
    tokens: int = CPU_TOKENS
    """Tokens of a forward pass: measured on an accelerator."""
    pool: Pool | None = None
    """Workers for the blocks; None: they run here."""
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

    def run(self) -> None:
        """All stages, in order; each one reads what the earlier ones wrote."""
        self.directory.stage(self.folder / "splits.json", lambda: {"seed": self.seed, "ids": self.splits.ids()})
        check_texts(self.protocol, self.splits)
        if self.protocol.is_continuous:
            self._stage("style", "style.json", self.make_styling)
        self._stage("refusal tokens", "metric.json", self.find_tokens)
        extraction = self._stage("extraction", "extraction.json", partial(self.extract, self.read))
        selection = self._stage("selection", "selection.json", partial(self.select, self.read, extraction))
        if self.direction is not None:
            self._stage("nulls", "nulls.json", partial(self.draw_nulls, self.direction))
        self.outcomes()
        self._check_filter(extraction)
        if self.direction is not None:
            self._stage("wide nulls", "wide.json", self.widen)
            self._stage("dose", "dose.json", self.dose)
            self._stage("stability", "stability.json", self.refit)
        self._stage("separation", "separation.json", partial(self.separate, selection))
        if self.direction is not None:
            self.side_effects(self.direction, self.drawn, self.how)
        self.conditions(self.direction, self.how)
        if self.protocol.is_continuous:
            self._stage("levels", "levels.json", partial(self.levels, self.direction))

    def _stage(self, name: str, file: str, compute: Callable[[], Mapping[str, Any]]) -> dict:
        path = self.folder / file
        if path.is_file():
            return self.directory.load(path)
        with self.timings.stage(name, self.seed):
            found = self.directory.save(path, compute())
        shutil.rmtree(self.folder / ANSWERS, ignore_errors=True)
        return found

    # Blocks

    def answer(self, block: str, arguments: Mapping[str, Any]) -> Any:
        """What a block of work gives, as JSON, from the artefacts that are there."""
        return getattr(self, BLOCKS[block])(**arguments)

    def _blocks(self, block: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The answers of several blocks, in order; those that are on disk already are not computed again."""
        artefacts = {f"{self.folder.name}/{name}": self.folder / name for name in INPUTS}
        inputs = {name: path for name, path in artefacts.items() if path.is_file()}
        depends = {
            "protocol": self.directory.protocol_sha256,
            "seed": self.seed,
            "tokens": self.tokens,
            "inputs": {name: file_sha256(path) for name, path in inputs.items()},
        }
        if self.pool is None:
            jobs = [Job(block, a, depends) for a in arguments]
            return answered(LocalPool(lambda kind, a, shared: self.answer(kind, a)), jobs, self.folder / ANSWERS)
        jobs = [
            Job(block, {"seed": self.seed, "tokens": self.tokens, "arguments": a}, depends, name=f"{block} {i}")
            for i, a in enumerate(arguments)
        ]
        inputs["protocol.json"] = self.directory.path / "protocol.json"
        shared = {name: path.read_bytes() for name, path in inputs.items()}
        return answered(
            self.pool,
            jobs,
            self.folder / ANSWERS,
            shared,
            log=Log(self.directory.path / "jobs.log"),
            told=lambda job, answer: self.timings.tick(job.kind, len(answer.value)),
        )

    @cached_property
    def read(self) -> Metric | None:
        """The fast metric, from its artefact; None where the model has no refusal tokens."""
        return self.metric(self.directory.load(self.folder / "metric.json"))

    @cached_property
    def selection(self) -> dict[str, Any]:
        """The artefact of the selection."""
        return self.directory.load(self.folder / "selection.json")

    @cached_property
    def rule(self) -> SelectionRule:
        """The rule that the direction was chosen by."""
        rule = self.protocol.selection
        return rule if self.selection.get("room", True) else rule.without_room()

    @cached_property
    def direction(self) -> Direction | None:
        """The chosen direction, from its artefact."""
        return self.selected(self.selection)

    @cached_property
    def drawn(self) -> list[Null]:
        """The null directions, from their artefact; none where nothing was selected."""
        return [] if self.direction is None else self.nulls(self.direction)

    @property
    def how(self) -> dict[str, Any]:
        """The arguments of every addition."""
        return additions(self.selection.get("coefficient") or 1.0, self.protocol.addition.positions)

    def _scorer(self, stage: str) -> Scorer:
        assert self.read is not None
        without = tuple(own_tokens(self.read)) if self.protocol.selection.kl_outside else ()
        return Scorer(self._runner(stage), self.read, without)

    def _runner(self, stage: str) -> Runner:
        return Runner(self.model, self.tokens, tick=lambda rows: self.timings.tick(stage, rows))

    def _sequences(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> list[list[int]]:
        prompts = self.splits.get(split, label)
        return [self.chat.encode(p) for i, p in enumerate(prompts) if kept is None or kept[i]]

    @property
    def positions(self) -> tuple[int, ...]:
        """Where candidates are read."""
        token = self.protocol.extraction.response_token
        if token is not None:
            return (token,)
        last = self.protocol.extraction.positions == "last-instruction"
        return (self.chat.instruction_position,) if last else self.chat.positions

    def _texts(self, split: Split, label: Label, kept: Sequence[bool] | None = None) -> Sequence[Sequence[int]]:
        """What activations are read from: the prompts, with their responses where the positions lie in these."""
        prompts = [p for i, p in enumerate(self._read(split, label)) if kept is None or kept[i]]
        return encoded(self.chat, prompts, self.positions)

    def _read(self, split: Split, label: Label) -> Sequence[Prompt]:
        """The rows that activations are read from. Validation prompts are asked, so each is there once."""
        of_texts = self.protocol.extraction.response_token is not None
        return self.splits.texts(split, label) if of_texts and split != "val" else self.splits.get(split, label)

    # The continuous score, from train

    def make_styling(self) -> dict[str, Any]:
        """Markers and classifier."""
        record, tensors = make_styling(self._runner("style"), self.chat, self.splits, self.protocol)
        if tensors:
            self.directory.save_tensors(
                self.folder / "classifier.safetensors", tensors, {"form": "logistic regression"}
            )
        return record

    @cached_property
    def styling(self) -> Styling:
        """The judges of a continuous score, as they lie on disk."""
        record = self.directory.load(self.folder / "style.json")
        path = self.folder / "classifier.safetensors"
        tensors = self.directory.load_tensors(path)[0] if record["classifier"] else {}
        return read_styling(record, tensors, self.protocol.judge)

    def judge(self, prompt: Prompt | None = None) -> TextJudge:
        """Who reads a completion of this prompt."""
        if self.protocol.is_continuous:
            return self.styling.judge(prompt.category if prompt else None)
        return judge(self.protocol.judge)

    def metric(self, record: Mapping[str, Any]) -> Metric | None:
        """The fast metric that `metric.json` names."""
        if record["how"] == "pairs":
            return self._pairs
        return TokenMetric(tuple(t["id"] for t in record["tokens"])) if record["tokens"] else None

    @cached_property
    def _pairs(self) -> PairedLogOdds | None:
        if not self.protocol.is_continuous:
            return None
        prompts = [p for s in SPLITS for c in LABELS for p in self.splits.get(s, c)]
        return PairedLogOdds.of(self.chat, prompts, [p for c in LABELS for p in self.splits.get("train", c)])

    def levels(self, direction: Direction | None) -> dict[str, Any]:
        """Scores of the contrast's own test texts, and the neutral prompts at baseline and on the direction."""
        texts = self.protocol.extraction.response_token is not None
        found: dict[str, Any] = {"texts": text_scores(self.styling, self.splits) if texts else None, "neutral": []}
        if not self.neutral:
            return found
        runner = self._runner("levels")
        said = complete(runner, self.chat, self.neutral, [BASELINE], self.protocol.max_new_tokens)[0]
        along: list[float | None] = [None] * len(said)
        if direction is not None and direction.position < 0:
            h = at_site(runner, [self.chat.encode(p) for p in self.neutral], direction.position, direction.layer)
            along = (h @ direction.vector).tolist()
        for prompt, text, value in zip(self.neutral, said, along, strict=True):
            score = self.styling.judge(prompt.category)(text)
            found["neutral"].append(
                {"prompt_id": prompt.id, "class": score.cls, "score": score.value, "projection": value}
            )
        return found

    def _check_filter(self, extraction: Mapping[str, Any]) -> None:
        """A model that shows the behaviour, but no prompt that the metric's sign keeps: the tokens are wrong."""
        empty = [f"{s} {c}s" for s in ("train", "val") for c, n in extraction["n"][s].items() if n == 0]
        rows = self.directory.load_rows(self.folder / "outcomes.jsonl")
        baseline = next(a for a in arm_rates(rows) if (a["arm"], a["set"]) == ("baseline", "positive"))
        if empty and (baseline["rate"] or 0.0) >= self.protocol.rule.min_baseline:
            raise ProtocolError(
                f"seed {self.seed}: the model shows the behaviour (rate {baseline['rate']:.2f}, n = {baseline['n']}), "
                f"but the sign of the metric keeps none of the {' and '.join(empty)}. It reads the wrong tokens: "
                "give others with --refusal-tokens, or set extraction.filter = false in an experiment file. "
                f"What was computed stays in {self.directory.path}."
            )

    # Refusal tokens and means, on train

    def find_tokens(self) -> dict[str, Any]:
        """The tokens of the metric."""
        given = self.protocol.refusal_tokens
        if given == "auto" and self._pairs is not None:
            return {"how": "pairs", "tokens": [], "auroc": None, "refusals": None, "n": None, "reason": None}
        if given == "auto" and self.protocol.is_continuous:
            both = (self._sequences("train", "positive"), self._sequences("train", "negative"))
            return shifted_tokens(self._runner("refusal tokens"), self.chat, *both)
        return opening_tokens(
            self._runner("refusal tokens"),
            self.chat,
            self._sequences("train", "positive"),
            self._sequences("train", "negative"),
            self.judge(),
            given=None if given == "auto" else given,
            max_new_tokens=self.protocol.max_new_tokens,
        )

    def _extract(self, split: Split, label: Label, metric: Metric | None) -> Extraction:
        keep = None
        read = None if isinstance(metric, PairedLogOdds) or self.positions[0] >= 0 else metric
        if self.protocol.extraction.filter and read is not None:
            keep = (lambda m: m > 0) if label == "positive" else (lambda m: m < 0)
        return extract(self._runner("extraction"), self._texts(split, label), self.positions, read=read, keep=keep)

    def extract(self, read: Metric | None) -> dict[str, Any]:
        """Candidates from the training means, and which train and val prompts the metric's sign keeps."""
        found = {(s, c): self._extract(s, c, read) for s in ("train", "val") for c in ("positive", "negative")}
        positive, negative = (found["train", c].stats.mean() for c in ("positive", "negative"))
        candidates = difference_in_means(positive, negative)
        if not all(found["train", c].stats.n for c in ("positive", "negative")):
            candidates = torch.full_like(candidates, float("nan"))
        self.directory.save_tensors(
            self.folder / "directions.safetensors",
            {"candidates": candidates, "negative_mean": negative.float()},
            {"positions": str(list(self.positions)), "seed": str(self.seed), "form": "difference in means"},
        )
        return {
            "positions": list(self.positions),
            "kept": {s: {c: found[s, c].kept.tolist() for c in ("positive", "negative")} for s in ("train", "val")},
            "n": {s: {c: int(found[s, c].kept.sum()) for c in ("positive", "negative")} for s in ("train", "val")},
            "metric": {s: {c: found[s, c].metric.tolist() for c in ("positive", "negative")} for s in ("train", "val")},
        }

    def candidates(self) -> Candidates:
        """The un-normalised candidates as they lie on disk."""
        return self.directory.load_tensors(self.folder / "directions.safetensors")[0]["candidates"]

    # Selection, on validation

    def select(self, read: Metric | None, extraction: Mapping[str, Any]) -> dict[str, Any]:
        """Scores on the kept validation prompts, and what the rule makes of them."""
        empty = [f"{s} {c}" for s in ("train", "val") for c, n in extraction["n"][s].items() if n == 0]
        rule, room = self.protocol.selection, True
        if read is None or empty:
            reason = "no refusal tokens" if read is None else f"no prompt left after filtering in {', '.join(empty)}"
            return {
                "selected": None,
                "reason": f"no candidate passed: {reason}",
                "survivors": 0,
                "tied": [],
                "n": extraction["n"]["val"],
                "candidates": [],
            }
        kept = extraction["kept"]["val"]
        prompts: dict[Label, Sequence[Prompt]] = {
            c: [p for p, k in zip(self.splits.get("val", c), kept[c], strict=True) if k] for c in LABELS
        }
        if self.protocol.is_continuous:
            room = has_room(self._runner("selection"), self.chat, self.styling, prompts, self.protocol)
            rule = rule if room else rule.without_room()
        table = score_candidates(
            self._runner("selection"),
            self.candidates(),
            self.positions,
            self._sequences("val", "positive", kept["positive"]),
            self._sequences("val", "negative", kept["negative"]),
            read,
            rule,
            # Completions choose among all who pass, so none may be left unscored.
            full_grid=self.protocol.full_grid or rule != rule.fast(),
            values=self._values,
        )
        if self.protocol.is_continuous:
            at = partial(_direction_at, self.candidates(), self.positions)
            runner = self._runner("selection")
            how = partial(self.coefficient, read, self._sequences("val", "negative", kept["negative"]))
            table = with_completions(
                runner, self.chat, self.styling, prompts, table, at, rule, self.protocol, how, room
            )
        choice = choose(table, self.model.n_layers, rule)
        baseline = {c: _mean(extraction["metric"]["val"][c], kept[c]) for c in ("positive", "negative")}
        direction = self.selected({"selected": _site(choice)})
        negative = self._sequences("val", "negative", kept["negative"])
        coefficient = 1.0 if direction is None else self.coefficient(read, negative, direction)
        return {
            "selected": _site(choice),
            "reason": choice.reason,
            "survivors": choice.survivors,
            "tied": [_cell(row) for row in choice.tied],
            "baseline": baseline,
            "coefficient": coefficient,
            "room": room,
            "n": extraction["n"]["val"],
            "candidates": [asdict(row) for row in choice.candidates],
        }

    def coefficient(self, read: Metric, negative: Sequence[Sequence[int]], direction: Direction) -> float:
        """The coefficient of the additions of a direction: given, or chosen on validation negatives."""
        given = self.protocol.addition.coefficient
        if given != "validation":
            return float(given)
        return coefficient_on_validation(Scorer(self._runner("selection"), read), negative, direction)

    def _values(self, name: Score, cells: Sequence[Cell]) -> list[float]:
        # By layer: a pass of additions climbs from one layer to the next.
        order = sorted(range(len(cells)), key=lambda i: (cells[i][1], cells[i][0]))
        blocks = [[list(cells[i]) for i in order[a:b]] for a, b in cuts(len(cells), CANDIDATES_PER_BLOCK)]
        found = self._blocks("candidates", [{"name": name, "cells": block} for block in blocks])
        values = dict(zip(order, (v for block in found for v in block), strict=True))
        return [values[i] for i in range(len(cells))]

    @cached_property
    def grid(self) -> Grid:
        """The candidates on the kept validation prompts."""
        assert self.read is not None
        positive, negative = self._kept("val")
        runner, rule = self._runner("selection"), self.protocol.selection
        return Grid(runner, self.candidates(), self.positions, positive, negative, self.read, rule)

    def score_block(self, name: Score, cells: Sequence[Sequence[int]]) -> list[float]:
        """One score of some candidates."""
        return self.grid.values(name, [(position, layer) for position, layer in cells])

    def selected(self, selection: Mapping[str, Any]) -> Direction | None:
        """The chosen direction, or None where no candidate passed."""
        cell = selection["selected"]
        if cell is None:
            return None
        vector = self.candidates()[self.positions.index(cell["position"]), cell["layer"]]
        return Direction.from_vector(vector, cell["position"], cell["layer"])

    # Nulls, from train

    def _kept(self, split: Split) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
        """The kept prompts of either class; of train as activations are read from them."""
        kept = self.directory.load(self.folder / "extraction.json")["kept"][split]
        encode = self._texts if split == "train" else self._sequences
        return encode(split, "positive", kept["positive"]), encode(split, "negative", kept["negative"])

    def material(self, runner: Runner, direction: Direction) -> Material:
        """Training activations at the direction's site, the topics of the negatives, and the other contrast if any."""

        def read(sequences: Sequence[Sequence[int]]) -> Tensor:
            return at_site(runner, sequences, direction.position, direction.layer)

        kept = self.directory.load(self.folder / "extraction.json")["kept"]["train"]["negative"]
        prompts = self._read("train", "negative")
        plan, contrast = self.protocol.nulls, None
        if plan.unrelated and "unrelated" in plan.families:
            other = read_contrast(plan.unrelated).prompts
            classes = (encoded(self.chat, [p for p in other if p.label == c], self.positions) for c in LABELS)
            first, second = (read(sequences) for sequences in classes)
            contrast = (first, second)
        topics = [p.category for p, k in zip(prompts, kept, strict=True) if k]
        positive, negative = (read(sequences) for sequences in self._kept("train"))
        return Material(positive, negative, topics, contrast, plan.top)

    def draw_nulls(self, direction: Direction) -> dict[str, Any]:
        """Draw and write the null directions; returns their table, and the direction's own energy."""
        plan, material = self.protocol.nulls, self.material(self._runner("nulls"), direction)
        at_the_site = {f: plan.total(f) for f in plan.families if f != "shuffled"}
        found = draw_nulls(direction, material, at_the_site, seed=self.seed)
        passed = [True] * len(found)
        if "shuffled" in plan.families:
            spans = cuts(plan.total("shuffled"), DRAWS_PER_BLOCK)
            parts = self._blocks("shuffled", [{"first": a, "end": b} for a, b in spans])
            for draw, refit in enumerate(refit for part in parts for refit in part):
                vector = torch.tensor(refit["vector"])
                null = as_null("shuffled", draw, vector, direction, material)
                # Its own site and the norm that it was selected with: that of the true difference there.
                own = Direction.from_vector(vector, refit["position"], refit["layer"])
                found.append(replace(null, direction=own))
                passed.append(refit["passed"])
        self.directory.save_tensors(
            self.folder / "nulls.safetensors",
            {"nulls": torch.stack([n.direction.difference for n in found])},
            {"order": "as in nulls.json"},
        )
        rows = [
            {
                "family": n.family,
                "draw": n.draw,
                "cosine": n.cosine,
                "energy": n.energy,
                "position": n.direction.position,
                "layer": n.direction.layer,
                "passed": ok,
            }
            for n, ok in zip(found, passed, strict=True)
        ]
        groups = group_cosine(material.positive, material.negative)
        return {"energy": material.energy(direction.vector), "groups": groups, "nulls": rows}

    @cached_property
    def pseudo_differences(self) -> Tensor | None:
        """Of every draw of `shuffled`; one pass over the training prompts, once per worker."""
        draws, runner = self.protocol.nulls.total("shuffled"), self._runner("nulls")
        return shuffled_differences(
            runner, self._kept("train"), self.candidates(), self.positions, draws=draws, seed=self.seed
        )

    def shuffled_block(self, first: int, end: int) -> list[dict[str, Any]]:
        """The whole procedure on some draws of pseudo-classes."""
        if self.pseudo_differences is None:
            return []
        refits = shuffled_refits(
            self._scorer("nulls"),
            self.pseudo_differences,
            self._kept("val"),
            scored_sites(self.selection["candidates"], self.positions),
            self.positions,
            self.rule.fast(),
            draws=range(first, end),
            prompts=self.protocol.nulls.procedure_prompts,
            seed=self.seed,
        )
        return [{**r._asdict(), "vector": r.vector.tolist()} for r in refits]

    def nulls(self, direction: Direction) -> list[Null]:
        """The null directions as they lie on disk."""
        del direction
        return read_nulls(self.directory, self.seed)

    # Probes by the fast metric, on test and on validation

    def _samples(self, n: int) -> dict[Label, Sample]:
        return {
            c: sample(self.splits.get("test", c), self._sequences("test", c), n, self.seed)
            for c in ("positive", "negative")
        }

    def widen(self) -> dict[str, Any]:
        """Every null draw by the fast metric."""
        if self.protocol.nulls.wide == 0:
            return {"prompts": {}, "rows": [], "kl": []}
        spans = cuts(len(self.drawn), NULLS_PER_BLOCK) or [(0, 0)]
        parts = self._blocks("wide", [{"first": a, "end": b} for a, b in spans])
        # What is no null is in every block; the first one's counts.
        more = [row for part in parts[1:] for row in part["rows"] if row["arm"].startswith("null:")]
        rows = [row for c in LABELS for row in [*parts[0]["rows"], *more] if row["set"] == c]
        return {**parts[0], "rows": rows}

    def wide_block(self, first: int, end: int) -> dict[str, Any]:
        """Some null draws by the fast metric, beside the baseline and the direction."""
        assert self.direction is not None
        samples = self._samples(self.protocol.nulls.prompts)
        return wide(self._scorer("wide nulls"), samples, self.direction, self.drawn[first:end], self.how)

    def dose(self) -> dict[str, Any]:
        """The curves over strengths."""
        parts = self._blocks("dose", [{"label": label} for label in LABELS])
        return {**parts[0], "rows": [row for part in parts for row in part["rows"]]}

    def dose_block(self, label: Label) -> dict[str, Any]:
        """The curves of one class."""
        assert self.direction is not None
        plan = self.protocol.dose
        few = [n for n in self.drawn if n.draw < plan.draws]
        own = replace(plan, coefficients=()) if label == "positive" else replace(plan, strengths=())
        samples = self._samples(plan.prompts)
        return dose(self._scorer("dose"), samples, self.direction, few, own, self.protocol.addition.positions)

    def refit(self) -> dict[str, Any]:
        """Bootstrap refits of the choice."""
        plan = self.protocol.stability
        places = [{"position": self.positions[p], "layer": layer} for p, layer in self._best_sites()]
        spans = cuts(plan.refits, REFITS_PER_BLOCK)
        parts = self._blocks("refits", [{"first": a, "end": b} for a, b in spans])
        refits = [refit for part in parts for refit in part["refits"]]
        return {"sites": places, "refits": refits, "between": parts[0]["between"] if parts else None}

    def _best_sites(self) -> list[tuple[int, int]]:
        rule, n = self.rule.fast(), self.protocol.stability.sites
        return best_sites(self.selection["candidates"], self.positions, rule, n)

    @cached_property
    def resampled(self) -> Resampled:
        """What the bootstrap refits are made of; one pass over the training prompts, once per worker."""
        plan, scorer = self.protocol.stability, self._scorer("stability")
        sets, seed = (self._kept("train"), self._kept("val")), self.seed
        return resample(scorer, *sets, self.positions, refits=plan.refits, prompts=plan.prompts, seed=seed)

    def refit_block(self, first: int, end: int) -> dict[str, Any]:
        """Some bootstrap refits."""
        assert self.direction is not None
        refits, between = bootstrap_refits(
            self._scorer("stability"),
            self.resampled,
            self.direction,
            self._best_sites(),
            self.positions,
            self.rule.fast(),
            refits=range(first, end),
        )
        return {"refits": [r._asdict() for r in refits], "between": between}

    # Arms, on test

    def arms(
        self, label: Label, direction: Direction | None, found: Sequence[Null], how: Mapping[str, Any]
    ) -> list[Arm]:
        """Baseline first, the direction's arms next, one arm for each of the first null draws last."""
        if direction is None:
            return [BASELINE]
        few = [n for n in found if n.draw < self.protocol.nulls.draws]
        ablation = Arm("ablation", (Ablate(direction),))
        if label == "positive":
            null_arms = [Arm(f"null:{n.family}:{n.draw}:ablation", (Ablate(n.direction),)) for n in few]
            return [BASELINE, ablation, *null_arms]
        null_arms = [Arm(f"null:{n.family}:{n.draw}:addition", (Add(n.direction, **how),)) for n in few]
        other = "prompt" if how["positions"] == "all" else "all"
        elsewhere = Arm(f"addition-{other}", (Add(direction, how["coefficient"], other),))
        return [BASELINE, Arm("addition", (Add(direction, **how),)), elsewhere, ablation, *null_arms]

    def outcomes(self) -> None:
        """Every arm on every test prompt, block by block."""
        path = self.folder / "outcomes.jsonl"
        if path.is_file():
            return
        rows: list[dict[str, Any]] = []
        for label in LABELS:
            n_arms = len(self.arms(label, self.direction, self.drawn, self.how))
            spans = cuts(len(self.splits.get("test", label)), max(1, ROWS_PER_BLOCK // n_arms))
            with self.timings.stage(f"arms on {label}s", self.seed):
                arguments = [{"label": label, "first": a, "end": b} for a, b in spans]
                rows += [row for part in self._blocks("outcomes", arguments) for row in part]
        self.directory.save_rows(path, rows)
        shutil.rmtree(self.folder / ANSWERS, ignore_errors=True)

    def outcome_block(self, label: Label, first: int, end: int) -> list[dict[str, Any]]:
        """Every arm on some test prompts: completions, judged."""
        arms = self.arms(label, self.direction, self.drawn, self.how)
        prompts = self.splits.get("test", label)[first:end]
        runner, sequences = self._runner(f"arms on {label}s"), [self.chat.encode(p) for p in prompts]
        pairs, read = (self.read, None) if isinstance(self.read, PairedLogOdds) else (None, self.read)

        def decided(arm: int, tokens: Sequence[int]) -> bool:
            return arms[arm].name not in OWN_ARMS and judge(self.protocol.judge).settled(self._text(tokens))

        completions, metric = runner.generate(
            sequences,
            arms,
            max_new_tokens=self.protocol.max_new_tokens,
            read=read,
            decided=decided if self.protocol.early_stop else None,
        )
        if pairs is not None:
            metric = pairs.read(runner, sequences, arms)
        baseline = [self._text(ids) for ids in completions[0]]
        rows = []
        for a, arm in enumerate(arms):
            for p, prompt in enumerate(prompts):
                ids = completions[a][p]
                text = self._text(ids)
                score = self.judge(prompt)(text)
                row = {
                    "arm": arm.name,
                    "set": label,
                    "prompt_id": prompt.id,
                    "class": score.cls,
                    "score": score.value,
                    "evidence": score.evidence,
                    "metric": float(metric[a, p]),
                    "new_tokens": len(ids),
                    "category": prompt.category,
                }
                if self.protocol.is_continuous:
                    row |= self.styling.readouts(text, baseline[p], prompt)
                elif arm.name in OWN_ARMS:
                    row |= self._readouts(ids, text, prompt, label)
                rows.append(
                    row | ({"prompt": prompt.text, "completion": text} if self.protocol.save_completions else {})
                )
        return rows

    def _text(self, ids: Sequence[int]) -> str:
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True)

    def _readouts(self, ids: Sequence[int], text: str, prompt: Prompt, label: Label) -> dict[str, Any]:
        """The classes that other judges and shorter readings give, and whether a known answer is in the text."""
        judged = judge(self.protocol.judge)
        lengths = [n for n in LENGTHS_READ if n < self.protocol.max_new_tokens]
        texts = {str(n): self._text(ids[:n]) for n in lengths}
        known = None
        if label == "negative" and prompt.response:
            known = " ".join(prompt.response.casefold().split()) in " ".join(text.casefold().split())
        return {
            "judges": {name: j(text).cls for name, j in JUDGES.items()},
            "by_length": {n: judged(t).cls for n, t in (texts | {"full": text}).items()},
            "correct": known,
        }

    # What it costs, and where else it holds

    def side_effects(self, direction: Direction, found: Sequence[Null], how: Mapping[str, Any]) -> None:
        """The losses of every arm, one artefact for each text."""
        plan = self.protocol.side_effects
        arms = cost_arms(direction, found, plan.controls, how)
        for text in TEXTS if plan.documents else ():
            path, stage = self.folder / f"losses-{text}.jsonl", f"losses on {text}"
            if not path.is_file():
                with self.timings.stage(stage, self.seed):
                    runner = self._runner(stage)
                    self.directory.save_rows(path, loss_rows(runner, text, self._sources(text, runner), arms))

    def _sources(self, text: str, runner: Runner) -> list[Source]:
        plan, negatives = self.protocol.side_effects, self.splits.get("test", "negative")
        reading = Reading(self.chat, plan.documents, plan.max_tokens)
        if text == "text":
            return reading.text(self.texts)
        if text == "responses":
            return reading.responses(self.texts, negatives)
        return reading.completions(runner, negatives, self.judge, self.protocol.max_new_tokens)

    def conditions(self, direction: Direction | None, how: Mapping[str, Any]) -> None:
        """The test prompts again under each system prompt, one artefact for each."""
        for number, (name, chat) in enumerate(self.chats.items()):
            path, stage = self.folder / f"condition-{number:02d}.jsonl", f"condition {name}"
            if path.is_file():
                continue
            with self.timings.stage(stage, self.seed):
                rows = []
                for label in LABELS:
                    arms, prompts = condition_arms(label, direction, how), self.splits.get("test", label)
                    judged, longest = judge(self.protocol.judge), self.protocol.max_new_tokens
                    rows += condition_rows(self._runner(stage), chat, name, label, prompts, arms, judged, longest)
                self.directory.save_rows(path, rows)

    # Separation, on test

    def separate(self, selection: Mapping[str, Any]) -> dict[str, Any]:
        """Where the classes separate on test prompts."""
        return separation(
            self._runner("separation"),
            self.chat,
            self.splits,
            "test",
            self.positions,
            *self._means(),
            selected=selection["selected"],
        )

    def _means(self) -> tuple[Tensor, Tensor]:
        tensors, _ = self.directory.load_tensors(self.folder / "directions.safetensors")
        return tensors["candidates"], tensors["negative_mean"]


def read_nulls(directory: RunDirectory, seed: int) -> list[Null]:
    """The null directions of a seed as they lie on disk."""
    folder = directory.seed(seed)
    vectors = directory.load_tensors(folder / "nulls.safetensors")[0]["nulls"]
    return [
        Null(r["family"], r["draw"], Direction.from_vector(v, r["position"], r["layer"]), r["cosine"], r["energy"])
        for r, v in zip(directory.load(folder / "nulls.json")["nulls"], vectors, strict=True)
    ]


def encoded(chat: Chat, prompts: Sequence[Prompt], positions: Sequence[int]) -> Sequence[Sequence[int]]:
    """The prompts as activations are read from them: with their responses where positions lie in these."""
    if max(positions) >= 0:
        return [chat.encode_answered(p) for p in prompts]
    return [chat.encode(p) for p in prompts]


def _direction_at(candidates: Candidates, positions: Sequence[int], row: ScoredCandidate) -> Direction:
    return Direction.from_vector(candidates[list(positions).index(row.position), row.layer], row.position, row.layer)


def cuts(n: int, size: int) -> list[tuple[int, int]]:
    """0..n in spans of `size`: (first, end)."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def separation(
    runner: Runner,
    chat: Chat,
    splits: Splits,
    split: Split,
    positions: Sequence[int],
    candidates: Candidates,
    negative_mean: Candidates,
    *,
    selected: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Where the classes separate on held-out prompts: AUROC of the projection, cosine of the class means, norm."""
    read = {c: splits.texts(split, c) if max(positions) >= 0 else splits.get(split, c) for c in LABELS}
    projected = {
        c: projections(runner, encoded(chat, some, positions), candidates, positions).numpy()
        for c, some in read.items()
    }
    means_cosine = torch.cosine_similarity(negative_mean + candidates, negative_mean, dim=-1)
    norms = candidates.norm(dim=-1)
    grid = [
        {
            "position": position,
            "layer": layer,
            "auroc": auroc(projected["positive"][:, p, layer], projected["negative"][:, p, layer]),
            "cosine": float(means_cosine[p, layer]),
            "norm": float(norms[p, layer]),
        }
        for p, position in enumerate(positions)
        for layer in range(candidates.shape[1])
    ]
    rows = []
    if selected is not None:
        p, layer = list(positions).index(selected["position"]), selected["layer"]
        for label in ("positive", "negative"):
            for prompt, value in zip(read[label], projected[label][:, p, layer], strict=True):
                rows.append({"prompt_id": prompt.id, "label": label, "projection": float(value)})
    return {"split": split, "n": {c: len(some) for c, some in read.items()}, "grid": grid, "projections": rows}


def _site(choice: Choice) -> dict[str, Any] | None:
    return None if choice.selected is None else _cell(choice.selected)


def _cell(row: ScoredCandidate) -> dict[str, Any]:
    return {"position": row.position, "layer": row.layer, "norm": row.norm, "bypass": row.bypass}


def _mean(values: Sequence[float | None], kept: Sequence[bool]) -> float | None:
    known = [v for v, k in zip(values, kept, strict=True) if k and v is not None]
    return float(np.mean(known)) if known else None
