"""The command `model`."""

import argparse

from rhumbline.cli.console import out, print_json, say
from rhumbline.cli.options import MODEL_HELP, AddCommand, json_option, load_model, model_options
from rhumbline.records.codec import to_json


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    model = command("model", _model, "print the detected architecture, with its proof")
    model.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    json_option(model, "the record")
    model_options(model)


def _model(a: argparse.Namespace) -> int:
    from rhumbline.models.architecture import architecture

    record = to_json(architecture(load_model(a)))
    if a.json:
        print_json(record)
        return 0
    for name, value in record.items():
        out.print(f"[bold]{name}[/]")
        for line in value if isinstance(value, list) else [value]:
            say(f"  {line}")
    return 0
