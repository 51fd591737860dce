"""What the options of a command state, as records of the library: model, contrast, engine, chat and protocol."""

import argparse
import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape

from rhumbline.cli.console import err
from rhumbline.cli.options import Changes, brief, decimal
from rhumbline.errors import InputError, ProtocolError
from rhumbline.records.directory import LONGEST_NAME
from rhumbline.records.files import unique_names
from rhumbline.records.user_files import read_text, read_toml


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
    quieten()  # organisms are written first
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


def check_models(a: argparse.Namespace, *models: str) -> None:
    """Raise SourceError for a directory or a file that does not exist, before other models are loaded."""
    from rhumbline.models.sources import checkpoint

    for source in (source_of(a, model) for model in models):
        if source.organism is None:
            with checkpoint(source.model):
                pass


def refuse_options(a: argparse.Namespace, option: str, *names: str) -> None:
    """Raise InputError for options that would have no effect together with `option`."""
    if changed := [f"--{name.replace('_', '-')}" for name in names if vars(a)[name] not in (None, False, "auto")]:
        raise InputError(f"{a.name_of_command}: {option} has no use for {', '.join(changed)}. Omit it.")


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
        value = json.loads(text, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--template-kwargs is not JSON: {error}. Pass a JSON object.") from error
    if not isinstance(value, dict):
        raise InputError(
            f'--template-kwargs is {text:.40}; pass a JSON object, such as {{"tools_in_user_message": false}}.'
        )
    return value


def integers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas or blanks. Raises InputError."""
    parts = _parts(text)
    if not all(re.fullmatch(r"[+-]?[0-9]{1,30}", part) for part in parts):
        raise InputError(f"{option} is {brief(text)}; use whole numbers separated by commas.")
    return tuple(map(int, parts))


def reals(text: str, option: str) -> tuple[float, ...]:
    """Numbers separated by commas or blanks. Raises InputError."""
    numbers = tuple(map(decimal, _parts(text)))
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{option} is {brief(text)}; use numbers separated by commas.")
    return numbers


def _parts(text: str) -> list[str]:
    """The items of a list of numbers."""
    return re.split(r"\s*,\s*|\s+", text.strip())


def sizes_of(text: str, *, reads_test: bool = True) -> Any:
    """The `Sizes` of `--sizes`; a command that reads no test prompts needs two numbers. Raises InputError."""
    from rhumbline.prompts.contrasts import Sizes

    numbers = integers(text, "--sizes")
    if not reads_test and len(numbers) not in (2, 3):
        raise InputError(f"--sizes is {text!r}; use two numbers: train and validation prompts per class.")
    if reads_test and len(numbers) != 3:
        raise InputError(f"--sizes is {text!r}; use three numbers: train, validation and test prompts per class.")
    return Sizes(*numbers)


def protocol_of(a: argparse.Namespace) -> Any:
    """The protocol: the preset, changed by the experiment file, changed by the options of the command."""
    from rhumbline.presets.experiment_files import amend, read_experiment
    from rhumbline.presets.protocols import PRESETS, preset, quick

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
    value = decimal(text)
    if not math.isfinite(value):
        raise InputError(f"--coefficient is {brief(text)}; use a number, or validation.")
    return value


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
