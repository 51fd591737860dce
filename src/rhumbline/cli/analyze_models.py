"""The analyses of several runs or models: `robustness`, `analyze dissociation`, `analyze flinch`, `analyze style`."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from rhumbline.cli.console import print_json, progress, say
from rhumbline.cli.option_values import check_models, load_model, open_contrast, quieten, read_template, reals
from rhumbline.cli.options import (
    MODEL_HELP,
    SEED,
    AddCommand,
    control_tokens_option,
    data_dir_option,
    device_option,
    dtype_option,
    json_option,
    max_new_tokens_option,
    remote_code_option,
    template_option,
    whole,
)
from rhumbline.cli.run_analysis import defaults, listed_numbers, number_options, plan_of, quick_option
from rhumbline.records import style_doses_file
from rhumbline.records.artefacts import OF_SHEET, SheetRecord
from rhumbline.records.directory import PARTS, check_sheet
from rhumbline.records.sheet_files import QUICK, DissociationRecord, FlinchRecord, RobustnessPlan, RobustnessRecord
from rhumbline.records.style_doses_file import StyleDosesPlan, StyleDosesRecord

PLAN = RobustnessPlan()


def sheet_options(parser: argparse.ArgumentParser) -> None:
    """Where the sheet is written, and how models are loaded."""
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the record, the figures and the page")
    device_option(parser)
    dtype_option(parser)
    remote_code_option(parser)


def write_sheet(a: argparse.Namespace, record: SheetRecord) -> int:
    """Write the record with its figures and page, remove the parts that were kept until then, and print it."""
    from rhumbline.report.sheets import write

    page = write(record, Path(a.out))
    shutil.rmtree(Path(a.out, PARTS), ignore_errors=True)
    if a.json:
        print_json(record)
        return 0
    say(record.sentence)
    say(f"report: {page}")
    return 0


# -- robustness -------------------------------------------------------------------------------------------------------


def add(command: AddCommand) -> None:
    """Add the command `robustness` to the parser."""
    about = "measure how much of a behaviour remains as more directions are ablated, for several models"
    robustness = command("robustness", _robustness, about)
    robustness.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    contrast = "contrast file or named contrast; default: contrast.jsonl in the directory of each model or organism"
    robustness.add_argument("--contrast", metavar="FILE|NAME", help=contrast)
    data_dir_option(robustness)
    quick_option(robustness)
    ranks = f"largest rank of the ablated subspace ({defaults([PLAN.ranks], [QUICK.ranks])})"
    robustness.add_argument("--ranks", type=whole(), metavar="K", help=ranks)
    judge = "keyword judge of whole completions (default: %(default)s)"
    robustness.add_argument("--judge", default=PLAN.judge, metavar="NAME", help=judge)
    test = f"test prompts per class ({defaults([PLAN.sizes.test], [QUICK.sizes.test])})"
    robustness.add_argument("--test", type=whole(), metavar="N", help=test)
    max_new_tokens_option(robustness, None, f"{PLAN.max_new_tokens}; {QUICK.max_new_tokens} with --quick")
    control_tokens_option(robustness, "a prompt", PLAN.control_tokens)
    seed = "seed of splits, nulls and suffixes (default: %(default)s)"
    robustness.add_argument("--seed", type=SEED, default=PLAN.seed, metavar="N", help=seed)
    sheet_options(robustness)
    json_option(robustness, "robustness.json")


def _robustness(a: argparse.Namespace) -> int:
    from rhumbline.analyses.robustness import compare, measure
    from rhumbline.judging.judge_names import class_judge

    check_sheet(a.out, OF_SHEET[RobustnessRecord])
    class_judge(a.judge)  # an unknown judge is reported before a model is loaded
    plan = QUICK if a.quick else PLAN
    sizes = None if a.test is None else replace(plan.sizes, test=a.test)
    numbers = ("ranks", "max_new_tokens", "seed")
    plan = plan_of(a, plan, numbers, judge=a.judge, sizes=sizes, control_tokens=a.control_tokens)
    contrasts = [open_contrast(a, name) for name in a.models]
    check_models(a, *a.models[1:])
    models = []
    with progress() as shown:
        for name, contrast in zip(a.models, contrasts, strict=True):
            shown(name, None)
            model = load_model(a, name)
            models.append(measure(model, contrast, plan, lambda rows: shown("", rows), keep=a.out))
    return write_sheet(a, compare(models, plan))


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

    check_sheet(a.out, OF_SHEET[DissociationRecord])
    template = read_template(a.chat_template)
    quieten()  # organisms are written first
    contrasts = [contrast_for(a.model, name, a.data_dir) for name in a.contrasts]
    sides = [BehaviourRun.open(run, c, template=template) for run, c in zip((a.run, a.other), contrasts, strict=True)]
    return write_sheet(a, dissociate(load_model(a), *sides, max_new_tokens=a.max_new_tokens))


# -- flinch -----------------------------------------------------------------------------------------------------------


def flinch_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze flinch`."""
    parser.add_argument("model", metavar="MODEL", help=f"the chat model: {MODEL_HELP}")
    parser.add_argument("--base", required=True, metavar="MODEL", help=f"its base model: {MODEL_HELP}")
    terms = (
        'JSON file {"terms": [...], "controls": [...], "contexts": ["... {term}", ...]}; one direction is tested with '
        "16 contexts or more"
    )
    parser.add_argument("--terms", required=True, metavar="FILE", help=terms)
    seed = "seed of intervals and random directions (default: 0)"
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help=seed)
    control_tokens_option(parser, "a term or context")
    sheet_options(parser)


