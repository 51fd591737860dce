"""What a run will take, printed before it begins. Options and printing; computes nothing itself."""

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from rhumbline.cli.console import out
from rhumbline.cli.options import load_model, source_of

GIB = 2**30


def print_forecast(a: argparse.Namespace, contrast: Any, protocol: Any, texts: Any) -> int:
    """Rows and tokens of every stage, memory and time; nothing is run but, where asked for, a short measurement."""
    from rhumbline.inference.batching import CPU_TOKENS
    from rhumbline.jobs.forecast import measured_speed, total
    from rhumbline.jobs.sizing import find_folder
    from rhumbline.models.chat import Chat
    from rhumbline.models.loading import check_dtype, read_head
    from rhumbline.models.sources import checkpoint

    source = source_of(a)
    check_dtype(source.dtype)
    with checkpoint(source.model) as where:
        head = read_head(source, where)
        n_layers = head.config.get_text_config().num_hidden_layers
        with checkpoint(head.base or where) as place:
            folder = find_folder(place)
            size = None if folder is None else _size(folder)
    model = load_model(a) if a.plan == "measured" else None
    chat = Chat.of(head.tokenizer, protocol.chat, contrast.prompts)
    stages = {seed: _stages(chat, contrast, protocol, seed, n_layers, texts) for seed in protocol.seeds}
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
    _print_memory(source, size)
    if model is not None:
        prompts = [chat.encode(p) for p in contrast.prompts]
        speed = measured_speed(model, prompts, CPU_TOKENS)
        out.print(
            f"time: about {_span(whole.tokens / speed)} to read, measured at {speed:,.0f} tokens/s here; writing comes "
            "on top, and sharing the prompts' common start and starting additions at their layer saves some",
            highlight=False,
        )
    else:
        _print_time(whole, size)
    return 0


def expected_rows(model: Any, contrast: Any, protocol: Any, texts: Any) -> dict[str, int]:
    """Rows that each stage of a seed is likely to have, for the progress."""
    from rhumbline.models.chat import Chat

    chat = Chat.of(model.tokenizer, protocol.chat, contrast.prompts)
    stages = _stages(chat, contrast, protocol, protocol.seeds[0], model.n_layers, texts)
    return {stage.name: stage.rows for stage in stages}


def _stages(chat: Any, contrast: Any, protocol: Any, seed: int, n_layers: int, texts: Any) -> list[Any]:
    """The stages of one seed, with the splits and the positions that the run will use."""
    from rhumbline.jobs.forecast import forecast
    from rhumbline.prompts.contrasts import split_contrast
    from rhumbline.stages.run_plan import resolved

    splits = split_contrast(contrast, protocol.sizes, seed, protocol.sampling)
    return forecast(chat, splits, resolved(protocol, contrast), n_layers, texts)


def _size(folder: Path) -> Any:
    """What the headers of the weights say; None for weights in another format. ModelError where there are none."""
    from rhumbline.jobs.sizing import read_checkpoint
    from rhumbline.models.sources import weight_files

    if any(folder.glob("*.bin")) and not weight_files(folder):
        return None
    return read_checkpoint(folder)


def _print_memory(source: Any, found: Any) -> None:
    from rhumbline.jobs.sizing import LOADED

    if found is None:
        out.print("memory and time: not known without safetensors files on this machine; download them first")
        return
    size = found.bytes if source.dtype == "auto" else found.parameters * LOADED.get(source.dtype, 4)
    free, of = _memory(source.device)
    said = "fits" if 1.1 * size + found.largest < free else "DOES NOT FIT"
    out.print(
        f"memory: {found.parameters:,} parameters, {size / GIB:.2f} GiB as {source.dtype}; {free / GIB:.1f} GiB free "
        f"on {of}: {said} (10 % and the largest tensor added; a block of completions takes what is left)",
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


def _print_time(whole: Any, found: Any) -> None:
    from rhumbline.jobs.sizing import Device

    if found is None:
        return
    device = Device()
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
