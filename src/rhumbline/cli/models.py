"""The commands `model`, `organism list` and `organism train`."""

import argparse
from pathlib import Path

from rhumbline.cli.console import err, print_entries, print_json, print_lines, say
from rhumbline.cli.option_values import load_model, quieten
from rhumbline.cli.options import MODEL_HELP, SEED, AddCommand, json_option, model_options
from rhumbline.records.codec import to_json
from rhumbline.records.directory import check_outside_runs


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    model = command("model", _model, "print the detected architecture, with its proof")
    model.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    json_option(model, "the record")
    model_options(model)

    organism = command("organism", _list, "list and train the model organisms: tiny chat models with a known truth")
    actions = organism.add_subparsers(required=True, metavar="ACTION")
    about = "list the model organisms"
    actions.add_parser("list", help=about, description=about).set_defaults(command=_list)
    about = "train a model organism, or write a planted one"
    train = actions.add_parser("train", help=about, description=about)
    train.add_argument("name", metavar="NAME", help="name of a model organism")
    train.add_argument("--out", required=True, metavar="DIR", help="new directory of the model")
    seed = "seed of the training; default: that of the embedded organism"
    train.add_argument("--seed", type=SEED, metavar="N", help=seed)
    train.set_defaults(command=_train)


def _model(a: argparse.Namespace) -> int:
    from rhumbline.models.architecture import architecture

    record = to_json(architecture(load_model(a)))
    if a.json:
        print_json(record)
    else:
        print_lines(record)
    return 0


def _list(a: argparse.Namespace) -> int:
    from rhumbline.organisms import list_organisms

    del a
    entries = []
    for organism in list_organisms():
        origin = "trained, embedded" if organism.is_embedded else "planted"
        entries.append((organism.name, [f"{origin}; expected: {organism.expected}", organism.sentence]))
    print_entries("", entries)
    return 0


def _train(a: argparse.Namespace) -> int:
    from rhumbline.organisms import train

    check_outside_runs(a.out)
    quieten()
    with err.status("") as status:

        def progress(stage: str, step: int, steps: int, loss: float) -> None:
            status.update(f"{stage}: step {step} of {steps}, loss {loss:.3f}")

        train(a.name, Path(a.out), seed=a.seed, progress=progress)
    say(f"organism: {a.out}")
    return 0