def flinch(a: argparse.Namespace) -> int:
    """Execute `analyze flinch`."""
    from rhumbline.analyses.flinch import Terms, flinch

    check_sheet(a.out, OF_SHEET[FlinchRecord])
    terms = Terms.read(a.terms)
    check_models(a, a.base)
    with progress() as shown:
        shown("flinch", None)
        models = load_model(a), load_model(a, a.base)
        record = flinch(*models, terms, a.seed, lambda rows: shown("", rows), control_tokens=a.control_tokens)
    return write_sheet(a, record)


# -- style ------------------------------------------------------------------------------------------------------------


STYLE = {
    "nulls": ("draws of each null family at every dose", 1),
    "prompts": ("test prompts, at most", 2),
    "max_new_tokens": ("tokens of a completion, at most", 1),
}


def style_options(parser: argparse.ArgumentParser) -> None:
    """Options of `analyze style`."""
    plan, fast = StyleDosesPlan(), style_doses_file.QUICK
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    contrast = "contrast that `rhumbline contrast make` wrote with this model, with its system prompts"
    parser.add_argument("--contrast", required=True, metavar="FILE", help=contrast)
    quick_option(parser)
    text = f"coefficients of addition and subtraction, in differences in means ({defaults(plan.doses, fast.doses)})"
    parser.add_argument("--doses", metavar="X,Y", help=text)
    depths = listed_numbers(plan.depths)
    text = f"layers that validation prompts compare, as shares of the depth (default: {depths})"
    parser.add_argument("--depths", default=depths, metavar="X,Y", help=text)
    number_options(parser, plan, STYLE, fast)
    text = "local sentence-transformers model by which content is measured, too (extra `embeddings`)"
    parser.add_argument("--embeddings", metavar="DIR", help=text)
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the nulls (default: 0)")
    control_tokens_option(parser, "a prompt")
    sheet_options(parser)


def style_plan(a: argparse.Namespace) -> StyleDosesPlan:
    """The plan of the options of `analyze style`."""
    plan = style_doses_file.QUICK if a.quick else StyleDosesPlan()
    doses = None if a.doses is None else reals(a.doses, "--doses")
    return plan_of(a, plan, STYLE, doses=doses, depths=reals(a.depths, "--depths"), seed=a.seed)


def style(a: argparse.Namespace) -> int:
    """Execute `analyze style`."""
    from rhumbline.analyses.style_doses import measure, pairs_of
    from rhumbline.judging.embeddings import SentenceEmbeddings
    from rhumbline.prompts.contrast_files import read_contrast

    check_sheet(a.out, OF_SHEET[StyleDosesRecord])
    plan = style_plan(a)
    contrast = read_contrast(a.contrast)
    pairs_of(contrast, plan)  # a contrast of another form is reported before a model is loaded
    quieten()
    embeddings = None if a.embeddings is None else SentenceEmbeddings.load(a.embeddings)
    with progress() as shown:
        shown("style", None)
        record = measure(
            load_model(a),
            contrast,
            plan,
            embeddings=embeddings,
            control_tokens=a.control_tokens,
            tick=lambda rows: shown("", rows),
            keep=a.out,
        )
    return write_sheet(a, record)
