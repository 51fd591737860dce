"""TODO."""

import resource
import sys
from pathlib import Path

import torch


def is_processor(device: torch.device) -> bool:
    """Whether nothing can be asked of the device's own memory."""
    return device.type != "cuda"


def free_memory(device: torch.device) -> int:
    """Bytes that an accelerator has left; of a processor, what the machine has, within the limits of this process."""
    if not is_processor(device):
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    held = psutil.Process().memory_info().rss
    return max(0, min(psutil.virtual_memory().available, *(limit - held for limit in memory_limits())))


def memory_limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that this process's control groups allow: containers and job schedulers set them, the machine's own figures
    do not know them. Empty where there are none."""
    found = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        # The second version has one tree, the first a tree for each kind.
        tree, name = (root / kinds, "memory.limit_in_bytes") if kinds else (root, "memory.max")
        inner = tree / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(tree) and (folder / name).exists():
                limit = (folder / name).read_text().strip()
                found += [int(limit)] if limit.isdigit() else []  # "max" is none
    return found


def allocated_memory(device: torch.device) -> int:
    """Bytes that tensors hold on an accelerator now."""
    return torch.cuda.memory_allocated(device)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak anew, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # Not Linux, or not allowed: the peak is then that of the process so far.


def peak_memory(device: torch.device) -> int:
    """Largest memory in bytes since the reset: of the device where it is an accelerator, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
