"""Read the files of a finished run that the report shows, as records.

Independent of markup and charts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from msgspec import UNSET

from rhumbline.errors import OutputError, ProtocolError
from rhumbline.protocol import Protocol
from rhumbline.records.arms import ArmId
from rhumbline.records.artefacts import AnalysisRecord
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.evaluation_files import Comparison
from rhumbline.records.human_files import HumanLabels
from rhumbline.records.judgement_files import JudgementSummary
from rhumbline.records.protocol_file import ProtocolContext
from rhumbline.records.results import Results, SeedResult
from rhumbline.records.run_files import Discovery
from rhumbline.records.seed_files import Selection, Separation
from rhumbline.records.shared import Label, Site
from rhumbline.records.verdict_names import NO_BASELINE, VerdictName


@dataclass(frozen=True)
class RunFiles:
    """protocol.json and results.json of a finished run."""

    directory: RunDirectory
    protocol: Protocol
    context: ProtocolContext
    """Model, chat, contrast and splits, as fixed in protocol.json."""
    results: Results


@dataclass(frozen=True)
class RunRecord(RunFiles):
    """The files of a finished run, and of its evaluations, judgements and analyses."""

    selections: Mapping[int, Selection]
    """By seed."""
    separations: Mapping[int, Separation]
    """By seed."""
    evaluations: tuple[Comparison, ...]
    """Benchmarks, one record for each setting."""
    judgements: JudgementSummary | None
    """Rates by external judges; None if no judge was applied."""
    human: HumanLabels | None
    """None if no label sheet was read."""
    analyses: tuple[AnalysisRecord, ...]
    """Analyses of the run, in the order of the page."""

    @property
    def seeds(self) -> tuple[SeedResult, ...]:
        """The results of each seed."""
        return self.results.seeds

    @property
    def measure(self) -> Literal["rate", "level"]:
        """The quantity that the arms report."""
        return measure(self.seeds)

    @property
    def has_baseline(self) -> bool:
        """Whether the positives show the behaviour at baseline, and something was tested."""
        return self.results.verdict not in (*NO_BASELINE, VerdictName.NOT_TESTED)


def measure(seeds: Iterable[SeedResult]) -> Literal["rate", "level"]:
    """Return the quantity that the arms report: the rate of a class, or the level of a continuous score."""
    return "level" if any(seed.style is not UNSET for seed in seeds) else "rate"


def level_unit(seeds: Iterable[SeedResult]) -> str:
    """Return what a level is a share of, in words: the gap between completions at baseline, or between texts."""
    of_texts = any(seed.style is not UNSET and seed.style.unit.source == "texts" for seed in seeds)
    what = "texts of the contrast" if of_texts else "completions at baseline"
    return f"the gap between the classes in {what}: 0 is the mean of the negatives there, 1 that of the positives"


def measured_arm(seed: SeedResult, arm: ArmId, side: Label) -> ArmRate | None:
    """Return the rate of one arm on one set; None if it was not measured."""
    return next((row for row in seed.arms if (row.arm, row.side) == (arm, side) and row.rate is not None), None)


def site_text(site: Site | None) -> str:
    """Format a site as (position, layer)."""
    return "none" if site is None else f"({site.position}, {site.layer})"


def read_summary(directory: RunDirectory) -> RunFiles:
    """Read protocol.json and results.json. Raises OutputError or ProtocolError that names the file and the field."""
    return RunFiles(directory, *_protocol(directory), directory.read_record(Results))


def read_run(path: Path) -> RunRecord:
    """Read a finished run. Raises OutputError or ProtocolError that names the file and the field at fault."""
    directory = RunDirectory.read(path)
    protocol, context = _protocol(directory)
    results = directory.read_record(Results)
    seeds = [seed.seed for seed in results.seeds]
    return RunRecord(
        directory=directory,
        protocol=protocol,
        context=context,
        results=results,
        selections={seed: directory.read_record(Selection, seed) for seed in seeds},
        separations={seed: directory.read_record(Separation, seed) for seed in seeds},
        evaluations=tuple(directory.read_as(Comparison, f) for f in sorted(path.glob("evaluations/*/comparison.json"))),
        judgements=directory.read_record(JudgementSummary) if directory.has(JudgementSummary) else None,
        human=directory.read_record(HumanLabels) if directory.has(HumanLabels) else None,
        analyses=tuple(directory.read_record(kind) for kind in get_args(AnalysisRecord) if directory.has(kind)),
    )


@dataclass(frozen=True)
class DiscoveryRecord:
    """The files that `discover` writes."""

    directory: RunDirectory
    protocol: Protocol
    context: ProtocolContext
    discovery: Discovery


def read_discovery(path: Path) -> DiscoveryRecord:
    """Read what `discover` wrote. Raises OutputError or ProtocolError that names the file and the field at fault."""
    directory = RunDirectory.read(path)
    return DiscoveryRecord(directory, *_protocol(directory), directory.read_record(Discovery))


def _protocol(directory: RunDirectory) -> tuple[Protocol, ProtocolContext]:
    try:
        protocol = Protocol.of(directory.protocol, directory.path / "protocol.json")
        return protocol, directory.read_protocol(ProtocolContext)
    except ProtocolError as error:
        raise OutputError(str(error)) from error
