"""Every hostile case in a process of its own, and faults while a command runs. Run with `make hostile`.

The figures are written into docs/security.md if HOSTILE_REPORT names it.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_answers import CODES, CONTROL, names_input
from hostile_artefacts import EXECUTED
from hostile_cases import cases, line, outputs

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).parents[2]
SECONDS = 180
"""Wall-clock limit of one command; a machine can be busy."""
MEMORY = 16 * 2**30
"""Address space of one command."""
BEGIN, END = "<!-- figures of make hostile -->", "<!-- end of the figures -->"


@pytest.fixture(scope="module")
def tally():
    """Counts of the answers of this module, reported at its end."""
    counts: dict[str, Counter[str]] = {"options and files": Counter(), "faults while running": Counter()}
    yield counts
    if name := os.environ.get("HOSTILE_REPORT"):
        page = ROOT / name
        head, rest = page.read_text().split(BEGIN)
        columns = ("tried", "answered", "refused", "tracebacks", "exit 70", "hangs")
        rows = [f"| {part} | " + " | ".join(str(counts[part][c]) for c in columns) + " |" for part in counts]
        table = [f"| inputs | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1), *rows]
        page.write_text(f"{head}{BEGIN}\n\n" + "\n".join(table) + f"\n\n{END}{rest.split(END)[1]}")


def count(counts: Counter[str], code: int | None, text: str) -> None:
    """Add one answer."""
    counts["tried"] += 1
    counts["answered"] += code in CODES
    counts["refused"] += code in CODES - {0}
    counts["tracebacks"] += "Traceback" in text
    counts["exit 70"] += code == 70
    counts["hangs"] += code is None


def forked(arguments: list[str], log: Path, seconds: float = SECONDS) -> tuple[int | None, str]:
    """Exit code (None: no answer in time) and output of a command in a copy of this process."""
    process = os.fork()
    if process == 0:
        code = 71
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            file = os.open(log, os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            from rhumbline.cli import main

            _show_warnings()
            code = main(arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 71
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace") if log.exists() else ""
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None, log.read_text(errors="replace")


def _show_warnings() -> None:
    """Warnings are printed as outside of tests, where those for developers are not."""
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)


def test_every_case_is_answered(words, tally, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults = []
    for number, case in enumerate(c for c in cases() if not (c.value.is_late and "dissociation" in c.command)):
        given = tmp_path / str(number)
        given.mkdir()
        value = case.value.make(given)
        known = words | outputs(given / "out")
        code, text = forked(line(case.command, known, case.option, value), given / "log")
        count(tally["options and files"], code, text)
        if Path(EXECUTED).exists():
            Path(EXECUTED).unlink()
            faults.append(f"{case}: code was executed")
        if code not in case.value.codes or "Traceback" in text or "Warning:" in text or CONTROL.search(text):
            faults.append(f"{case}: exit code {code}: {text[-300:]!r}")
        elif not names_input(text, case.option, value, case.value.names):
            faults.append(f"{case}: the message does not name it: {text[-300:]!r}")
        shutil.rmtree(given, ignore_errors=True)
    assert faults == []


# -- faults while running ---------------------------------------------------------------------------------------------

DEMO = ["demo", "--organism", "planted", "--sizes", "32,16,40", "--nulls", "1", "--wide-nulls", "19", "--seeds", "0"]


def start(arguments: list[str], before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """A command in a new process."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs with SIGINT ignored
        if before is not None:
            before()

    return subprocess.Popen(
        [sys.executable, "-m", "rhumbline", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=prepare, env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "TQDM_DISABLE": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], tally, seconds: float = 10 * SECONDS) -> tuple[int | None, str]:
    """Exit code and output of the process; counted."""
    try:
        text, _ = process.communicate(timeout=seconds)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        code, text = None, process.communicate()[0]
    signals = {128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP}
    count(tally["faults while running"], 2 if code in signals else code, text)
    assert code is not None, text
    assert code != 70, text
    assert "Traceback" not in text
    return code, text


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 10 * SECONDS) -> None:
    """Return once the file exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tally) -> bytes:
    """The selection and the outcomes of a run without a fault."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert finish(start([*DEMO, "--out", str(out)]), tally)[0] == 0
    return rows_of(out)


