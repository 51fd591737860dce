"""What an evaluation asks for, and its tasks as lm-evaluation-harness loads them.

Independent of models, runs and scores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET

from rhumbline.errors import InputError
from rhumbline.records.directory import LONGEST_NAME
from rhumbline.records.evaluation_files import EvaluationSettings
from rhumbline.records.files import file_sha256


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
        for part, task in loaded(manager, evaluation, name, limit=evaluation.limit).items():
            words = sum(len(str(a).split()) for i in task.instances for a in i.args if isinstance(a, str))
            documents = len({i.doc_id for i in task.instances})
            plans.append(Planned(part, documents, len(task.instances), words))
    return plans


def loaded(manager: Any, evaluation: Evaluation, name: str, limit: int | None) -> dict[str, Any]:
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
