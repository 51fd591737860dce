"""`analyze`: further questions, asked of a finished run. Options and printing; computes nothing itself.

An analysis is a row of `ANALYSES`: its name, one line of help, its options and what runs it.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from rhumbline.cli import style
from rhumbline.cli.console import NOT_MEASURED, Progress, interval, number, out
from rhumbline.cli.options import MODEL_HELP, load_model, prepare, read_template
from rhumbline.records.analysis_files import BaseRecord, GeometryRecord, MonitorRecord
from rhumbline.records.directions_file import DirectionsRecord
from rhumbline.records.suffix_file import SuffixRecord

R = TypeVar("R")
"""Record of an analysis."""


class Analysis(NamedTuple):
    """One `rhumbline analyze NAME`."""

    name: str
    text: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser; `command(name, run, text)` makes one."""
    analyze = command("analyze", _list, "further questions, asked of a finished run")
    names = analyze.add_subparsers(required=True, metavar="NAME")
    for analysis in ANALYSES:
        parser = names.add_parser(analysis.name, help=analysis.text, description=analysis.text)
        analysis.options(parser)
        parser.add_argument("--json", action="store_true", help="print the record on standard output, and nothing else")
        parser.set_defaults(command=analysis.run)


def _list(a: argparse.Namespace) -> int:
    del a  # argparse asks for a NAME before it comes to this
    return 2


def run_options(parser: argparse.ArgumentParser) -> None:
    """What every analysis of a run takes."""
    parser.add_argument("run", metavar="RUN", help="directory of a finished run")
    group = parser.add_argument_group("run", "a run directory holds no prompts and no weights")
    named = "the run's contrast, a file or a name; organisms bring their own"
    group.add_argument("--contrast", default=None, metavar="FILE|NAME", help=named)
    group.add_argument("--data-dir", default=None, metavar="DIR", help="local files of named data sets, read first")
    group.add_argument("--model", default=None, metavar="MODEL", help="default: the model that the run names")
    group.add_argument("--seed", type=int, default=None, help="of the run; default: its first")
    group.add_argument("--chat-template", default=None, metavar="FILE", help="where the run was given one")
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, auto; default: the first GPU")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def subject_of(a: argparse.Namespace, tick: Callable[[int], None]) -> Any:
    """The run that a command names, opened with its model and prompts."""
    from rhumbline.analyses.subject import open_subject
    from rhumbline.stages.finished_run import RunInputs, open_run

    template = read_template(a.chat_template)
    prepare(a.model or open_run(a.run).context.model.name)
    inputs = RunInputs(data_dir=a.data_dir, device=a.device, template=template, trust_remote_code=a.trust_remote_code)
    return open_subject(a.run, a.model, a.contrast, seed=a.seed, inputs=inputs, tick=tick)


def analysed(a: argparse.Namespace, compute: Callable[[Any], R], show: Callable[[R], None]) -> int:
    """Open the run, compute the record of an analysis, and print it as JSON or as a summary."""
    from rhumbline.records.codec import to_json

    progress = Progress()
    try:
        progress("opening the run", None)
        subject = subject_of(a, lambda rows: progress("", rows))
        progress("measuring", None)
        record = compute(subject)
    finally:
        progress.close()
    if a.json:
        print(json.dumps(to_json(record), ensure_ascii=False))
        return 0
    show(record)
    out.print(f"record: {subject.directory.file_of(type(record))}", markup=False, highlight=False)
    out.print(f"report: {subject.directory.path / 'report.html'}", markup=False, highlight=False)
    return 0


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False)


# -- geometry ---------------------------------------------------------------------------------------------------------


def _geometry_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument("--components", type=int, default=5, metavar="N", help="principal components (default: 5)")


def _geometry(a: argparse.Namespace) -> int:
    from rhumbline.analyses import geometry

    def show(record: GeometryRecord) -> None:
        position = record.read_at.position
        _say(f"position {position}, by layer: AUROC on validation, cosine with the direction, with the next layer")
        for row in record.grid:
            if row.position == position:
                later = "-" if row.next is None else number(row.next, signed=True)
                area = interval(row.auroc, row.low, row.high, 3)
                _say(f"  layer {row.layer:2d}  {area}  {number(row.cosine, signed=True)}  {later}")

    return analysed(a, lambda subject: geometry.analyse(subject, components=a.components), show)


# -- base -------------------------------------------------------------------------------------------------------------


