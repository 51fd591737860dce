"""Options that several commands share, each defined once, and their conversion to records of the library."""

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape

from rhumbline.cli.console import err
from rhumbline.errors import InputError, ProtocolError
from rhumbline.protocol import LARGEST_SEED, MOST
from rhumbline.records.directory import LONGEST_NAME
from rhumbline.records.user_files import read_text, read_toml

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
            raise argparse.ArgumentTypeError(f"{_brief(text)} given; use a whole number from {least} to {most}")
        return value

    return convert


def real(least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf) -> Callable[[str], float]:
    """The `type` of an option: a finite number in a range, and greater than `above`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most and value > above):
            bounds = ((math.isfinite(most), f"up to {most:g}"), (math.isfinite(least), f"of at least {least:g}"))
            bounds = (*bounds, (math.isfinite(above), f"above {above:g}"))
            expected = " ".join(("a finite number", *(text for is_bound, text in bounds if is_bound)))
            raise argparse.ArgumentTypeError(f"{_brief(text)} given; use {expected}")
        return value

    return convert


def _brief(text: str) -> str:
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
        "JSON Lines or CSV with the columns prompt and label, or a named contrast (rhumbline data list); default: "
        "contrast.jsonl in the directory of the model or organism"
    )
    command.add_argument("--contrast", metavar="FILE|NAME", help=text)
    data_dir_option(command)


def texts_option(command: argparse.ArgumentParser) -> None:
    """Texts on which cross-entropy is measured."""
    text = (
        "texts on which the cross-entropy of every arm is measured: JSON Lines or .txt; default: only the model's own "
        "completions"
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
    engine = "local (default), ray (a cluster on this machine, or at RAY_ADDRESS), or ray://HOST:PORT"
    group.add_argument("--engine", default="local", help=engine)
    gpus = "GPUs of one copy of the model (default: 0)"
    group.add_argument("--gpus-per-replica", type=real(0), default=0, metavar="N", help=gpus)
    replicas = "copies of the model, at most; default: as many as the cluster has room for"
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


def protocol_options(command: argparse.ArgumentParser) -> None:
    """What is fixed before a run."""
    from rhumbline.judging.judge_names import CLASS_JUDGES, CONTINUOUS_JUDGES
    from rhumbline.protocol import PRESETS

    own = PRESETS["rhumbline"]
    about = "fixed before the run; default: the value of the preset, here that of the preset rhumbline"
    group = command.add_argument_group("protocol", about)

    def option(name: str, text: str, default: Any = None, **more: Any) -> None:
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
    nulls = "draws of each null family that complete the test prompts"
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


# -- options as records -----------------------------------------------------------------------------------------------


def read_template(path: str | None) -> str | None:
    """Text of `--chat-template`. Raises InputError."""
    if path is None:
        return None
    text = read_text(path, InputError, "a Jinja template in UTF-8", "--chat-template")
    if not text.strip():
        raise InputError(f"--chat-template {path} is empty. Pass a Jinja template in UTF-8.")
    return text


def open_contrast(a: argparse.Namespace, model: str | None = None) -> Any:
    """The contrast of a command, or the model's own. Raises InputError."""
    from rhumbline.models.sources import contrast_for

    if a.data_dir is not None and not Path(a.data_dir).is_dir():
        raise InputError(f"--data-dir {a.data_dir} is not a directory. Pass one with the files of named data sets.")
    return contrast_for(model or a.model, a.contrast, a.data_dir)


def engine_of(a: argparse.Namespace) -> Any:
    """The engine of a command. Raises InputError."""
    from rhumbline.engines.engine import engine

    return engine(a.engine, gpus_per_replica=a.gpus_per_replica, replicas=a.replicas)


def source_of(a: argparse.Namespace, model: str | None = None) -> Any:
    """The `Source` of a model (default: MODEL of the command). Options are named as its fields."""
    from rhumbline.models.sources import Source

    options = {f.name: vars(a)[f.name] for f in fields(Source) if f.name in vars(a)}
    return Source(**{**options, "model": model or a.model}).with_organism_defaults()


def load_model(a: argparse.Namespace, model: str | None = None, *, tensor_parallel: bool = False) -> Any:
    """A model (default: MODEL of the command), loaded with the options of the command and proved."""
    from rhumbline.models.loading import load_source

    source = source_of(a, model)
    prepare(source.model)
    return load_source(source, tensor_parallel=tensor_parallel)


def prepare(model: str) -> None:
    """Print that a model is being loaded, and set this process up for it."""
    import torch

    from rhumbline.models.processor import use_fastest_threads
    from rhumbline.models.sources import ORGANISM

    quieten()
    err.print(f"[dim]loading {escape(model[:LONGEST_NAME])}[/]")
    if model.startswith(ORGANISM):
        # Organisms are tiny: a second thread saves little on free cores and costs much on busy ones.
        torch.set_num_threads(1)
    else:
        use_fastest_threads()


