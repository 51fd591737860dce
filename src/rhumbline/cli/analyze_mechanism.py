"""The analyses of what a direction does and how: `analyze trajectory`, `analyze meaning` and `analyze circuit`."""

import argparse
from dataclasses import replace

from rhumbline.cli.console import NOT_MEASURED, interval, say
from rhumbline.cli.option_values import integers
from rhumbline.cli.options import whole
from rhumbline.cli.run_analysis import execute, run_options
from rhumbline.records import trajectory_file
from rhumbline.records.analysis_files import MeanRate
from rhumbline.records.trajectory_file import YANG2026, TrajectoryPlan, TrajectoryRecord

QUICK = "fewer prompts, draws and tokens, for a first look; options that are given keep their values"


PRESETS = {"yang2026": trajectory_file.LONG}
"""Plans of published experiments."""


def quick_option(parser: argparse.ArgumentParser) -> None:
    """`--quick` of an analysis."""
    parser.add_argument("--quick", action="store_true", help=QUICK)


def _change(value: MeanRate | None) -> str:
    return NOT_MEASURED if value is None else interval(value.mean, value.low, value.high)


# -- trajectory -------------------------------------------------------------------------------------------------------


def trajectory_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze trajectory`."""
    run_options(parser)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help=QUICK)
    text = "the sizes for a reasoning model; the think block is compared with arXiv 2605.26772"
    sizes.add_argument("--preset", choices=PRESETS, metavar="NAME", help=f"{', '.join(PRESETS)}: {text}")
    plan = TrajectoryPlan()
    sizes = ",".join(map(str, plan.tokens))
    text = f"numbers of tokens that divide the completion into the first ones and the rest (default: {sizes})"
    parser.add_argument("--tokens", metavar="K,K", help=text)
    for name, text, least in (
        ("draws", "isotropic null directions", 1),
        ("prompts", "test prompts per class, at most", 2),
        ("max_new_tokens", "tokens of a completion, at most", 2),
    ):
        text = f"{text} (default: {getattr(plan, name)})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=whole(least), metavar="N", help=text)


def trajectory(a: argparse.Namespace) -> int:
    """Execute `analyze trajectory`."""
    from rhumbline.analyses.trajectory import analyse
    from rhumbline.report.trajectory_section import CARRIERS, window_name

    plan = trajectory_file.QUICK if a.quick else PRESETS.get(a.preset, TrajectoryPlan())
    values = {name: getattr(a, name) for name in ("draws", "prompts", "max_new_tokens")}
    if a.tokens is not None:
        values["tokens"] = integers(a.tokens, "--tokens")
    plan = replace(plan, **{name: value for name, value in values.items() if value is not None})

    def show(record: TrajectoryRecord) -> None:
        for row in record.windows:
            nulls = [n.mean for n in row.nulls.values() if n.mean is not None]
            largest = f", largest null family {max(nulls):.2f}" if nulls else ""
            say(f"  {row.effect:11s}  {_change(row.own.change)}  {window_name(row)}{largest}")
        published = {row.carrier: f"; published: {row.reversal:g} of {row.of}" for row in YANG2026 if a.preset}
        for part in record.through:
            say(f"  think block  {_change(part.own.change)}  {CARRIERS[part.carrier]}{published.get(part.carrier, '')}")

    return execute(a, lambda subject: analyse(subject, plan), show)
