"""Options that several commands share, and what they say: protocol, chat, model. Computes nothing itself."""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from rich.markup import escape

from rhumbline.cli.console import err
from rhumbline.errors import InputError, ProtocolError


def model_options(command: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    group = command.add_argument_group("model")
    group.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1, auto (spread over all); default: the first GPU"
    )
    group.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16")
    group.add_argument("--coarse", action="store_true", help="run a model whose writers cannot be proved")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


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
    from rhumbline.engines import engine

    if a.gpus_per_replica < 0 or (a.replicas is not None and a.replicas < 1):
        raise InputError("--gpus-per-replica must not be negative, and --replicas is 1 or more.")
    return engine(a.engine, gpus_per_replica=a.gpus_per_replica, replicas=a.replicas)


def source_of(a: argparse.Namespace) -> Any:
    """Where the model that a command names comes from."""
    from rhumbline.sources import Source

    return Source(a.model, a.dtype, a.device, a.coarse, a.trust_remote_code)


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
    chat_options(command)


def chat_changes(a: argparse.Namespace) -> dict[str, Any]:
    """The chat options that were given. Raises InputError for a template or variables that cannot be read."""
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


def protocol_of(a: argparse.Namespace) -> Any:
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
    changes["chat"] = chat_changes(a) or None
    given = {k: v for k, v in changes.items() if v is not None}
    return amend(protocol, given, "options")


def _coefficient(text: str | None) -> float | str | None:
    if text is None or text == "validation":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--coefficient is {text!r}; give a number, or validation.") from None


def check_expected(a: argparse.Namespace) -> None:
    """Raise ProtocolError where `--expect` names no verdict."""
    from rhumbline.verdict import VerdictName

    known = get_args(VerdictName)
    if a.expect is not None and a.expect not in known:
        raise ProtocolError(f"--expect {a.expect} is no verdict; the verdicts are {', '.join(known)}.")


def load_model(a: argparse.Namespace, tensor_parallel: bool = False) -> Any:
    """The model that a command names, loaded and proved."""
    from transformers.utils import logging as transformers_logging

    from rhumbline.loading import load

    transformers_logging.disable_progress_bar()
    err.print(f"[dim]loading {escape(a.model)}[/]")
    options = {"coarse": a.coarse, "trust_remote_code": a.trust_remote_code, "tensor_parallel": tensor_parallel}
    return load(a.model, dtype=a.dtype, device=a.device, **options)
