"""The command `robustness`."""

import argparse
from dataclasses import replace

from rhumbline.cli.analyze_models import sheet_options, write_sheet
from rhumbline.cli.console import progress
from rhumbline.cli.options import (
    MODEL_HELP,
    AddCommand,
    data_dir_option,
    json_option,
    load_model,
    max_new_tokens_option,
    open_contrast,
)
from rhumbline.records.directory import check_writable
from rhumbline.records.sheet_files import RobustnessPlan

PLAN = RobustnessPlan()


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    about = "measure how much of a behaviour remains as more directions are ablated, for several models"
    robustness = command("robustness", _robustness, about)
    robustness.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    contrast = "contrast file or named contrast; default: contrast.jsonl in the directory of each model or organism"
    robustness.add_argument("--contrast", default=None, metavar="FILE|NAME", help=contrast)
    data_dir_option(robustness)
    ranks = "largest rank of the ablated subspace (default: %(default)s)"
    robustness.add_argument("--ranks", type=int, default=PLAN.ranks, metavar="K", help=ranks)
    judge = "keyword judge of whole completions (default: %(default)s)"
    robustness.add_argument("--judge", default=PLAN.judge, metavar="NAME", help=judge)
    test = "test prompts per class (default: %(default)s)"
    robustness.add_argument("--test", type=int, default=PLAN.sizes.test, metavar="N", help=test)
    max_new_tokens_option(robustness, PLAN.max_new_tokens)
    seed = "seed of splits, nulls and suffixes (default: %(default)s)"
    robustness.add_argument("--seed", type=int, default=PLAN.seed, metavar="N", help=seed)
    sheet_options(robustness)
    json_option(robustness, "robustness.json")


def _robustness(a: argparse.Namespace) -> int:
    from rhumbline.analyses.robustness import compare, measure
    from rhumbline.judging.judge_names import keyword_judge

    check_writable(a.out)
    keyword_judge(a.judge)  # an unknown judge is reported before a model is loaded
    plan = replace(
        PLAN,
        ranks=a.ranks,
        judge=a.judge,
        sizes=replace(PLAN.sizes, test=a.test),
        max_new_tokens=a.max_new_tokens,
        seed=a.seed,
    )
    contrasts = [open_contrast(a, name) for name in a.models]
    models = []
    with progress() as shown:
        for name, contrast in zip(a.models, contrasts, strict=True):
            shown(name, None)
            models.append(measure(load_model(a, name), contrast, plan, lambda rows: shown("", rows)))
    return write_sheet(a, compare(models, plan))
