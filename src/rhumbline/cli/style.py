"""`robustness`, and the analyses of several runs or models: `analyze dissociation` and `analyze flinch`.

Options and printing; computes nothing itself.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhumbline.cli.console import Progress, out
from rhumbline.cli.options import MODEL_HELP, load_model, open_contrast, read_template


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser; `command(name, run, text)` makes one."""
    robustness = command("robustness", _robustness, "how much of a behaviour is left as more is removed, by model")
    robustness.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    named = "a file or a name; default: the contrast.jsonl of each model"
    robustness.add_argument("--contrast", default=None, metavar="FILE|NAME", help=named)
    robustness.add_argument(
        "--data-dir", default=None, metavar="DIR", help="local files of named data sets, read first"
    )
    robustness.add_argument("--ranks", type=int, default=4, metavar="K", help="largest rank (default: 4)")
    robustness.add_argument(
        "--judge", default="refusal-anywhere", help="who reads the whole text (default: %(default)s)"
    )
    robustness.add_argument("--test", type=int, default=64, metavar="N", help="test prompts per class (default: 64)")
    robustness.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="length of a completion")
    robustness.add_argument("--seed", type=int, default=0, help="of splits, nulls and suffixes (default: 0)")
    _output(robustness)
    robustness.add_argument("--json", action="store_true", help="print the record, and nothing else")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="where record, figures and page go")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, auto; default: the first GPU")
    parser.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def _finish(a: argparse.Namespace, record: Any) -> int:
    from rhumbline.analyses.sheet_pages import write
    from rhumbline.records.codec import to_json

    page = write(record, Path(a.out))
    if a.json:
        print(json.dumps(to_json(record), ensure_ascii=False))
        return 0
    out.print(record.sentence, markup=False, highlight=False)
    out.print(f"report: {page}", markup=False, highlight=False)
    return 0


def _robustness(a: argparse.Namespace) -> int:
    from rhumbline.analyses.robustness import RobustnessPlan, compare, measure
    from rhumbline.judging.judge_names import keyword_judge
    from rhumbline.records.shared import BySplit

    keyword_judge(a.judge)  # an unknown name is an error before a model is loaded
    plan = RobustnessPlan(
        ranks=a.ranks,
        judge=a.judge,
        sizes=BySplit(128, 16, a.test),
        max_new_tokens=a.max_new_tokens,
        seed=a.seed,
    )
    contrasts = [open_contrast(a, name) for name in a.models]
    progress = Progress()
    rows = []
    try:
        for name, contrast in zip(a.models, contrasts, strict=True):
            progress(name, None)
            rows.append(measure(load_model(a, name), contrast, plan, lambda n: progress("", n)))
    finally:
        progress.close()
    return _finish(a, compare(rows, plan))


def _dissociation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_A", help="directory of a finished run")
    parser.add_argument("other", metavar="RUN_B", help="a run about another behaviour of the same model")
    parser.add_argument("--model", required=True, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--contrasts", required=True, nargs=2, metavar=("A", "B"), help="of the two runs: files or names"
    )
    parser.add_argument("--data-dir", default=None, metavar="DIR", help="local files of named sets, read first")
    parser.add_argument("--chat-template", default=None, metavar="FILE", help="where the runs were given one")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="length of a completion")
    _output(parser)


def _dissociation(a: argparse.Namespace) -> int:
    from rhumbline.analyses.dissociation import Side, dissociate
    from rhumbline.models.sources import contrast_for

    template = read_template(a.chat_template)
    contrasts = [contrast_for(a.model, name, a.data_dir) for name in a.contrasts]
    sides = [Side.open(run, c, template=template) for run, c in zip((a.run, a.other), contrasts, strict=True)]
    return _finish(a, dissociate(load_model(a), *sides, max_new_tokens=a.max_new_tokens))


def _flinch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the chat model: hub name, directory or organism:NAME")
    parser.add_argument("--base", required=True, metavar="MODEL", help="its base model")
    parser.add_argument("--terms", required=True, metavar="FILE", help="JSON with terms, controls and contexts")
    parser.add_argument("--seed", type=int, default=0, help="of intervals and random directions (default: 0)")
    _output(parser)


def _flinch(a: argparse.Namespace) -> int:
    from rhumbline.analyses.flinch import Terms, flinch

    terms = Terms.read(a.terms)
    progress = Progress()
    try:
        progress("flinch", None)
        record = flinch(load_model(a), load_model(a, a.base), terms, a.seed, lambda n: progress("", n))
    finally:
        progress.close()
    return _finish(a, record)


ANALYSES = (
    (
        "dissociation",
        _dissociation_options,
        _dissociation,
        "do two behaviours of a model hang on different directions?",
    ),
    ("flinch", _flinch_options, _flinch, "does a chat model avoid words that its base model uses?"),
)
"""Name, options, what runs it, and one line of help."""
