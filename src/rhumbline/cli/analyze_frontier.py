"""The command `analyze frontier`."""

import argparse

from rhumbline.cli.console import NOT_MEASURED, interval, number, say
from rhumbline.cli.option_values import reals
from rhumbline.cli.run_analysis import defaults, execute, number_options, plan_of, quick_option, run_options
from rhumbline.records.frontier_file import INTERVENTIONS, QUICK, REFERENCE, FrontierPlan, FrontierRecord

NUMBERS = {
    "prompts": ("test prompts per class, at most", 2),
    "kl_prompts": ("negatives along whose answers the KL is measured, at most", 2),
    "max_new_tokens": ("tokens of a completion, at most", 1),
    "draws": ("random vectors of each null", 1),
    "steps": ("steps of the gradient search of the cone", 1),
}


def frontier_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze frontier`."""
    run_options(parser)
    plan = FrontierPlan()
    quick_option(parser)
    text = f"doses: trajectory KL on harmless answers, nats per token ({defaults(plan.doses, QUICK.doses)})"
    parser.add_argument("--doses", metavar="X,Y", help=text)
    text = f"interventions, always with {REFERENCE}: {', '.join(INTERVENTIONS)} (default: all)"
    parser.add_argument("--interventions", metavar="A,B", help=text)
    number_options(parser, plan, NUMBERS, QUICK)
    parser.add_argument("--ask", metavar="TEXT", help=f"system prompt that asks for it (default: {plan.system!r})")


def frontier(a: argparse.Namespace) -> int:
    """Execute `analyze frontier`."""
    from rhumbline.analyses.frontier import analyse

    plan = plan_of(
        a,
        QUICK if a.quick else FrontierPlan(),
        NUMBERS,
        doses=None if a.doses is None else reals(a.doses, "--doses"),
        interventions=a.interventions and tuple(name.strip() for name in a.interventions.split(",")),
        system=a.ask,
    )

    def show(record: FrontierRecord) -> None:
        say("trajectory KL at which half of the behaviour is lost, and the rate left at each dose")
        for curve in record.curves:
            half = "not lost" if curve.half is None else interval(curve.half.kl, curve.half.low, curve.half.high, 4)
            left = (
                f"{d:g}: {NOT_MEASURED if (r := p.remaining) is None else number(r.rate)}"
                for d, p in curve.dosed.items()
            )
            say(f"  {curve.name:20s}  {curve.unavailable or half}  {'  '.join(left)}")
        answers = record.answers
        say(f"one direction: {answers.one_direction}: {answers.one_direction_reason}")
        say(f"at equal cost: {answers.at_equal_cost}: {answers.at_equal_cost_reason}")
        say(f"random vectors: {answers.nulls}: {answers.nulls_reason}")

    return execute(a, lambda subject: analyse(subject, plan), show, "direction", "classes")
