"""Sweeps: one run for every combination of models, contrasts, presets and seeds, and the page that compares them.

    read_sweep(file)   -> Sweep      every fault of the file at once
    plan(sweep)        -> estimated memory and time of every run, before a model is loaded
    run_sweep(sweep)   -> Swept      finished runs are kept, a failed run does not stop the others, then the comparison

A run is a job. Its result is a run directory under `OUT/runs`, which resumes if it was interrupted.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rhumbline.engines.engine import Engine, Job, JobError, JobResult, Local, Shared, Worker, log_result
from rhumbline.errors import InputError, ModelError, OutputError, ProtocolError, RhumblineError
from rhumbline.experiment import run
from rhumbline.jobs.replicas import check_code
from rhumbline.jobs.sizing import Checkpoint, Device, Estimate, estimate, read_checkpoint
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import load_source
from rhumbline.models.places import places_of
from rhumbline.models.sources import ORGANISM, Source, contrast_for
from rhumbline.models.stored_weights import stored_weights
from rhumbline.presets.experiment_files import amend
from rhumbline.presets.protocols import preset
from rhumbline.prompts.contrasts import ContrastSet
from rhumbline.protocol import Protocol
from rhumbline.records.codec import JsonObject, convert, to_json
from rhumbline.records.directory import JOB_LOG, InUseError, RunDirectory, locked
from rhumbline.records.files import appending, finite, inside, read_json, write_json
from rhumbline.records.source_hash import code_sha256
from rhumbline.records.user_files import read_toml
from rhumbline.report import comparison as comparing
from rhumbline.report import comparison_page
from rhumbline.report.comparison import Failure
from rhumbline.stages.run_plan import known_without_model, resolved

OWN = "own"
"""Name of the contrast that comes with a model organism."""
LOCK_SECONDS = 90.0
"""Time for which a run waits for the lock of its directory: a disconnected worker can hold it a little longer."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """Name of its directory."""
    source: Source
    contrast: str
    protocol: Protocol

    def open_contrast(self) -> ContrastSet:
        """The contrast of the run."""
        return contrast_for(self.source.model, None if self.contrast == OWN else self.contrast)


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file."""

    models: tuple[str, ...]
    """Hub names, directories, or `organism:NAME`."""
    contrasts: tuple[str, ...] = (OWN,)
    """Files and names of contrasts; `own` is the contrast of an organism."""
    presets: tuple[str, ...] = ("rhumbline",)
    seeds: tuple[int, ...] = (0, 1)
    """Each seed is a run."""
    model: Source = field(default_factory=lambda: Source(""))
    """How every model is loaded; its name is one of `models`."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Tables that replace fields of every preset, as in an experiment file."""

    def cells(self) -> list[Cell]:
        """Every run, in the order of the file. InputError lists all faults of the protocols."""
        faults, cells = [], []
        for name in self.presets:
            try:
                amend(preset(name), self.protocol, f"preset {name}")
            except ProtocolError as error:
                faults.append(str(error))
        if faults:
            raise InputError(" ".join(faults))
        for model, contrast, name, seed in product(self.models, self.contrasts, self.presets, self.seeds):
            protocol = replace(amend(preset(name), self.protocol), seeds=(seed,))
            short = Path(model).name if Path(model).is_absolute() else model
            parts = [_slug(short), _slug(Path(contrast).stem), name, f"seed-{seed}"]
            cells.append(Cell("--".join(parts), replace(self.model, model=model), contrast, protocol))
        names = [cell.name for cell in cells]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise InputError(
                f"several runs of the sweep would have the name {repeated[0]}. Use different names for models and "
                "contrasts."
            )
        return cells


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text.removeprefix("./")).strip("-.") or "model"


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file (TOML); InputError lists every fault at once. Paths are relative to the file."""
    path = Path(path)
    table = read_toml(path, InputError, "a sweep file (TOML)")
    known = [f.name for f in fields(Sweep)]
    faults = [f"unknown field {name} (known: {', '.join(known)})" for name in sorted(table.keys() - set(known))]
    for name, kind in (("models", str), ("contrasts", str), ("presets", str), ("seeds", int)):
        value: Any = table.get(name)
        if name in table and not (isinstance(value, list) and value and all(type(v) is kind for v in value)):
            faults.append(f"{name} = {value!r} is not a list of {'names' if kind is str else 'whole numbers'}")
        elif name in table and kind is str and not all(v.strip() and v.isprintable() for v in value):
            faults.append(f"{name} has an empty name, or one with control characters")
        elif name in table and len(set(value)) != len(value):
            faults.append(f"{name} has an entry twice")
    if "models" not in table:
        faults.append("models is missing; write at least one")
    tables = {name: table[name] for name in ("model", "protocol") if name in table}
    faults += [f"[{name}] must be a table" for name, value in tables.items() if not isinstance(value, dict)]
    options = {f.name for f in fields(Source)} - {"model"}
    loading = table.get("model")
    if isinstance(loading, dict) and (unknown := sorted(loading.keys() - options)):
        faults.append(f"unknown field model.{unknown[0]} (known: {', '.join(sorted(options))})")
    elif isinstance(loading, dict):
        try:
            table["model"] = convert({**loading, "model": ""}, Source)
        except (msgspec.ValidationError, ModelError) as error:
            faults.append(f"[model]: {error}")
    if isinstance(table.get("protocol"), dict) and "seeds" in table["protocol"]:
        faults.append("protocol.seeds: write seeds at the top, because each is a run")
    if faults:
        raise InputError(f"{path}: " + "; ".join(faults) + ".")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
    for name in {"models", "contrasts"} & values.keys():
        values[name] = tuple(_relative_to(path.parent, v) for v in values[name])
    try:
        sweep = Sweep(**values)
        sweep.cells()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return sweep


def _relative_to(folder: Path, name: str) -> str:
    """The path of a file or directory relative to the sweep file, if it exists; any other name unchanged."""
    is_relative = name != OWN and not name.startswith(ORGANISM) and not Path(name).is_absolute()
    return str((folder / name).resolve()) if is_relative and (folder / name).exists() else name


# -- the plan ---------------------------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """The estimate for one run, or the reason why there is none."""

    cell: Cell
    parameters: int | None
    estimate: Estimate | None
    note: str


def plan(sweep: Sweep, *, gpus: float = 1, device: Device | None = None) -> list[Planned]:
    """Memory and time of every run from the headers of the checkpoints; nothing is loaded or downloaded."""
    cells = sweep.cells()
    sizes = {source: _size(source) for source in dict.fromkeys(cell.source for cell in cells)}
    return [_planned(cell, sizes[cell.source], gpus, device or Device()) for cell in cells]


def _size(source: Source) -> Checkpoint | str:
    """The sizes of a checkpoint, or why they cannot be read here."""
    if source.organism:
        return "an organism: minutes on a processor"
    try:
        with places_of(source) as places:
            return read_checkpoint(places.weights) if places.weights else "not available on this machine"
    except RhumblineError as error:
        return str(error)


def _planned(cell: Cell, size: Checkpoint | str, gpus: float, device: Device) -> Planned:
    if isinstance(size, str):
        return Planned(cell, None, None, size)
    try:
        protocol = cell.protocol
        if protocol.extraction.positions == "auto":
            protocol = resolved(protocol, cell.open_contrast())
        needs = estimate(size, protocol, gpus=gpus, dtype=cell.source.dtype, device=device)
    except RhumblineError as error:
        return Planned(cell, size.parameters, None, str(error))
    note = f"does not fit: {needs.memory_per_gpu / 1e9:.0f} GB per GPU. Raise --gpus-per-replica"
    return Planned(cell, size.parameters, needs, "" if needs.fits else note)


# -- the runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunWorkerOptions:
    """What a worker of a sweep needs, and must agree with."""

    out: str
    engine: str
    code: str


class RunWorker:
    """Executes whole runs, and keeps the last model that it loaded."""

    def __init__(self, options: Any) -> None:
        given = convert(options, RunWorkerOptions)
        check_code(given.code)
        self.out, self.engine = Path(given.out), given.engine
        if not (self.out / "sweep.json").is_file():
            raise OutputError(
                f"{self.out} does not exist on this node. Pass --out on a disk that all nodes share, because a sweep "
                "writes its runs there."
            )
        self.loaded: tuple[Source, ChatModel] | None = None

    def __call__(self, kind: str, arguments: Any, shared: Shared) -> str:
        """The verdict of one run. Its progress and its errors go to its log."""
        del kind, shared
        cell = convert(arguments, Cell)
        path = inside(self.out / "logs", f"{cell.name}.log", InputError)
        with appending(path) as log:

            def write(text: str) -> None:
                log.write(f"{time.strftime('%H:%M:%S')} {text}\n")

            write("started")
            try:
                verdict = self._run(cell, write)
            except RhumblineError as error:
                write(str(error))
                raise
            except Exception as error:
                write("".join(traceback.format_exception(error)))
                raise JobError(f"{type(error).__name__}: {error} (see {path})") from error
            write(verdict)
            return verdict

    def _run(self, cell: Cell, write: Callable[[str], None]) -> str:
        contrast = cell.open_contrast()
        if self.loaded is None or self.loaded[0] != cell.source:
            self.loaded = None
            write(f"loading {cell.source.model}")
            self.loaded = (cell.source, load_source(cell.source))

        def progress(stage: str, rows: int | None) -> None:
            if rows is None:
                write(stage)

        out, end = self.out / "runs" / cell.name, time.monotonic() + LOCK_SECONDS
        while True:
            try:
                result = run(self.loaded[1], contrast, out, cell.protocol, progress=progress, engine=self.engine)
                return result.verdict
            except InUseError:
                # A worker that the cluster has given up can live a little longer than the heartbeat of its node.
                if time.monotonic() > end:
                    raise
                write("waiting for the lock of the directory")
                time.sleep(1)


class Swept(NamedTuple):
    """The result of a sweep."""

    page: Path
    rows: list[comparing.ComparisonRow]
    failures: list[Failure]


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    engine: Engine | None = None,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Swept:
    """Execute the runs that are not finished, and compare all of them. Failures are listed and not raised."""
    engine, out, cells = engine or Local(), Path(out).resolve(), sweep.cells()
    with locked(out):
        if any((out / name).exists() for name in ("protocol.json", "results.json")):
            raise OutputError(f"{out} is the directory of a run. Pass another --out to a sweep.")
        write_json(out / "sweep.json", {"runs": to_json(cells)})
        weights = {source: _weights(source) for source in dict.fromkeys(cell.source for cell in cells)}
        todo = [cell for cell in cells if not _is_done(out, cell, weights[cell.source])]
        progress(f"{len(cells)} runs, {len(cells) - len(todo)} of them finished")
        if unseen := sum(weights[cell.source] is None for cell in cells if cell not in todo):
            progress(f"{unseen} finished runs have models that are not on this machine: their weights are not compared")
        failed = _run_cells(todo, weights, len(cells), out, engine, progress) if todo else {}
        return _compare(cells, out, failed)


def _weights(source: Source) -> list[str] | None:
    """The stored weights of a model; no lines for a faulty one, whose run says what is wrong."""
    try:
        return stored_weights(source)
    except (RhumblineError, OSError):
        return []


def _run_cells(
    todo: list[Cell],
    weights: Mapping[Source, list[str] | None],
    n_all: int,
    out: Path,
    engine: Engine,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """The errors of the runs that failed, by name. `weights` are the stored weights before the first one."""
    jobs = [Job("run", to_json(cell), group=cell.source.model, name=cell.name) for cell in todo]
    options = RunWorkerOptions(str(out), engine.name, code_sha256())
    worker = Worker("rhumbline.jobs.sweeps:RunWorker", asdict(options))
    done: dict[int, JobResult] = {}
    with engine.pool(worker) as pool:
        for result in pool.map(jobs):
            if result.job in done:
                continue
            done[result.job] = result
            log_result(out / JOB_LOG, jobs[result.job], result)
            cell = todo[result.job]
            # Weights that were replaced meanwhile could be those of this run or not: the next command runs it again.
            before, after = weights[cell.source], _weights(cell.source)
            if result.error is None and before in (None, after):  # None: the run has downloaded them
                write_json(_cell_file(out, cell), _finished(cell, after))
            number = n_all - len(todo) + len(done)
            outcome = result.error or result.value
            progress(f"[{number}/{n_all}] {cell.name}: {outcome} ({result.seconds:.0f} s)")
    return {todo[i].name: result.error for i, result in done.items() if result.error is not None}


def _cell_file(out: Path, cell: Cell) -> Path:
    """The file that records with what a run was finished: its protocol.json does not have the options of loading."""
    return out / "cells" / f"{cell.name}.json"


def _finished(cell: Cell, weights: list[str] | None) -> JsonObject:
    """The content of this file; `weights` are the lines of `stored_weights`."""
    return finite({**to_json(cell), "weights": weights})


def _is_done(out: Path, cell: Cell, weights: list[str] | None) -> bool:
    """Whether a run was finished with this cell, code, contrast and stored weights.

    Where this is not known, the run itself is started: it compares the fingerprint of the loaded weights. Weights that
    are not on this machine (None) are taken as those of the run.
    """
    path, recorded = out / "runs" / cell.name, _cell_file(out, cell)
    if not all(file.is_file() for file in (path / "results.json", path / "report.html", recorded)):
        return False
    stored, known = RunDirectory.read(path).protocol, read_json(recorded)
    compared = known["weights"] if weights is None and isinstance(known, dict) and "weights" in known else weights
    if stored["versions"]["code"] != code_sha256() or known != _finished(cell, compared):
        return False
    try:
        wanted = known_without_model(cell.open_contrast(), cell.protocol)
    except RhumblineError:
        return False  # the run says why
    return all(stored.get(name) == value for name, value in finite(wanted).items())


def _compare(cells: list[Cell], out: Path, failed: Mapping[str, str]) -> Swept:
    names = [cell.name for cell in cells]
    folders = {name: out / "runs" / name for name in names if name not in failed}
    rows, failures = comparing.gather(folders)
    failures = [*(Failure(name, reason) for name, reason in failed.items()), *failures]
    failures.sort(key=lambda failure: names.index(failure.run))
    comparing.write_tables(rows, failures, out)
    return Swept(comparison_page.build(rows, failures, out, f"Sweep of {len(cells)} runs", folders), rows, failures)
