"""The analyses of several runs or models: `analyze dissociation` and `analyze flinch`."""

import argparse
from pathlib import Path

from rhumbline.cli.console import print_json, progress, say
from rhumbline.cli.options import (
    MODEL_HELP,
    data_dir_option,
    device_option,
    dtype_option,
    load_model,
    max_new_tokens_option,
    read_template,
    remote_code_option,
    template_option,
)
from rhumbline.records.artefacts import SheetRecord
from rhumbline.records.directory import check_writable


def sheet_options(parser: argparse.ArgumentParser) -> None:
    """Where the sheet is written, and how models are loaded."""
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the record, the figures and the page")
    device_option(parser)
    dtype_option(parser)
    remote_code_option(parser)


def write_sheet(a: argparse.Namespace, record: SheetRecord) -> int:
    """Write the record with its figures and page, and print it."""
    from rhumbline.report.sheets import write

    page = write(record, Path(a.out))
    if a.json:
        print_json(record)
        return 0
    say(record.sentence)
    say(f"report: {page}")
    return 0


# -- dissociation -----------------------------------------------------------------------------------------------------


def dissociation_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze dissociation`."""
    parser.add_argument("run", metavar="RUN_A", help="directory of a finished run")
    parser.add_argument("other", metavar="RUN_B", help="a run on another behaviour of the same model")
    parser.add_argument("--model", required=True, metavar="MODEL", help=f"the model of both runs: {MODEL_HELP}")
    contrasts = "contrasts of the two runs: files or named contrasts"
    parser.add_argument("--contrasts", required=True, nargs=2, metavar=("A", "B"), help=contrasts)
    data_dir_option(parser)
    template_option(parser, "Jinja template of the runs, if it is not the tokenizer's")
    max_new_tokens_option(parser, 64)
    sheet_options(parser)


def dissociation(a: argparse.Namespace) -> int:
    """Execute `analyze dissociation`."""
    from rhumbline.analyses.dissociation import BehaviourRun, dissociate
    from rhumbline.models.sources import contrast_for

    check_writable(a.out)
    template = read_template(a.chat_template)
    contrasts = [contrast_for(a.model, name, a.data_dir) for name in a.contrasts]
    sides = [BehaviourRun.open(run, c, template=template) for run, c in zip((a.run, a.other), contrasts, strict=True)]
    return write_sheet(a, dissociate(load_model(a), *sides, max_new_tokens=a.max_new_tokens))


# -- flinch -----------------------------------------------------------------------------------------------------------


def flinch_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze flinch`."""
    parser.add_argument("model", metavar="MODEL", help=f"the chat model: {MODEL_HELP}")
    parser.add_argument("--base", required=True, metavar="MODEL", help=f"its base model: {MODEL_HELP}")
    terms = 'JSON file {"terms": [...], "controls": [...], "contexts": ["... {term}", ...]}'
    parser.add_argument("--terms", required=True, metavar="FILE", help=terms)
    seed = "seed of intervals and random directions (default: 0)"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=seed)
    sheet_options(parser)


def flinch(a: argparse.Namespace) -> int:
    """Execute `analyze flinch`."""
    check_writable(a.out)
    from rhumbline.analyses.flinch import Terms, flinch

    terms = Terms.read(a.terms)
    with progress() as shown:
        shown("flinch", None)
        record = flinch(load_model(a), load_model(a, a.base), terms, a.seed, lambda rows: shown("", rows))
    return write_sheet(a, record)
