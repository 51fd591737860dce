"""The analyses of what a direction does and how: `analyze trajectory`, `analyze meaning` and `analyze circuit`."""

import argparse
from pathlib import Path

from rhumbline.cli.console import NOT_MEASURED, interval, say
from rhumbline.cli.option_values import integers
from rhumbline.cli.options import suffix_options
from rhumbline.cli.run_analysis import defaults, execute, number_options, plan_of, quick_option, run_options
from rhumbline.errors import InputError
from rhumbline.records import circuit_file, meaning_file, trajectory_file
from rhumbline.records.analysis_files import MeanRate, Need
from rhumbline.records.circuit_file import CircuitPlan, CircuitRecord
from rhumbline.records.meaning_file import MeaningPlan, MeaningRecord
from rhumbline.records.trajectory_file import YANG2026, TrajectoryPlan, TrajectoryRecord

PRESETS = {"yang2026": trajectory_file.LONG}
"""Plans of published experiments."""


def _change(value: MeanRate | None) -> str:
    return NOT_MEASURED if value is None else interval(value.mean, value.low, value.high)


# -- trajectory -------------------------------------------------------------------------------------------------------


TRAJECTORY = {
    "draws": ("isotropic null directions", 1),
    "prompts": ("test prompts per class, at most", 2),
    "max_new_tokens": ("tokens of a completion, at most", 2),
}


