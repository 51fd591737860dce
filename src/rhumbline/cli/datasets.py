"""The command `data`: which sets there are, and whether they can be had. Computes nothing itself."""

import argparse
import json
from collections.abc import Callable

from rhumbline.cli.console import err, out, text_table


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser; `command(name, run, text)` makes one."""
    data = command("data", _list, "named contrasts and evaluation sets")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what there is")
    listing.set_defaults(command=_list)
    show = actions.add_parser("show", help="where a set comes from, what is taken of it, what is expected")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(command=_show)
    check = actions.add_parser("check", help="load it and compare it with what is declared: 1 for other rows")
    check.add_argument("name", metavar="NAME")
    check.add_argument("--data-dir", default=None, metavar="DIR", help="local files, read first")
    check.set_defaults(command=_check)
    for action in (listing, show, check):
        action.add_argument("--json", action="store_true", help="print JSON on standard output")


def _list(a: argparse.Namespace) -> int:
    from rhumbline.prompts.named_sets import recipes, sources

    if a.json:
        found = {
            "contrasts": {n: r.title for n, r in recipes().items()},
            "sets": {n: s.title for n, s in sources().items()},
        }
        print(json.dumps(found, ensure_ascii=False))
        return 0
    table = text_table("name", "what it is", "made of", title="contrasts, for --contrast")
    for recipe in recipes().values():
        table.add_row(recipe.name, recipe.title, ", ".join(recipe.sources))
    out.print(table)
    table = text_table("name", "rows", "pinned", "licence", "what it is", title="sets")
    for s in sources().values():
        table.add_row(s.name, str(s.rows), "yes" if s.pinned else "no", s.licence, s.title)
    out.print(table)
    return 0


def _show(a: argparse.Namespace) -> int:
    from rhumbline.prompts.named_sets import recipes, source
    from rhumbline.records.codec import to_json

    record = to_json(recipes()[a.name] if a.name in recipes() else source(a.name))
    if a.json:
        print(json.dumps(record, ensure_ascii=False))
        return 0
    for key, value in record.items():
        if value not in (None, [], {}):
            out.print(f"[bold]{key}[/]")
            for line in value if isinstance(value, list) else [value]:
                out.print(f"  {line}", markup=False, highlight=False)
    return 0


def _check(a: argparse.Namespace) -> int:
    from rhumbline.prompts.named_sets import compose, load, recipes, source
    from rhumbline.records.codec import to_json

    pools = compose(recipes()[a.name], a.data_dir).pools if a.name in recipes() else None
    facts = (load(source(a.name), a.data_dir).facts,) if pools is None else pools.sources
    faults = [f for f in facts if f.as_expected is False or f.rows != source(f.source).rows]
    if a.json:
        print(json.dumps(to_json(facts[0] if pools is None else pools), ensure_ascii=False))
    else:
        words = {None: "content not declared", True: "as declared", False: "OTHER ROWS than declared"}
        for f in facts:
            rows = f"{f.rows} rows of {source(f.source).rows} expected, {words[f.as_expected]}"
            out.print(f"{f.source}: {rows}, from {f.origin}", markup=False, highlight=False)
        if pools is not None:
            sizes, excluded = to_json(pools.pools), to_json(pools.left_out)
            out.print(f"pools: {sizes}; excluded as repeats: {excluded}", markup=False)
    if faults:
        names = ", ".join(f.source for f in faults)
        err.print(f"[bold red]rhumbline:[/] {names}: the rows are not those that are declared.")
        return 1
    return 0
