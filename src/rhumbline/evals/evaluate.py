"""Evaluate the arms of a run on benchmark tasks of lm-evaluation-harness.

    RUN/evaluations/<key>/settings.json             the settings, whose hash is the key
    RUN/evaluations/<key>/<task>/<arm>.json         results of the harness, and the scores of every document
    RUN/evaluations/<key>/comparison.json           the arms compared with the baseline, document by document

A finished task and arm is not run again, and an interrupted one resumes after its last document. Texts of documents
and completions are not kept. Independent of statistics and of the content of the tasks.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET

from rhumbline.errors import InputError, ModelError
from rhumbline.evals.task_chats import TaskChat
from rhumbline.evidence.benchmark_comparison import compare
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint
from rhumbline.records.arms import BASELINE as BASELINE_ID
from rhumbline.records.arms import EDITED, ArmId
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import LONGEST_NAME, RunDirectory
from rhumbline.records.evaluation_files import Comparison, EvaluationSettings, TaskResult
from rhumbline.records.files import file_sha256, sha256
from rhumbline.stages.finished_run import FinishedRun, open_run

KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
"""Entries of the results of the harness that are stored; the others contain texts."""


@dataclass(frozen=True)
class Evaluation:
    """The tasks of an evaluation, and how they are evaluated."""

    tasks: tuple[str, ...]
    """Names of lm-evaluation-harness, or of task files in `include_path`."""
    include_path: str | Path | None = None
    """Folder of task files (YAML)."""
    seed: int | None = None
    """Seed of the run whose direction is used; None: the first."""
    limit: int | None = None
    """Number of documents of each task, from the first; None: all."""
    fewshot: int | None = None
    """Examples in each prompt; None: the number of the task."""
    chat: bool = False
    """Render the prompts with the chat of the run."""
    batch_size: int = 16
    """Requests of one forward pass."""
    template: str | None = None
    """Jinja text of the chat template of the run, unless it is that of the tokenizer or of a preset."""

    def __post_init__(self):
        if not self.tasks:
            raise InputError("--tasks names no task; pass names separated by commas.")
        if long := [task for task in self.tasks if len(task) > LONGEST_NAME]:
            raise InputError(f"--tasks {long[0][:40]}...: no task has so long a name; pass names separated by commas.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; pass 1 or more.")
        if self.fewshot is not None and self.fewshot < 0:
            raise InputError(f"--fewshot is {self.fewshot}; pass 0 or more.")
        if self.template is not None and not self.chat:
            raise InputError("--chat-template is read with --chat only. Pass --chat, or omit --chat-template.")

    def record(self, seed: int) -> EvaluationSettings:
        """The settings in settings.json, with a hash of every file of `include_path`."""
        return EvaluationSettings(
            seed=seed,
            limit=self.limit,
            fewshot=self.fewshot,
            chat=self.chat,
            chat_of="run" if self.chat else UNSET,
            tasks={} if self.include_path is None else _file_hashes(Path(self.include_path)),
            versions={"lm_eval": version("lm_eval")},
        )


def _file_hashes(folder: Path) -> dict[str, str]:
    """Path and sha256 of every file: task files and their data.

    Without byte code and hidden folders, which Python, Git and download caches write during and between evaluations.
    """
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): file_sha256(path)
        for name, path in paths.items()
        if not any(part == "__pycache__" or part.startswith(".") for part in name.parts[:-1])
    }


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
        evaluated[EDITED] = (edited, BASELINE, _chat(run, edited, evaluation))
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
                _loaded(manager, evaluation, task, limit=1)
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


# -- tasks ------------------------------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """The requests of a task under one arm."""

    task: str
    documents: int
    requests: int
    words: int
    """Words of all prompts and continuations."""


def planned(evaluation: Evaluation) -> list[Planned]:
    """The requests of every task, built by the harness; no model is needed."""
    manager, plans = task_manager(evaluation), []
    for name in evaluation.tasks:
        for part, task in _loaded(manager, evaluation, name, limit=evaluation.limit).items():
            words = sum(len(str(a).split()) for i in task.instances for a in i.args if isinstance(a, str))
            documents = len({i.doc_id for i in task.instances})
            plans.append(Planned(part, documents, len(task.instances), words))
    return plans


def _loaded(manager: Any, evaluation: Evaluation, name: str, limit: int | None) -> dict[str, Any]:
    """The task, or the parts of a group, with the requests of the first `limit` documents.

    Raises InputError that names the task if the harness cannot load it, and if it executes generated code.
    """
    with _can_load(name):
        parts = _parts(manager, name)
        for task in parts.values():
            if evaluation.fewshot is not None:
                task.set_config(key="num_fewshot", value=evaluation.fewshot)
            task.build_all_requests(limit=limit, rank=0, world_size=1)
    return parts


def _parts(manager: Any, name: str) -> dict[str, Any]:
    """The task, or the parts of a group; InputError if one executes generated code."""
    parts = manager.load([name])["tasks"]
    if unsafe := [part for part, task in parts.items() if getattr(task, "UNSAFE_CODE", False)]:
        raise InputError(
            f"task {unsafe[0]} executes code that the model generates, which rhumbline does not do. Pass other --tasks."
        )
    return parts


def _check_applies(manager: Any, evaluation: Evaluation) -> None:
    """Raise InputError if a task does not read --fewshot or --chat; the harness ignores an option without an error.

    It adds no examples to a task whose file says `num_fewshot: 0`, and scores the texts of a rolling task as they are.
    """
    parts: dict[str, Any] = {}
    for name in evaluation.tasks:
        with _can_load(name):
            parts |= _parts(manager, name)
    rolling = [part for part, task in parts.items() if task.get_config("output_type") == "loglikelihood_rolling"]
    fixed = [part for part, task in parts.items() if task.get_config("num_fewshot") == 0]
    if rolling:
        given = {"--fewshot": evaluation.fewshot, "--chat": evaluation.chat}
        options = " and ".join(option for option, value in given.items() if value)
        raise InputError(
            f"{options}: {', '.join(rolling)} scores whole texts, without examples and chats. Evaluate such tasks in "
            f"a command of their own, without {options}."
        )
    if fixed and evaluation.fewshot:
        raise InputError(
            f"--fewshot {evaluation.fewshot}: the harness adds no examples to {', '.join(fixed)}, whose own number is "
            "fixed to 0. Evaluate such tasks in a command of their own, without --fewshot."
        )


@contextmanager
def _can_load(task: str) -> Iterator[None]:
    """InputError if a task or its data cannot be loaded; tasks and data sets are programs of others."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"the data of task {task} could not be loaded: {_first_line(error)}. Offline, the data of a task "
            "must be in the cache (HF_HOME) or in local files. Run once with access, or pass --include-path DIR."
        ) from error
    except ImportError as error:
        raise InputError(
            f"task {task} needs a package that cannot be imported: {_first_line(error)}. Install it, or pass other "
            "--tasks."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"task {task} could not be loaded: {_first_line(error)}. Tasks that execute generated code, and data sets "
            "with a script, are not supported. Pass other --tasks, or a corrected task file with --include-path DIR."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def task_manager(evaluation: Evaluation) -> Any:
    """The task index of the harness; its own tasks are indexed only if a name is not in the folder of the user.

    InputError for unknown tasks, and for options that a task does not read.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f"evaluations need lm-evaluation-harness ({error}): pip install 'rhumbline[eval]'.") from error
    names, folder = evaluation.tasks, evaluation.include_path
    if folder is None:
        manager = _own_tasks()
    else:
        if not Path(folder).is_dir():
            raise InputError(f"--include-path {folder} is not a directory. Pass one with task files (YAML).")
        # Absolute: the harness reads task files again after changing the working directory.
        absolute = str(Path(folder).resolve())
        manager = TaskManager(include_path=absolute, include_defaults=False)
        if not set(names) <= set(manager.all_tasks):
            manager = TaskManager(include_path=absolute)
    if unknown := [task for task in names if task not in manager.all_tasks]:
        raise InputError(
            f"unknown tasks {', '.join(unknown)}. Use names of lm-evaluation-harness (`lm_eval ls tasks`) or of the "
            "YAML files in --include-path DIR."
        )
    if evaluation.fewshot or evaluation.chat:
        _check_applies(manager, evaluation)
    return manager


@cache
def _own_tasks() -> Any:
    """The tasks of the harness itself; indexing them takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _slug(name: str) -> str:
    """A file name for a task or an arm."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".") or "-"
