"""Free, allocated and peak memory in bytes, of an accelerator or of this process and its control groups."""

import resource
import sys
from pathlib import Path

import torch


def is_processor(device: torch.device) -> bool:
    """Whether the device has no memory of its own that can be measured."""
    return device.type != "cuda"


def free_memory(device: torch.device) -> int:
    """Free bytes of an accelerator; for a processor those of the machine, within the limits of this process."""
    if not is_processor(device):
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    used = psutil.Process().memory_info().rss
    return max(0, min(psutil.virtual_memory().available, *(limit - used for limit in memory_limits())))


def memory_limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Memory limits of this process's control groups in bytes; empty without limits.

    Containers and job schedulers set these limits. The machine's own figures do not include them.
    """
    limits = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        # Version 2 of control groups has one tree, version 1 a tree for each kind.
        tree, name = (root / kinds, "memory.limit_in_bytes") if kinds else (root, "memory.max")
        inner = tree / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(tree) and (folder / name).exists():
                limit = (folder / name).read_text().strip()
                limits += [int(limit)] if limit.isdigit() else []  # "max": no limit
    return limits


def allocated_memory(device: torch.device) -> int:
    """Bytes of all tensors on an accelerator."""
    return torch.cuda.memory_allocated(device)


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of the peak, if the system permits it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # Not Linux, or not permitted: the peak is that of the process since its start.


def peak_memory(device: torch.device) -> int:
    """Largest memory in bytes since the reset: of an accelerator, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
