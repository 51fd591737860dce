"""Sweeps: models x contrasts x presets x seeds, each a run of its own, and the page that compares them.

    read_sweep(file)  -> Sweep      every fault of the file at once
    plan(sweep)       -> what each run needs, before anything is loaded
    run_sweep(sweep)  -> runs that are done stay done, a broken one does not stop the rest, then comparison

A run is a job: its key is what it depends on, its answer a run directory under `OUT/runs`, which resumes by itself.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.engines.jobs import Answer, Engine, Job, JobError, Log, Shared, Worker
from rhumbline.engines.local import Local
from rhumbline.errors import InputError, OutputError, ProtocolError, RhumblineError
from rhumbline.experiment import run
from rhumbline.jobs.replicas import check_code
from rhumbline.jobs.sizing import Checkpoint, Device, Estimate, estimate, read_checkpoint
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import load_source
from rhumbline.models.places import places_of
from rhumbline.models.sources import ORGANISM, Source, contrast_for
from rhumbline.prompts.contrasts import ContrastSet
from rhumbline.protocol import Protocol, amend, preset
from rhumbline.records.directory import RunDirectory, locked
from rhumbline.records.files import appending, finite, inside, write_json
from rhumbline.records.source_hash import code_sha256
from rhumbline.records.user_files import read_toml
from rhumbline.report import comparison as comparing
from rhumbline.report import comparison_page
from rhumbline.report.comparison import Failure
from rhumbline.stages.run_plan import resolved

OWN = "own"
"""A contrast's name that stands for the one that comes with an organism."""
LOCK_SECONDS = 90.0
"""How long a run waits for its directory: a worker that was cut off may hold it a little longer than it lives."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """Of its directory."""
    source: Source
    contrast: str
    protocol: Protocol

    def record(self) -> dict[str, Any]:
        """The cell as JSON."""
        return {
            "name": self.name,
            "source": asdict(self.source),
            "contrast": self.contrast,
            "protocol": self.protocol.record(),
        }


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says."""

    models: tuple[str, ...]
    """Hub names, directories, or `organism:NAME`."""
    contrasts: tuple[str, ...] = (OWN,)
    """Files; `own` is the one that comes with an organism."""
    presets: tuple[str, ...] = ("rhumbline",)
    seeds: tuple[int, ...] = (0, 1)
    """Each is a run of its own."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """How models are loaded: dtype, device, coarse, trust_remote_code."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every preset is amended with, as in an experiment file."""

    def cells(self) -> list[Cell]:
        """Every run, in the order of the file. InputError lists every fault of the protocols at once."""
        found, faults = [], []
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
            found.append(Cell("--".join(parts), Source(model, **self.model), contrast, protocol))
        return _told_apart(found)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text.removeprefix("./")).strip("-.") or "model"


def _told_apart(cells: list[Cell]) -> list[Cell]:
    names = [cell.name for cell in cells]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(
            f"several runs of the sweep would be called {twice[0]}: give models and contrasts different names."
        )
    return cells


def read_sweep(path: str | Path) -> Sweep:
    """A sweep file (TOML); InputError lists every fault at once. Paths are relative to the file."""
    path = Path(path)
    table = read_toml(path, InputError, "a sweep file (TOML)")
    faults = []
    known = [f.name for f in fields(Sweep)]
    faults += [f"unknown field {name} (known: {', '.join(known)})" for name in sorted(table.keys() - set(known))]
    for name, kind in (("models", str), ("contrasts", str), ("presets", str), ("seeds", int)):
        value: Any = table.get(name)
        if name in table and not (isinstance(value, list) and value and all(type(v) is kind for v in value)):
            faults.append(f"{name} = {value!r} is no list of {'names' if kind is str else 'whole numbers'}")
        elif name in table and len(set(value)) != len(value):
            faults.append(f"{name} repeats an entry")
    if "models" not in table:
        faults.append("models is missing: give at least one")
    for name in ("model", "protocol"):
        if name in table and not isinstance(table[name], dict):
            faults.append(f"[{name}] must be a table")
    options = {f.name for f in fields(Source)} - {"model"}
    if isinstance(table.get("model"), dict) and (unknown := sorted(table["model"].keys() - options)):
        faults.append(f"unknown field model.{unknown[0]} (known: {', '.join(sorted(options))})")
    if isinstance(table.get("protocol"), dict) and "seeds" in table["protocol"]:
        faults.append("protocol.seeds: give seeds at the top, each is a run of its own")
    if faults:
        raise InputError(f"{path}: " + "; ".join(faults) + ".")
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
    for name in ("models", "contrasts"):
        given[name] = tuple(_beside(path.parent, v) for v in given[name]) if name in given else getattr(Sweep, name)
    return Sweep(**given)