def rows_of(out: Path) -> bytes:
    """What a run measured."""
    text = (out / "seed-0" / "outcomes.jsonl").read_bytes()
    return re.sub(rb'"protocol_sha256": ?"\w+"', b"", text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str)
@pytest.mark.parametrize("file", ["protocol.json", "seed-0/directions.safetensors"])
def test_a_signal_ends_a_run_that_resumes(number, file, whole, tally, tmp_path):
    out = tmp_path / "run"
    process = start([*DEMO, "--out", str(out)])
    wait_for(out / file, process)
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate()
    else:
        code, text = finish(process, tally)
        assert code == 128 + number
        assert "Rerun the same command to resume" in text
    assert finish(start([*DEMO, "--out", str(out)]), tally)[0] == 0
    assert rows_of(out) == whole
    assert not list(out.rglob(".*.tmp"))


def test_two_processes_on_one_output(whole, tally, tmp_path):
    out = tmp_path / "run"
    first = start([*DEMO, "--out", str(out)])
    wait_for(out / "protocol.json", first)
    code, text = finish(start([*DEMO, "--out", str(out)]), tally)
    assert code == 2
    assert "in use by another rhumbline process" in " ".join(text.split())
    assert finish(first, tally)[0] == 0
    assert rows_of(out) == whole


def test_an_output_that_is_deleted_during_a_run(whole, tally, tmp_path):
    out = tmp_path / "run"
    process = start([*DEMO, "--out", str(out)])
    wait_for(out / "protocol.json", process)
    shutil.rmtree(out, ignore_errors=True)
    code, text = finish(process, tally)
    assert code in (0, 2), text
    assert code == 0 or str(out) in "".join(text.split())


def test_a_full_disk(whole, tally, tmp_path):
    """Files of at most 20 kB: what the operating system reports is the same as for a full disk."""
    out = tmp_path / "run"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    code, text = finish(start([*DEMO, "--out", str(out)], limit), tally)
    assert code == 2, text
    assert "cannot be written" in " ".join(text.split())
    assert finish(start([*DEMO, "--out", str(out)]), tally)[0] == 0
    assert rows_of(out) == whole


def test_little_memory(whole, tally, tmp_path):
    """From too little for the libraries up to too little for the model: never a traceback."""
    for megabytes in (400, 1000, 2500):
        limit = megabytes * 2**20
        process = start(
            [*DEMO, "--out", str(tmp_path / str(megabytes))],
            lambda limit=limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
        text, _ = process.communicate(timeout=10 * SECONDS)
        assert process.returncode != 70, text
        assert "Traceback" not in text
        count(tally["faults while running"], process.returncode, text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_an_output_that_cannot_be_written(tally, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    code, text = finish(start([*DEMO, "--out", str(folder / "run")]), tally)
    assert code == 2
    assert "not writable" in text


def test_a_real_model_with_a_hostile_value(real_models, words, tally, tmp_path):
    """Options that only a real tokenizer and template can refuse."""
    for model in sorted(p for p in real_models.iterdir() if (p / "config.json").is_file()):
        for options in (
            ["--refusal-tokens", "\x1b[31m\x1b[31m"],
            ["--device", "cuda:99"],
            ["--dtype", "int8"],
            ["--chat-template", "/dev/null"],
        ):
            out = tmp_path / model.name
            arguments = ["run", str(model), "--contrast", words["CONTRAST"], "--out", str(out), "--sizes", "4,2,2"]
            code, text = finish(start([*arguments, "--max-new-tokens", "2", "--nulls", "1", *options]), tally)
            # A real vocabulary can have these tokens.
            assert code in ((0, 2, 3) if options[0] == "--refusal-tokens" else (2, 3)), text
            assert not CONTROL.search(text)
            shutil.rmtree(out, ignore_errors=True)
