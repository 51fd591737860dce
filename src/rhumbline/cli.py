"""The command line: thin commands over the stages. Results go to standard output, everything else to standard error.

Knows options, exit codes and how to print. Computes nothing itself.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from rhumbline import file_commands
from rhumbline.errors import InputError, ProtocolError, RhumblineError

out = Console(soft_wrap=True)
err = Console(stderr=True)

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 expectation or verification failed, 2 bad input or usage,
    3 the model cannot be handled, 130 interrupted.
    """
    arguments = parser().parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[RichHandler(console=err, show_path=False)])
    try:
        return arguments.command(arguments)
    except RhumblineError as error:
        err.print(f"[bold red]rhumbline:[/] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        err.print("[bold yellow]interrupted.[/] The same command goes on where it was.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_INTERRUPTED


# -- options ----------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = argparse.ArgumentParser(
        prog="rhumbline",
        description="Is a behaviour of a chat model mediated by a single direction, and how sure may one be?",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        return added

    demo = command("demo", _demo, "the main job on the embedded organism")
    demo.add_argument("--out", default="runs/demo", help="run directory (default: %(default)s)")
    demo.add_argument("--organism", default="refusal", help="another organism (see: rhumbline organism list)")
    _protocol_options(demo)

    run = command("run", _run, "find, select, test, decide and report, on a model of yours")
    run.add_argument("model", metavar="MODEL", help="hub name or directory")
    run.add_argument("--contrast", required=True, metavar="FILE", help="JSON Lines or CSV with prompt and label")
    run.add_argument("--out", required=True, metavar="RUN", help="run directory; the same protocol resumes")
    _model_options(run)
    _protocol_options(run)

    discover = command("discover", _discover, "extraction only: where the classes separate; generates nothing")
    discover.add_argument("model", metavar="MODEL", help="hub name or directory")
    discover.add_argument("--contrast", required=True, metavar="FILE", help="JSON Lines or CSV with prompt and label")
    discover.add_argument("--out", default=None, metavar="RUN", help="run directory (default: runs/discover-MODEL)")
    discover.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")
    discover.add_argument("--json", action="store_true", help="print discover.json on standard output")
    _model_options(discover)
    _chat_options(discover)

    verify = command("verify", _verify, "recompute verdict and hashes: 0 when they hold, 1 when not")
    verify.add_argument("run", metavar="RUN")
    report = command("report", _report, "rebuild report.html and the figures")
    report.add_argument("run", metavar="RUN")

    model = command("model", _model, "what the instrument understood of the architecture")
    model.add_argument("model", metavar="MODEL", help="hub name or directory")
    model.add_argument("--json", action="store_true", help="print the record on standard output")
    _model_options(model)

    select = command("select", _select, "apply a selection rule to a table of scores")
    select.add_argument("scores", metavar="SCORES.json")
    select.add_argument("--preset", default="rhumbline", help="whose rule (default: %(default)s)")

    file_commands.add(command)

    organism = command("organism", _organism_list, "the model organisms")
    actions = organism.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what there is")
    listing.set_defaults(command=_organism_list)
    train = actions.add_parser("train", help="train one anew, or write a planted one")
    train.add_argument("name", metavar="NAME")
    train.add_argument("--out", required=True, metavar="DIR")
    train.add_argument("--seed", type=int, default=None, help="default: the seed of the shipped one")
    train.set_defaults(command=_organism_train)
    return top


def _model_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model")
    group.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1, auto (spread over all); default: the first GPU"
    )
    group.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16")
    group.add_argument("--coarse", action="store_true", help="run a model whose writers cannot be proved")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def _chat_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("chat")
    group.add_argument("--system", default=None, metavar="TEXT", help="system prompt of every chat")
    group.add_argument("--thinking", choices=("on", "off"), default=None, help="enable_thinking of the template")
    group.add_argument("--date", default=None, metavar="YYYY-MM-DD", help="the day that the template believes it is")
    group.add_argument("--chat-template", default=None, metavar="FILE", help="Jinja template to use instead")
    group.add_argument("--template-kwargs", default=None, metavar="JSON", help="further template variables")