def _beside(folder: Path, name: str) -> str:
    """A relative path that is there beside the sweep file; other names as they are."""
    relative = name != OWN and not name.startswith(ORGANISM) and not Path(name).is_absolute()
    return str((folder / name).resolve()) if relative and (folder / name).exists() else name


# -- the plan ---------------------------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """What one run needs, or why that cannot be said."""

    cell: Cell
    parameters: int | None
    estimate: Estimate | None
    note: str


def plan(sweep: Sweep, *, gpus: float = 1, device: Device | None = None) -> list[Planned]:
    """Memory and time of every run from the checkpoints' headers; nothing is loaded, and nothing is downloaded."""
    sizes: dict[str, Checkpoint | str] = {}
    for cell in sweep.cells():
        if cell.source.model not in sizes:
            sizes[cell.source.model] = _sizes(cell.source)
    return [_planned(cell, sizes[cell.source.model], gpus, device) for cell in sweep.cells()]


def _sizes(source: Source) -> Checkpoint | str:
    """What the headers of a checkpoint say, or why they cannot be read here."""
    if source.organism:
        return "an organism: seconds on a processor"
    try:
        with places_of(source) as places:
            return read_checkpoint(places.weights) if places.weights else "not on this machine yet"
    except RhumblineError as error:
        return str(error)


def _planned(cell: Cell, size: Checkpoint | str, gpus: float, device: Device | None) -> Planned:
    if isinstance(size, str):
        return Planned(cell, None, None, size)
    try:
        protocol = cell.protocol
        if protocol.extraction.positions == "auto":
            protocol = resolved(protocol, contrast_of(cell.source, cell.contrast))
        needs = estimate(size, protocol.record(), gpus=gpus, dtype=cell.source.dtype, device=device)
    except RhumblineError as error:
        return Planned(cell, size.parameters, None, str(error))
    short = f"does not fit: {needs.memory_per_gpu / 1e9:.0f} GB per GPU; raise --gpus-per-replica"
    return Planned(cell, size.parameters, needs, "" if needs.fits else short)


# -- the runs ---------------------------------------------------------------------------------------------------------


