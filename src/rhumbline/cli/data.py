"""The commands `data list`, `data show` and `data check`."""

import argparse

from rhumbline.cli.console import fault, print_entries, print_json, print_lines, say
from rhumbline.cli.options import AddCommand, data_dir_option, json_option

NAME_HELP = "name of a contrast or a data set, from `rhumbline data list`"


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    data = command("data", _list, "list, describe and check the named contrasts and data sets")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    for name, run, about in (
        ("list", _list, "list the named contrasts and data sets"),
        ("show", _show, "print the origin of a contrast or data set, the rows that are taken and the declared content"),
        ("check", _check, "load a contrast or data set and compare it with its declaration; exit code 1 if it differs"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        action.set_defaults(command=run)
        if run is not _list:
            action.add_argument("name", metavar="NAME", help=NAME_HELP)
        if run is _check:
            data_dir_option(action)
        json_option(action, "the result")


def _list(a: argparse.Namespace) -> int:
    from rhumbline.prompts.named_sets import recipes, sources

    if a.json:
        contrasts = {name: recipe.title for name, recipe in recipes().items()}
        print_json({"contrasts": contrasts, "sets": {name: source.title for name, source in sources().items()}})
        return 0
    contrasts = [(r.name, [r.title, f"from {', '.join(r.sources)}"]) for r in recipes().values()]
    print_entries("contrasts, for --contrast", contrasts)
    sets = []
    for s in sources().values():
        pinned = "revision pinned" if s.pinned else "revision not pinned"
        sets.append((s.name, [s.title, f"{s.rows} rows, {pinned}, licence {s.licence}"]))
    print_entries("data sets", sets)
    return 0


def _show(a: argparse.Namespace) -> int:
    from rhumbline.prompts.named_sets import recipes, source
    from rhumbline.records.codec import to_json

    record = to_json(recipes()[a.name] if a.name in recipes() else source(a.name))
    if a.json:
        print_json(record)
    else:
        print_lines({name: value for name, value in record.items() if value not in (None, [], {})})
    return 0


def _check(a: argparse.Namespace) -> int:
    from rhumbline.prompts.named_sets import compose, load, recipes, source
    from rhumbline.records.codec import to_json

    pools = compose(recipes()[a.name], a.data_dir).pools if a.name in recipes() else None
    loaded = (load(source(a.name), a.data_dir).facts,) if pools is None else pools.sources
    if a.json:
        print_json(to_json(loaded[0] if pools is None else pools))
    else:
        content = {
            None: "content not declared",
            True: "content as declared",
            False: "CONTENT DIFFERS from the declared one",
        }
        for facts in loaded:
            rows = f"{facts.rows} rows of {source(facts.source).rows} expected"
            say(f"{facts.source}: {rows}, {content[facts.as_expected]}, from {facts.origin}")
        if pools is not None:
            say(f"pools: {to_json(pools.pools)}; excluded as repeats: {to_json(pools.left_out)}")
    faults = [f.source for f in loaded if f.as_expected is False or f.rows != source(f.source).rows]
    if faults:
        fault(f"{', '.join(faults)}: the rows differ from the declared ones. Use the declared revision.")
    return 1 if faults else 0
