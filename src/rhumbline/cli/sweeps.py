"""The commands over many runs: `sweep` and `compare`. Options and printing; computes nothing itself."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from rhumbline.cli.console import err, out
from rhumbline.cli.options import engine_of, engine_options


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser; `command(name, run, text)` makes one."""
    sweep = command("sweep", _sweep, "models x contrasts x presets x seeds, and the page that compares them")
    sweep.add_argument("sweep", metavar="SWEEP.toml", help="models, contrasts, presets, seeds, [model], [protocol]")
    sweep.add_argument("--out", default=None, metavar="DIR", help="directory of the sweep; the same command resumes")
    sweep.add_argument("--plan", action="store_true", help="say what every run needs, and run nothing")
    sweep.add_argument("--json", action="store_true", help="print the plan or the comparison on standard output")
    engine_options(sweep)
    device = sweep.add_argument_group("plan", "what a GPU is taken to do")
    device.add_argument("--gpu-memory", type=float, default=None, metavar="GB", help="default: 80")
    device.add_argument("--gpu-tflops", type=float, default=None, metavar="N", help="reached while reading prompts")
    device.add_argument("--gpu-bandwidth", type=float, default=None, metavar="TB/S", help="reached while generating")

    compare = command("compare", _compare, "one page and one table of any finished runs")
    compare.add_argument("runs", metavar="RUN", nargs="+")
    compare.add_argument("--out", required=True, metavar="DIR")
    compare.add_argument("--json", action="store_true", help="print the table on standard output")


def _sweep(a: argparse.Namespace) -> int:
    from rhumbline.errors import InputError
    from rhumbline.jobs.sweeps import read_sweep, run_sweep

    sweep, engine = read_sweep(a.sweep), engine_of(a)
    sweep.cells()
    if a.plan:
        return _plan(a, sweep, engine)
    if a.out is None:
        raise InputError("give --out DIR, or --plan to run nothing.")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    def progress(text: str) -> None:
        err.print(f"[dim]{escape(text)}[/]")

    swept = run_sweep(sweep, a.out, engine, progress=progress)
    _print(a, swept.rows, swept.failures, swept.page)
    return 1 if swept.failures else 0


def _plan(a: argparse.Namespace, sweep: Any, engine: Any) -> int:
    from rhumbline.jobs.sizing import Device
    from rhumbline.jobs.sweeps import plan

    given = {
        "memory": a.gpu_memory and a.gpu_memory * 1e9,
        "flops": a.gpu_tflops and a.gpu_tflops * 1e12,
        "bandwidth": a.gpu_bandwidth and a.gpu_bandwidth * 1e12,
    }
    device = replace(Device(), **{k: v for k, v in given.items() if v is not None})
    planned = plan(sweep, gpus=a.gpus_per_replica or 1, device=device)
    if a.json:
        rows = [
            {"run": p.cell.name, "parameters": p.parameters, "note": p.note,
             **(p.estimate._asdict() if p.estimate else {})}
            for p in planned
        ]  # fmt: skip
        print(json.dumps({"engine": engine.name, "device": vars(device), "jobs": rows}))
        return 0
    table = Table(title=f"{len(planned)} jobs on {engine.name}", title_justify="left", box=None)
    for column in ("run", "parameters", "GB per GPU", "hours", ""):
        table.add_column(column, justify="left" if column in ("run", "") else "right", overflow="fold")
    for p in planned:
        size = "-" if p.parameters is None else f"{p.parameters / 1e9:.2f} B"
        memory = "-" if p.estimate is None else f"{p.estimate.memory_per_gpu / 1e9:.1f}"
        hours = "-" if p.estimate is None or p.estimate.seconds is None else f"{p.estimate.seconds / 3600:.2f}"
        table.add_row(escape(p.cell.name), size, memory, hours, escape(p.note))
    out.print(table)
    known = [p.estimate.seconds for p in planned if p.estimate is not None and p.estimate.seconds is not None]
    out.print(
        f"Together {sum(known) / 3600:.2f} h of one replica, if a GPU reaches {device.flops / 1e12:.0f} TFLOP/s on "
        f"prompts and {device.bandwidth / 1e12:.1f} TB/s while generating. An estimate: see docs/scale.md.",
        highlight=False,
    )
    return 0


def _compare(a: argparse.Namespace) -> int:
    from rhumbline.report import comparison as comparing
    from rhumbline.report import comparison_page

    rows, failures = comparing.gather(comparing.named(a.runs))
    folder = Path(a.out)
    comparing.write_tables(rows, failures, folder)
    _print(a, rows, failures, comparison_page.build(rows, failures, folder))
    return 1 if failures else 0


def _print(a: argparse.Namespace, rows: Any, failures: Any, page: Path) -> None:
    from rhumbline.report.comparison import table_json

    if a.json:
        print(json.dumps(table_json(rows, failures), ensure_ascii=False))
    else:
        table = Table(box=None)
        for column in ("run", "seed", "verdict", "suppression", "induction", "layer"):
            table.add_column(column, justify="left" if column in ("run", "verdict") else "right", overflow="fold")
        for row in rows:
            effects = ["-" if e is None else f"{e:.2f}" for e in (row.suppression, row.induction)]
            layer = "-" if row.layer is None else f"{row.layer}/{row.layers}"
            table.add_row(escape(row.run), str(row.seed), row.verdict, *effects, layer)
        out.print(table)
        out.print(f"page: {page}", markup=False, highlight=False)
    for failure in failures:
        err.print(f"[bold red]failed:[/] {escape(failure.run)}: {escape(failure.reason)}", soft_wrap=True)
