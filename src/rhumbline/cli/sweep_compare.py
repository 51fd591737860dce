"""The commands `sweep` and `compare`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from rhumbline.cli.console import fault, note, number, out, print_json, say, table_of
from rhumbline.cli.option_values import engine_of
from rhumbline.cli.options import AddCommand, engine_options, json_option, real
from rhumbline.errors import InputError
from rhumbline.jobs.sizing import Device
from rhumbline.records.directory import check_outside_runs


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    about = "run every combination of models, contrasts, presets and seeds, and compare the runs on one page"
    sweep = command("sweep", _sweep, about)
    file = "models, contrasts, presets and seeds, with the tables [model] and [protocol]"
    sweep.add_argument("sweep", metavar="SWEEP.toml", help=file)
    directory = "directory of the sweep; the same command resumes; required without --plan"
    sweep.add_argument("--out", metavar="DIR", help=directory)
    plan = "print the estimated memory and time of every run, and stop"
    sweep.add_argument("--plan", action="store_true", help=plan)
    json_option(sweep, "the plan or the comparison")
    engine_options(sweep)
    device = sweep.add_argument_group("plan", "assumptions about a GPU, for --plan")
    gpu = Device()
    for name, unit, text, default in (
        ("memory", "GB", "memory, GB", gpu.memory / 1e9),
        ("tflops", "N", "operations reached while prompts are read, TFLOP/s", gpu.flops / 1e12),
        ("bandwidth", "TB/S", "memory bandwidth reached during generation, TB/s", gpu.bandwidth / 1e12),
    ):
        about = f"{text} (default: {default:g})"
        device.add_argument(f"--gpu-{name}", type=real(above=0), default=default, metavar=unit, help=about)

    compare = command("compare", _compare, "write one page and tables that compare finished runs")
    compare.add_argument("runs", metavar="RUN", nargs="+", help="directory of a finished run")
    compare.add_argument("--out", required=True, metavar="DIR", help="directory of the page and the tables")
    json_option(compare, "the table")


def _sweep(a: argparse.Namespace) -> int:
    from rhumbline.jobs.sweeps import read_sweep, run_sweep

    sweep, engine = read_sweep(a.sweep), engine_of(a)
    if a.out is not None:
        check_outside_runs(a.out)
    if a.plan:
        return _plan(a, sweep, engine)
    if a.out is None:
        raise InputError("sweep: --out is missing. Pass --out DIR, or --plan to run nothing.")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    swept = run_sweep(sweep, a.out, engine, progress=note)
    _print(a, swept.rows, swept.failures, swept.page)
    return 1 if swept.failures else 0


def _plan(a: argparse.Namespace, sweep: Any, engine: Any) -> int:
    from rhumbline.jobs.sweeps import plan

    device = replace(Device(), memory=a.gpu_memory * 1e9, flops=a.gpu_tflops * 1e12, bandwidth=a.gpu_bandwidth * 1e12)
    planned = plan(sweep, gpus=a.gpus_per_replica or 1, device=device)
    if a.json:
        jobs = [
            {
                "run": p.cell.name,
                "parameters": p.parameters,
                "note": p.note,
                **(p.estimate._asdict() if p.estimate else {}),
            }
            for p in planned
        ]
        print_json({"engine": engine.name, "device": vars(device), "jobs": jobs})
        return 0
    title = f"{len(planned)} jobs on {engine.name}"
    table = table_of(("run",), ("parameters", "GB per GPU", "hours"), title)
    table.add_column("", overflow="fold")
    for p in planned:
        size = "-" if p.parameters is None else f"{p.parameters / 1e9:.2f} B"
        memory = "-" if p.estimate is None else f"{p.estimate.memory_per_gpu / 1e9:.1f}"
        hours = "-" if p.estimate is None or p.estimate.seconds is None else f"{p.estimate.seconds / 3600:.2f}"
        table.add_row(escape(p.cell.name), size, memory, hours, escape(p.note))
    out.print(table)
    seconds = [p.estimate.seconds for p in planned if p.estimate is not None and p.estimate.seconds is not None]
    say(
        f"Total: {sum(seconds) / 3600:.2f} h of one replica, assuming a GPU that reaches {device.flops / 1e12:.0f} "
        f"TFLOP/s on prompts and {device.bandwidth / 1e12:.1f} TB/s during generation (estimated, see docs/scale.md)."
    )
    return 0


def _compare(a: argparse.Namespace) -> int:
    from rhumbline.report import comparison as comparing
    from rhumbline.report import comparison_page

    runs = comparing.named(a.runs)
    rows, failures = comparing.gather(runs)
    if not rows:
        reasons = "; ".join(f"{failure.run}: {failure.reason}" for failure in failures)
        raise InputError(f"compare: none of {', '.join(a.runs)} is a finished run ({reasons}). Pass others.")
    folder = Path(a.out)
    check_outside_runs(folder)
    comparing.write_tables(rows, failures, folder)
    _print(a, rows, failures, comparison_page.build(rows, failures, folder, folders=runs))
    return 1 if failures else 0


def _print(a: argparse.Namespace, rows: Sequence[Any], failures: Sequence[Any], page: Path) -> None:
    from rhumbline.report.comparison import table_json

    if a.json:
        print_json(table_json(rows, failures))
    else:
        table = table_of(("run",), ("seed",))
        table.add_column("verdict", overflow="fold")
        for column in ("suppression", "induction", "layer"):
            table.add_column(column, justify="right")
        for row in rows:
            layer = "-" if row.layer is None else f"{row.layer}/{row.layers}"
            effects = (number(row.suppression), number(row.induction))
            table.add_row(escape(row.run), str(row.seed), row.verdict, *effects, layer)
        out.print(table)
        say(f"page: {page}")
    for failure in failures:
        fault(f"{failure.run}: {failure.reason}", "failed:")
