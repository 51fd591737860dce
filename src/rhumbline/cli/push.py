"""The command `push`."""

import argparse
from pathlib import Path

from rhumbline.cli.console import note, say
from rhumbline.cli.options import AddCommand


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    about = "share a run or an edited checkpoint on the Hugging Face hub"
    push = command("push", _push, about)
    push.add_argument("source", metavar="RUN|EDITED", help="run directory, or directory of an edited checkpoint")
    push.add_argument("repository", metavar="REPO", help="owner/name on the hub")
    dry = "write the files that would be uploaded to this new directory, without a network"
    push.add_argument("--dry-run", metavar="DIR", help=dry)
    license = "licence of the upload of a run, as an identifier of the hub (default: other)"
    push.add_argument("--license", default="other", metavar="NAME", help=license)
    push.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    push.add_argument("--without-report", action="store_true", help="leave out report.html of a run")


def _push(a: argparse.Namespace) -> int:
    from rhumbline.edits.hub import PushOptions, check_repository, push, shared_folder

    options = PushOptions(a.license, report=not a.without_report)
    check_repository(a.repository)
    if a.dry_run is None:
        for line in push(a.source, a.repository, options, public=a.public):
            say(line)
        return 0
    folder = Path(a.dry_run)
    for line in shared_folder(a.source, folder, options):
        note(line)
    for path in sorted(folder.iterdir()):
        say(f"{path.name}: {path.stat().st_size:,} bytes")
    visible = "public" if a.public else "private"
    note(f"nothing was uploaded; rerun without --dry-run to upload to {a.repository}, {visible} if it is new")
    return 0