def _protocol_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("protocol", "what is fixed beforehand; a preset fills what is not given")
    group.add_argument("--preset", default=None, help="rhumbline (default), arditi2024 or blog2026")
    group.add_argument("--config", default=None, metavar="FILE", help="experiment.toml; options given here win over it")
    group.add_argument("--behaviour", default=None, metavar="WORD", help="default: refusal")
    group.add_argument("--seeds", default=None, metavar="0,1", help="each samples the splits anew and refits")
    group.add_argument("--sizes", default=None, metavar="128,32,100", help="prompts per class in train, val, test")
    group.add_argument("--judge", default=None, help="refusal-opening, refusal-anywhere, refusal-anywhere-literal")
    group.add_argument("--refusal-tokens", default=None, metavar="auto|I,As", help="first tokens of a refusal")
    group.add_argument("--nulls", type=int, default=None, metavar="N", help="draws of each null family that complete")
    group.add_argument("--wide-nulls", type=int, default=None, metavar="N", help="draws scored by the fast metric")
    group.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="length of a completion")
    group.add_argument("--coefficient", default=None, metavar="C", help="of the addition: a number or validation")
    group.add_argument("--add-at", choices=("all", "prompt"), default=None, help="positions of the addition")
    group.add_argument("--full-grid", action="store_true", default=None, help="score every candidate")
    group.add_argument("--save-completions", action="store_true", default=None, help="write the texts too")
    group.add_argument("--expect", default=None, metavar="VERDICT", help="exit with 1 on any other verdict")
    group.add_argument("--json", action="store_true", help="print results.json on standard output, and nothing else")
    _chat_options(command)


