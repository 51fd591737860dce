"""Evaluate the arms of a run on benchmark tasks of lm-evaluation-harness.

    RUN/evaluations/<key>/settings.json             the settings, whose hash is the key
    RUN/evaluations/<key>/<task>/<arm>.json         results of the harness, and the scores of every document
    RUN/evaluations/<key>/comparison.json           the arms compared with the baseline, document by document

A finished task and arm is not run again, and an interrupted one resumes after its last document. Texts of documents
and completions are not kept. Independent of statistics and of the content of the tasks.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Number
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from rhumbline.errors import InputError, ModelError
from rhumbline.evals.evaluation import Evaluation, loaded, task_manager
from rhumbline.evals.task_chats import TaskChat
from rhumbline.evidence.benchmark_comparison import compare
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint
from rhumbline.records.arms import BASELINE as BASELINE_ID
from rhumbline.records.arms import EDITED, ArmId
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.evaluation_files import Comparison, EvaluationSettings, TaskResult
from rhumbline.records.files import sha256
from rhumbline.stages.finished_run import FinishedRun, open_run

KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
"""Entries of the results of the harness that are stored; the others contain texts."""


def evaluate(
    path: str | Path,
    model: ChatModel,
    evaluation: Evaluation,
    arms: Sequence[str],
    *,
    edited: ChatModel | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run every task under the baseline and every arm, and compare the arms on the same documents.

    `model` is the model of the run; ModelError for another one. `edited` is a further model, evaluated as the arm
    `edited`; results of other weights under this arm are removed. Raises InputError for unknown arms or tasks, and if
    data or the harness are not available.
    """
    run = open_run(path)
    run.check_model(model, ModelError)
    seed_arms = run.arms(evaluation.seed)
    chat = _chat(run, model, evaluation)
    evaluated = {arm: (model, seed_arms.arm(arm), chat) for arm in arm_ids(run, arms, evaluation.seed)}
    if edited is not None:
        # The tokenizer of an edited model can have another template.
        known = evaluation if chat is None else replace(evaluation, template=chat.chat.options.template)
        evaluated[EDITED] = (edited, BASELINE, _chat(run, edited, known))
    manager = task_manager(evaluation)
    from rhumbline.evals.lm_eval_harness import ResponseCache  # needs the extra that task_manager reports

    settings = evaluation.record(run.artefacts(evaluation.seed).seed)
    folder = _folder(run, settings)
    if evaluation.chat and (earlier := _folder(run, replace(settings, chat_of=UNSET))).is_dir():
        progress(
            f"{earlier.relative_to(run.path)} was written by an earlier version, with the tokenizer's template and its "
            f"defaults. It is kept as another evaluation; the chat of the run is used in "
            f"{folder.relative_to(run.path)}."
        )
    if not (folder / "settings.json").is_file():
        run.directory.write_as(settings, folder / "settings.json")
    edited_weights = None if edited is None else fingerprint(edited)
    if edited_weights is not None:
        _remove_other_edits(run.directory, folder, edited_weights)
    loadable: set[str] = set()
    for task in evaluation.tasks:
        for arm_id, (evaluated_model, arm, chat) in evaluated.items():
            target = folder / _slug(task) / f"{_slug(str(arm_id))}.json"
            if target.is_file():
                continue
            if task not in loadable:  # reported before a pass of the model, also if an earlier start began the task
                loaded(manager, evaluation, task, limit=1)
                loadable.add(task)
            progress(f"{task}, {arm_id}")
            weights = edited_weights if arm_id == EDITED else None
            responses = target.with_suffix(".answers") if weights is None else target.with_name(_responses_of(weights))
            responses.parent.mkdir(parents=True, exist_ok=True)
            cache = ResponseCache(responses, keeps_texts=run.protocol.save_completions)
            results = _run_task(manager, evaluation, task, evaluated_model, arm, cache, chat)
            results |= {"protocol_sha256": run.directory.protocol_sha256, "task": task, "arm": str(arm_id)}
            results |= {} if weights is None else {"fingerprint": weights}
            run.directory.write_as(convert(results, TaskResult), target)
            responses.unlink(missing_ok=True)
    comparison = compare(run.directory, folder)
    run.directory.write_as(comparison, folder / "comparison.json")
    return comparison


