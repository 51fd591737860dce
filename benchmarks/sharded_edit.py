"""Measure time and memory of `rhumbline edit --sharded` on a random checkpoint of several gigabytes.

    python benchmarks/sharded_edit.py [--layers 28] [--folder DIR] [--notes docs/benchmarks-notes.md]

Writes a Llama-shaped checkpoint with random weights into a temporary folder (twice its size must be free) and edits it
in another process, whose memory is polled. Then compares tensors with the formula, writes the section into the notes
that `make bench` appends to its page, and removes the folder.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from rhumbline.edits.tensor_file import TensorFile

FILE = 1_000_000_000
"""Largest file in bytes; a larger tensor has a separate file."""
TITLE = "## Sharded edit"


class Measured(NamedTuple):
    """Time and memory of a process."""

    seconds: float
    anonymous: int
    """Peak of RssAnon, bytes."""
    resident: int
    """Peak of VmRSS, bytes."""


def config(layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False, dtype="bfloat16", bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write random weights in files of at most FILE bytes; returns the number of bytes."""
    llama = config(layers)
    shapes = {n: p.shape for n, p in _meta(layers).named_parameters()}
    files: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if files[-1] and size + 2 * shape.numel() > FILE:
            files.append({})
            size = 0
        files[-1][name] = shape
        size += 2 * shape.numel()
    folder.mkdir(parents=True)
    index = {}
    generator = torch.Generator().manual_seed(0)
    for i, names in enumerate(files):
        file = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        save_file({n: random(s, generator) for n, s in names.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = 2 * sum(s.numel() for s in shapes.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    llama.architectures = ["LlamaForCausalLM"]
    llama.save_pretrained(folder)
    return total


def random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    for rows in tensor.split(4096):
        rows.copy_(0.02 * torch.randn(rows.shape, generator=generator))
    return tensor


def measured(command: list[str]) -> Measured:
    """Run a command and poll its memory ten times a second."""
    started, peaks = time.perf_counter(), {"RssAnon": 0, "VmRSS": 0}
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], 1024 * int(value.split()[0]))
        time.sleep(0.1)
    if process.wait():
        raise SystemExit(process.returncode)
    return Measured(time.perf_counter() - started, peaks["RssAnon"], peaks["VmRSS"])


def differences(before: Path, after: Path, r: Tensor) -> Iterator[tuple[str, int, int]]:
    """(name, values that differ from the formula, values) of three tensors: W - r (r.W) in float64, then float32."""
    index = json.loads((after / "model.safetensors.index.json").read_text())["weight_map"]
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.o_proj.weight",
                 "model.layers.1.mlp.up_proj.weight"):  # fmt: skip
        old, new = (TensorFile.read(folder / index[name]).tensor(name) for folder in (before, after))
        wanted = old
        if "up_proj" not in name:
            w = old.double()
            wanted = (w - torch.outer(r, (w * r[:, None]).sum(0))).float().to(old.dtype)
        yield name, int((wanted != new).sum()), new.numel()


def section(layers: int, files: int, total: int, process: Measured, record: dict, wrong: list) -> str:
    billions = total / 2e9
    checked = "; ".join(f"`{name}` {bad} of {n:,}" for name, bad, n in wrong)
    return f"""{TITLE}

`python benchmarks/sharded_edit.py --layers {layers}`: `rhumbline edit --sharded` on a random Llama-shaped checkpoint
({layers} layers, width 3072, vocabulary 128256, untied, bfloat16: {billions:.1f} billion parameters,
{total / 1e9:.1f} GB in {files} files of at most 1 GB; the largest tensor has {2 * 128256 * 3072 / 1e9:.2f} GB).
One thread of {os.cpu_count()} cores that others were using, local disk, {datetime.date.today()}.

| | |
|---|---|
| time, with start-up and the proof | {process.seconds:.0f} s ({total / 1e6 / process.seconds:.0f} MB/s) |
| peak anonymous memory | {process.anonymous / 1e9:.2f} GB |
| peak resident memory, mapped files included | {process.resident / 1e9:.2f} GB |
| tensors edited | {len(record["changed"])} of {len(list(_meta(layers).parameters()))} |
| largest share of a tensor left along r (bfloat16) | {record["proof"]["leak"]:.1e} |

Values that differ from W - r (r.W), computed in float64 and rounded to float32 first (the last tensor is not a writer
and must be unchanged): {checked}. A test checks that files and memory give the same bits (tests/edits/test_sharded.py).
"""


def replaced(page: str, new: str) -> str:
    """The page with the section of this title replaced, or appended."""
    before, title, rest = page.partition(TITLE)
    following = rest.find("\n## ")
    after = rest[following + 1 :] if title and following >= 0 else ""
    return "\n".join(part.strip("\n") + "\n" for part in (before, new, after) if part.strip("\n"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=28)
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rhumbline-sharded-edit")
    options.add_argument("--notes", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks-notes.md")
    a = options.parse_args()
    torch.set_num_threads(1)
    source, out = a.folder / "base", a.folder / "edited"
    free = shutil.disk_usage(a.folder.parent).free
    needed = 2.2 * 2 * sum(p.numel() for p in _meta(a.layers).parameters())
    if free < needed:
        raise SystemExit(f"{needed / 1e9:.0f} GB must be free in {a.folder.parent}, and {free / 1e9:.0f} GB are.")
    try:
        total = write_checkpoint(source, a.layers)
        generator = torch.Generator().manual_seed(1)
        save_file({"direction": torch.randn(3072, generator=generator)}, a.folder / "direction.safetensors")
        process = measured(
            [sys.executable, "-m", "rhumbline.cli", "edit", str(source), "--sharded", "--direction",
             str(a.folder / "direction.safetensors"), "--out", str(out)]
        )  # fmt: skip
        record = json.loads((out / "rhumbline-edit.json").read_text())
        r = TensorFile.read(a.folder / "direction.safetensors").tensor("direction").double()
        wrong = list(differences(source, out, r / r.norm()))
        files = len(list(source.glob("*.safetensors")))
        page = a.notes.read_text() if a.notes.exists() else ""
        a.notes.write_text(replaced(page, section(a.layers, files, total, process, record, wrong)))
        print(process, wrong)
    finally:
        shutil.rmtree(a.folder, ignore_errors=True)


def _meta(layers: int) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config(layers))


if __name__ == "__main__":
    main()
