"""The command `label`."""

import argparse

from rhumbline.cli.console import say
from rhumbline.cli.options import COUNT, AddCommand


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    about = "write a sheet of completions for a person to label, without their arms, to measure the judge of the run"
    label = command("label", _label, about)
    label.add_argument("run", metavar="RUN", help="directory of a finished run with texts (--save-completions)")
    label.add_argument(
        "--n", type=COUNT, default=60, metavar="N", help="completions in the sheet (default: %(default)s)"
    )
    out = "CSV file of the sheet, outside the run directory; default: RUN-labels.csv beside it"
    label.add_argument("--out", default=None, metavar="SHEET", help=out)


def _label(a: argparse.Namespace) -> int:
    from rhumbline.judging.label_sheets import write_sheet

    sheet = write_sheet(a.run, a.n, a.out)
    say(f"{sheet.path}: {sheet.rows} of {sheet.available} different completions, drawn from every arm and class")
    if sheet.thin:
        say(
            f"{sheet.thin} of {sheet.strata} strata (arm, set and class of the judge) have one row each, which says "
            "little about the others: intervals will be wide. Write a sheet with a larger --n for narrower ones."
        )
    say(f"Next: fill the column label with {', '.join(sheet.labels)}, save the file as CSV,")
    say(f"then run `rhumbline judge {a.run} --human {sheet.path}`.")
    return 0
