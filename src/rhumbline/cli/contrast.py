"""The command `contrast make`."""

import argparse
from pathlib import Path
from typing import Any

from rhumbline.cli.console import Work, number, print_json, progress, say
from rhumbline.cli.option_values import load_model, read_template
from rhumbline.cli.options import (
    MODEL_HELP,
    SEED,
    AddCommand,
    control_tokens_option,
    json_option,
    max_new_tokens_option,
    model_options,
    real,
    template_option,
)
from rhumbline.errors import InputError


def add(command: AddCommand) -> None:
    """Add the command to the parser."""
    contrast = command("contrast", _without_action, "make a contrast from a model's own answers")
    actions = contrast.add_subparsers(required=True, metavar="ACTION")
    about = "write a contrast of the answers of a model to the same prompts under two system prompts"
    make = actions.add_parser("make", help=about, description=about)
    make.set_defaults(command=_make)
    make.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    prompts = "prompts: a .txt file with one per line, JSON Lines or CSV with the column prompt, or `everyday`"
    make.add_argument("--prompts", required=True, metavar="FILE|NAME", help=f"{prompts} (embedded everyday questions)")
    system = "system prompt: pass it twice, first that of the positives; empty: the default of the chat template"
    make.add_argument("--system", required=True, action="append", metavar="TEXT", help=system)
    make.add_argument("--out", default="contrast.jsonl", metavar="FILE", help="new .jsonl file (default: %(default)s)")
    max_new_tokens_option(make, 64)
    temperature = "temperature of the sampled answers; 0: greedy decoding (default: %(default)s)"
    make.add_argument("--temperature", type=real(0), default=0.7, metavar="T", help=temperature)
    make.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="seed of the answers and the splits (default: 0)"
    )
    match = "how the two answers to a prompt are cut to similar lengths: at sentence ends, or to the same words"
    make.add_argument(
        "--match", choices=("sentences", "words"), default="sentences", help=f"{match} (default: sentences)"
    )
    without = "leave the system prompts out of the rows, so that the classes have the same prompts"
    make.add_argument("--without-systems", action="store_true", help=without)
    make.add_argument("--thinking", choices=("on", "off"), help="value of the template's variable enable_thinking")
    template_option(make, "Jinja template that replaces the tokenizer's")
    control_tokens_option(make, "a prompt")
    json_option(make, "how the contrast was made")
    model_options(make)


def _without_action(a: argparse.Namespace) -> int:
    del a  # argparse requires an ACTION
    return 2


def _make(a: argparse.Namespace) -> int:
    from rhumbline.prompts.chat_options import ChatOptions
    from rhumbline.records.shared import ByLabel
    from rhumbline.stages.made_contrast import STAGE, MakePlan, check_new, make_contrast

    check_new(a.out)
    if len(a.system) != 2:
        raise InputError(
            f"contrast make: --system was passed {len(a.system)} times; it is needed twice, first the system prompt of "
            "the positives, then that of the negatives."
        )
    plan = MakePlan(
        ByLabel(*a.system), a.max_new_tokens, a.temperature, a.seed, a.match, with_systems=not a.without_systems
    )
    prompts, name = _prompts(a.prompts)
    thinking = None if a.thinking is None else a.thinking == "on"
    template = read_template(a.chat_template)
    chat = ChatOptions(enable_thinking=thinking, template=template, control_tokens=a.control_tokens)
    model = load_model(a)
    with progress([Work(STAGE, 2 * len(prompts), 2 * len(prompts))]) as shown:
        made = make_contrast(model, prompts, name, plan, a.out, chat=chat, progress=shown)
    if a.json:
        print_json(made)
        return 0
    one, other = (number(n, 1) for n in (made.words.positive, made.words.negative))
    say(f"{a.out}: {made.pairs} pairs of answers, of {one} and {other} words on average; left out: {made.left_out}")
    return 0


def _prompts(name: str) -> tuple[Any, str]:
    """The prompts of a file or of the embedded set, and their name."""
    from rhumbline.prompts.contrast_files import read_prompts
    from rhumbline.prompts.everyday import EVERYDAY, everyday_prompts

    if name == EVERYDAY:
        return everyday_prompts(), name
    return read_prompts(name), Path(name).stem
