"""The commands `verify`, `report` and `select`: everything that is computed from files alone."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from rhumbline.cli.console import err, fault, print_json, say
from rhumbline.cli.options import AddCommand
from rhumbline.records.seed_files import Selection
from rhumbline.records.shared import Site

if TYPE_CHECKING:
    from rhumbline.evidence.selection_rules import SelectionResult


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    about = "recompute the rates, effects, verdict and hashes of a run; exit code 1 if one of them differs"
    verify = command("verify", _verify, about)
    verify.add_argument("run", metavar="RUN", help="directory of a finished run")
    report = command("report", _report, "write report.html and the figures of a run again")
    report.add_argument("run", metavar="RUN", help="directory of a run, or of `discover`")
    select = command("select", _select, "apply a selection rule to a table of scores, and print the result as JSON")
    scores = "JSON file with n_layers and candidates (position, layer, bypass, induce, kl), or selection.json of a run"
    select.add_argument("scores", metavar="SCORES.json", help=scores)
    preset = "preset of the rule (default: the rule of the run, otherwise rhumbline)"
    select.add_argument("--preset", metavar="NAME", help=preset)


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


def _select(a: argparse.Namespace) -> int:
    from rhumbline.evidence.selection_rules import choose, count_discards, read_scores
    from rhumbline.presets.protocols import preset
    from rhumbline.records.artefacts import OF_SEED

    path = Path(a.scores).absolute()
    if path.name == OF_SEED[Selection] and (path.parents[1] / "protocol.json").is_file():
        selection = _selection_of_run(path, a.preset)
    else:
        candidates, n_layers = read_scores(path)
        selection = choose(candidates, n_layers, preset(a.preset or "rhumbline").selection)
    result: dict[str, object] = {
        "selected": selection.selected and _site(selection.selected),
        "survivors": selection.survivors,
        "tied": [_site(candidate) for candidate in selection.tied],
    }
    if selection.reason is not None:
        counts = count_discards(selection.candidates)
        result["reason"] = "no candidate passed: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
    print_json(result)
    return 0


def _selection_of_run(path: Path, rule: str | None) -> "SelectionResult":
    """What a preset's rule, by default the run's own, selects from the recorded scores."""
    from rhumbline.evidence.selection_rules import choose_again
    from rhumbline.presets.protocols import preset
    from rhumbline.protocol import Protocol
    from rhumbline.records.directory import RunDirectory
    from rhumbline.records.protocol_file import ProtocolContext

    directory = RunDirectory.read(path.parents[1])
    n_layers = directory.read_protocol(ProtocolContext).model.n_layers
    protocol = Protocol.of(directory.protocol) if rule is None else preset(rule)
    return choose_again(directory.read_as(Selection, path), n_layers, protocol.selection)


def _site(candidate: Site) -> dict[str, int]:
    return {"position": int(candidate.position), "layer": candidate.layer}
