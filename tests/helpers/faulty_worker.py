"""A worker for the tests of engines: it counts the attempts of each job, and some jobs terminate it."""

import os
import signal
import sys
import time
from pathlib import Path


def make(options):
    folder = Path(options["folder"])

    def run(kind, arguments, shared):
        x = arguments["x"]
        with open(folder / f"attempts-{x}", "a") as f:
            f.write(".")
        first = (folder / f"attempts-{x}").stat().st_size == 1
        if kind == "killed" and x == options.get("at", 2) and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "starved" and x == 2 and first:
            raise MemoryError
        if kind == "poison" and x == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "broken" and x == 2:
            raise ZeroDivisionError("two")
        if kind == "unwritable" and x == 2:
            return {x, x + 1}
        if kind == "slow":
            time.sleep(1.0)
        if kind == "threads":
            torch = sys.modules.get("torch")
            return {"threads": os.environ["OMP_NUM_THREADS"], "of torch": torch and torch.get_num_threads()}
        return {"square": x * x, "shared": {name: len(data) for name, data in shared.items()}}

    return run


def refuse(options):
    from rhumbline.errors import ModelError

    raise ModelError("other weights on this node")


def announce(options):
    """A worker that writes a file when it is built."""
    Path(options["folder"], f"built-{os.getpid()}").touch()
    return make(options)


def load_long(options):
    """A worker that takes longer to build than any test lasts."""
    time.sleep(600)
