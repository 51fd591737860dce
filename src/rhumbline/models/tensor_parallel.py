"""Several processes that hold one model together (tensor parallelism under torchrun): who leads, and what all know.

Every rank runs the same stages and the same forward passes; rank 0 writes the run directory, the others a scratch copy
of what rank 0 found there, so that all skip the same finished stages. One process is rank 0 of 1.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from rhumbline.errors import InputError

WITHOUT = {"report.html", "results.json", ".lock"}
"""Files of a run directory that no stage reads."""


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def world() -> int:
    """Ranks that hold the model together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if world() > 1 else 0


def join() -> None:
    """Meet the other ranks; InputError where torchrun started none."""
    if not is_launched():
        raise InputError(
            "--tensor-parallel needs several processes: torchrun --nproc-per-node N -m rhumbline.cli run ... "
            "--tensor-parallel"
        )
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def part() -> None:
    """Leave the other ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def least(value: int) -> int:
    """The smallest of the ranks' values: what all can hold."""
    if world() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


@contextmanager
def directory(out: str | Path) -> Iterator[Path]:
    """Where this rank writes: `out` itself on rank 0, elsewhere a scratch copy of what lies there now."""
    if world() == 1:
        yield Path(out)
        return
    box: list[dict[str, bytes] | None] = [_files(Path(out)) if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    if rank() == 0:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="rhumbline-rank-") as scratch:
        for name, data in (box[0] or {}).items():
            path = Path(scratch) / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield Path(scratch) / "run"


def _files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in WITHOUT and p.suffix != ".tmp")
    inside = {p.relative_to(folder).as_posix(): p for p in found}
    return {name: p.read_bytes() for name, p in inside.items() if not name.startswith("figures/")}
