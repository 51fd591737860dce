"""The commands `demo`, `run` and `discover`."""

import argparse
from pathlib import Path
from typing import Any, Literal

from rhumbline.cli.console import (
    NOT_MEASURED,
    fault,
    interval,
    note,
    note_neutral,
    note_responses,
    number,
    out,
    print_json,
    print_plan,
    print_results,
    progress,
    say,
    table_of,
)
from rhumbline.cli.forecast import expected_work, print_forecast
from rhumbline.cli.next_steps import print_next
from rhumbline.cli.option_values import (
    chat_changes,
    check_expected,
    engine_of,
    integers,
    load_model,
    open_contrast,
    protocol_of,
    quieten,
    refuse_options,
    sizes_of,
    source_of,
)
from rhumbline.cli.options import (
    MODEL_HELP,
    AddCommand,
    chat_options,
    contrast_options,
    engine_options,
    json_option,
    model_options,
    protocol_options,
    texts_option,
)
from rhumbline.errors import InputError
from rhumbline.records.codec import convert
from rhumbline.records.directory import QUICK, check_output
from rhumbline.records.next_steps import after_run, lines, prompt_options
from rhumbline.records.results import Results
from rhumbline.records.run_files import Discovery
from rhumbline.records.verdict_rule import is_number

DEMO_TOKENS = 40
"""Tokens of a completion in `demo`: no organism generates as many."""
BEST_SITES = 8
"""Sites that `discover` prints."""


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    demo = command("demo", _demo, "run the whole procedure on an embedded model organism")
    demo.add_argument("--out", default="runs/demo", metavar="RUN", help="run directory (default: %(default)s)")
    organism = "name of the model organism, from `rhumbline organism list` (default: %(default)s)"
    demo.add_argument("--organism", default="refusal", metavar="NAME", help=organism)
    protocol_options(demo, {"max-new-tokens": DEMO_TOKENS, "save-completions": "yes, without --early-stop"})

    run = command("run", _run, "find, select and test a direction, decide, and write the report")
    run.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    contrast_options(run)
    directory = "run directory; a directory with the same protocol resumes"
    run.add_argument("--out", metavar="RUN", help=f"{directory}; required without --plan")
    texts_option(run)
    plan = "print the estimated rows, tokens, memory and time on this machine, and stop; the model is not loaded"
    run.add_argument("--plan", action="store_true", help=plan)
    model_options(run)
    engine_options(run)
    parallel = "under torchrun: every process holds a part of each weight matrix"
    run.add_argument("--tensor-parallel", action="store_true", help=parallel)
    protocol_options(run)

    discover = command("discover", _discover, "extraction only: separation of the classes by layer and position")
    discover.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    contrast_options(discover)
    discover.add_argument("--out", metavar="RUN", help="run directory (default: runs/discover-MODEL)")
    seeds = "seeds of the splits; the means over them are reported (default: %(default)s)"
    discover.add_argument("--seeds", default="0", metavar="0,1", help=seeds)
    sizes = "prompts per class in train and validation; a third number is that of test, which is not read (default: "
    discover.add_argument("--sizes", default="128,32", metavar="128,32", help=f"{sizes}%(default)s,100)")
    json_option(discover, "discover.json")
    model_options(discover)
    chat_options(discover)


def _demo(a: argparse.Namespace) -> int:
    from rhumbline.models.sources import ORGANISM, own_contrast
    from rhumbline.organisms import ORGANISMS
    from rhumbline.organisms.measured_texts import loss_texts

    check_expected(a)
    check_output(a.out)
    if a.behaviour is None and a.organism in ORGANISMS:
        a.behaviour = ORGANISMS[a.organism].behaviour
    if a.config is None and a.preset is None:
        a.max_new_tokens = DEMO_TOKENS if a.max_new_tokens is None else a.max_new_tokens
        # The texts of organisms are harmless, and the report shows some. Early stops would cut them.
        a.save_completions = not a.early_stop or a.save_completions
    protocol = protocol_of(a)
    name = f"{ORGANISM}{a.organism}"
    quieten()  # the organism is written first
    contrast = own_contrast(name)
    _check_resumed(a.out, contrast, protocol)
    return _execute(a, load_model(a, name), contrast, protocol, loss_texts(a.organism))


def _run(a: argparse.Namespace) -> int:
    from rhumbline.prompts.loss_texts import NO_TEXTS, read_texts

    check_expected(a)
    if a.plan:
        refuse_options(a, "--plan", "json", "expect")
    # Inexpensive checks first: a malformed file is reported before a large model is loaded.
    protocol, contrast, engine = protocol_of(a), open_contrast(a), engine_of(a)
    texts = read_texts(a.loss_text) if a.loss_text else NO_TEXTS
    if a.out is not None:
        check_output(a.out)
        _check_resumed(a.out, contrast, protocol)
    elif not a.plan:
        raise InputError("run: --out is missing. Pass --out RUN, or --plan to run nothing.")
    check_splits(contrast, protocol)
    if a.tensor_parallel and (engine.is_remote or a.device is not None):
        raise InputError(
            "--tensor-parallel splits one model over the processes of torchrun and cannot be combined with --engine "
            "or --device. Omit them."
        )
    if a.plan:
        return print_forecast(a, contrast, protocol, texts)
    if a.tensor_parallel:
        return _run_tensor_parallel(a, contrast, protocol, texts)
    model = load_model(a)
    if not engine.is_remote:
        return _execute(a, model, contrast, protocol, texts)
    from rhumbline.jobs.replicas import replica_worker
    from rhumbline.models.loading import fingerprint

    note("starting workers")
    with engine.pool(replica_worker(source_of(a), contrast, protocol, fingerprint(model))) as pool:
        return _execute(a, model, contrast, protocol, texts, pool=pool, engine=engine.name)