class RunWorker:
    """Does whole runs; keeps the last model that it loaded."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.out, self.engine = Path(options["out"]), options["engine"]
        check_code(options["code"])
        if not (self.out / "sweep.json").is_file():
            raise OutputError(
                f"{self.out} cannot be seen from this node. A sweep writes its runs to a disk that all nodes share."
            )
        self.loaded: tuple[Source, ChatModel] | None = None

    def __call__(self, kind: str, arguments: Mapping[str, Any], shared: Shared) -> Any:
        """One run: its verdict. What it says goes to its log."""
        del kind, shared
        cell = arguments["cell"]
        path = inside(self.out / "logs", f"{cell['name']}.log", InputError)
        with appending(path) as log:

            def say(text: str) -> None:
                log.write(f"{time.strftime('%H:%M:%S')} {text}\n")

            say("begins")
            try:
                verdict = self._run(cell, say)
            except RhumblineError as error:
                say(str(error))
                raise
            except Exception as error:
                say("".join(traceback.format_exception(error)))
                raise JobError(f"{type(error).__name__}: {error} (see {path})") from error
            say(verdict)
            return {"verdict": verdict}

    def _run(self, cell: Mapping[str, Any], say: Callable[[str], None]) -> str:
        source, protocol = Source(**cell["source"]), Protocol.of(cell["protocol"])
        contrast = contrast_of(source, cell["contrast"])
        if self.loaded is None or self.loaded[0] != source:
            self.loaded = None
            say(f"loads {source.model}")
            self.loaded = (source, load_source(source))

        def progress(stage: str, rows: int | None) -> None:
            if rows is None:
                say(stage)

        out, give_up = self.out / "runs" / cell["name"], time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return run(self.loaded[1], contrast, out, protocol, progress=progress, engine=self.engine).verdict
            except OutputError as error:
                # A worker that the cluster gave up may live a little longer than its node's heartbeat.
                if "in use by another" not in str(error) or time.monotonic() > give_up:
                    raise
                say("waits for the directory's lock")
                time.sleep(1)


def contrast_of(source: Source, name: str) -> ContrastSet:
    """The contrast of a cell."""
    return contrast_for(source.model, None if name == OWN else name)


class Swept(NamedTuple):
    """What a sweep came to."""

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
    """Run what is not done yet, and write the comparison of everything; failures are listed, not raised."""
    engine, out, cells = engine or Local(), Path(out).resolve(), sweep.cells()
    with _sweep_directory(out):
        write_json(out / "sweep.json", {"runs": [cell.record() for cell in cells]})
        todo = [cell for cell in cells if not _is_done(out / "runs" / cell.name, cell)]
        progress(f"{len(cells)} runs, {len(cells) - len(todo)} of them done")
        failed = _run_cells(todo, len(cells), out, engine, progress) if todo else {}
        return _compare(cells, out, failed)


@contextmanager
def _sweep_directory(out: Path) -> Iterator[None]:
    with locked(out):
        foreign = [p.name for p in out.iterdir() if p.name in ("protocol.json", "results.json")]
        if foreign:
            raise OutputError(f"{out} is the directory of a run; give a sweep another --out.")
        yield


def _run_cells(
    todo: list[Cell], n_all: int, out: Path, engine: Engine, progress: Callable[[str], None]
) -> dict[str, str]:
    jobs = [Job("run", {"cell": cell.record()}, group=cell.source.model, name=cell.name) for cell in todo]
    options = {"out": str(out), "engine": engine.name, "code": code_sha256()}
    worker = Worker("rhumbline.jobs.sweeps:RunWorker", options)
    done: dict[int, Answer] = {}
    log = Log(out / "jobs.log")
    with engine.pool(worker) as pool:
        for answer in pool.map(jobs):
            if answer.job in done:
                continue
            done[answer.job] = answer
            log.add(jobs[answer.job], answer)
            at = n_all - len(todo) + len(done)
            said = answer.error or answer.value["verdict"]
            progress(f"[{at}/{n_all}] {todo[answer.job].name}: {said} ({answer.seconds:.0f} s)")
    return {todo[i].name: answer.error for i, answer in done.items() if answer.error is not None}


def _is_done(path: Path, cell: Cell) -> bool:
    """Whether a run has results of this very protocol; what it cannot tell cheaply, the run itself refuses."""
    if not (path / "results.json").is_file() or not (path / "report.html").is_file():
        return False
    fixed = RunDirectory.read(path).protocol
    wanted = finite(cell.protocol.record())
    return fixed["versions"]["code"] == code_sha256() and all(
        fixed.get(name) == value for name, value in wanted.items() if name != "chat"
    )


def _compare(cells: list[Cell], out: Path, failed: Mapping[str, str]) -> Swept:
    there = {cell.name: out / "runs" / cell.name for cell in cells if cell.name not in failed}
    rows, failures = comparing.gather(there)
    failures = [*(Failure(name, reason) for name, reason in failed.items()), *failures]
    order = {cell.name: i for i, cell in enumerate(cells)}
    failures.sort(key=lambda f: order[f.run])
    comparing.write_tables(rows, failures, out)
    return Swept(comparison_page.build(rows, failures, out, f"Sweep of {len(cells)} runs"), rows, failures)
