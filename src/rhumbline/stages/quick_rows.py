"""Baseline rows of a finished quick run that the whole run in the same directory reads instead of computing them.

A quick run tests another direction, because it reads fewer training prompts, so no other row is the same. A baseline
completion depends on the model, the chat and the prompt; its row also on the judge and the metric. Independent of arms.
"""

import logging

from msgspec.structs import replace

from rhumbline.errors import OutputError
from rhumbline.records.directory import QUICK, RunDirectory
from rhumbline.records.files import file_sha256
from rhumbline.records.outcome_rows import Outcome
from rhumbline.records.results import Results
from rhumbline.records.seed_files import MetricTokens
from rhumbline.records.shared import Class, Label
from rhumbline.stages.seed_run import SeedRun

log = logging.getLogger("rhumbline")

DECIDES = ("model", "chat", "contrast", "decoding", "versions", "judge", "phrases", "save_completions")
"""Fields of protocol.json that decide a baseline row, besides the metric and the longest completion."""


def baseline_rows(run: SeedRun, label: Label, lengths: tuple[int, ...]) -> dict[str, Outcome]:
    """The reusable rows of one class by the id of the prompt; `lengths`: the tokens after which rows are judged too.

    Empty without a finished quick run, and if its files differ from those that its results list.
    """
    try:
        quick = RunDirectory.read(run.directory.path / QUICK)
        return _rows(run, quick, label, lengths) if _is_comparable(run, quick) else {}
    except OutputError as error:
        log.debug("no row of a quick run is reused: %s", error)
        return {}


def _is_comparable(run: SeedRun, quick: RunDirectory) -> bool:
    """Whether the quick run is finished and unchanged, and its baseline rows are decided by the same values."""
    if run.protocol.is_continuous or run.seed not in quick.protocol["seeds"] or not quick.has(Results):
        return False
    listed, path = quick.read_record(Results).files, quick.file_of(Outcome, run.seed)
    if listed.get(path.relative_to(quick.path).as_posix()) != file_sha256(path):
        return False
    metrics = (directory.read_record(MetricTokens, run.seed) for directory in (run.directory, quick))
    first, second = (({t.id for t in metric.tokens}, metric.start) for metric in metrics)
    return first == second and all(quick.protocol.get(k) == run.directory.protocol.get(k) for k in DECIDES)


def _rows(run: SeedRun, quick: RunDirectory, label: Label, lengths: tuple[int, ...]) -> dict[str, Outcome]:
    longest, allowed = quick.protocol["max_new_tokens"], run.protocol.max_new_tokens
    # A metric is relative to the threshold of its run, which more training prompts change.
    before, now = (directory.read_record(MetricTokens, run.seed).threshold for directory in (quick, run.directory))
    ids = {prompt.id for prompt in run.splits.get("test", label)}

    def is_whole(row: Outcome) -> bool:
        """Whether the whole run would write the same tokens: the completion ended, or both runs end it."""
        return row.new_tokens < min(longest, allowed) or longest == allowed

    return {
        row.prompt_id: replace(
            row, metric=None if row.metric is None else row.metric + before - now, by_length=_by_length(row, lengths)
        )
        for row in quick.read_rows(Outcome, run.seed)
        if row.arm.is_baseline and row.side == label and row.prompt_id in ids and is_whole(row)
    }


def _by_length(row: Outcome, lengths: tuple[int, ...]) -> dict[str, Class]:
    """The classes of the beginnings: those beyond the end of a completion are that of the whole."""
    assert row.by_length is not None
    full = row.by_length["full"]
    classes: dict[str, Class] = {str(n): row.by_length.get(str(n), full) for n in lengths}
    return {**classes, "full": full}
