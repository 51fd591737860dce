"""The commands `chat` and `play`: baseline and edited completions beside each other."""

import argparse
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rhumbline.cli.console import err, note, out, print_json, say, table_of
from rhumbline.cli.edit_export import DIRECTION_HELP
from rhumbline.cli.execute import Interrupted
from rhumbline.cli.option_values import load_model, read_template, source_of
from rhumbline.cli.options import (
    MODEL_HELP,
    AddCommand,
    direction_options,
    json_option,
    max_new_tokens_option,
    model_options,
    real,
    template_option,
    whole,
)
from rhumbline.errors import InputError, RhumblineError
from rhumbline.records.user_files import control_character, is_unicode

DEFAULT_TOKENS = 128
HELP = {
    "/strength A": "strength of the ablation: 0 removes nothing, 1 removes all",
    "/coefficient C": "coefficient of the addition, in units of the norm of the direction",
    "/layer L": "layer of the direction",
    "/null [NAME]": "use a null direction; without a name, list them",
    "/direction": "use the direction that was passed",
    "/settings": "print the settings",
    "/quit": "end",
}


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    about = "complete prompts at baseline and under a direction, side by side on the terminal"
    chat = command("chat", _chat, about)
    _options(chat, required=True)
    prompt = "complete this prompt and stop; can be repeated"
    chat.add_argument("--prompt", action="append", metavar="TEXT", help=prompt)
    json_option(chat, "the completions of --prompt")

    about = "the same on a local web page, with sliders; only this machine can open it"
    play = command("play", _play, about)
    _options(play, required=False)
    play.add_argument(
        "--port", type=whole(0, 65535), default=0, metavar="N", help="port of the page (default: a free one)"
    )
    play.add_argument("--open", action="store_true", help="open the page in the browser")


