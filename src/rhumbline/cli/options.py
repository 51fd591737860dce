"""Options that several commands share, and what they say: protocol, chat, model. Computes nothing itself."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from rich.markup import escape

from rhumbline.cli.console import err
from rhumbline.errors import InputError, ProtocolError

MODEL_HELP = "hub name, directory or organism:NAME"


def model_options(command: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    group = command.add_argument_group("model")
    group.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1, auto (spread over all); default: the first GPU"
    )
    group.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16")
    group.add_argument("--coarse", action="store_true", help="run a model whose writers cannot be proved")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def contrast_options(command: argparse.ArgumentParser) -> None:
    """Which prompts are read."""
    named = (
        "JSON Lines or CSV with prompt and label, or a name (rhumbline data list); default: the contrast.jsonl of the "
        "model's directory or organism"
    )
    command.add_argument("--contrast", default=None, metavar="FILE|NAME", help=named)
    command.add_argument("--data-dir", default=None, metavar="DIR", help="local files of named data sets, read first")


def open_contrast(a: argparse.Namespace, model: str | None = None) -> Any:
    """The contrast that a command names, or else the model's own."""
    from rhumbline.models.sources import contrast_for

    if a.data_dir is not None and not Path(a.data_dir).is_dir():
        raise InputError(f"--data-dir {a.data_dir} is not a directory. Give one with the files of named data sets.")
    return contrast_for(model or a.model, a.contrast, a.data_dir)


