"""START HERE. `run`: a chat model and a contrast give a run directory with a verdict.

    contrast -> chat tokens -> refusal tokens -> means -> candidates -> selection on validation -> nulls
             -> arms on test -> scores -> separation -> side effects -> conditions -> results -> report

The protocol is on disk before the first forward pass. A run with the same protocol and directory resumes.

Continue with stages/order.py (the stages of one seed in order), stages/selection.py, stages/null_directions.py,
stages/outcomes.py, and verification.py (results and verdict).
"""

import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import torch

from rhumbline.arguments import checked
from rhumbline.engines.engine import Pool
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner, measured_tokens
from rhumbline.models.chat_model import ChatModel
from rhumbline.presets.protocols import PRESETS
from rhumbline.prompts.contrasts import LABELS, ContrastSet
from rhumbline.prompts.loss_texts import NO_TEXTS, LossTexts
from rhumbline.protocol import Protocol
from rhumbline.records.claims import Claim
from rhumbline.records.codec import JsonObject, convert, to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import write_json
from rhumbline.records.results import Environment, Results
from rhumbline.records.run_files import Agreement, Discovery
from rhumbline.records.shared import ByLabel, ModelFacts, SeedPair
from rhumbline.records.verdict_names import VerdictName
from rhumbline.report import build as report
from rhumbline.stages.extraction import ClassMeans
from rhumbline.stages.finished_run import open_run
from rhumbline.stages.order import run_stages
from rhumbline.stages.run_plan import RunPlan
from rhumbline.stages.seed_artefacts import SeedArtefacts
from rhumbline.stages.seed_run import encoded
from rhumbline.stages.separation import mean_over_seeds, prompts_to_separate, separations
from rhumbline.stages.timings import Progress, Timings
from rhumbline.verification import assemble, sealed


@dataclass(frozen=True)
class Result:
    """A finished run."""

    path: Path
    results: JsonObject
    """The JSON value of results.json."""

    @property
    def verdict(self) -> VerdictName:
        """The verdict of the run."""
        return VerdictName(self.results["verdict"])

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims that the verdict follows from."""
        return convert(self.results["claims"], tuple[Claim, ...])

    @property
    def sentence(self) -> str:
        """The verdict and its claims in one line."""
        return self.results["sentence"]

    def direction(self, seed: int | None = None) -> Direction | None:
        """The selected direction of a seed (default: the first); None if no candidate was selected."""
        return selected_direction(self.path, seed)


@checked
def run(
    model: ChatModel,
    contrast: ContrastSet,
    out: str | Path,
    protocol: Protocol = PRESETS["rhumbline"],
    *,
    texts: LossTexts = NO_TEXTS,
    progress: Progress | None = None,
    page: bool = True,
    pool: Pool | None = None,
    engine: str = "local",
) -> Result:
    """Find a direction, select it, test it and its nulls, decide, and write everything to `out`.

    Losses are measured on `texts`, on the model's own completions and on the responses of the contrast.
    `progress(stage, rows)` is called for every stage that begins (rows None) and for every batch that ends. Without
    `page` no report is written; `rhumbline report` writes it later. The jobs of the stages run on the workers of `pool`
    (jobs/replicas.py), or in this process; `engine` is the name of the engine in the results.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    plan = RunPlan.of(model, contrast, protocol, texts)
    plan.check(protocol.max_new_tokens)
    with RunDirectory.open(out, plan.record()) as directory:
        timings = Timings(directory.path / "timings.json", model.device, progress, has_workers=pool is not None)
        tokens = measured_tokens(model, plan.chat.encode(contrast.prompts[0]))
        for seed in plan.protocol.seeds:
            run_stages(plan.seed_run(directory, timings, seed, tokens), pool)
        directory.write_record(compare_seeds(directory))
        surroundings = environment(model, started, engine)
        hashes = directory.manifest()
        results = to_json(sealed(assemble(directory), surroundings, timings.read(), hashes, has_page=page))
        write_json(directory.file_of(Results), results)
        if page:
            with timings.stage("report", None):
                report.build(directory.path)
    return Result(directory.path, results)


def compare_seeds(directory: RunDirectory) -> Agreement:
    """Cosine between the selected directions of every two seeds."""
    seeds = directory.protocol["seeds"]
    directions = {seed: d for seed in seeds if (d := SeedArtefacts(directory, seed).direction) is not None}
    return Agreement(tuple(_compared(a, b, directions[a], directions[b]) for a, b in combinations(directions, 2)))


def _compared(a: int, b: int, one: Direction, other: Direction) -> SeedPair:
    same_site = (one.position, one.layer) == (other.position, other.layer)
    return SeedPair((a, b), float(one.vector @ other.vector), same_site)


def environment(model: ChatModel, started: str, engine: str) -> Environment:
    """Where the run took place; not part of the protocol."""
    device = model.device
    return Environment(
        python=platform.python_version(),
        rhumbline=version("rhumbline"),
        torch=version("torch"),
        transformers=version("transformers"),
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        started=started,
        engine=engine,
    )


@checked
def discover(
    model: ChatModel,
    contrast: ContrastSet,
    out: str | Path,
    protocol: Protocol = PRESETS["rhumbline"],
    *,
    progress: Progress | None = None,
) -> JsonObject:
    """Extraction only: where the classes separate on validation prompts. Generates nothing, reads no test prompt.

    Returns the JSON value of discover.json.
    """
    plan = RunPlan.of(model, replace(contrast, neutral=()), protocol)
    plan.check(new_tokens=0)
    with RunDirectory.open(out, plan.record("discover") | {"seeds": list(protocol.seeds)}) as directory:
        timings = Timings(directory.path / "timings.json", model.device, progress)
        found = []
        for seed in protocol.seeds:
            with timings.stage("discover", seed):
                runner = Runner(model, tick=lambda rows: timings.tick("discover", rows))
                means = _training_means(plan, seed, runner)
                means.write(directory, seed)
                prompts = prompts_to_separate(plan.splits[seed], "val", means.positions)
                found.append(separations(runner, plan.chat, prompts, means, selected=None))
        facts = convert(directory.protocol["model"], ModelFacts)
        sizes = [plan.splits[seed].sizes() for seed in protocol.seeds]
        train, n = (ByLabel(*(min(s[split][label] for s in sizes) for label in LABELS)) for split in ("train", "val"))
        grid = mean_over_seeds([one.grid for one in found])
        directory.write_record(
            Discovery("val", n, grid, (), seed=protocol.seeds[0], seeds=protocol.seeds, model=facts, train=train)
        )
        report.build_discover(directory.path)
    return directory.load(directory.file_of(Discovery))


def _training_means(plan: RunPlan, seed: int, runner: Runner) -> ClassMeans:
    """The means of all training prompts at every position, the last token of the instruction included."""
    splits = plan.splits[seed]
    in_response = plan.protocol.extraction.response_position
    positions = (plan.chat.instruction_position, *plan.chat.positions) if in_response is None else (in_response,)
    rows = splits.get if in_response is None else splits.texts
    positive, negative = (
        extract(runner, encoded(plan.chat, rows("train", label), positions), positions).stats for label in LABELS
    )
    return ClassMeans.of(positive, negative, positions)


@checked
def selected_direction(path: str | Path, seed: int | None = None) -> Direction | None:
    """The selected direction of a run directory (default: of its first seed); None if no candidate was selected."""
    return open_run(path).direction(seed)
