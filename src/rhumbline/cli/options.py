"""Options that several commands share, each defined once."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from rhumbline.protocol import LARGEST_SEED, MOST

Parser = argparse._ActionsContainer
"""A parser, or a group of its options."""
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a command: its name, the function that executes it, and its help."""
Changes = dict[str, Any]
"""Fields of a record that options change, by name."""
MODEL_HELP = "hub name, directory, .gguf file or organism:NAME"


# -- numbers ----------------------------------------------------------------------------------------------------------


def whole(least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """The `type` of an option: a whole number in a range."""

    def convert(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text) else None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{brief(text)} given; use a whole number from {least} to {most}")
        return value

    return convert


DECIMAL = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?"
"""A number in decimal digits."""


def decimal(text: str) -> float:
    """A number in decimal digits; NaN for any other text, such as `1_0`, which `float` reads as 10."""
    return float(text) if re.fullmatch(DECIMAL, text) else math.nan


def real(least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf) -> Callable[[str], float]:
    """The `type` of an option: a finite number in a range, and greater than `above`."""

    def convert(text: str) -> float:
        value = decimal(text)
        if not (math.isfinite(value) and least <= value <= most and value > above):
            bounds = ((math.isfinite(most), f"up to {most:g}"), (math.isfinite(least), f"of at least {least:g}"))
            bounds = (*bounds, (math.isfinite(above), f"above {above:g}"))
            expected = " ".join(("a finite number", *(text for is_bound, text in bounds if is_bound)))
            raise argparse.ArgumentTypeError(f"{brief(text)} given; use {expected}")
        return value

    return convert


def brief(text: str) -> str:
    """A value that is not understood, in at most a few words."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


COUNT = whole(-MOST)
"""The `type` of a count whose smallest value a record states."""
SEED = whole(0, LARGEST_SEED)
"""The `type` of a seed."""


# -- single options ---------------------------------------------------------------------------------------------------


def json_option(parser: Parser, content: str) -> None:
    """`--json`."""
    text = f"print {content} as JSON on standard output, and nothing else there"
    parser.add_argument("--json", action="store_true", help=text)


def data_dir_option(parser: Parser) -> None:
    """`--data-dir`."""
    text = "directory with local files of named data sets; default: download them"
    parser.add_argument("--data-dir", metavar="DIR", help=text)


def device_option(parser: Parser, default: str | None = None) -> None:
    """`--device`."""
    text = "cpu, cuda, cuda:1, or auto (layers spread over all GPUs)"
    parser.add_argument("--device", default=default, help=f"{text}; default: {default or 'the first GPU, or else cpu'}")


def dtype_option(parser: Parser) -> None:
    """`--dtype`."""
    text = (
        "dtype of the weights: float32, bfloat16, float16 or auto (default): that of the checkpoint, but on a "
        "processor without native products of 16 bits float32"
    )
    parser.add_argument("--dtype", default="auto", help=text)


def remote_code_option(parser: Parser) -> None:
    """`--trust-remote-code`."""
    parser.add_argument("--trust-remote-code", action="store_true", help="execute code that comes with the model")


def seed_of_run_option(parser: Parser) -> None:
    """`--seed` of a finished run."""
    parser.add_argument("--seed", type=SEED, metavar="N", help="seed of the run; default: its first seed")


def rank_option(parser: Parser) -> None:
    """`--rank`."""
    parser.add_argument("--rank", type=whole(), metavar="K", help="use the first K vectors of a subspace")


def template_option(parser: Parser, text: str) -> None:
    """`--chat-template`."""
    parser.add_argument("--chat-template", metavar="FILE", help=text)


def control_tokens_option(parser: Parser, what: str, default: str | None = "error") -> None:
    """`--control-tokens`. `what` has the text; None: not set, so the protocol decides."""
    text = (
        f"what is done with {what} whose text is tokenized into control tokens, such as turn markers: error (default), "
        "or plain: encode it as plain text"
    )
    parser.add_argument("--control-tokens", choices=("error", "plain"), default=default, help=text)


def max_new_tokens_option(parser: Parser, default: int | None, shown: str | None = None) -> None:
    """`--max-new-tokens`."""
    text = f"tokens of a completion, at most; default: {shown or default}"
    parser.add_argument("--max-new-tokens", type=whole(), default=default, metavar="N", help=text)


def suffix_options(parser: Parser, *, required: bool) -> None:
    """`--suffix` and `--random`."""
    text = "text file with one suffix per line" + ("" if required else "; default: no suffix is read")
    parser.add_argument("--suffix", required=required, metavar="FILE", help=text)
    random = "random suffixes of the same length to compare each suffix with (default: 3)"
    parser.add_argument("--random", type=whole(), default=3, metavar="N", help=random)


# -- groups of options ------------------------------------------------------------------------------------------------


def model_options(command: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    group = command.add_argument_group("model")
    device_option(group)
    dtype_option(group)
    text = "accept a model whose residual writers cannot be proved; ablation then edits block inputs and outputs"
    group.add_argument("--coarse", action="store_true", help=text)
    remote_code_option(group)


def contrast_options(command: argparse.ArgumentParser) -> None:
    """Which prompts are read."""
    text = (
        "JSON Lines or CSV with the columns prompt and label, or a named contrast (`rhumbline data list`); default: "
        "contrast.jsonl in the directory of the model or organism"
    )
    command.add_argument("--contrast", metavar="FILE|NAME", help=text)
    data_dir_option(command)


def texts_option(command: argparse.ArgumentParser) -> None:
    """Texts on which cross-entropy is measured."""
    text = (
        "texts on which the cross-entropy of every arm is measured: JSON Lines or .txt; default: the model's own "
        "completions, and the responses of negatives if the contrast has them"
    )
    command.add_argument("--loss-text", metavar="FILE", help=text)


def direction_options(command: argparse.ArgumentParser) -> Parser:
    """Which direction of `--direction` is used; returns the group."""
    group = command.add_argument_group("direction", "which direction of the run or file is used")
    seed_of_run_option(group)
    layer = "layer of the direction; default: that of the run or file"
    group.add_argument("--layer", type=whole(0), metavar="N", help=layer)
    position = "position, for files with several directions"
    group.add_argument("--position", type=whole(-MOST, MOST), metavar="N", help=position)
    group.add_argument("--force", action="store_true", help="use a direction of another model or chat template")
    return group


def engine_options(command: argparse.ArgumentParser) -> None:
    """Where the jobs run."""
    group = command.add_argument_group("engine", "where the jobs run; results do not depend on it")
    engine = (
        "local (default), processes (workers on this machine), ray (a cluster on this machine, or at RAY_ADDRESS), "
    )
    engine += "or ray://HOST:PORT"
    group.add_argument("--engine", default="local", help=engine)
    gpus = "GPUs of one copy of the model (default: 0)"
    group.add_argument("--gpus-per-replica", type=real(0), default=0, metavar="N", help=gpus)
    replicas = "copies of the model, at most; default: one for each core, or as many as the cluster has room for"
    group.add_argument("--replicas", type=whole(), metavar="N", help=replicas)


def chat_options(command: argparse.ArgumentParser) -> None:
    """How prompts are rendered with the chat template."""
    group = command.add_argument_group("chat", "how prompts are rendered; default: as the chat template does")
    group.add_argument("--system", metavar="TEXT", help="system prompt of every chat")
    group.add_argument("--thinking", choices=("on", "off"), help="value of the template's variable enable_thinking")
    group.add_argument("--date", metavar="YYYY-MM-DD", help="date that the template prints as today's")
    template_option(group, "Jinja template that replaces the tokenizer's")
    control_tokens_option(group, "a prompt", None)
    group.add_argument("--template-kwargs", metavar="JSON", help="further variables of the template, as a JSON object")


def protocol_options(command: argparse.ArgumentParser, others: Mapping[str, Any] | None = None) -> None:
    """What is fixed before a run; `others` are defaults of the command that are not those of the preset."""
    from rhumbline.judging.judge_names import CLASS_JUDGES, CONTINUOUS_JUDGES
    from rhumbline.presets.protocols import PRESETS

    own = PRESETS["rhumbline"]
    about = "fixed before the run; default: the value of the preset, here that of the preset rhumbline"
    group = command.add_argument_group("protocol", about)

    def option(name: str, text: str, default: Any = None, **more: Any) -> None:
        default = (others or {}).get(name, default)
        about = text if default is None else f"{text} (default: {default})"
        group.add_argument(f"--{name}", default=None, help=about, **more)  # None: not set, so the preset decides

    option("preset", f"named protocol: {', '.join(PRESETS)} (default: rhumbline)", metavar="NAME")
    option("config", "experiment.toml; options on the command line take precedence", metavar="FILE")
    option("behaviour", "word for the behaviour in verdicts and reports", own.behaviour, metavar="WORD")
    seeds = "seeds; each samples new splits and fits a new direction"
    option("seeds", seeds, ",".join(map(str, own.seeds)), metavar="0,1")
    positions = (
        "where activations are read: post-instruction, last-token (the last of these), last-instruction (the last "
        "token of the user's text), response-mean, response:K or auto"
    )
    option("positions", positions, own.extraction.positions)
    sizes = f"{own.sizes.train},{own.sizes.val},{own.sizes.test}"
    option("sizes", "prompts per class in train, validation and test", sizes, metavar="128,32,100")
    option(
        "judge", f"judge of completions: {', '.join((*CLASS_JUDGES, *CONTINUOUS_JUDGES))}", own.judge, metavar="NAME"
    )
    phrases = 'TOML file of further refusal phrases by language, such as ja = ["..."]'
    option("phrases", phrases, metavar="FILE")
    tokens = (
        "first tokens of a refusal; auto: those of the model's own refusals; published: those of the paper for the "
        "family of the model, or else auto"
    )
    option("refusal-tokens", tokens, own.refusal_tokens, metavar="auto|published|I,As")
    nulls = "draws of each null family that complete test prompts"
    option("nulls", nulls, own.nulls.draws, type=COUNT, metavar="N")
    wide = "draws of each null family that the metric alone evaluates"
    option("wide-nulls", wide, own.nulls.wide, type=COUNT, metavar="N")
    option("max-new-tokens", "tokens of a completion, at most", own.max_new_tokens, type=COUNT, metavar="N")
    coefficient = "coefficient of the addition, in units of the difference in means; validation: selected on validation"
    option("coefficient", coefficient, own.addition.coefficient, metavar="C")
    add_at = "positions of the addition: prompt and generated tokens, or the prompt only"
    option("add-at", add_at, own.addition.positions, choices=("all", "prompt"))
    spare = "tokens at the start of a prompt that ablations do not edit, for models with massive activations there"
    option("spare-tokens", spare, own.ablation.spared, type=whole(0), metavar="N")
    option("full-grid", "compute every score of every candidate", action="store_true")
    early = "end the completion of a null as soon as its class is certain"
    quick = "a first answer in RUN/quick, by the same rule with fewer prompts and draws; more is undecided"
    option("quick", quick, action="store_true")
    option("early-stop", early, action="store_true")
    option("save-completions", "write the text of every completion", action="store_true")
    documents = "documents of each text on which cross-entropy is measured; 0: none"
    option("loss-documents", documents, own.side_effects.documents, type=COUNT, metavar="N")
    systems = "system prompts under which the test prompts run again: none, or text files with one prompt each"
    option("systems", systems, metavar="none,FILE")
    expected = "exit with code 1 on any other verdict; without `by ... criteria` a weaker rule can give it too"
    option("expect", expected, metavar="VERDICT")
    json_option(group, "results.json")
    chat_options(command)