def _base_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument("--base", required=True, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--draws", type=int, default=99, metavar="N", help="of each null family (default: 99)")
    parser.add_argument("--retokenise", action="store_true", help="feed the same text where the tokenizers differ")


def _base(a: argparse.Namespace) -> int:
    from rhumbline.analyses import base

    def compute(subject: Any) -> BaseRecord:
        a.dtype = subject.directory.protocol["model"]["dtype"]
        return base.analyse(subject, load_model(a, a.base), draws=a.draws, retokenise=a.retokenise)

    def show(record: BaseRecord) -> None:
        _say(f"{record.finding.answer}: {record.finding.reason}")
        for name, condition in (("template", record.conditions.template), ("plain", record.conditions.plain)):
            _say(f"{name}: cosine; AUROC in the base model of the chat model's direction, and of its own")
            for row in condition.layers:
                areas = "  ".join(interval(x.value, x.low, x.high, 3) for x in (row.chat_in_base, row.base_in_base))
                _say(f"  layer {row.layer:2d}  {number(row.cosine, signed=True)}  {areas}")

    return analysed(a, compute, show)


# -- monitor ----------------------------------------------------------------------------------------------------------


def _monitor_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument("--fpr", type=float, default=0.01, help="false positive rate of the threshold (default: 0.01)")
    parser.add_argument("--suffix", default=None, metavar="FILE", help="suffixes to read as well, one a line")
    parser.add_argument("--random", type=int, default=3, metavar="N", help="random suffixes beside each (default: 3)")


def _monitor(a: argparse.Namespace) -> int:
    from rhumbline.analyses import monitor

    def show(record: MonitorRecord) -> None:
        _say(f"threshold {record.threshold:.4g}, selected on {record.n.val.negative} validation negatives")
        for c in record.conditions:
            positives, negatives = (interval(r.rate, r.low, r.high, 3) for r in (c.tpr, c.fpr))
            area = interval(c.auroc.value, c.auroc.low, c.auroc.high, 3)
            _say(f"  {c.name:10s}  AUROC {area}  positives flagged {positives}, negatives flagged {negatives}")

    return analysed(a, lambda s: monitor.analyse(s, fpr=a.fpr, suffix=a.suffix, draws=a.random), show)


# -- suffix -----------------------------------------------------------------------------------------------------------


def _suffix_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument(
        "--suffix", required=True, metavar="FILE", help="your suffixes, one a line; none is searched for"
    )
    parser.add_argument("--random", type=int, default=3, metavar="N", help="random suffixes beside each (default: 3)")
    parser.add_argument("--prompts", type=int, default=50, metavar="N", help="test prompts per class (default: 50)")
    parser.add_argument("--heads", type=int, default=8, metavar="N", help="heads to look at closer (default: 8)")


def _suffix(a: argparse.Namespace) -> int:
    from rhumbline.analyses import suffix

    def show(record: SuffixRecord) -> None:
        for c in record.conditions:
            projection, metric = (interval(m.mean, m.low, m.high) for m in (c.projection, c.metric))
            _say(f"  {c.name:10s}  projection {projection}, metric {metric}")
        error = NOT_MEASURED if record.attribution.error is None else f"{record.attribution.error:.1e}"
        _say(f"attribution: {len(record.attribution.parts)} terms, relative error {error}")

    return analysed(a, lambda s: suffix.analyse(s, a.suffix, draws=a.random, prompts=a.prompts, heads=a.heads), show)


# -- directions -------------------------------------------------------------------------------------------------------


def _directions_options(parser: argparse.ArgumentParser) -> None:
    from_plan = "candidates, clusters, som, gradient, cone (default: all)"
    run_options(parser)
    parser.add_argument("--sources", default=None, metavar="A,B", help=from_plan)
    for name, text in (
        ("max-rank", "largest rank (default: 4)"),
        ("draws", "random subspaces of either family at each rank (default: 3)"),
        ("samples", "directions drawn in each cone (default: 4)"),
        ("prompts", "test prompts per class, at most (default: 64)"),
        ("steps", "of each gradient search (default: 60)"),
    ):
        parser.add_argument(f"--{name}", type=int, default=None, metavar="N", help=text)
    parser.add_argument("--margin", type=float, default=None, help="a further loss of the rate that counts (0.1)")


def _directions(a: argparse.Namespace) -> int:
    from rhumbline.analyses.directions import analyse
    from rhumbline.records.directions_file import DirectionsPlan, DirectionsRule

    numbers = {k: getattr(a, k) for k in ("max_rank", "draws", "samples", "prompts", "steps")}
    given = {k: v for k, v in numbers.items() if v is not None}
    if a.sources is not None:
        given["sources"] = tuple(part.strip() for part in a.sources.split(","))
    plan = DirectionsPlan(**given)
    rule = DirectionsRule() if a.margin is None else DirectionsRule(margin=a.margin)

    def show(record: DirectionsRecord) -> None:
        for name, source in record.sources.items():
            rates = "  ".join(f"{r.rank}: {r.suppression.rate:.2f}" for r in source.ranks)
            _say(f"  {name:11s} rate by rank ablated  {rates}")
        _say(f"{record.verdict.answer}: {record.verdict.reason}")

    return analysed(a, lambda subject: analyse(subject, plan, rule), show)


ANALYSES = (
    Analysis("geometry", "how candidates and classes lie to each other", _geometry_options, _geometry),
    Analysis("base", "the chat model's direction in its base model", _base_options, _base),
    Analysis("suffix", "what your suffixes do to the direction, and which heads write it", _suffix_options, _suffix),
    Analysis(
        "directions", "is one direction enough? ranks, sources, cones, a verdict", _directions_options, _directions
    ),
    Analysis("monitor", "the projection as a detector on unseen prompts", _monitor_options, _monitor),
    *(Analysis(name, text, options, run) for name, options, run, text in style.ANALYSES),
)
