"""The commands that make a run: `demo`, `run` and `discover`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from rhumbline.cli.console import Progress, err, out, print_plan, print_results
from rhumbline.cli.forecasts import expected_rows, print_forecast
from rhumbline.cli.options import (
    MODEL_HELP,
    chat_changes,
    chat_options,
    check_expected,
    contrast_options,
    engine_of,
    engine_options,
    load_model,
    model_options,
    open_contrast,
    protocol_of,
    protocol_options,
    source_of,
    texts_option,
)
from rhumbline.errors import InputError


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser; `command(name, run, text)` makes one."""
    demo = command("demo", _demo, "the main job on the embedded organism")
    demo.add_argument("--out", default="runs/demo", help="run directory (default: %(default)s)")
    demo.add_argument("--organism", default="refusal", help="another organism (see: rhumbline organism list)")
    protocol_options(demo)

    run = command("run", _run, "find, select, test, decide and report, on a model of yours")
    run.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    contrast_options(run)
    run.add_argument("--out", required=True, metavar="RUN", help="run directory; the same protocol resumes")
    texts_option(run)
    run.add_argument(
        "--plan",
        nargs="?",
        const="headers",
        default=None,
        choices=("headers", "measured"),
        help="say what the run will take, and stop: without loading the model, or with a short measurement",
    )
    model_options(run)
    engine_options(run)
    run.add_argument(
        "--tensor-parallel", action="store_true", help="under torchrun: every process holds a part of each matrix"
    )
    protocol_options(run)

    discover = command("discover", _discover, "extraction only: where the classes separate; generates nothing")
    discover.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    contrast_options(discover)
    discover.add_argument("--out", default=None, metavar="RUN", help="run directory (default: runs/discover-MODEL)")
    discover.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")
    discover.add_argument("--json", action="store_true", help="print discover.json on standard output")
    model_options(discover)
    chat_options(discover)


def _demo(a: argparse.Namespace) -> int:
    from rhumbline.models.sources import ORGANISM, own_contrast
    from rhumbline.organisms import ORGANISMS
    from rhumbline.organisms.reading import loss_texts

    check_expected(a)
    if a.behaviour is None and a.organism in ORGANISMS:
        a.behaviour = ORGANISMS[a.organism].behaviour
    if a.config is None and a.preset is None:
        # Shorter than a run's defaults, for a first look: no organism writes 40 tokens.
        a.max_new_tokens = 40 if a.max_new_tokens is None else a.max_new_tokens
        a.wide_nulls = 39 if a.wide_nulls is None else a.wide_nulls
    protocol = protocol_of(a)
    name = f"{ORGANISM}{a.organism}"
    return _execute(a, load_model(a, name), own_contrast(name), protocol, loss_texts(a.organism))


def _run(a: argparse.Namespace) -> int:
    from rhumbline.prompts.loss_texts import NO_TEXTS, read_texts

    check_expected(a)
    # Cheap checks first: a malformed file is found before a large model is loaded.
    protocol, contrast, engine = protocol_of(a), open_contrast(a), engine_of(a)
    texts = read_texts(a.loss_text) if a.loss_text else NO_TEXTS
    if a.plan is not None:
        return print_forecast(a, contrast, protocol, texts)
    if a.tensor_parallel:
        return _run_tensor_parallel(a, contrast, protocol, texts, engine)
    model = load_model(a)
    if not engine.is_remote:
        return _execute(a, model, contrast, protocol, texts)
    from rhumbline.jobs.replicas import replica_worker
    from rhumbline.models.loading import fingerprint

    err.print("[dim]starting workers[/]")
    with engine.pool(replica_worker(source_of(a), contrast, protocol, fingerprint(model))) as pool:
        return _execute(a, model, contrast, protocol, texts, pool, engine.name)


def _run_tensor_parallel(a: argparse.Namespace, contrast: Any, protocol: Any, texts: Any, engine: Any) -> int:
    from rhumbline.models import tensor_parallel as ranks

    if engine.is_remote or a.device is not None:
        raise InputError(
            "--tensor-parallel splits one model over the processes of torchrun: leave --engine and --device."
        )
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


def _execute(
    a: argparse.Namespace,
    model: Any,
    contrast: Any,
    protocol: Any,
    texts: Any,
    pool: Any = None,
    engine: str = "local",
    page: bool = True,
) -> int:
    from rhumbline.experiment import run

    print_plan(contrast, protocol)
    progress = Progress(expected_rows(model, contrast, protocol, texts))
    try:
        result = run(
            model, contrast, a.out, protocol, texts=texts, progress=progress, page=page, pool=pool, engine=engine
        )
    finally:
        progress.close()
    if a.json:
        print(json.dumps(result.results, ensure_ascii=False))
    else:
        print_results(result.results)
        out.print(f"report: {result.path / 'report.html'}", markup=False, highlight=False)
    if a.expect is not None and result.verdict != a.expect:
        err.print(f"[bold red]rhumbline:[/] expected {a.expect}, the verdict is {result.verdict}.")
        return 1
    return 0


def _discover(a: argparse.Namespace) -> int:
    from rhumbline.experiment import discover
    from rhumbline.protocol import amend, preset

    chat = chat_changes(a)
    protocol = amend(preset("rhumbline"), {"seeds": [a.seed]} | ({"chat": chat} if chat else {}), "options")
    contrast = open_contrast(a)
    folder = a.out or f"runs/discover-{Path(a.model).name}"
    progress = Progress()
    try:
        found = discover(load_model(a), contrast, folder, protocol, progress=progress)
    finally:
        progress.close()
    if a.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    best = sorted(found["grid"], key=lambda cell: -(cell["auroc"] or 0))[:8]
    table = Table(title="where the classes separate best (validation prompts)", title_justify="left", box=None)
    for column in ("position", "layer", "AUROC", "cosine of the means", "norm"):
        table.add_column(column, justify="right")
    for cell in best:
        values = (
            cell["position"],
            cell["layer"],
            f"{cell['auroc']:.3f}",
            f"{cell['cosine']:.3f}",
            f"{cell['norm']:.3g}",
        )
        table.add_row(*map(str, values))
    out.print(table)
    out.print(f"n: train {found['train']}, held-out {found['n']}", markup=False, highlight=False)
    out.print(f"report: {Path(folder) / 'report.html'}", markup=False, highlight=False)
    return 0
