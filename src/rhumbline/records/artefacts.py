"""Which record is which file of a run directory.

A seed's files lie in `seed-S/`. Losses and conditions have several files each, so their rows are read by path. The
files of analyses, judgements and evaluations are named by their packages.
"""

from collections.abc import Mapping

from rhumbline.records.null_files import Doses, NullDirections, Stability, WideNulls
from rhumbline.records.results import Results
from rhumbline.records.run_files import Agreement, Discovery
from rhumbline.records.selection_files import Extracted, FastMetric, Selection, SplitIds, StyleJudges
from rhumbline.records.test_files import LevelTexts, Outcome, Separation

OF_RUN: Mapping[type, str] = {Results: "results.json", Agreement: "agreement.json", Discovery: "discover.json"}
"""Record: its file in the run directory."""
OF_SEED: Mapping[type, str] = {
    SplitIds: "splits.json",
    StyleJudges: "style.json",
    FastMetric: "metric.json",
    Extracted: "extraction.json",
    Selection: "selection.json",
    NullDirections: "nulls.json",
    Outcome: "outcomes.jsonl",
    WideNulls: "wide.json",
    Doses: "dose.json",
    Stability: "stability.json",
    Separation: "separation.json",
    LevelTexts: "levels.json",
}
"""Record: its file in the folder of a seed. `Outcome` is a row of its file."""
