"""Evaluations: benchmark tasks on the arms of a finished run. A run directory and task names in, a comparison out.

    RUN/evaluations/<key>/settings.json             what was asked, whose hash is the key
    RUN/evaluations/<key>/<task>/<arm>.json         the harness's own results, and the scores of every document
    RUN/evaluations/<key>/comparison.json           arms against the baseline, document by document

Promises: a task and arm that is there is not run again, an interrupted one goes on at the document where it was; texts
of tasks and answers are not kept. Knows no statistics, and no task by name.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import InputError, ModelError
from rhumbline.evidence.benchmark_comparison import compare
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.models.chat_model import ChatModel
from rhumbline.records.codec import to_json
from rhumbline.records.files import file_sha256, finite, sha256
from rhumbline.stages.finished_run import open_run

EDITED = "edited"
"""Name of the arm that is a checkpoint of its own."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What an evaluation is of, and how its tasks are asked."""

    seed: int
    """Of the run, whose direction is used."""
    limit: int | None = None
    """The first documents of each task; None: all."""
    fewshot: int | None = None
    """Examples in each prompt; None: what the task says."""
    chat: bool = False
    """Ask through the chat template."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; give 1 or more.")
        if self.fewshot is not None and self.fewshot < 0:
            raise InputError(f"--fewshot is {self.fewshot}; give 0 or more.")


def evaluate(
    path: str | Path,
    model: ChatModel,
    tasks: Sequence[str],
    arms: Sequence[str],
    settings: Settings,
    *,
    include_path: str | Path | None = None,
    edited: ChatModel | None = None,
    batch_size: int = 16,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Run every task under every arm, compare the arms on the same documents, and return the comparison's record.

    `model` is the one the run was made with; ModelError for another. `edited` is a further model, the arm `edited`.
    InputError for unknown arms or tasks, and where a task's data cannot be had or the harness is not installed.
    """
    run = open_run(path)
    run.check_model(model, ModelError)
    directory, own = run.directory, run.arms(settings.seed)
    known = {str(arm): own.arm(arm) for arm in own.every()}
    wanted = list(dict.fromkeys(["baseline", *arms]))
    if len(known) == 1 and len(wanted) > 1:
        raise InputError(f"{path} chose no direction in seed {settings.seed}: only --arms baseline can be evaluated.")
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(
            f"unknown arms {', '.join(unknown)}; this run has {', '.join(n for n in known if ':' not in n)}"
            + (f" and nulls such as {next(n for n in known if ':' in n)}." if len(known) > 4 else ".")
        )
    manager = task_manager(tasks, include_path)
    asked = asdict(settings) | {"tasks": _task_files(include_path), "versions": _versions()}
    folder = directory.path / "evaluations" / sha256(asked)[:10]
    directory.stage(folder / "settings.json", lambda: asked)
    models = {name: (model, known[name]) for name in wanted} | ({EDITED: (edited, BASELINE)} if edited else {})
    for task in tasks:
        for name, (of, arm) in models.items():
            target = folder / _slug(task) / f"{_slug(name)}.json"
            if not target.is_file():
                if name == "baseline":
                    with _data_of(task):
                        manager.load([task])
                progress(f"{task}, {name}")
                assert of is not None
                record = _one(of, arm, task, manager, settings, target.with_suffix(".answers"), batch_size)
                directory.save(target, {"task": task, "arm": name, **record})
    return directory.save(folder / "comparison.json", to_json(compare(directory, folder)))


class Planned(NamedTuple):
    """What a task asks of one arm."""

    task: str
    documents: int
    requests: int
    words: int
    """Of all prompts and continuations together."""


def planned(tasks: Sequence[str], manager: Any, settings: Settings) -> list[Planned]:
    """The requests of every task, built as the harness builds them; the model is not needed."""
    found = []
    for task in tasks:
        with _data_of(task):
            loaded = manager.load([task])["tasks"]
        for name, one in loaded.items():
            if settings.fewshot is not None:
                one.set_config(key="num_fewshot", value=settings.fewshot)
            one.build_all_requests(limit=settings.limit, rank=0, world_size=1)
            asked = [str(part) for i in one.instances for part in i.args if isinstance(part, str)]
            documents = len({i.doc_id for i in one.instances})
            found.append(Planned(name, documents, len(one.instances), sum(len(a.split()) for a in asked)))
    return found


@contextmanager
def _data_of(task: str) -> Iterator[None]:
    """Says what to do where the data of a task cannot be had."""
    try:
        yield
    except (OSError, ConnectionError) as error:
        raise InputError(
            f"the data of task {task} cannot be had: {str(error).splitlines()[0]}. Offline, only tasks whose data is "
            "in the cache (HF_HOME) or in local files work: run once with access, or give --include-path DIR."
        ) from error


def task_manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """The harness's index of tasks; its own thousands are read only where a name is not one of the folder's."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f"Evaluations need lm-evaluation-harness ({error}): pip install 'rhumbline[eval]'.") from error
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"--include-path {include_path} is no directory; give one that holds task files (YAML).")
    # Absolute: the harness reads task files again after changing the working directory.
    folder = None if include_path is None else str(Path(include_path).resolve())
    if folder is not None:
        manager = TaskManager(include_path=folder, include_defaults=False)
        if all(task in manager.all_tasks for task in tasks):
            return manager
    manager = _defaults() if folder is None else TaskManager(include_path=folder)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise InputError(
            f"unknown tasks {', '.join(unknown)}. Known are the names of lm-evaluation-harness "
            "(`lm_eval ls tasks`) and those of the YAML files in --include-path DIR."
        )
    return manager


@cache
def _defaults() -> Any:
    """The harness's own tasks, whose index takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _one(
    model: ChatModel, arm: Arm, task: str, manager: Any, settings: Settings, answers: Path, batch_size: int
) -> dict[str, Any]:
    """One task under one arm: the harness's results, and the scores of each document."""
    from lm_eval import simple_evaluate

    from rhumbline.evals.lm_eval_harness import Answers, ArmModel

    answers.parent.mkdir(parents=True, exist_ok=True)
    harnessed = ArmModel(model, arm, Answers(answers), batch_size=batch_size)
    ask: Any = simple_evaluate  # its decorator hides its signature
    found = ask(
        model=harnessed,
        tasks=[task],
        task_manager=manager,
        num_fewshot=settings.fewshot,
        limit=settings.limit,
        apply_chat_template=settings.chat,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    record = json.loads(json.dumps(finite(_plain(_without_texts(found)))))
    answers.unlink(missing_ok=True)
    return record


def _without_texts(found: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's results without documents, prompts and answers."""
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
        for task, documents in found["samples"].items()
    }
    kept = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
    return {k: found[k] for k in kept if k in found} | {"samples": samples}


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's own, whatever holds them."""
    match value:
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case bool() | int() | float() | str() | None:
            return float(value) if isinstance(value, float) else value
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def _task_files(folder: str | Path | None) -> dict[str, str]:
    """Hash of every task file of a folder: a task that was changed is another one."""
    if folder is None:
        return {}
    files = (p for p in Path(folder).rglob("*") if p.suffix in (".yaml", ".yml", ".py"))
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(files)}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"lm_eval": version("lm_eval")}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".") or "-"