def _chat_changes(a: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {"system": a.system, "date": a.date}
    if a.thinking is not None:
        changes["enable_thinking"] = a.thinking == "on"
    if a.chat_template is not None:
        try:
            changes["template"] = Path(a.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--chat-template {a.chat_template} cannot be read: {error}") from error
    if a.template_kwargs is not None:
        try:
            changes["template_kwargs"] = json.loads(a.template_kwargs)
        except ValueError as error:
            raise InputError(f"--template-kwargs is not JSON: {error}") from error
        if not isinstance(changes["template_kwargs"], dict):
            raise InputError('--template-kwargs must be a JSON object, for example {"tools_in_user_message": false}.')
    return {k: v for k, v in changes.items() if v is not None}


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} is {text!r}; give whole numbers separated by commas.") from None


def _protocol(a: argparse.Namespace) -> Any:
    """The preset, then the experiment file, then the options given on the command line."""
    from rhumbline.protocol import amend, preset, read_experiment

    named, tables = read_experiment(a.config) if a.config else (None, {})
    protocol = preset(a.preset or named or "rhumbline")
    protocol = amend(protocol, tables, str(a.config))
    changes: dict[str, Any] = {
        "behaviour": a.behaviour,
        "judge": a.judge,
        "max_new_tokens": a.max_new_tokens,
        "full_grid": a.full_grid,
        "save_completions": a.save_completions,
        "seeds": _integers(a.seeds, "--seeds") if a.seeds is not None else None,
    }
    if a.refusal_tokens is not None:
        changes["refusal_tokens"] = "auto" if a.refusal_tokens == "auto" else tuple(a.refusal_tokens.split(","))
    if a.sizes is not None:
        numbers = _integers(a.sizes, "--sizes")
        if len(numbers) != 3:
            raise InputError(f"--sizes is {a.sizes!r}; give three numbers: train, val and test per class.")
        changes["sizes"] = dict(zip(("train", "val", "test"), numbers, strict=True))
    nulls = {"draws": a.nulls, "wide": a.wide_nulls}
    changes["nulls"] = {k: v for k, v in nulls.items() if v is not None} or None
    addition = {"coefficient": _coefficient(a.coefficient), "positions": a.add_at}
    changes["addition"] = {k: v for k, v in addition.items() if v is not None} or None
    changes["chat"] = _chat_changes(a) or None
    given = {k: v for k, v in changes.items() if v is not None}
    return amend(protocol, given, "options")


def _coefficient(text: str | None) -> float | str | None:
    if text is None or text == "validation":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--coefficient is {text!r}; give a number, or validation.") from None


def _check_expected(a: argparse.Namespace) -> None:
    from rhumbline.verdict import VerdictName

    known = get_args(VerdictName)
    if a.expect is not None and a.expect not in known:
        raise ProtocolError(f"--expect {a.expect} is no verdict; the verdicts are {', '.join(known)}.")


# -- commands ---------------------------------------------------------------------------------------------------------


def _demo(a: argparse.Namespace) -> int:
    import torch

    from rhumbline.contrasts import read_contrast
    from rhumbline.loading import load
    from rhumbline.organisms import materialise

    _check_expected(a)
    if a.config is None and a.preset is None:
        # Shorter than a run's defaults, for a first look: no organism writes 40 tokens.
        a.max_new_tokens = 40 if a.max_new_tokens is None else a.max_new_tokens
        a.wide_nulls = 39 if a.wide_nulls is None else a.wide_nulls
    protocol = _protocol(a)
    # The organisms are tiny: a second thread gains little when cores are free and loses a lot when they are not.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = materialise(a.organism, Path(scratch))
        model = replace(load(str(folder), device="cpu", dtype="float32"), name=f"organism:{a.organism}")
        contrast = read_contrast(folder / "contrast.jsonl")
        return _execute(a, model, replace(contrast, name=f"organism:{a.organism}"), protocol)


def _run(a: argparse.Namespace) -> int:
    from rhumbline.contrasts import read_contrast

    _check_expected(a)
    # Cheap checks first: a malformed file is found before a large model is loaded.
    protocol, contrast = _protocol(a), read_contrast(a.contrast)
    return _execute(a, _load(a), contrast, protocol)


def _load(a: argparse.Namespace) -> Any:
    from transformers.utils import logging as transformers_logging

    from rhumbline.loading import load

    transformers_logging.disable_progress_bar()
    err.print(f"[dim]loading {escape(a.model)}[/]")
    return load(a.model, dtype=a.dtype, device=a.device, coarse=a.coarse, trust_remote_code=a.trust_remote_code)


class _Progress:
    """Prints each stage as it begins, and the rows it has done on a terminal."""

    def __init__(self) -> None:
        self.rows = 0
        self.status = err.status("")
        self.status.start()

    def __call__(self, stage: str, rows: int | None) -> None:
        if rows is None:
            self.rows = 0
            err.print(f"[dim]{stage}[/]")
        self.rows += rows or 0
        self.status.update(f"{stage}: {self.rows} rows" if self.rows else stage)

    def close(self) -> None:
        self.status.stop()


def _execute(a: argparse.Namespace, model: Any, contrast: Any, protocol: Any) -> int:
    from rhumbline.experiment import run

    _print_plan(contrast, protocol)
    progress = _Progress()
    try:
        result = run(model, contrast, a.out, protocol, progress=progress)
    finally:
        progress.close()
    if a.json:
        print(json.dumps(result.results, ensure_ascii=False))
    else:
        _print_results(result.results)
        out.print(f"report: {result.path / 'report.html'}", markup=False, highlight=False)
    if a.expect is not None and result.verdict != a.expect:
        err.print(f"[bold red]rhumbline:[/] expected {a.expect}, the verdict is {result.verdict}.")
        return 1
    return 0


def _print_plan(contrast: Any, protocol: Any) -> None:
    """What the sample can show at all, before it is used."""
    from rhumbline.contrasts import split_contrast
    from rhumbline.planning import plan

    sizes = split_contrast(contrast, protocol.sizes, protocol.seeds[0]).sizes()
    found = plan(sizes, protocol.rule.min_drop, protocol.nulls.wide)
    for label, effect in (("positive", "suppression"), ("negative", "induction")):
        least, passing = found["any"][label], found["rule"][label]
        told = "cannot tell any change from nothing" if least is None else f"tells a true change of {least:.2f} from 0"
        passes = (
            "no effect would pass the rule's margin" if passing is None else f"one of {passing:.2f} passes the rule"
        )
        n = sizes["test"][label]
        err.print(f"[dim]{effect}: with {n} test {label}s the run {told} with {found['power']:.0%} power; {passes}[/]")


def _print_results(results: Mapping[str, Any]) -> None:
    for seed in results["seeds"]:
        cell = seed["selected"]
        where = (
            f"position {cell['position']}, layer {cell['layer']}, norm {cell['norm']:.3g}" if cell else seed["reason"]
        )
        n = seed["n"]
        table = Table(
            title=escape(f"seed {seed['seed']}: {where}"),
            title_justify="left",
            title_style="bold",
            box=None,
            padding=(0, 1),
        )
        table.add_column("arm")
        table.add_column("set")
        for column in ("n", "rate", "95 % interval", "degenerate"):
            table.add_column(column, justify="right")
        for row in _with_pooled_nulls(seed["arms"]):
            table.add_row(*row)
        out.print(table)
        train, val = n["train"], n["val"]
        out.print(
            f"[dim]n: train {train['positive']}/{train['negative']}, validation {val['positive']}/{val['negative']} "
            f"(positive/negative, after filtering); survivors {seed['survivors']} known, tied {len(seed['tied'])}; "
            f"refusal tokens {escape(', '.join(repr(t['text']) for t in seed['refusal_tokens']) or 'none')}[/]"
        )
    for warning in results["warnings"]:
        out.print(f"[yellow]note:[/] {escape(warning)}")
    because = f" ({results['reason']})" if results["reason"] else ""
    out.print(f"[bold]{results['verdict']}[/]{escape(because)}")
    for seed in results["seeds"]:
        out.print(f"seed {seed['seed']}: {escape(seed['sentence'])}", highlight=False)


def _with_pooled_nulls(arms: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each arm, and one for all draws of a null family together: the range of its rates."""
    rows: list[tuple[str, ...]] = []
    pooled: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arm in arms:
        if arm["arm"].startswith("null:"):
            _, family, _, _ = arm["arm"].split(":")
            pooled.setdefault((f"{family} nulls", arm["set"]), []).append(arm)
            continue
        rate = "-" if arm["rate"] is None else f"{arm['rate']:.2f}"
        broken = "-" if arm["degenerate"] is None else f"{arm['degenerate']:.2f}"
        rows.append((arm["arm"], arm["set"], str(arm["n"]), rate, f"{arm['low']:.2f} - {arm['high']:.2f}", broken))
    for (name, side), members in pooled.items():
        rates = [m["rate"] for m in members if m["rate"] is not None]
        broken = [m["degenerate"] for m in members if m["degenerate"] is not None]
        spread = f"{min(rates):.2f} .. {max(rates):.2f}" if rates else "-"
        mean = f"{sum(rates) / len(rates):.2f}" if rates else "-"
        worst = f"{sum(broken) / len(broken):.2f}" if broken else "-"
        rows.append((name, side, f"{len(members)} x {members[0]['n']}", mean, f"range {spread}", worst))
    return rows


def _discover(a: argparse.Namespace) -> int:
    from rhumbline.contrasts import read_contrast
    from rhumbline.experiment import discover
    from rhumbline.protocol import amend, preset

    chat = _chat_changes(a)
    protocol = amend(preset("rhumbline"), {"seeds": [a.seed]} | ({"chat": chat} if chat else {}), "options")
    contrast = read_contrast(a.contrast)
    folder = a.out or f"runs/discover-{Path(a.model).name}"
    progress = _Progress()
    try:
        found = discover(_load(a), contrast, folder, protocol, progress=progress)
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


def _verify(a: argparse.Namespace) -> int:
    from rhumbline.verification import verify

    faults = verify(a.run)
    for fault in faults:
        err.print(f"[bold red]does not hold:[/] {escape(fault)}", soft_wrap=True)
    if faults:
        return 1
    out.print(f"{a.run}: every hash, rate, effect and the verdict hold.", markup=False, highlight=False)
    return 0


def _report(a: argparse.Namespace) -> int:
    from rhumbline import report

    folder = Path(a.run)
    page = report.build_discover(folder) if (folder / "discover.json").is_file() else report.build(folder)
    out.print(f"report: {page}", markup=False, highlight=False)
    return 0


def _model(a: argparse.Namespace) -> int:
    from rhumbline.proving import explain

    record = explain(_load(a))
    if a.json:
        print(json.dumps(record, ensure_ascii=False))
        return 0
    for name, value in record.items():
        out.print(f"[bold]{name}[/]")
        for line in value if isinstance(value, list) else [value]:
            out.print(f"  {line}", markup=False, highlight=False)
    return 0


def _select(a: argparse.Namespace) -> int:
    from rhumbline.protocol import preset
    from rhumbline.selection import choose, read_scores

    table, n_layers = read_scores(a.scores)
    choice = choose(table, n_layers, preset(a.preset).selection)

    def cell(row: Any) -> dict[str, int]:
        return {"position": row.position, "layer": row.layer}

    answer: dict[str, Any] = {
        "selected": cell(choice.selected) if choice.selected else None,
        "survivors": choice.survivors,
        "tied": [cell(row) for row in choice.tied],
    }
    if choice.reason is not None:
        answer["reason"] = choice.reason
    print(json.dumps(answer))
    return 0


def _organism_list(a: argparse.Namespace) -> int:
    from rhumbline.organisms import list_organisms

    del a
    table = Table(box=None)
    for column in ("name", "made", "expected verdict", "what it is"):
        table.add_column(column, overflow="fold")
    for organism in list_organisms():
        made = "trained, embedded" if organism.is_embedded else "written"
        table.add_row(organism.name, made, organism.expected, organism.sentence)
    out.print(table)
    return 0


def _organism_train(a: argparse.Namespace) -> int:
    from rhumbline.organisms import train

    with err.status("") as status:

        def progress(stage: str, step: int, steps: int, loss: float) -> None:
            status.update(f"{stage}: step {step} of {steps}, loss {loss:.3f}")

        train(a.name, Path(a.out), seed=a.seed, progress=progress)
    out.print(f"organism: {a.out}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
