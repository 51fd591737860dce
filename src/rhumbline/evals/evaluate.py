"""Evaluations: a run directory and names of benchmark tasks in, the tasks' scores under the arms of the run out.

    RUN/evaluations/<key>/settings.json             the settings, whose hash is the key
    RUN/evaluations/<key>/<task>/<arm>.json         results of the harness, and the scores of every document
    RUN/evaluations/<key>/comparison.json           the arms compared with the baseline, document by document

A finished task and arm is not run again, and an interrupted one resumes after its last document. Texts of documents
and completions are not kept. Independent of statistics and of the content of the tasks.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import InputError, ModelError
from rhumbline.evidence.benchmark_comparison import compare
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.models.chat_model import ChatModel
from rhumbline.records.arms import BASELINE as BASELINE_ID
from rhumbline.records.arms import EDITED, ArmId
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.evaluation_files import Comparison, EvaluationSettings, TaskResult
from rhumbline.records.files import file_sha256, finite, sha256
from rhumbline.stages.finished_run import FinishedRun, open_run

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Benchmarks:
    """The tasks of an evaluation."""

    names: tuple[str, ...]
    """Names of lm-evaluation-harness, or of task files in `include_path`."""
    include_path: str | Path | None = None
    """Folder of task files (YAML)."""
    batch_size: int = 16
    """Requests of one forward pass."""


@dataclass(frozen=True)
class Settings:
    """The direction of an evaluation, and how its tasks are evaluated."""

    seed: int
    """Seed of the run, whose direction is used."""
    limit: int | None = None
    """Number of documents of each task, from the first; None: all."""
    fewshot: int | None = None
    """Examples in each prompt; None: the number of the task."""
    chat: bool = False
    """Render the prompts with the chat template."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; pass 1 or more.")
        if self.fewshot is not None and self.fewshot < 0:
            raise InputError(f"--fewshot is {self.fewshot}; pass 0 or more.")


def evaluate(
    path: str | Path,
    model: ChatModel,
    benchmarks: Benchmarks,
    arms: Sequence[str],
    settings: Settings,
    *,
    edited: ChatModel | None = None,
    progress: Progress = lambda text: None,
) -> Comparison:
    """Run every task under the baseline and every arm, and compare the arms on the same documents.

    `model` is the model of the run; ModelError for another one. `edited` is a further model, evaluated as the arm
    `edited`. Raises InputError for unknown arms or tasks, and if data or the harness are not available.
    """
    run = open_run(path)
    run.check_model(model, ModelError)
    evaluated = {arm: (model, run.arms(settings.seed).arm(arm)) for arm in _arm_ids(run, arms, settings)}
    if edited is not None:
        evaluated[EDITED] = (edited, BASELINE)
    manager = task_manager(benchmarks)
    record = EvaluationSettings(
        **asdict(settings), tasks=_task_files(benchmarks.include_path), versions={"lm_eval": version("lm_eval")}
    )
    folder = run.path / "evaluations" / sha256(to_json(record))[:10]
    if not (folder / "settings.json").is_file():
        run.directory.write_as(record, folder / "settings.json")
    for task in benchmarks.names:
        for arm_id, (evaluated_model, arm) in evaluated.items():
            target = folder / _slug(task) / f"{_slug(str(arm_id))}.json"
            if target.is_file():
                continue
            if arm_id == BASELINE_ID:
                with _data_of(task):
                    manager.load([task])
            progress(f"{task}, {arm_id}")
            harness = _Harness(manager, settings, benchmarks.batch_size)
            results = harness.run(evaluated_model, arm, task, target.with_suffix(".answers"))
            _save(run.directory, target, {"task": task, "arm": str(arm_id), **results})
    comparison = compare(run.directory, folder)
    run.directory.write_as(comparison, folder / "comparison.json")
    return comparison


def _save(directory: RunDirectory, target: Path, results: Mapping[str, Any]) -> None:
    value = {"protocol_sha256": directory.protocol_sha256, **results}
    directory.write_as(convert(value, TaskResult), target)