def _options(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    default = "" if required else "; default: random directions only"
    command.add_argument("--direction", required=required, metavar="RUN|FILE", help=DIRECTION_HELP + default)
    strength = "strength of the ablation, 0 to 2 (default: 1)"
    command.add_argument("--strength", type=real(), default=1.0, metavar="A", help=strength)
    coefficient = "coefficient of the addition, in units of the norm of the direction (default: 0)"
    command.add_argument("--coefficient", type=real(), default=0.0, metavar="C", help=coefficient)
    command.add_argument("--null", metavar="NAME", help="use a null direction at first, for example 'isotropic 0'")
    max_new_tokens_option(command, DEFAULT_TOKENS)
    command.add_argument("--system", metavar="TEXT", help="system prompt of every chat; default: that of the run")
    template_option(command, "Jinja template that replaces that of the run or of the tokenizer")
    direction_options(command)
    model_options(command)


def _session(a: argparse.Namespace) -> tuple[Any, Any]:
    """The session and its first settings. A faulty direction or option is reported before a large model is loaded."""
    from rhumbline.edits.read_direction import check_fits
    from rhumbline.play.opening import DirectionOptions, open_session
    from rhumbline.play.session import Settings

    options = DirectionOptions(a.direction, a.seed, a.layer, a.position, a.force)
    values = {"strength": a.strength, "coefficient": a.coefficient, "max_new_tokens": a.max_new_tokens}
    Settings(direction="", layer=0, **values).check()
    template, imported = read_template(a.chat_template), options.read(a.null)
    check_text(a.system, "--system")
    check_fits(imported, source_of(a), a.layer)
    session = open_session(load_model(a), source_of(a), options, imported, a.system, template)
    chosen = {name: value for name, value in {"layer": a.layer, "direction": a.null}.items() if value is not None}
    settings = session.settings(**values, **chosen)
    session.arms(settings)
    return session, settings


def _play(a: argparse.Namespace) -> int:
    from rhumbline.play.server import PlayServer, check_port

    check_port(a.port)
    session, settings = _session(a)
    with PlayServer(session, a.port, settings) as server, TemporaryDirectory(prefix="rhumbline-play-") as private:
        say(f"page: {server.url}")
        note("only this machine can open it, with this address. Ctrl-C ends it.")
        if a.open:
            webbrowser.open(_redirect(Path(private), server.url))
        try:
            server.serve()
        except Interrupted:  # a signal other than Ctrl-C
            raise
        except KeyboardInterrupt:
            note("ended")
    return 0


def _redirect(folder: Path, url: str) -> str:
    """The address of a file that leads to the page; other users can read arguments, not the file."""
    page = folder / "play.html"
    page.write_text(f'<meta http-equiv="refresh" content="0; url={url}">', encoding="utf-8")
    return page.as_uri()


# -- the terminal -----------------------------------------------------------------------------------------------------


def _chat(a: argparse.Namespace) -> int:
    if a.json and not a.prompt:
        raise InputError("--json prints the completions of prompts. Pass --prompt TEXT.")
    for text in a.prompt or ():
        check_text(text, "--prompt")
    session, settings = _session(a)
    if a.prompt:
        results = [_complete(session, prompt, settings, lambda columns: None) for prompt in a.prompt]
        if a.json:
            rows = [{"prompt": p, "baseline": r[0], "edited": r[1]} for p, r in zip(a.prompt, results, strict=True)]
            print_json({"model": session.model.name, "settings": msgspec.to_builtins(settings), "completions": rows})
            return 0
        for prompt, (baseline, edited) in zip(a.prompt, results, strict=True):
            say(f"> {prompt}\n  baseline  {baseline}\n  edited    {edited}")
        return 0
    note("type a prompt, or /help. Every prompt is a new chat. Ctrl-D ends.")
    for line in iter(_read_line, None):
        try:
            if line.startswith("/"):
                settings = _changed(session, settings, line)
            elif line:
                with Live(console=out, refresh_per_second=12, vertical_overflow="visible") as live:
                    _complete(session, line, settings, lambda columns, live=live: live.update(_columns(columns)))
        except EndChat:
            break
        except RhumblineError as error:
            err.print(Text(str(error), style="yellow"))
    return 0


def check_text(text: str | None, option: str) -> None:
    """Raise InputError if a text is blank, or has characters that are not text."""
    if text is not None and (not text.strip() or control_character(text) or not is_unicode(text)):
        raise InputError(f"{option} {text[:40]!r}: expected a text that is not blank, without control characters.")


class EndChat(Exception):
    """The user ends the chat."""


def _read_line() -> str | None:
    """A line of the user; None at the end of the input."""
    if sys.stdin.isatty():
        err.print("[bold]> [/]", end="")
    try:
        line = sys.stdin.readline()
        line.encode()  # Python reads bytes that are no text as surrogates in some locales
    except UnicodeError as error:
        raise InputError("a line of the input is not text. Send UTF-8.") from error
    return line.strip() if line else None


def _complete(session: Any, prompt: str, settings: Any, show: Callable[[list[str]], None]) -> list[str]:
    """Both completions of a prompt, shown while they are decoded."""
    from rhumbline.play.session import COLUMNS, Piece

    texts = [""] * len(COLUMNS)
    for event in session.stream(prompt, settings):
        if isinstance(event, Piece):
            texts[event.column] += event.text
            show(texts)
    return texts


def _columns(texts: list[str]) -> Table:
    from rhumbline.play.session import COLUMNS

    table = Table(expand=True)
    for name in COLUMNS:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*map(Text, texts))
    return table


def _changed(session: Any, settings: Any, line: str) -> Any:
    """The settings after a command of the user. Raises InputError and EndChat."""
    word, _, value = line.partition(" ")
    value = value.strip()
    changes: dict[str, Any] = {}
    match word:
        case "/quit" | "/exit":
            raise EndChat
        case "/strength" | "/coefficient":
            changes = {word[1:]: _number(word, value, float)}
        case "/layer":
            changes = {"layer": _number(word, value, int)}
        case "/direction":
            changes = {"direction": session.choices.names[0]}
        case "/null" if value:
            changes = {"direction": value}
        case "/null":
            say("\n".join(session.choices.names))
        case "/settings":
            say("\n".join(f"{name}: {value}" for name, value in msgspec.to_builtins(settings).items()))
        case _:
            table = table_of(("command", "effect"))
            for name, about in HELP.items():
                table.add_row(Text(name), about)
            out.print(table)
    changed = msgspec.structs.replace(settings, **changes)
    session.arms(changed)
    return changed


def _number(word: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{word} {text}: expected {what}, such as {word} 1.") from None
