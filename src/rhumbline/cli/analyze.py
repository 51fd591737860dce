"""The command `analyze`: one table row for each analysis, with its options and its summary on the terminal."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from rhumbline.cli import analyze_mechanism, analyze_models
from rhumbline.cli.analyze_frontier import frontier, frontier_options
from rhumbline.cli.console import NOT_MEASURED, interval, number, say
from rhumbline.cli.option_values import check_models, load_model, reals
from rhumbline.cli.options import (
    MODEL_HELP,
    AddCommand,
    json_option,
    real,
    suffix_options,
    whole,
)
from rhumbline.cli.run_analysis import defaults, execute, number_options, plan_of, quick_option, run_options
from rhumbline.records import directions_file, steering_file
from rhumbline.records.analysis_files import BaseRecord, GeometryRecord, MonitorRecord
from rhumbline.records.damage_file import DamageRecord
from rhumbline.records.directions_file import SOURCES, DirectionsPlan, DirectionsRecord, DirectionsRule
from rhumbline.records.steering_file import SteeringPlan, SteeringRecord
from rhumbline.records.suffix_file import SuffixRecord


class Analysis(NamedTuple):
    """One `rhumbline analyze NAME`."""

    name: str
    about: str
    """Help."""
    options: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace], int]


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    analyze = command("analyze", _without_name, "further measurements on finished runs")
    names = analyze.add_subparsers(required=True, metavar="NAME")
    for analysis in ANALYSES:
        parser = names.add_parser(analysis.name, help=analysis.about, description=analysis.about)
        analysis.options(parser)
        json_option(parser, "the record")
        parser.set_defaults(command=analysis.execute)


def _without_name(a: argparse.Namespace) -> int:
    del a  # argparse requires a NAME
    return 2


# -- geometry ---------------------------------------------------------------------------------------------------------


def _geometry_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    text = "principal components of the training prompts (default: 5)"
    parser.add_argument("--components", type=whole(), default=5, metavar="N", help=text)


def _geometry(a: argparse.Namespace) -> int:
    from rhumbline.analyses import geometry

    def show(record: GeometryRecord) -> None:
        position = record.read_at.position
        say(f"position {position}, by layer: AUROC on validation, cosine with the direction, with the next layer")
        for row in record.grid:
            if row.position == position:
                following = "-" if row.next is None else number(row.next, signed=True)
                area = interval(row.auroc, row.low, row.high, 3)
                say(f"  layer {row.layer:2d}  {area}  {number(row.cosine, signed=True)}  {following}")

    return execute(a, lambda subject: geometry.analyse(subject, components=a.components), show)


# -- base -------------------------------------------------------------------------------------------------------------


def _base_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument("--base", required=True, metavar="MODEL", help=f"the base model: {MODEL_HELP}")
    parser.add_argument(
        "--draws", type=whole(), default=99, metavar="N", help="draws of each null family (default: 99)"
    )
    text = "read the same text in the base model's own tokens, if the tokenizers differ"
    parser.add_argument("--retokenise", action="store_true", help=text)


def _base(a: argparse.Namespace) -> int:
    from rhumbline.analyses import base_model

    check_models(a, a.base)

    def compute(subject: Any) -> BaseRecord:
        a.dtype = subject.directory.protocol["model"]["dtype"]
        return base_model.analyse(subject, load_model(a, a.base), draws=a.draws, retokenise=a.retokenise)

    def show(record: BaseRecord) -> None:
        say(f"{record.finding.answer}: {record.finding.reason}")
        for name, condition in (("template", record.conditions.template), ("plain", record.conditions.plain)):
            say(f"{name}: cosine; AUROC in the base model of the chat model's direction, and of its own direction")
            for row in condition.layers:
                areas = "  ".join(interval(x.value, x.low, x.high, 3) for x in (row.chat_in_base, row.base_in_base))
                say(f"  layer {row.layer:2d}  {number(row.cosine, signed=True)}  {areas}")

    return execute(a, compute, show)


# -- suffix -----------------------------------------------------------------------------------------------------------


SUFFIX_PROMPTS, QUICK_SUFFIX_PROMPTS = 50, 16
"""Test prompts of each class, by default and with `--quick`."""


def _suffix_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    quick_option(parser)
    suffix_options(parser, required=True)
    prompts = f"test prompts per class, at most ({defaults([SUFFIX_PROMPTS], [QUICK_SUFFIX_PROMPTS])})"
    parser.add_argument("--prompts", type=whole(2), metavar="N", help=prompts)
    heads = "attention heads that are reported in detail (default: 8)"
    parser.add_argument("--heads", type=whole(), default=8, metavar="N", help=heads)


def _suffix(a: argparse.Namespace) -> int:
    from rhumbline.analyses import suffix_effects

    def compute(subject: Any) -> SuffixRecord:
        prompts = QUICK_SUFFIX_PROMPTS if a.quick else SUFFIX_PROMPTS
        prompts = prompts if a.prompts is None else a.prompts
        return suffix_effects.analyse(subject, a.suffix, draws=a.random, prompts=prompts, heads=a.heads)

    def show(record: SuffixRecord) -> None:
        for c in record.conditions:
            projection, metric = (interval(m.mean, m.low, m.high) for m in (c.projection, c.metric))
            say(f"  {c.name:10s}  projection {projection}, metric {metric}")
        error = NOT_MEASURED if record.attribution.error is None else f"{record.attribution.error:.1e}"
        say(f"attribution: {len(record.attribution.parts)} terms, relative error {error}")

    return execute(a, compute, show, "direction", "token metric")


# -- directions -------------------------------------------------------------------------------------------------------


DIRECTIONS = {
    "max_rank": ("largest rank of the ablated span", 2),
    "draws": ("random spans of each family at each rank", 1),
    "samples": ("directions drawn in each cone", 1),
    "prompts": ("test prompts per class, at most", 2),
    "steps": ("steps of each gradient search", 1),
}


def _directions_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    quick_option(parser)
    plan = DirectionsPlan()
    sources = f"sources of further directions: {', '.join(SOURCES)} (default: all)"
    parser.add_argument("--sources", default=",".join(SOURCES), metavar="A,B", help=sources)
    number_options(parser, plan, DIRECTIONS, directions_file.QUICK)
    margin = "smallest further decrease of the rate that counts, 0 to 1 (default: %(default)s)"
    parser.add_argument("--margin", type=real(0, 1), default=DirectionsRule().margin, metavar="X", help=margin)


def _directions(a: argparse.Namespace) -> int:
    from rhumbline.analyses.further_directions import analyse

    sources = tuple(name.strip() for name in a.sources.split(","))
    plan = plan_of(a, directions_file.QUICK if a.quick else DirectionsPlan(), DIRECTIONS, sources=sources)
    rule = DirectionsRule(margin=a.margin)

    def show(record: DirectionsRecord) -> None:
        for name, source in record.sources.items():
            rates = "  ".join(f"{r.rank}: {number(r.suppression.rate)}" for r in source.ranks)
            say(f"  {name:11s} rate by rank of the ablated span  {rates}")
        say(f"{record.verdict.answer}: {record.verdict.reason}")

    return execute(a, lambda subject: analyse(subject, plan, rule), show, "direction", "token metric")


# -- monitor ----------------------------------------------------------------------------------------------------------


def _monitor_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    fpr = "largest share of validation negatives above the threshold, 0 to 0.999 (default: %(default)s)"
    parser.add_argument("--fpr", type=real(0, 0.999), default=0.01, metavar="X", help=fpr)
    suffix_options(parser, required=False)


def _monitor(a: argparse.Namespace) -> int:
    from rhumbline.analyses import detector

    def show(record: MonitorRecord) -> None:
        say(f"threshold {record.threshold:.4g}, selected on {record.n.val.negative} validation negatives")
        for c in record.conditions:
            positives, negatives = (interval(r.rate, r.low, r.high, 3) for r in (c.tpr, c.fpr))
            area = interval(c.auroc.value, c.auroc.low, c.auroc.high, 3)
            say(f"  {c.name:10s}  AUROC {area}  positives flagged {positives}, negatives flagged {negatives}")

    return execute(a, lambda s: detector.analyse(s, fpr=a.fpr, suffix=a.suffix, draws=a.random), show, "direction")


# -- damage -----------------------------------------------------------------------------------------------------------


def _damage_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    text = "test negatives (default: 16)"
    parser.add_argument("--prompts", type=whole(2), default=16, metavar="N", help=text)


def _damage(a: argparse.Namespace) -> int:
    from rhumbline.analyses import damage

    def show(record: DamageRecord) -> None:
        say(record.sentence)
        say("KL divergence of the ablation, nats, by the positions that it acts on")
        for row in record.by_position:
            say(f"  {interval(row.kl.mean, row.kl.low, row.kl.high)}  {row.positions} ({number(row.tokens, 1)} tokens)")
        say("by layer, at all positions: " + ", ".join(f"{r.layer}: {number(r.mean)}" for r in record.by_layer))

    return execute(a, lambda subject: damage.analyse(subject, prompts=a.prompts), show)


# -- steering ---------------------------------------------------------------------------------------------------------


STEERING = {
    "draws": ("random vectors", 1),
    "prompts": ("test positives, at most", 2),
    "max_new_tokens": ("tokens of a completion, at most", 1),
}


def _steering_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    quick_option(parser)
    plan, fast = SteeringPlan(), steering_file.QUICK
    sizes = defaults(plan.sizes, fast.sizes)
    text = f"norms of the added vectors, in norms of the residual stream at their layer ({sizes})"
    parser.add_argument("--sizes", metavar="X,Y", help=text)
    number_options(parser, plan, STEERING, fast)
    harm = "external judge of harm that classifies the completions, too: a published one or a judge file"
    parser.add_argument("--harm", metavar="NAME|FILE", help=f"{harm} (see `rhumbline judge --list`)")


def _steering(a: argparse.Namespace) -> int:
    from rhumbline.analyses import random_steering
    from rhumbline.judging.judge_models import ExternalJudge
    from rhumbline.judging.judge_specs import read_judge

    plan = steering_file.QUICK if a.quick else SteeringPlan()
    plan = plan_of(a, plan, STEERING, sizes=None if a.sizes is None else reals(a.sizes, "--sizes"))
    spec = None if a.harm is None else read_judge(a.harm, "--harm")
    if spec is not None:
        random_steering.check_harm(spec)
        if spec.form != "endpoint":
            check_models(a, spec.model)

    def compute(subject: Any) -> SteeringRecord:
        judge = None if spec is None else random_steering.HarmJudge(spec, ExternalJudge(spec, a.device))
        return random_steering.analyse(subject, plan, judge)

    def show(record: SteeringRecord) -> None:
        say(f"layer {record.site.layer}, mean norm of the stream {number(record.norm)}; sizes in norms of the stream")
        for row in record.rows:
            shares = {"refused": row.refused, "degenerate": row.degenerate, "harmful": row.harmful}
            known = (f"{name} {interval(r.rate, r.low, r.high)}" for name, r in shares.items() if r is not None)
            say(f"  {row.size:4g}  " + "  ".join(known))

    return execute(a, compute, show, "classes")


ANALYSES = (
    Analysis("geometry", "cosines between candidates, and separation of the classes", _geometry_options, _geometry),
    Analysis("base", "the direction on the activations of the base model", _base_options, _base),
    Analysis("suffix", "effects of suffixes on the direction, and the heads that write it", _suffix_options, _suffix),
    Analysis("directions", "whether one direction is enough, by rank and source", _directions_options, _directions),
    Analysis("monitor", "the projection as a detector on test prompts", _monitor_options, _monitor),
    Analysis("damage", "where ablation changes negatives, by position and layer", _damage_options, _damage),
    Analysis("steering", "random vectors added to positives, by their size", _steering_options, _steering),
    Analysis("frontier", "what interventions leave of the behaviour at equal damage", frontier_options, frontier),
    Analysis(
        "trajectory",
        "at which tokens of prompt and completion the direction acts",
        analyze_mechanism.trajectory_options,
        analyze_mechanism.trajectory,
    ),
    Analysis(
        "meaning",
        "whether the direction stands for harmful content or for refusal",
        analyze_mechanism.meaning_options,
        analyze_mechanism.meaning,
    ),
    Analysis(
        "circuit",
        "which heads and MLPs carry the direction, and under suffixes",
        analyze_mechanism.circuit_options,
        analyze_mechanism.circuit,
    ),
    Analysis(
        "dissociation",
        "whether two behaviours of a model have different directions",
        analyze_models.dissociation_options,
        analyze_models.dissociation,
    ),
    Analysis(
        "flinch",
        "whether a chat model avoids words that its base model uses",
        analyze_models.flinch_options,
        analyze_models.flinch,
    ),
    Analysis(
        "style",
        "style, content and damage over doses of a direction, on a contrast that the model made",
        analyze_models.style_options,
        analyze_models.style,
    ),
)
