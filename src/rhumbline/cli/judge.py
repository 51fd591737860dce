"""The command `judge`."""

import argparse
from dataclasses import replace

from rhumbline.cli.console import ends, interval, number, out, print_entries, print_json, progress, say, table_of
from rhumbline.cli.option_values import quieten, refuse_options
from rhumbline.cli.options import AddCommand, device_option, dtype_option, json_option
from rhumbline.errors import InputError
from rhumbline.records.codec import to_json
from rhumbline.records.human_files import Estimate, HumanLabels
from rhumbline.records.judgement_files import JudgementSummary


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    about = "classify the completions of a finished run with an external judge, or read human labels of them"
    judge = command("judge", _judge, about)
    run = "directory of a finished run with texts (--save-completions)"
    judge.add_argument("run", metavar="RUN", nargs="?", help=run)
    name = "a published judge (see --list), or a TOML file that defines one"
    judge.add_argument("--judge", default=None, metavar="NAME|FILE", help=name)
    human = "filled label sheet of the run (`rhumbline label`); repeat the option for the sheet of another annotator"
    judge.add_argument("--human", default=None, action="append", metavar="SHEET", help=human)
    judge.add_argument("--list", action="store_true", help="list the published judges")
    model = "directory of the judge's model; default: its name on the hub"
    judge.add_argument("--model", default=None, metavar="DIR", help=model)
    judge.add_argument("--all-arms", action="store_true", help="classify the completions of null arms, too")
    device_option(judge)
    dtype_option(judge)
    json_option(judge, "the summary of all judges, what follows from the labels, or the published judges,")


def _judge(a: argparse.Namespace) -> int:
    from rhumbline.judging.judge_specs import read_judge

    if a.list:
        return _list(a)
    if a.run is None or (a.judge is None) == (a.human is None):
        raise InputError("judge: pass a run directory with either --judge NAME|FILE or --human SHEET, or pass --list.")
    if a.human is not None:
        refuse_options(a, "--human", "model", "all_arms", "device", "dtype")
        return _human(a)
    spec = read_judge(a.judge)
    if spec.form == "endpoint":
        refuse_options(a, "a judge at an endpoint", "device", "dtype")
    if a.model is not None:
        spec = replace(spec, model=a.model, revision=None)
    from rhumbline.judging.judge_models import ExternalJudge
    from rhumbline.judging.judgements import judge_run

    quieten()
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


def _list(a: argparse.Namespace) -> int:
    from rhumbline.judging.judge_specs import published

    refuse_options(a, "--list", "judge", "human", "model", "all_arms", "device", "dtype")
    if a.json:
        print_json({name: to_json(spec) for name, spec in published().items()})
        return 0
    print_entries("", ((s.name, [s.title, f"{s.asks}; {s.model}; {s.licence}"]) for s in published().values()))
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


# -- human labels -----------------------------------------------------------------------------------------------------


def _human(a: argparse.Namespace) -> int:
    from rhumbline.judging.label_results import apply_labels

    record = apply_labels(a.run, a.human)
    if a.json:
        print_json(record)
    else:
        _print_labels(record)
        say(f"Next: `rhumbline report {a.run}` writes the report with these numbers.")
    return 0


def _print_labels(record: HumanLabels) -> None:
    for sheet in record.sheets:
        say(f"{sheet.name}: {sheet.labelled} of {sheet.rows} rows have a label, {sheet.unclear} of them unclear")
    for pair in record.agreement:
        agreement = f"agreement {100 * pair.agreement:.0f} % of {pair.n} rows"
        say(f"{' and '.join(pair.judges)}: kappa {number(pair.kappa)}, {agreement}")
    table = table_of(
        ("arm",), ("labels", "sensitivity", "specificity"), f"judge {record.judge}, compared with the labels"
    )
    for row in record.accuracy:
        table.add_row(str(row.arm), str(row.sensitivity.labelled), _shown(row.sensitivity), _shown(row.specificity))
    out.print(table)
    columns = ("n", "labels", "judge", "corrected")
    table = table_of(("seed", "arm", "set", "share"), columns, "rates [95 % interval]")
    for rate in (r for r in record.rates if r.of == "behaviour" or r.judged.value or r.corrected.value):
        table.add_row(_seed(rate.seed), str(rate.arm), rate.side, rate.of, *_cells(rate.judged, rate.corrected))
    out.print(table)
    table = table_of(("seed", "arm", "set", "effect"), columns, "effects, baseline to arm [95 % interval]")
    for effect in record.effects:
        texts = _seed(effect.seed), str(effect.arm), effect.side, effect.name or ""
        table.add_row(*texts, *_cells(effect.judged, effect.corrected))
    out.print(table)
    if record.needed:
        say(f"For every rate, label these rows, too: {', '.join(record.needed)}")


def _seed(seed: int | None) -> str:
    return "all" if seed is None else str(seed)


def _cells(judged: Estimate, corrected: Estimate) -> tuple[str, ...]:
    return str(corrected.n), str(corrected.labelled), _shown(judged), _shown(corrected)


def _shown(estimate: Estimate) -> str:
    return interval(estimate.value, estimate.low, estimate.high)
