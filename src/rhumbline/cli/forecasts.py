"""What a run will take, printed before it begins. Options and printing; computes nothing itself."""

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from rhumbline.cli.console import out
from rhumbline.cli.options import load_model

GIB = 2**30


def print_forecast(a: argparse.Namespace, contrast: Any, protocol: Any, texts: Any) -> int:
    """Rows and tokens of every stage, memory and time; nothing is run but, where asked for, a short measurement."""
    from transformers import AutoConfig, AutoTokenizer

    from rhumbline.inference.batching import CPU_TOKENS
    from rhumbline.jobs.forecast import forecast, measured_speed, total
    from rhumbline.jobs.sizing import find_folder
    from rhumbline.models.chat import Chat
    from rhumbline.prompts.contrasts import split_contrast

    folder = find_folder(a.model)
    model = load_model(a) if a.plan == "measured" else None
    where = a.model if folder is None else str(folder)
    tokenizer = model.tokenizer if model is not None else AutoTokenizer.from_pretrained(where)
    config = AutoConfig.from_pretrained(where).get_text_config()
    chat = Chat.of(tokenizer, protocol.chat, contrast.prompts)
    splits = {seed: split_contrast(contrast, protocol.sizes, seed) for seed in protocol.seeds}
    stages = {s: forecast(chat, of, protocol, config.num_hidden_layers, texts) for s, of in splits.items()}
    first = stages[protocol.seeds[0]]
    table = Table(box=None, title=f"seed {protocol.seeds[0]} of {len(stages)}", title_justify="left")
    table.add_column("stage")
    for column in ("rows", "at most", "prompt tokens", "written, at most"):
        table.add_column(column, justify="right")
    for stage in first:
        most = "" if stage.most == stage.rows else f"{stage.most:,}"
        written = f"{stage.written:,}" if stage.written else ""
        table.add_row(escape(stage.name), f"{stage.rows:,}", most, f"{stage.tokens:,}", written)
    out.print(table)
    whole = total(stages)
    out.print(
        f"all seeds: {whole.rows:,} rows (at most {whole.most:,}), {whole.tokens:,} prompt tokens, at most "
        f"{whole.written:,} written",
        highlight=False,
    )
    _print_memory(a, folder)
    if model is not None:
        prompts = [chat.encode(p) for p in contrast.prompts]
        speed = measured_speed(model, prompts, CPU_TOKENS)
        out.print(
            f"time: about {_span(whole.tokens / speed)} to read, measured at {speed:,.0f} tokens/s here; writing comes "
            "on top, and sharing the prompts' common start and starting additions at their layer saves some",
            highlight=False,
        )
    else:
        _print_time(whole, folder)
    return 0


def expected_rows(model: Any, contrast: Any, protocol: Any, texts: Any) -> dict[str, int]:
    """Rows that each stage of a seed is likely to have, for the progress."""
    from rhumbline.jobs.forecast import forecast
    from rhumbline.models.chat import Chat
    from rhumbline.prompts.contrasts import split_contrast

    chat = Chat.of(model.tokenizer, protocol.chat, contrast.prompts)
    splits = split_contrast(contrast, protocol.sizes, protocol.seeds[0])
    return {stage.name: stage.rows for stage in forecast(chat, splits, protocol, model.n_layers, texts)}


def _print_memory(a: argparse.Namespace, folder: Path | None) -> None:
    from rhumbline.jobs.sizing import LOADED, read_checkpoint

    if folder is None:
        out.print("memory: the weights are not on this machine; download them, and the plan says whether they fit")
        return
    found = read_checkpoint(folder)
    size = found.bytes if a.dtype == "auto" else found.parameters * LOADED.get(a.dtype, 4)
    free, of = _memory(a.device)
    said = "fits" if 1.1 * size + found.largest < free else "DOES NOT FIT"
    out.print(
        f"memory: {found.parameters:,} parameters, {size / GIB:.2f} GiB as {a.dtype}; {free / GIB:.1f} GiB free on "
        f"{of}: {said} (10 % and the largest tensor added; a block of completions takes what is left)",
        highlight=False,
    )


def _memory(device: str | None) -> tuple[float, str]:
    """Free bytes, and of what."""
    import torch

    from rhumbline.inference.memory import free_memory

    if torch.cuda.is_available() and device != "cpu":
        each = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return (sum(each), f"{len(each)} GPUs") if device == "auto" else (each[0], torch.cuda.get_device_name(0))
    return float(free_memory(torch.device("cpu"))), "this machine"


def _print_time(whole: Any, folder: Path | None) -> None:
    from rhumbline.jobs.sizing import Device, read_checkpoint

    if folder is None:
        return
    found, device = read_checkpoint(folder), Device()
    seconds = 2 * found.parameters * whole.tokens / device.flops + whole.written / 512 * found.bytes / device.bandwidth
    out.print(
        f"time: about {_span(seconds)} on one {device.name} GPU (assumed: {device.flops:.1e} operations/s reached, 2 x "
        f"parameters for each token read, {device.bandwidth:.0e} bytes/s for 512 rows written at once); --plan "
        "measured measures instead",
        highlight=False,
    )


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