def quieten() -> None:
    """Turn off the progress bars of transformers, and its tables of faulty tensors, which errors name."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def chat_changes(a: argparse.Namespace) -> Changes:
    """Fields of `ChatOptions` that the command sets. Raises InputError."""
    changes = {
        "system": a.system,
        "date": a.date,
        "enable_thinking": None if a.thinking is None else a.thinking == "on",
        "template": read_template(a.chat_template),
        "control_tokens": a.control_tokens,
        "template_kwargs": None if a.template_kwargs is None else _template_kwargs(a.template_kwargs),
    }
    return _set(changes)


def _template_kwargs(text: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--template-kwargs is not JSON: {error}. Pass a JSON object.") from error
    if not isinstance(value, dict):
        raise InputError(
            f'--template-kwargs is {text:.40}; pass a JSON object, such as {{"tools_in_user_message": false}}.'
        )
    return value


def integers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas. Raises InputError."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", part) for part in parts):
        raise InputError(f"{option} is {_brief(text)}; use whole numbers separated by commas.")
    return tuple(map(int, parts))


def reals(text: str, option: str) -> tuple[float, ...]:
    """Numbers separated by commas. Raises InputError."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise InputError(f"{option} is {_brief(text)}; use numbers separated by commas.") from None


def sizes_of(text: str) -> Any:
    """The `Sizes` of `--sizes`. Raises InputError."""
    from rhumbline.prompts.contrasts import Sizes

    numbers = integers(text, "--sizes")
    if len(numbers) != 3:
        raise InputError(f"--sizes is {text!r}; use three numbers: train, validation and test prompts per class.")
    return Sizes(*numbers)


def protocol_of(a: argparse.Namespace) -> Any:
    """The protocol: the preset, changed by the experiment file, changed by the options of the command."""
    from rhumbline.protocol import PRESETS, amend, preset, quick, read_experiment

    named, tables = read_experiment(a.config) if a.config else (None, {})
    # A behaviour with a preset of the same name uses it.
    behaviour = a.behaviour or str(tables.get("behaviour"))
    protocol = preset(a.preset or named or (behaviour if behaviour in PRESETS else "rhumbline"))
    protocol = amend(protocol, tables, str(a.config))
    changes = {
        "behaviour": a.behaviour,
        "judge": a.judge,
        "phrases": None if a.phrases is None else _phrases(a.phrases),
        "max_new_tokens": a.max_new_tokens,
        "full_grid": a.full_grid,
        "save_completions": a.save_completions,
        "early_stop": a.early_stop,
        "seeds": None if a.seeds is None else integers(a.seeds, "--seeds"),
        "extraction": _set({"positions": a.positions}),
        "refusal_tokens": _refusal_tokens(a.refusal_tokens),
        "sizes": None if a.sizes is None else vars(sizes_of(a.sizes)),
        "nulls": _set({"draws": a.nulls, "wide": a.wide_nulls}),
        "ablation": _set({"spared": a.spare_tokens}),
        "addition": _set({"coefficient": _coefficient(a.coefficient), "positions": a.add_at}),
        "chat": chat_changes(a),
        "side_effects": _set({"documents": a.loss_documents}),
        "conditions": None if a.systems is None else _systems(a.systems),
    }
    protocol = amend(protocol, {k: v for k, v in _set(changes).items() if v != {}}, "options")
    _check_behaviour(protocol)
    return quick(protocol) if a.quick else protocol


def _check_behaviour(protocol: Any) -> None:
    """Raise ProtocolError if a judge of refusals is to measure another behaviour: only its name would change."""
    if protocol.behaviour != "refusal" and not protocol.is_continuous:
        raise ProtocolError(
            f"--behaviour {protocol.behaviour}: the judge {protocol.judge} finds refusals only, so only the name would "
            "change. Pass --preset style, which estimates a continuous score from the texts, or --behaviour refusal."
        )


def _set(options: Changes) -> Changes:
    """The options that are set."""
    return {name: value for name, value in options.items() if value is not None}


def _refusal_tokens(text: str | None) -> str | tuple[str, ...] | None:
    return text if text in (None, "auto", "published") else tuple(text.split(","))


def _coefficient(text: str | None) -> float | str | None:
    if text is None or text == "validation":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--coefficient is {text!r}; use a number, or validation.") from None


def _phrases(path: str) -> dict[str, Any]:
    """The refusal phrases of a file."""
    phrases = read_toml(path, InputError, "a TOML file with a list of phrases by language", "--phrases")
    if not phrases:
        raise InputError(f"--phrases {path} has no phrases. Pass a TOML file with a list of phrases by language.")
    return phrases


def _systems(text: str) -> dict[str, str]:
    """System prompts by name: `none`, or the stem of a file."""
    prompts = {}
    for item in text.split(","):
        name = "none" if item == "none" else Path(item).stem
        if name in prompts:
            raise InputError(f"--systems {text}: two system prompts have the name {name!r}. Rename a file.")
        expected = "none, or text files with one prompt each"
        prompts[name] = "" if item == "none" else read_text(item, InputError, expected, "--systems").strip()
        if item != "none" and not prompts[name]:
            raise InputError(f"--systems {item} is empty. Pass none to run without a system prompt.")
    return prompts


def check_expected(a: argparse.Namespace) -> None:
    """Raise ProtocolError if `--expect` is not a verdict."""
    from rhumbline.records.verdict_names import VerdictName

    verdicts = tuple(VerdictName)
    if a.expect is not None and a.expect not in verdicts:
        raise ProtocolError(f"--expect is {a.expect!r}; use one of {', '.join(verdicts)}.")
