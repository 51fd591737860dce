"""`organism list` and `organism train`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rhumbline.cli.console import err, out, text_table


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser; `command(name, run, text)` makes one."""
    organism = command("organism", _organism_list, "the model organisms")
    actions = organism.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what there is")
    listing.set_defaults(command=_organism_list)
    train = actions.add_parser("train", help="train one anew, or write a planted one")
    train.add_argument("name", metavar="NAME")
    train.add_argument("--out", required=True, metavar="DIR")
    train.add_argument("--seed", type=int, default=None, help="default: the seed of the shipped one")
    train.set_defaults(command=_organism_train)


def _organism_list(a: argparse.Namespace) -> int:
    from rhumbline.organisms import list_organisms

    del a
    table = text_table("name", "made", "expected verdict", "what it is")
    for organism in list_organisms():
        made = "trained, embedded" if organism.is_embedded else "written"
        table.add_row(organism.name, made, organism.expected, organism.sentence)
    out.print(table)
    return 0


def _organism_train(a: argparse.Namespace) -> int:
    from rhumbline.organisms import train

    with err.status("") as status:

        def progress(stage: str, step: int, steps: int, loss: float) -> None:
            status.update(f"{stage}: step {step} of {steps}, loss {loss:.3f}")

        train(a.name, Path(a.out), seed=a.seed, progress=progress)
    out.print(f"organism: {a.out}", markup=False, highlight=False)
    return 0
