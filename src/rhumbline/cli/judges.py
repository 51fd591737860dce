"""The command `judge`: what other judges say of a run's completions. Options and printing; computes nothing itself."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table

from rhumbline.cli.console import Progress, out, text_table

if TYPE_CHECKING:
    from rhumbline.records.judgement_files import JudgementSummary


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser; `command(name, run, text)` makes one."""
    judge = command("judge", _judge, "what other judges say of a finished run's completions")
    judge.add_argument("run", metavar="RUN", nargs="?", help="run directory, made with --save-completions")
    judge.add_argument("--judge", default=None, metavar="NAME|FILE", help="a published judge, or a judge file (TOML)")
    judge.add_argument("--list", action="store_true", help="the published judges")
    judge.add_argument("--model", default=None, metavar="DIR", help="where the judge's model lies, if not on the hub")
    judge.add_argument("--all-arms", action="store_true", help="the null arms too")
    judge.add_argument("--device", default=None, help="cpu, cuda, cuda:1, auto; default: the first GPU")
    judge.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16")
    judge.add_argument("--json", action="store_true", help="print the summary on standard output")


def _judge(a: argparse.Namespace) -> int:
    from dataclasses import replace

    from rhumbline.errors import InputError
    from rhumbline.judging.judge_specs import read_judge

    if a.list:
        return _list()
    if a.run is None or a.judge is None:
        raise InputError("give a run directory and --judge NAME|FILE, or --list.")
    spec = read_judge(a.judge)
    if a.model is not None:
        spec = replace(spec, model=a.model, revision=None)
    from rhumbline.judging.judge_models import ExternalJudge
    from rhumbline.judging.judgements import judge_run
    from rhumbline.records.codec import to_json

    progress = Progress()
    try:
        progress(f"judge {spec.name}", None)
        summary = judge_run(
            a.run,
            spec,
            ExternalJudge(spec, a.device, a.dtype),
            every_arm=a.all_arms,
            tick=lambda rows: progress(f"judge {spec.name}", rows),
        )
    finally:
        progress.close()
    if a.json:
        print(json.dumps(to_json(summary), ensure_ascii=False))
        return 0
    _print(summary, spec.name)
    return 0


def _list() -> int:
    from rhumbline.judging.judge_specs import published

    table = text_table("name", "asks", "model", "licence", "what it says")
    for spec in published().values():
        table.add_row(spec.name, spec.asks, spec.model, spec.licence, spec.title)
    out.print(table)
    return 0


def _print(summary: "JudgementSummary", name: str) -> None:
    judge = summary.judges[name]
    word = "refused" if judge.asks == "refusal" else "unsafe"
    table = Table(title=f"{name}: share {word}; {judge.asked} asked now", title_justify="left", box=None)
    for column in ("seed", "arm", "set", "n", "rate", "95 % interval", "unscored"):
        table.add_column(column, justify="left" if column in ("arm", "set") else "right")
    for row in judge.rows:
        rate = "-" if row.rate is None else f"{row.rate:.2f}"
        span = f"{row.low:.2f} - {row.high:.2f}"
        table.add_row(str(row.seed), str(row.arm), row.side, str(row.n), rate, span, str(row.unscored))
    out.print(table)
    for pair in summary.agreement:
        if name in pair.judges:
            kappa = "-" if pair.kappa is None else f"{pair.kappa:.2f}"
            shown = f"{' and '.join(pair.judges)}: kappa {kappa}, agree on {pair.agreement:.0%} of {pair.n}"
            out.print(shown, markup=False, highlight=False)
