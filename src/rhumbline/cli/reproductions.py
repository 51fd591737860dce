"""The command `reproduce`: a published model run again. Options and printing; computes nothing itself."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from rich.markup import escape
from rich.table import Table

from rhumbline.cli.console import NOT_MEASURED, Progress, out, print_plan, print_results, text_table
from rhumbline.cli.options import load_model, model_options
from rhumbline.errors import InputError


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser; `command(name, run, text)` makes one."""
    reproduce = command("reproduce", _reproduce, "run a model of the paper's table or of the blog, beside its figures")
    reproduce.add_argument("name", metavar="NAME", nargs="?", help="llama-3-8b, gemma-2b, ... (see --list)")
    reproduce.add_argument("--list", action="store_true", help="the published models")
    reproduce.add_argument(
        "--dry-run", action="store_true", help="check what needs no weights; 1 if something is amiss"
    )
    reproduce.add_argument("--model", default=None, metavar="DIR", help="where the model lies, if not on the hub")
    reproduce.add_argument("--out", default=None, metavar="RUN", help="run directory (default: runs/NAME)")
    reproduce.add_argument("--data-dir", default=None, metavar="DIR", help="local files of named data sets, read first")
    reproduce.add_argument("--contrast", default=None, metavar="FILE|NAME", help="in place of the published one")
    reproduce.add_argument("--sizes", default=None, metavar="128,32,100", help="in place of the published ones")
    reproduce.add_argument(
        "--max-new-tokens", type=int, default=None, metavar="N", help="in place of the published one"
    )
    reproduce.add_argument("--save-completions", action="store_true", help="write the texts too, for `rhumbline judge`")
    reproduce.add_argument("--json", action="store_true", help="print the comparison on standard output")
    model_options(reproduce)


def _reproduce(a: argparse.Namespace) -> int:
    from rhumbline.presets.published_models import published_model

    if a.list:
        return _list(a)
    if a.name is None:
        raise InputError("give the name of a published model, or --list.")
    published = published_model(a.name)
    if a.dry_run:
        return _dry_run(a, published)
    if published.remote_code and a.model is None and not a.trust_remote_code:
        raise InputError(f"{published.hub} brings its own code: give --trust-remote-code to run it. {published.note}")
    return _run(a, published)


def _list(a: argparse.Namespace) -> int:
    from rhumbline.presets.published_models import published_models

    if a.json:
        rows = {
            name: {
                "hub": m.hub,
                "sites": [(int(site.position), site.layer) for site in m.sites()],
                **m.hardware()._asdict(),
            }
            for name, m in published_models().items()
        }
        print(json.dumps(rows))
        return 0
    table = text_table("name", "hub", "selected", "disk, GiB*", "GPU memory, GiB*", "H100 hours*", "licence")
    for m in published_models().values():
        need = m.hardware()
        sites = ", ".join(f"({site.position}, {site.layer})" for site in m.sites())
        layer = "-" if m.selected_layer is None else f"layer {m.selected_layer}"
        numbers = map(str, (need.disk_gib, need.memory_gib, need.gpu_hours))
        table.add_row(m.name, m.hub, sites or layer, *numbers, m.licence)
    out.print(table)
    out.print("* estimates from the number of parameters, in bfloat16; nothing was measured.", markup=False)
    return 0


def _dry_run(a: argparse.Namespace, published: Any) -> int:
    from rhumbline.presets.reproduction import checks
    from rhumbline.records.codec import to_json

    rows = checks(published, a.model, a.data_dir)
    if a.json:
        print(json.dumps(to_json(rows), ensure_ascii=False))
    else:
        for row in rows:
            sign = {True: "[green]ok[/]     ", False: "[red]amiss[/]  ", None: "[dim]unknown[/]"}[row.ok]
            out.print(f"{sign} {escape(row.what)}: {escape(row.detail)}", highlight=False)
    return 1 if any(row.ok is False for row in rows) else 0


def _run(a: argparse.Namespace, published: Any) -> int:
    from rhumbline.cli.options import integers
    from rhumbline.experiment import run
    from rhumbline.presets.reproduction import compare_run
    from rhumbline.prompts.contrasts import Sizes
    from rhumbline.prompts.named_sets import open_contrast
    from rhumbline.records.codec import to_json
    from rhumbline.records.files import write_json
    from rhumbline.records.reproduction_file import Reproduction

    changes: dict[str, Any] = {"save_completions": a.save_completions}
    if a.max_new_tokens is not None:
        changes["max_new_tokens"] = a.max_new_tokens
    if a.sizes is not None:
        numbers = integers(a.sizes, "--sizes")
        if len(numbers) != 3:
            raise InputError(f"--sizes is {a.sizes!r}; give three numbers: train, val and test per class.")
        changes["sizes"] = Sizes(*numbers)
    protocol = published.protocol(**changes)
    contrast = open_contrast(a.contrast or published.contrast, a.data_dir)
    print_plan(contrast, protocol)
    a.model = a.model or published.hub
    progress = Progress()
    try:
        result = run(load_model(a), contrast, a.out or f"runs/{published.name}", protocol, progress=progress)
    finally:
        progress.close()
    rows = compare_run(published, result.path)
    record = to_json(Reproduction(published.name, tuple(rows)))
    write_json(result.path / "reproduction.json", record)
    if a.json:
        print(json.dumps(record["rows"], ensure_ascii=False))
        return 0
    print_results(result.results)
    table = Table(title=f"{published.name} beside what was published", title_justify="left", box=None)
    for column in ("figure", "seed", "here", "published", "tolerance", "agrees"):
        table.add_column(column)
    for row in rows:
        agrees = {True: "yes", False: "no", None: NOT_MEASURED}[row.agrees]
        seed = "all" if row.seed is None else str(row.seed)
        table.add_row(row.what, seed, _figure(row.measured), _figure(row.published), row.tolerance, agrees)
    out.print(table)
    out.print(f"report: {result.path / 'report.html'}", markup=False, highlight=False)
    return 0


def _figure(value: Any) -> str:
    """A figure as text; None was not measured."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.2f}" if isinstance(value, float) else str(value)