def _arm_ids(run: FinishedRun, names: Sequence[str], settings: Settings) -> list[ArmId]:
    """The baseline and the named arms; InputError for arms that the run does not have."""
    known = {str(arm): arm for arm in run.arms(settings.seed).every()}
    chosen = list(dict.fromkeys([str(BASELINE_ID), *names]))
    if len(known) == 1 and len(chosen) > 1:
        raise InputError(
            f"{run.path}: no direction was selected in seed {settings.seed}, so it has the baseline only. Pass --arms "
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
    """Of all prompts and continuations."""


def planned(benchmarks: Benchmarks, settings: Settings) -> list[Planned]:
    """The requests of every task, built by the harness; no model is needed."""
    manager, plans = task_manager(benchmarks), []
    for task in benchmarks.names:
        with _data_of(task):
            loaded = manager.load([task])["tasks"]
        for name, one in loaded.items():
            if settings.fewshot is not None:
                one.set_config(key="num_fewshot", value=settings.fewshot)
            one.build_all_requests(limit=settings.limit, rank=0, world_size=1)
            texts = [str(part) for i in one.instances for part in i.args if isinstance(part, str)]
            documents = len({i.doc_id for i in one.instances})
            plans.append(Planned(name, documents, len(one.instances), sum(len(text.split()) for text in texts)))
    return plans


@contextmanager
def _data_of(task: str) -> Iterator[None]:
    """InputError if the data of a task cannot be loaded."""
    try:
        yield
    except (OSError, ConnectionError) as error:
        raise InputError(
            f"the data of task {task} could not be loaded: {str(error).splitlines()[0]}. Offline, the data of a task "
            "must be in the cache (HF_HOME) or in local files. Run once with access, or pass --include-path DIR."
        ) from error


def task_manager(benchmarks: Benchmarks) -> Any:
    """The task index of the harness; its own tasks are indexed only if a name is not in the folder of the user."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f"evaluations need lm-evaluation-harness ({error}): pip install 'rhumbline[eval]'.") from error
    names, folder = benchmarks.names, benchmarks.include_path
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"--include-path {folder} is not a directory. Pass one with task files (YAML).")
    # Absolute: the harness reads task files again after changing the working directory.
    absolute = None if folder is None else str(Path(folder).resolve())
    if absolute is not None:
        manager = TaskManager(include_path=absolute, include_defaults=False)
        if all(task in manager.all_tasks for task in names):
            return manager
    manager = _own_tasks() if absolute is None else TaskManager(include_path=absolute)
    if unknown := [task for task in names if task not in manager.all_tasks]:
        raise InputError(
            f"unknown tasks {', '.join(unknown)}. Use names of lm-evaluation-harness (`lm_eval ls tasks`) or of the "
            "YAML files in --include-path DIR."
        )
    return manager


@cache
def _own_tasks() -> Any:
    """The tasks of the harness itself; indexing them takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _task_files(folder: str | Path | None) -> dict[str, str]:
    """Hash of every task file of a folder; a changed file gives another evaluation."""
    if folder is None:
        return {}
    files = (p for p in Path(folder).rglob("*") if p.suffix in (".yaml", ".yml", ".py"))
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(files)}


def _slug(name: str) -> str:
    """A file name for a task or an arm."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".") or "-"


# -- the harness ------------------------------------------------------------------------------------------------------


class _Harness(NamedTuple):
    """lm-evaluation-harness with the settings of an evaluation."""

    manager: Any
    settings: Settings
    batch_size: int

    def run(self, model: ChatModel, arm: Arm, task: str, responses: Path) -> dict[str, Any]:
        """One task under one arm: the JSON results of the harness, and the scores of each document.

        `responses` caches the responses to requests until the task is finished.
        """
        from lm_eval import simple_evaluate

        from rhumbline.evals.lm_eval_harness import ArmModel, ResponseCache

        responses.parent.mkdir(parents=True, exist_ok=True)
        simple: Any = simple_evaluate  # a decorator hides its signature
        results = simple(
            model=ArmModel(model, arm, ResponseCache(responses), batch_size=self.batch_size),
            tasks=[task],
            task_manager=self.manager,
            num_fewshot=self.settings.fewshot,
            limit=self.settings.limit,
            apply_chat_template=self.settings.chat,
            bootstrap_iters=0,
            log_samples=True,
        )
        assert results is not None
        plain = finite(_plain(_without_texts(results)))
        responses.unlink(missing_ok=True)
        return plain


def _without_texts(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of the harness without documents, prompts and completions."""
    samples = {
        task: [
            {
                "doc_id": s["doc_id"],
                "doc_hash": s["doc_hash"],
                "filter": s["filter"],
                "scores": {metric: s[metric] for metric in s["metrics"]},
            }
            for s in documents
        ]
        for task, documents in results["samples"].items()
    }
    kept = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
    return {k: results[k] for k in kept if k in results} | {"samples": samples}


def _plain(value: Any) -> Any:
    """The value with numbers of NumPy converted to numbers of Python, in nested containers too."""
    match value:
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case bool() | int() | float() | str() | None:
            return float(value) if isinstance(value, float) else value
    return _plain(value.item()) if hasattr(value, "item") else str(value)
