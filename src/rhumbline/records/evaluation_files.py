"""evaluations/: benchmarks of lm-evaluation-harness on the arms of a run, as records."""

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from rhumbline.records.arms import ArmId
from rhumbline.records.codec import JsonObject


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """evaluations/<key>/settings.json: what the key is the hash of; in comparison.json without the protocol's hash."""

    protocol_sha256: str | UnsetType = UNSET
    seed: int
    limit: int | None
    """First documents of each task that are read; null: all."""
    fewshot: int | None
    """Examples in each prompt; null: the task's own number."""
    chat: bool
    """Whether tasks are rendered as chats."""
    chat_of: Literal["run"] | UnsetType = UNSET
    """`run`: chats are those of the run. Absent without chats, and in evaluations of earlier versions, whose chats have
    the tokenizer's template with its defaults."""
    tasks: dict[str, str]
    """Path of every file of the user's folder of tasks, and its sha256; empty without a folder."""
    versions: dict[str, str]


class DocumentScores(Struct, frozen=True, kw_only=True):
    """Scores of one document of a task under one arm."""

    doc_id: int
    doc_hash: str
    filter: str
    scores: JsonObject
    """Score by metric, as the harness gives it: mostly a number."""


class TaskResult(Struct, frozen=True, kw_only=True):
    """evaluations/<key>/<task>/<arm>.json: the harness's own results, and the scores of every document."""

    protocol_sha256: str
    task: str
    arm: ArmId
    fingerprint: str | UnsetType = UNSET
    """Hash of the weights of the arm `edited`; the others have the model of the run."""
    results: dict[str, JsonObject]
    """By task: text or numbers by `metric,filter`."""
    groups: dict[str, JsonObject] | UnsetType = UNSET
    """By group; absent without groups."""
    group_subtasks: dict[str, list[str]] | UnsetType = UNSET
    versions: JsonObject | UnsetType = UNSET
    n_shot: JsonObject | UnsetType = field(default=UNSET, name="n-shot")
    higher_is_better: JsonObject | UnsetType = UNSET
    """By task and metric."""
    n_samples: dict[str, dict[str, int]] | UnsetType = field(default=UNSET, name="n-samples")
    """By task: `original` and `effective`."""
    samples: dict[str, tuple[DocumentScores, ...]]


@dataclass(frozen=True)
class ComparedScore:
    """Mean score of one task under one arm, and its change from the baseline on the same documents."""

    task: str
    metric: str
    filter: str
    """`none` if there is none."""
    arm: ArmId
    n: int
    score: float | None
    change: float | None
    low: float | None
    high: float | None
    p: float | None
    """McNemar's exact p; None unless every score is 0 or 1."""
    test: Literal["mcnemar", "bootstrap"] | None
    """How change and interval were computed."""


@dataclass(frozen=True)
class Comparison:
    """evaluations/<key>/comparison.json: arms against the baseline, document by document."""

    protocol_sha256: str
    settings: EvaluationSettings
    rows: tuple[ComparedScore, ...]