def _chat(run: FinishedRun, model: ChatModel, evaluation: Evaluation) -> TaskChat | None:
    """The chat of the run with the tokenizer of a model; None if the prompts are no chats."""
    return TaskChat(run.chat(model, evaluation.template)) if evaluation.chat else None


def _folder(run: FinishedRun, settings: EvaluationSettings) -> Path:
    return run.path / "evaluations" / sha256(to_json(settings))[:10]


def _remove_other_edits(directory: RunDirectory, folder: Path, weights: str) -> None:
    """Remove results and responses of the arm `edited` that are not of these weights, in all tasks.

    The arm has one name for all checkpoints, and a comparison is of one.
    """
    for path in folder.glob(f"*/{EDITED}.json"):
        if directory.read_as(TaskResult, path).fingerprint != weights:
            path.unlink()
    for path in folder.glob(f"*/{EDITED}*.answers"):
        if path.name != _responses_of(weights):
            path.unlink()


def _responses_of(weights: str) -> str:
    """File name of the responses of an edited model, by its fingerprint."""
    return f"{EDITED}-{weights[:10]}.answers"


def _run_task(
    manager: Any,
    evaluation: Evaluation,
    task: str,
    model: ChatModel,
    arm: Arm,
    cache: Any,
    chat: TaskChat | None,
) -> dict[str, Any]:
    """The results of the harness for one task under one arm, as JSON values without documents and completions.

    `cache` has the responses to requests until the results are saved.
    """
    from lm_eval import simple_evaluate

    from rhumbline.evals.lm_eval_harness import ArmModel

    simple: Any = simple_evaluate  # a decorator hides its signature
    results = simple(
        model=ArmModel(model, arm, cache, chat=chat, batch_size=evaluation.batch_size),
        tasks=[task],
        task_manager=manager,
        num_fewshot=evaluation.fewshot,
        limit=evaluation.limit,
        apply_chat_template=evaluation.chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = {
        name: [
            {
                **{k: s[k] for k in ("doc_id", "doc_hash", "filter")},
                "scores": {m: _without_text(s[m]) for m in s["metrics"]},
            }
            for s in documents
        ]
        for name, documents in results["samples"].items()
    }
    kept = {name: results[name] for name in KEPT if name in results} | {"samples": samples}
    # Numbers of NumPy are not JSON values.
    return msgspec.to_builtins(kept, str_keys=True, enc_hook=lambda v: v.item() if hasattr(v, "item") else str(v))


def _without_text(score: Any) -> Any:
    """A score of a document if it is a number, or numbers; None otherwise.

    Metrics of whole corpora, such as bleu, have the reference and the completion as the score of a document.
    """
    values = score if isinstance(score, list | tuple) else [score]
    return score if all(isinstance(value, Number | np.bool_) for value in values) else None


def arm_ids(run: FinishedRun, names: Sequence[str], seed: int | None) -> list[ArmId]:
    """The baseline and the named arms; InputError for arms that the run does not have."""
    known = {str(arm): arm for arm in run.arms(seed).every()}
    chosen = list(dict.fromkeys([str(BASELINE_ID), *names]))
    if len(known) == 1 and len(chosen) > 1:
        raise InputError(
            f"{run.path}: no direction was selected for this seed, so its only arm is the baseline. Pass --arms "
            "baseline, or another --seed."
        )
    if unknown := [name for name in chosen if name not in known]:
        own = [name for name, arm in known.items() if not arm.is_null]
        null = next((name for name, arm in known.items() if arm.is_null), None)
        raise InputError(
            f"unknown arms {', '.join(unknown)}. Pass some of {', '.join(own)}"
            + (f", or nulls such as {null}." if null else ".")
        )
    return [known[name] for name in chosen]


def _slug(name: str) -> str:
    """A file name for a task or an arm."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".") or "-"
