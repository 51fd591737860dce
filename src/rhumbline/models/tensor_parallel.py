"""Ranks of torchrun that hold one model together (tensor parallelism): their number, and where each of them writes.

Every rank runs the same stages and the same forward passes. Rank 0 writes the run directory. The other ranks write to a
scratch copy of what it contained at the start, so that all ranks skip the same finished stages. A single process is
rank 0 of 1.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from rhumbline.errors import InputError

NOT_COPIED = {"report.html", "results.json", ".lock"}
"""Files of a run directory that no stage reads."""


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def world_size() -> int:
    """Number of ranks that hold the model together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def join() -> None:
    """Connect to the other ranks. InputError if torchrun did not start this process."""
    if not is_launched():
        raise InputError(
            "--tensor-parallel needs several processes. Start them with: torchrun --nproc-per-node N -m rhumbline.cli "
            "run ... --tensor-parallel"
        )
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Disconnect from the other ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def minimum(value: int) -> int:
    """The smallest of the ranks' values, such as the number of tokens that fit on every device."""
    if world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    smallest = torch.tensor(value, device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)


@contextmanager
def output_directory(out: str | Path) -> Iterator[Path]:
    """The directory that this rank writes to: `out` on rank 0, a scratch copy of its present content on others."""
    if world_size() == 1:
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
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name not in NOT_COPIED and p.suffix != ".tmp")
    inside = {p.relative_to(folder).as_posix(): p for p in paths}
    return {name: p.read_bytes() for name, p in inside.items() if not name.startswith("figures/")}
