"""Exceptions and signals of a command: one line, an exit code and no traceback; finished results are kept."""

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from rhumbline.cli import main
from rhumbline.cli.console import SafeConsole, print_json, printable
from rhumbline.cli.execute import execute
from rhumbline.errors import InputError, ModelError, VerificationError

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def executed(error: BaseException | None) -> int:
    """Exit code of a command that raises `error`, or that is done."""

    def command(arguments: argparse.Namespace) -> int:
        if error is not None:
            raise error
        return 0

    return execute(argparse.Namespace(command=command))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, 0, ""),
        (VerificationError("rows differ"), 1, "rows differ"),
        (InputError("no such file"), 2, "no such file"),
        (ModelError("no blocks"), 3, "no blocks"),
        (KeyboardInterrupt(), 130, "interrupted. Rerun"),
        (FileNotFoundError(2, "No such file or directory", "x/y"), 2, "x/y: No such file"),
        (OSError(28, "No space left on device", "out/a.json"), 2, "out/a.json: No space left"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (OSError(5, "Input/output error"), 2, "Input/output error"),
        (SafetensorError("Error while deserializing header: invalid UTF-8"), 70, "an error in rhumbline itself"),
        (MemoryError(), 3, "memory is not sufficient"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 3, "memory is not sufficient"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            3,
            "not sufficient",
        ),
    ],
)
def test_every_exception_has_a_message_and_an_exit_code(error, code, text, capsys):
    assert executed(error) == code
    printed = capsys.readouterr().err
    assert text in printed.replace("\n", " ")
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("first\nsecond"), RecursionError("deep"), OSError("odd"), ImportError("x")]
)
def test_an_unexpected_exception_is_one_line_with_the_path_of_a_log(error, capsys):
    assert executed(error) == 70
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "Traceback" not in printed
    (name,) = re.findall(r"the log (\S+\.log)", printed)
    log = Path(name)
    assert f"{type(error).__name__}" in log.read_text()
    assert "Traceback" in log.read_text()
    log.unlink()


def test_an_unexpected_exception_without_a_disk_for_its_log_is_one_line(capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    assert executed(KeyError("x")) == 70
    assert "No log could be written" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_an_output_to_a_full_disk_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rhumbline", "organism", "list"],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def code_of(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize(
    ("arguments", "code", "without_output"),
    [
        (["verify", "/none"], 2, 2),
        (["verify", "/none", "--no-such-option"], 2, 2),
        (["no-such-command"], 2, 2),
        (["organism", "list"], 0, 2),
        (["run", "--help"], 0, 2),
        (["--version"], 0, 2),
    ],
)
@pytest.mark.parametrize("buffering", [1, 8192])
def test_a_message_that_is_lost_keeps_the_code_and_results_that_are_lost_do_not(
    arguments, code, without_output, buffering, monkeypatch, tmp_path
):
    for name, expected in (("stderr", code), ("stdout", without_output)):
        with open("/dev/full", "w", buffering) as full, monkeypatch.context() as patch:
            patch.setattr(sys, name, full)
            assert code_of(arguments) == expected, name
            assert getattr(sys, name) is full


def test_a_failure_keeps_its_code_if_its_output_is_lost(monkeypatch):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert execute(argparse.Namespace(command=lambda a: print("x") or 1)) == 1


@pytest.mark.parametrize("arguments", [["organism", "list"], ["--help"]])
def test_a_closed_pipe_ends_every_command_with_the_same_exit_code(arguments, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert code_of(arguments) == 141
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", pipe)
        assert code_of(["verify", "/none"]) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_releases_the_lock_and_exits_with_its_number(name, tmp_path):
    number = getattr(signal, name)
    script = (
        "import argparse, sys, time\n"
        "from pathlib import Path\n"
        "from rhumbline.cli.execute import execute\n"
        "from rhumbline.records.directory import locked\n"
        "def command(a):\n"
        "    with locked(Path(sys.argv[1])):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.exit(execute(argparse.Namespace(command=command)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs of a shell
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Rerun the same command to resume" in printed
    assert "Traceback" not in printed


def test_handlers_are_restored_after_a_command():
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGHUP")}
    assert executed(None) == 0
    assert {name: signal.getsignal(getattr(signal, name)) for name in before} == before


@given(st.text())
def test_no_control_character_of_a_text_reaches_the_terminal(text):
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=False)
    console.print(text, markup=False, highlight=False)
    assert not CONTROL.search(stream.getvalue().replace("\n", "").replace("\t", ""))


def test_styles_remain_and_escapes_of_a_text_do_not():
    stream = io.StringIO()
    SafeConsole(file=stream, force_terminal=True, color_system="standard").print("[bold]a[/]\x1b[31mb\x9b31m")
    assert "\x1b[1ma\x1b[0m" in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()


@given(st.text())
def test_printable_changes_no_other_text(text):
    if not CONTROL.search(text) and printable(text) != text:
        assert re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)


def test_json_output_has_no_control_characters_and_the_same_value(capsys):
    value = {"text": "a\x1b[31m\x9b\x7f ü"}
    print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert not CONTROL.search(printed.rstrip("\n"))


def test_an_option_with_control_characters_is_named_without_them(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "model", "--seeds\x1b[31m", "1"])
    assert ended.value.code == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "unknown command 'rum'. Did you mean run?"),
        (["analyse", "geometry"], "Did you mean analyze?"),
        (["xyzzy"], "unknown command 'xyzzy'. The commands are demo, run"),
        ([], "a command is missing. The commands are demo, run"),
        (["run"], "the following arguments are required: MODEL"),
    ],
)
def test_an_unknown_or_missing_command_is_an_error_with_advice(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"rhumbline {version('rhumbline')}\n"


@pytest.mark.parametrize("arguments", [["chat", "MODEL", "Hello."], ["chat", "MODEL", "Hello.", "--direction", "RUN"]])
def test_a_bare_prompt_of_chat_is_an_error_that_names_the_option(arguments, capsys):
    assert code_of(arguments) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "rhumbline chat: error:" in printed
    assert "a prompt as --prompt TEXT." in printed
    assert code_of(["verify", "a", "b"]) == 2
    assert "rhumbline verify: error: unrecognized arguments: b" in capsys.readouterr().err
