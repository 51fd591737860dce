"""The commands `verify` and `report`."""

import argparse
from pathlib import Path

from rich.markup import escape

from rhumbline.cli.console import err, fault, say
from rhumbline.cli.options import AddCommand


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    about = "recompute the rates, effects, verdict and hashes of a run; exit code 1 if one of them differs"
    verify = command("verify", _verify, about)
    verify.add_argument("run", metavar="RUN", help="directory of a finished run")
    report = command("report", _report, "write report.html and the figures of a run again")
    report.add_argument("run", metavar="RUN", help="directory of a run, or of `discover`")


def _verify(a: argparse.Namespace) -> int:
    from rhumbline.verification import check

    differences, notes = check(a.run)
    for text in notes:
        err.print(escape(text), soft_wrap=True)
    for difference in differences:
        fault(difference, "does not verify:")
    if differences:
        return 1
    say(f"{a.run}: every hash, rate and effect and the verdict were verified; timings and environment were not.")
    return 0


def _report(a: argparse.Namespace) -> int:
    from rhumbline.records.artefacts import OF_RUN
    from rhumbline.records.run_files import Discovery
    from rhumbline.report import build as report

    folder = Path(a.run)
    page = report.build_discover(folder) if (folder / OF_RUN[Discovery]).is_file() else report.build(folder)
    say(f"report: {page}")
    return 0
