"""The command `select`."""

import argparse
from typing import Any

from rhumbline.cli.console import print_json
from rhumbline.cli.options import AddCommand


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    select = command("select", _select, "apply a selection rule to a table of scores, and print the result as JSON")
    scores = "JSON file with n_layers and candidates (position, layer, bypass, induce, kl)"
    select.add_argument("scores", metavar="SCORES.json", help=scores)
    select.add_argument(
        "--preset", default="rhumbline", metavar="NAME", help="preset of the rule (default: %(default)s)"
    )


def _select(a: argparse.Namespace) -> int:
    from rhumbline.evidence.selection_rules import choose, count_discards, read_scores
    from rhumbline.protocol import preset

    candidates, n_layers = read_scores(a.scores)
    selection = choose(candidates, n_layers, preset(a.preset).selection)

    def site(candidate: Any) -> dict[str, int]:
        return {"position": int(candidate.position), "layer": candidate.layer}

    result: dict[str, object] = {
        "selected": site(selection.selected) if selection.selected else None,
        "survivors": selection.survivors,
        "tied": [site(candidate) for candidate in selection.tied],
    }
    if selection.reason is not None:
        counts = count_discards(selection.candidates)
        result["reason"] = "no candidate passed: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
    print_json(result)
    return 0