def _check_resumed(out: str | Path, contrast: Any, protocol: Any, mode: Literal["discover"] | None = None) -> None:
    """Raise ProtocolError if the directory has a run of another protocol, before a model is loaded."""
    folder = Path(out) / QUICK if protocol.quick else Path(out)
    if (folder / "protocol.json").exists():
        from rhumbline.stages.run_plan import known_without_model

        check_output(folder, known_without_model(contrast, protocol, mode))


def check_splits(contrast: Any, protocol: Any) -> None:
    """Raise ContrastError if the contrast has too few prompts, before a model is loaded."""
    from rhumbline.prompts.contrasts import split_contrast

    split_contrast(contrast, protocol.sizes, protocol.seeds[0], protocol.sampling)


def _run_tensor_parallel(a: argparse.Namespace, contrast: Any, protocol: Any, texts: Any) -> int:
    from rhumbline.cli.console import err
    from rhumbline.models import tensor_parallel as ranks

    ranks.join()
    is_first = ranks.rank() == 0
    out.quiet = err.quiet = not is_first
    try:
        model = load_model(a, tensor_parallel=True)
        with ranks.output_directory(a.out) as folder:
            a.out, a.json = str(folder), a.json and is_first
            name = f"torchrun, {ranks.world_size()} ranks"
            return _execute(a, model, contrast, protocol, texts, engine=name, page=is_first)
    finally:
        ranks.leave()


def _execute(a: argparse.Namespace, model: Any, contrast: Any, protocol: Any, texts: Any, **options: Any) -> int:
    """Run the experiment and print its results; `options` are those of `rhumbline.run`."""
    from rhumbline.experiment import run

    if protocol.quick:
        # Its protocol differs, so it has a directory of its own inside that of the whole run.
        a.out = str(Path(a.out) / QUICK)
        note("a quick run: rerun the command without --quick for the whole one")
    print_plan(contrast, protocol)
    with progress(expected_work(model, contrast, protocol, texts)) as shown:
        result = run(model, contrast, a.out, protocol, texts=texts, progress=shown, **options)
    if a.json:
        print_json(result.results)
    else:
        results = convert(result.results, Results)
        print_results(results)
        say(f"report: {result.path / 'report.html'}")
        # `demo` has no options of a contrast: an organism includes its prompts.
        again = prompt_options(*(vars(a).get(name) for name in ("contrast", "data_dir")))
        print_next(lines(after_run(results, protocol.facts()), a.out, results.model.name, prompts=again))
    if a.expect is not None and a.expect not in (result.verdict, result.verdict.headline):
        fault(f"expected {a.expect}, the verdict is {result.verdict}.")
        return 1
    return 0


def _discover(a: argparse.Namespace) -> int:
    from rhumbline.experiment import discover
    from rhumbline.presets.experiment_files import amend
    from rhumbline.presets.protocols import preset

    changes = {
        "seeds": integers(a.seeds, "--seeds"),
        "sizes": vars(sizes_of(a.sizes, reads_test=False)),
        "chat": chat_changes(a),
    }
    protocol = amend(preset("rhumbline"), changes, "options")
    contrast = open_contrast(a)
    folder = Path(a.out or f"runs/discover-{Path(a.model).name}")
    check_output(folder)
    check_splits(contrast, protocol)
    _check_resumed(folder, contrast, protocol, "discover")
    note_neutral(contrast)
    note_responses(contrast, protocol)
    with progress() as shown:
        record = convert(discover(load_model(a), contrast, folder, protocol, progress=shown), Discovery)
    if a.json:
        print_json(record)
        return 0
    _print_sites(record)
    say(f"report: {folder / 'report.html'}")
    return 0


def _print_sites(record: Discovery) -> None:
    from rhumbline.evidence.statistics import auroc_interval

    title = "sites with the best separation of the classes (validation prompts)"
    table = table_of((), ("position", "layer", "AUROC", "cosine of the means", "norm"), title)
    ranked = record.ranked()
    for site in ranked[:BEST_SITES]:
        low, high = (None, None)
        if site.auroc is not None:
            low, high = auroc_interval(site.auroc, record.n.positive, record.n.negative)
        norm = f"{site.norm:.3g}" if is_number(site.norm) else NOT_MEASURED
        auroc = interval(site.auroc, low, high, digits=3)
        table.add_row(str(site.position), str(site.layer), auroc, number(site.cosine, 3), norm)
    out.print(table)
    if record.ties() > 1:
        say(f"{record.ties()} of {len(record.grid)} sites have the largest AUROC; the cosine orders equal ones.")
    say("Layer 0 reads the token embeddings: a separation there is one of words.")
    train, held_out = record.train, record.n
    say(
        f"prompts (positive/negative): train {train.positive}/{train.negative}, validation {held_out.positive}/"
        f"{held_out.negative}"
    )
