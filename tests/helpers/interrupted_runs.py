"""Started by a test in a process of its own: one command, stopped by signals again and again, in forked copies.

    python interrupted_runs.py WORKPLACE COMMAND...

The libraries are imported once: a copy starts where a new process is after its imports. WORKPLACE/signals.json lists
pairs of an artefact in WORKPLACE/run and the signal that follows it; after the last one the command runs to its end.
Prints JSON: the status of every copy, negative for a signal, and what it printed.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import rhumbline.experiment  # noqa: F401
from rhumbline import load
from rhumbline.cli import main
from rhumbline.records.directory import RunDirectory


def start(command: list[str], log: Path) -> int:
    """The command in a copy of this process, which prints to `log`; returns its id."""
    process = os.fork()
    if process:
        return process
    # A job in the background, as CI may start the tests, ignores interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        code = main(command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(process: int, log: Path) -> dict:
    _, status = os.waitpid(process, 0)
    return {"status": os.waitstatus_to_exitcode(status), "printed": log.read_text()}


def stopped(command: list[str], artefact: Path, number: int, log: Path) -> dict:
    """The end of a command that gets a signal once the artefact exists."""
    process = start(command, log)
    while not artefact.exists() and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    os.kill(process, number)
    return end(process, log)


if __name__ == "__main__":
    workplace, command = Path(sys.argv[1]), sys.argv[2:]
    load(command[1], device="cpu")  # what a command imports on first use
    out, log = workplace / "run", workplace / "printed.txt"
    told: dict = {
        "stopped": [
            stopped(command, out / artefact, number, log) | {"finished": (out / "results.json").exists()}
            for artefact, number in json.loads((workplace / "signals.json").read_text())
        ]
    }
    with RunDirectory.open(workplace / "locked", RunDirectory.read(out).protocol):
        second = [str(workplace / "locked") if word == str(out) else word for word in command]
        told["locked"] = end(start(second, log), log)
    told["last"] = end(start(command, log), log)
    print(json.dumps(told))
