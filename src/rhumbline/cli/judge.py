"""The command `judge`."""

import argparse
from dataclasses import replace

from rhumbline.cli.console import ends, number, out, print_json, progress, say, table_of
from rhumbline.cli.options import AddCommand, device_option, dtype_option, json_option
from rhumbline.errors import InputError
from rhumbline.records.judgement_files import JudgementSummary


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    judge = command("judge", _judge, "classify the completions of a finished run with an external judge")
    run = "directory of a finished run with texts (--save-completions)"
    judge.add_argument("run", metavar="RUN", nargs="?", help=run)
    name = "a published judge (see --list), or a TOML file that defines one"
    judge.add_argument("--judge", default=None, metavar="NAME|FILE", help=name)
    judge.add_argument("--list", action="store_true", help="list the published judges")
    model = "directory of the judge's model; default: its name on the hub"
    judge.add_argument("--model", default=None, metavar="DIR", help=model)
    judge.add_argument("--all-arms", action="store_true", help="classify the completions of null arms, too")
    device_option(judge)
    dtype_option(judge)
    json_option(judge, "the summary of all judges")


def _judge(a: argparse.Namespace) -> int:
    from rhumbline.judging.judge_specs import read_judge

    if a.list:
        return _list()
    if a.run is None or a.judge is None:
        raise InputError("judge: RUN or --judge is missing. Pass a run directory and --judge NAME|FILE, or --list.")
    spec = read_judge(a.judge)
    if a.model is not None:
        spec = replace(spec, model=a.model, revision=None)
    from rhumbline.judging.judge_models import ExternalJudge
    from rhumbline.judging.judgements import judge_run

    stage = f"judge {spec.name}"
    with progress() as shown:
        shown(stage, None)
        judge = ExternalJudge(spec, a.device, a.dtype)
        summary = judge_run(a.run, spec, judge, every_arm=a.all_arms, tick=lambda rows: shown(stage, rows))
    if a.json:
        print_json(summary)
    else:
        _print(summary, spec.name)
    return 0


def _list() -> int:
    from rhumbline.judging.judge_specs import published

    table = table_of(("name", "behaviour", "model", "licence", "description"))
    for spec in published().values():
        table.add_row(spec.name, spec.asks, spec.model, spec.licence, spec.title)
    out.print(table)
    return 0


def _print(summary: JudgementSummary, name: str) -> None:
    judge = summary.judges[name]
    share = "refused" if judge.asks == "refusal" else "unsafe"
    title = f"{name}: rate of class {share}; completions judged by this command: {judge.asked}"
    table = table_of(("seed", "arm", "set"), ("n", "rate", "95 % interval", "unscored"), title)
    for row in judge.rows:
        cells = (row.seed, row.arm, row.side, row.n, number(row.rate), ends(row.low, row.high), row.unscored)
        table.add_row(*map(str, cells))
    out.print(table)
    for pair in summary.agreement:
        if name in pair.judges:
            agreement = f"agreement {100 * pair.agreement:.0f} % of {pair.n} completions"
            say(f"{' and '.join(pair.judges)}: kappa {number(pair.kappa)}, {agreement}")