def read_template(path: str | None) -> str | None:
    """The chat template that a command names, if any."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--chat-template {path} cannot be read: {error}") from error


def engine_options(command: argparse.ArgumentParser) -> None:
    """Where the work takes place."""
    group = command.add_argument_group("engine", "where the work takes place; it changes no result")
    group.add_argument("--engine", default="local", help="local, ray (here, or at RAY_ADDRESS), ray://HOST:PORT")
    group.add_argument("--gpus-per-replica", type=float, default=0, metavar="N", help="GPUs of one copy of the model")
    group.add_argument(
        "--replicas", type=int, default=None, metavar="N", help="at most; default: what there is room for"
    )


def engine_of(a: argparse.Namespace) -> Any:
    """The engine that was asked for. Raises InputError."""
    from rhumbline.engines.jobs import engine

    if a.gpus_per_replica < 0 or (a.replicas is not None and a.replicas < 1):
        raise InputError("--gpus-per-replica must not be negative, and --replicas is 1 or more.")
    return engine(a.engine, gpus_per_replica=a.gpus_per_replica, replicas=a.replicas)


def source_of(a: argparse.Namespace, model: str | None = None) -> Any:
    """How a command loads a model (default: its MODEL); options are named as the fields of `Source`."""
    from rhumbline.models.sources import Source

    options = {f.name: vars(a)[f.name] for f in fields(Source) if f.name in vars(a)}
    return Source(**{**options, "model": model or a.model}).with_organism_defaults()


def chat_options(command: argparse.ArgumentParser) -> None:
    """What the chat template is given."""
    group = command.add_argument_group("chat")
    group.add_argument("--system", default=None, metavar="TEXT", help="system prompt of every chat")
    group.add_argument("--thinking", choices=("on", "off"), default=None, help="enable_thinking of the template")
    group.add_argument("--date", default=None, metavar="YYYY-MM-DD", help="the day that the template believes it is")
    group.add_argument("--chat-template", default=None, metavar="FILE", help="Jinja template to use instead")
    group.add_argument("--template-kwargs", default=None, metavar="JSON", help="further template variables")


def protocol_options(command: argparse.ArgumentParser) -> None:
    """What is fixed before a run."""
    group = command.add_argument_group("protocol", "what is fixed beforehand; a preset fills what is not given")
    group.add_argument("--preset", default=None, help="rhumbline (default), arditi2024, blog2026 or style")
    group.add_argument("--config", default=None, metavar="FILE", help="experiment.toml; options given here win over it")
    group.add_argument("--behaviour", default=None, metavar="WORD", help="default: refusal")
    group.add_argument("--seeds", default=None, metavar="0,1", help="each samples the splits anew and refits")
    group.add_argument("--positions", default=None, help="where activations are read, for example response-mean")
    group.add_argument("--sizes", default=None, metavar="128,32,100", help="prompts per class in train, val, test")
    group.add_argument(
        "--judge", default=None, help="refusal-opening, refusal-anywhere, refusal-anywhere-literal, markers, classifier"
    )
    group.add_argument("--refusal-tokens", default=None, metavar="auto|I,As", help="first tokens of a refusal")
    group.add_argument("--nulls", type=int, default=None, metavar="N", help="draws of each null family that complete")
    group.add_argument("--wide-nulls", type=int, default=None, metavar="N", help="draws scored by the fast metric")
    group.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="length of a completion")
    group.add_argument("--coefficient", default=None, metavar="C", help="of the addition: a number or validation")
    group.add_argument("--add-at", choices=("all", "prompt"), default=None, help="positions of the addition")
    group.add_argument("--full-grid", action="store_true", default=None, help="score every candidate")
    group.add_argument("--early-stop", action="store_true", default=None, help="end a null's row once it is decided")
    group.add_argument("--save-completions", action="store_true", default=None, help="write the texts too")
    group.add_argument("--loss-documents", type=int, default=None, metavar="N", help="of each text; 0 measures no loss")
    group.add_argument(
        "--systems", default=None, metavar="none,FILE", help="test again under these system prompts (a file holds one)"
    )
    group.add_argument("--expect", default=None, metavar="VERDICT", help="exit with 1 on any other verdict")
    group.add_argument("--json", action="store_true", help="print results.json on standard output, and nothing else")
    chat_options(command)


def chat_changes(a: argparse.Namespace) -> dict[str, Any]:
    """The chat options that were given. Raises InputError for a template or variables that cannot be read."""
    changes: dict[str, Any] = {"system": a.system, "date": a.date}
    if a.thinking is not None:
        changes["enable_thinking"] = a.thinking == "on"
    if (template := read_template(a.chat_template)) is not None:
        changes["template"] = template
    if a.template_kwargs is not None:
        try:
            changes["template_kwargs"] = json.loads(a.template_kwargs)
        except ValueError as error:
            raise InputError(f"--template-kwargs is not JSON: {error}") from error
        if not isinstance(changes["template_kwargs"], dict):
            raise InputError('--template-kwargs must be a JSON object, for example {"tools_in_user_message": false}.')
    return {k: v for k, v in changes.items() if v is not None}


def integers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} is {text!r}; give whole numbers separated by commas.") from None


def protocol_of(a: argparse.Namespace) -> Any:
    """The preset, then the experiment file, then the options given on the command line."""
    from rhumbline.protocol import PRESETS, amend, preset, read_experiment

    named, tables = read_experiment(a.config) if a.config else (None, {})
    # A behaviour with a preset of its own takes it.
    behaviour = a.behaviour or tables.get("behaviour")
    protocol = preset(a.preset or named or (str(behaviour) if behaviour in PRESETS else "rhumbline"))
    protocol = amend(protocol, tables, str(a.config))
    changes: dict[str, Any] = {
        "behaviour": a.behaviour,
        "judge": a.judge,
        "max_new_tokens": a.max_new_tokens,
        "full_grid": a.full_grid,
        "save_completions": a.save_completions,
        "early_stop": a.early_stop,
        "seeds": integers(a.seeds, "--seeds") if a.seeds is not None else None,
    }
    if a.positions is not None:
        changes["extraction"] = {"positions": a.positions}
    if a.refusal_tokens is not None:
        changes["refusal_tokens"] = "auto" if a.refusal_tokens == "auto" else tuple(a.refusal_tokens.split(","))
    if a.sizes is not None:
        numbers = integers(a.sizes, "--sizes")
        if len(numbers) != 3:
            raise InputError(f"--sizes is {a.sizes!r}; give three numbers: train, val and test per class.")
        changes["sizes"] = dict(zip(("train", "val", "test"), numbers, strict=True))
    nulls = {"draws": a.nulls, "wide": a.wide_nulls}
    changes["nulls"] = {k: v for k, v in nulls.items() if v is not None} or None
    addition = {"coefficient": _coefficient(a.coefficient), "positions": a.add_at}
    changes["addition"] = {k: v for k, v in addition.items() if v is not None} or None
    changes["chat"] = chat_changes(a) or None
    changes["side_effects"] = {"documents": a.loss_documents} if a.loss_documents is not None else None
    changes["conditions"] = _systems(a.systems) if a.systems is not None else None
    given = {k: v for k, v in changes.items() if v is not None}
    return amend(protocol, given, "options")


def _systems(text: str) -> dict[str, str]:
    """Name and text of each system prompt: `none`, or a file that holds one and lends it its name."""
    found = {}
    for item in text.split(","):
        name = "none" if item == "none" else Path(item).stem
        try:
            found[name] = "" if item == "none" else Path(item).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--systems {item} cannot be read: {error}. Give none, or files of one prompt.") from error
        if item != "none" and not found[name]:
            raise InputError(f"--systems {item} is empty; for no system prompt write none.")
    if len(found) < len(text.split(",")):
        raise InputError(f"--systems {text}: two of them have one name.")
    return found


def texts_option(command: argparse.ArgumentParser) -> None:
    """What losses are measured on."""
    command.add_argument(
        "--loss-text", default=None, metavar="FILE", help="texts to measure losses on: JSON Lines or .txt (docs/guide)"
    )


def _coefficient(text: str | None) -> float | str | None:
    if text is None or text == "validation":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--coefficient is {text!r}; give a number, or validation.") from None


def check_expected(a: argparse.Namespace) -> None:
    """Raise ProtocolError where `--expect` names no verdict."""
    from rhumbline.records.results import VerdictName

    known = get_args(VerdictName)
    if a.expect is not None and a.expect not in known:
        raise ProtocolError(f"--expect {a.expect} is no verdict; the verdicts are {', '.join(known)}.")


def load_model(a: argparse.Namespace, model: str | None = None, *, tensor_parallel: bool = False) -> Any:
    """A model (default: the command's MODEL), loaded with the options of the command and proved."""
    from rhumbline.models.loading import load_source

    source = source_of(a, model)
    prepare(source.model)
    return load_source(source, tensor_parallel=tensor_parallel)


def prepare(model: str) -> None:
    """Print that a model is loaded, and set this process up for it."""
    import torch
    from transformers.utils import logging as transformers_logging

    from rhumbline.models.sources import ORGANISM

    transformers_logging.disable_progress_bar()
    err.print(f"[dim]loading {escape(model)}[/]")
    if model.startswith(ORGANISM):
        # The organisms are tiny: a second thread gains little when cores are free and loses a lot when they are not.
        torch.set_num_threads(1)
