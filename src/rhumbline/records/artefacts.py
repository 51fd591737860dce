"""Which record is which file of a run directory.

The files of a seed are in `seed-S/`. Losses and conditions have several files each, so their rows are read by path. The
rows of judgements and the files of evaluations are named by their packages. The parts of an unfinished analysis are
named by the analysis.
"""

from collections.abc import Mapping

from rhumbline.records.analysis_files import BaseRecord, GeometryRecord, MonitorRecord
from rhumbline.records.circuit_file import CircuitRecord
from rhumbline.records.damage_file import DamageRecord
from rhumbline.records.directions_file import DirectionsRecord
from rhumbline.records.frontier_file import FrontierRecord
from rhumbline.records.human_files import HumanLabels, SheetKey
from rhumbline.records.judgement_files import JudgementSummary
from rhumbline.records.meaning_file import MeaningRecord
from rhumbline.records.outcome_rows import LevelTexts, Outcome
from rhumbline.records.results import Results
from rhumbline.records.run_files import Agreement, Discovery
from rhumbline.records.seed_files import (
    Doses,
    Extracted,
    MetricTokens,
    NullDirections,
    SecondDirection,
    Selection,
    Separation,
    SplitIds,
    Stability,
    StyleJudges,
    WideNulls,
)
from rhumbline.records.sheet_files import DissociationRecord, FlinchRecord, RobustnessRecord
from rhumbline.records.steering_file import SteeringRecord
from rhumbline.records.style_doses_file import StyleDosesRecord
from rhumbline.records.suffix_file import SuffixRecord
from rhumbline.records.trajectory_file import TrajectoryRecord

AnalysisRecord = (
    GeometryRecord
    | BaseRecord
    | SuffixRecord
    | DirectionsRecord
    | MonitorRecord
    | DamageRecord
    | SteeringRecord
    | TrajectoryRecord
    | MeaningRecord
    | FrontierRecord
    | CircuitRecord
)
"""Result of an analysis of a run."""
SheetRecord = RobustnessRecord | DissociationRecord | FlinchRecord | StyleDosesRecord
"""Result of an analysis of several runs or models."""

OF_RUN: Mapping[type, str] = {
    Results: "results.json",
    Agreement: "agreement.json",
    Discovery: "discover.json",
    GeometryRecord: "analyses/geometry.json",
    BaseRecord: "analyses/base.json",
    SuffixRecord: "analyses/suffix.json",
    DirectionsRecord: "analyses/directions.json",
    MonitorRecord: "analyses/monitor.json",
    DamageRecord: "analyses/damage.json",
    SteeringRecord: "analyses/steering.json",
    TrajectoryRecord: "analyses/trajectory.json",
    MeaningRecord: "analyses/meaning.json",
    FrontierRecord: "analyses/frontier.json",
    CircuitRecord: "analyses/circuit.json",
    JudgementSummary: "judgements/summary.json",
    SheetKey: "judgements/sheet.json",
    HumanLabels: "judgements/human.json",
}
"""Record: its file in the run directory."""
OF_SEED: Mapping[type, str] = {
    SplitIds: "splits.json",
    StyleJudges: "style.json",
    MetricTokens: "metric.json",
    Extracted: "extraction.json",
    Selection: "selection.json",
    NullDirections: "nulls.json",
    Outcome: "outcomes.jsonl",
    WideNulls: "wide.json",
    Doses: "dose.json",
    Stability: "stability.json",
    SecondDirection: "second.json",
    Separation: "separation.json",
    LevelTexts: "levels.json",
}
"""Record: its file in the folder of a seed. `Outcome` is a row of its file."""
OF_SHEET: Mapping[type, str] = {
    RobustnessRecord: "robustness.json",
    DissociationRecord: "dissociation.json",
    FlinchRecord: "flinch.json",
    StyleDosesRecord: "style.json",
}
"""Record: its file in a directory of its own."""