def trajectory_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze trajectory`."""
    run_options(parser)
    sizes = parser.add_mutually_exclusive_group()
    quick_option(sizes)
    text = "the sizes for a reasoning model; the think block is compared with arXiv 2605.26772"
    sizes.add_argument("--preset", choices=PRESETS, metavar="NAME", help=f"{', '.join(PRESETS)}: {text}")
    plan = TrajectoryPlan()
    tokens = defaults(plan.tokens, trajectory_file.QUICK.tokens)
    text = f"numbers of tokens that divide the completion into the first ones and the rest ({tokens})"
    parser.add_argument("--tokens", metavar="K,K", help=text)
    number_options(parser, plan, TRAJECTORY, trajectory_file.QUICK)


def trajectory(a: argparse.Namespace) -> int:
    """Execute `analyze trajectory`."""
    from rhumbline.analyses.trajectory import analyse
    from rhumbline.report.trajectory_section import CARRIERS, window_name

    plan = trajectory_file.QUICK if a.quick else PRESETS.get(a.preset, TrajectoryPlan())
    tokens = None if a.tokens is None else integers(a.tokens, "--tokens")
    plan = plan_of(a, plan, TRAJECTORY, tokens=tokens)

    def show(record: TrajectoryRecord) -> None:
        for row in record.windows:
            nulls = [n.mean for n in row.nulls.values() if n.mean is not None]
            largest = f", largest null family {max(nulls):.2f}" if nulls else ""
            say(f"  {row.effect:11s}  {_change(row.own.change)}  {window_name(row)}{largest}")
        published = {row.carrier: f"; published: {row.reversal:g} of {row.of}" for row in YANG2026 if a.preset}
        for part in record.through:
            say(f"  think block  {_change(part.own.change)}  {CARRIERS[part.carrier]}{published.get(part.carrier, '')}")

    return execute(a, lambda subject: analyse(subject, plan), show, "classes")


# -- meaning ----------------------------------------------------------------------------------------------------------


MEANING = {
    "prompts": ("prompts of each content and group, at most; one half is fitted, the other measured", 4),
    "draws": ("isotropic null directions", 1),
    "max_new_tokens": ("tokens of a completion, at most", 1),
}


def meaning_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze meaning`."""
    run_options(parser)
    quick_option(parser)
    group = parser.add_argument_group("battery", "prompts to measure; default: those of the run, by their labels")
    columns = "JSON Lines or CSV with prompt, content (harmful or harmless), group, first_prompt, first_reply"
    group.add_argument("--battery", metavar="FILE", help=columns)
    for content in ("harmful", "harmless"):
        text = f"declared sets of {content} prompts, such as {SETS[content]} (see `rhumbline data list`)"
        group.add_argument(f"--{content}", metavar="SET,SET", help=text)
    plan = MeaningPlan()
    number_options(parser, plan, MEANING, meaning_file.QUICK)


SETS = {"harmful": "xstest-unsafe", "harmless": "xstest-safe"}


def meaning(a: argparse.Namespace) -> int:
    """Execute `analyze meaning`."""
    from rhumbline.analyses.meaning import analyse
    from rhumbline.prompts.batteries import of_sets, read_battery
    from rhumbline.report.meaning_section import QUANTITIES, effect_name

    if bool(a.harmful) != bool(a.harmless) or (a.battery and a.harmful):
        raise InputError("analyze meaning: --harmful and --harmless are given together, and without --battery.")
    battery = () if a.battery is None else read_battery(a.battery)
    if a.harmful:
        battery = of_sets(a.harmful.split(","), a.harmless.split(","), a.data_dir)
        # The directory then holds the sets; a contrast file has none.
        a.data_dir = None if a.contrast and Path(a.contrast).is_file() else a.data_dir
    plan = plan_of(a, meaning_file.QUICK if a.quick else MeaningPlan(), MEANING)

    def show(record: MeaningRecord) -> None:
        say(f"{record.answer}: {record.sentence}")
        for row in record.effects:
            share = interval(row.effect.mean, row.effect.low, row.effect.high)
            say(f"  {effect_name(row)}: {share} of the difference in {QUANTITIES[row.quantity]}")
        say(f"cosine with the harmfulness direction {record.harm.cosine:.2f} (random {record.harm.random:.2f})")

    return execute(a, lambda subject: analyse(subject, battery, plan), show, "direction", "token metric", "classes")


# -- circuit ----------------------------------------------------------------------------------------------------------


CIRCUIT = {
    "draws": ("random sets of other heads and MLPs of every size", 1),
    "prompts": ("test positives, at most", 2),
    "max_new_tokens": ("tokens of a completion under a suffix, at most", 1),
}


def circuit_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze circuit`."""
    run_options(parser)
    quick_option(parser)
    plan = CircuitPlan()
    sizes = defaults(plan.sizes, circuit_file.QUICK.sizes)
    text = f"numbers of heads and MLPs that are patched together ({sizes})"
    parser.add_argument("--sizes", metavar="N,N", help=text)
    suffix_options(parser, required=False)
    number_options(parser, plan, CIRCUIT, circuit_file.QUICK)


def circuit(a: argparse.Namespace) -> int:
    """Execute `analyze circuit`."""
    from rhumbline.analyses.circuit import analyse
    from rhumbline.report.circuit_section import part_name, set_name

    sizes = None if a.sizes is None else integers(a.sizes, "--sizes")
    plan = plan_of(a, circuit_file.QUICK if a.quick else CircuitPlan(), CIRCUIT, sizes=sizes, random=a.random)

    def show(record: CircuitRecord) -> None:
        for condition in record.conditions:
            say(f"{condition.name}: share of the difference that is carried, by quantity")
            for one in condition.sets:
                shares = (f"{s.quantity} {interval(s.share.mean, s.share.low, s.share.high)}" for s in one.shares)
                say(f"  {set_name(one):10s}  " + "  ".join(shares))
        for row in record.completions:
            rate = NOT_MEASURED if row.rate is None else interval(row.rate.rate, row.rate.low, row.rate.high)
            say(f"completions, {row.name}: rate {rate}")
        say("first: " + ", ".join(part_name(part) for part in record.parts[:6]))

    needs: list[Need] = ["direction", "token metric", *(["classes"] if a.suffix else [])]
    return execute(a, lambda subject: analyse(subject, plan, a.suffix or ()), show, *needs)
