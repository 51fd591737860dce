"""The command `reproduce`."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from rich.markup import escape

from rhumbline.cli.console import (
    NOT_MEASURED,
    ends,
    out,
    print_entries,
    print_json,
    print_plan,
    print_results,
    progress,
    say,
    table_of,
)
from rhumbline.cli.next_steps import print_next
from rhumbline.cli.option_values import load_model, refuse_options, sizes_of
from rhumbline.cli.options import (
    AddCommand,
    data_dir_option,
    json_option,
    max_new_tokens_option,
    model_options,
    texts_option,
)
from rhumbline.errors import InputError
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import check_output
from rhumbline.records.next_steps import after_run, lines, prompt_options
from rhumbline.records.results import Results
from rhumbline.records.run_files import Figure, FigureComparison, FigureStatus, Reproduction

OF_RUN = (
    *("out", "contrast", "sizes", "max_new_tokens", "loss_text", "save_completions"),
    *("device", "dtype", "coarse", "trust_remote_code"),
)
"""Options of the run itself."""
SIGNS = {True: "[green]ok[/]     ", False: "[red]fault[/]  ", None: "[dim]unknown[/]"}


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    about = "run a model of the paper or of the blog again, and compare its figures with the published ones"
    reproduce = command("reproduce", _reproduce, about)
    name = "name of a published model, such as llama-3-8b (see --list)"
    reproduce.add_argument("name", metavar="NAME", nargs="?", help=name)
    reproduce.add_argument("--list", action="store_true", help="list the published models")
    dry = "check tokenizer and data without the weights; exit code 1 if a check fails"
    reproduce.add_argument("--dry-run", action="store_true", help=dry)
    reproduce.add_argument("--model", metavar="DIR", help="directory of the model; default: the hub")
    reproduce.add_argument("--out", metavar="RUN", help="run directory (default: runs/NAME)")
    data_dir_option(reproduce)
    reproduce.add_argument("--contrast", metavar="FILE|NAME", help="contrast that replaces the published one")
    sizes = "prompts per class in train, validation and test; default: the published ones"
    reproduce.add_argument("--sizes", metavar="128,32,100", help=sizes)
    max_new_tokens_option(reproduce, None, "the published number")
    texts_option(reproduce)
    texts = "write the text of every completion, for `rhumbline judge`"
    reproduce.add_argument("--save-completions", action="store_true", help=texts)
    json_option(reproduce, "the comparison")
    model_options(reproduce)


def _reproduce(a: argparse.Namespace) -> int:
    from rhumbline.presets.published_models import published_model

    if a.list:
        refuse_options(a, "--list", "dry_run", *OF_RUN, "model", "data_dir")
        return _list(a)
    if a.name is None:
        raise InputError("reproduce: NAME is missing. Pass the name of a published model, or --list.")
    published = published_model(a.name)
    if a.dry_run:
        refuse_options(a, "--dry-run", *OF_RUN)
        return _dry_run(a, published)
    if published.remote_code and a.model is None and not a.trust_remote_code:
        raise InputError(
            f"{published.hub} contains code of its own. Pass --trust-remote-code to execute it. {published.note}"
        )
    return _run(a, published)


def _list(a: argparse.Namespace) -> int:
    from rhumbline.presets.published_models import published_models

    if a.json:
        print_json(
            {
                name: {"hub": m.hub, "sites": [(s.position, s.layer) for s in m.sites()], **m.hardware()._asdict()}
                for name, m in published_models().items()
            }
        )
        return 0
    entries = []
    for m in published_models().values():
        need = m.hardware()
        sites = ", ".join(f"({site.position}, {site.layer})" for site in m.sites())
        layer = "not published" if m.selected_layer is None else f"layer {m.selected_layer}"
        disk, memory, hours = need.disk_gib, need.memory_gib, need.gpu_hours
        needs = f"disk {disk} GiB*, GPU memory {memory} GiB*, {hours} H100 hours*"
        entries.append((m.name, [m.hub, f"selected {sites or layer}; {needs}; licence {m.licence}"]))
    print_entries("", entries)
    say("* estimated from the number of parameters, in bfloat16; not measured.")
    return 0


def _dry_run(a: argparse.Namespace, published: Any) -> int:
    from rhumbline.presets.reproduction import checks

    rows = checks(published, a.model, a.data_dir)
    if a.json:
        print_json(rows)
    else:
        for row in rows:
            out.print(f"{SIGNS[row.ok]} {escape(row.what)}: {escape(row.detail)}", highlight=False)
    return 1 if any(row.ok is False for row in rows) else 0


def _run(a: argparse.Namespace, published: Any) -> int:
    from rhumbline.experiment import run
    from rhumbline.presets.reproduction import compare_run
    from rhumbline.prompts.loss_texts import NO_TEXTS, read_texts
    from rhumbline.prompts.named_sets import open_contrast
    from rhumbline.records.files import write_json

    changes: dict[str, Any] = {"save_completions": a.save_completions}
    if a.max_new_tokens is not None:
        changes["max_new_tokens"] = a.max_new_tokens
    if a.sizes is not None:
        changes["sizes"] = sizes_of(a.sizes)
    protocol = published.protocol(**changes)
    contrast = open_contrast(a.contrast or published.contrast, a.data_dir)
    texts = read_texts(a.loss_text) if a.loss_text else NO_TEXTS
    print_plan(contrast, protocol)
    folder = Path(a.out or f"runs/{published.name}")
    check_output(folder)
    with progress() as shown:
        result = run(load_model(a, a.model or published.hub), contrast, folder, protocol, texts=texts, progress=shown)
    rows = compare_run(published, result.path)
    write_json(result.path / "reproduction.json", to_json(Reproduction(published.name, tuple(rows))))
    if a.json:
        print_json(rows)
        return 0
    results = convert(result.results, Results)
    print_results(results)
    _print(published.name, rows)
    say(f"report: {result.path / 'report.html'}")
    again = prompt_options(a.contrast or published.contrast, a.data_dir)
    print_next(lines(after_run(results, protocol.facts()), str(folder), results.model.name, prompts=again))
    return 0


def _print(name: str, rows: list[FigureComparison]) -> None:
    columns = ("figure", "seed", "measured", "95 % interval", "published", "source", "status", "why, or what it takes")
    table = table_of(columns, title=f"{name}, compared with the published figures")
    for row in rows:
        seed = "all" if row.seed is None else str(row.seed)
        figures = _figure(row.measured), ends(row.low, row.high), _figure(row.published)
        table.add_row(row.what, seed, *figures, row.source, row.status.value, row.needs or row.tolerance)
    out.print(table)
    counts = Counter(row.status for row in rows)
    say(", ".join(f"{counts[status]} {status}" for status in FigureStatus if counts[status]))


def _figure(value: Figure) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:.2f}" if isinstance(value, float) else str(value)
