"""The output of `run --plan`: estimated rows, tokens, memory and time of a run; and the expected rows of its stages."""

import argparse
from collections.abc import Iterable
from typing import Any

from rich.markup import escape

from rhumbline.cli.console import out, say, table_of
from rhumbline.cli.options import load_model, source_of

GIB = 2**30
DECODED_ROWS = 512
"""Rows that are assumed to be decoded together."""


def print_forecast(a: argparse.Namespace, contrast: Any, protocol: Any, texts: Any) -> int:
    """Print the forecast of a run. Nothing runs, except a short measurement with `--plan measured`."""
    from rhumbline.inference.batching import CPU_TOKENS
    from rhumbline.jobs.forecast import measured_speed, total
    from rhumbline.jobs.sizing import read_checkpoint
    from rhumbline.models.chat import Chat
    from rhumbline.models.loading import check_checkpoint, check_dtype, read_head
    from rhumbline.models.places import places_of
    from rhumbline.stages.run_plan import prompts_of

    source = source_of(a)
    check_dtype(source.dtype)
    with places_of(source) as places:
        head = read_head(places)
        n_layers = head.config.get_text_config().num_hidden_layers
        check_checkpoint(places, head)
        size = None if places.weights is None else read_checkpoint(places.weights)
    model = load_model(a) if a.plan == "measured" else None
    splits = _splits(contrast, protocol)
    prompts = prompts_of(contrast, splits.values())
    chat = Chat.of(head.tokenizer, protocol.chat, prompts)
    stages = {seed: _stages(chat, contrast, protocol, some, n_layers, texts) for seed, some in splits.items()}
    _print_stages(stages[protocol.seeds[0]], f"seed {protocol.seeds[0]} of {len(stages)}")
    whole = total(stages)
    say(
        f"all seeds: {whole.rows:,} rows (at most {whole.most:,}), {whole.tokens:,} prompt tokens, at most "
        f"{whole.written:,} generated tokens"
    )
    _print_memory(source, size)
    if model is None:
        _print_time(whole, size)
    else:
        speed = measured_speed(model, [chat.encode(p) for p in prompts], CPU_TOKENS)
        say(
            f"time: about {_duration(whole.tokens / speed)} to read the prompts, measured at {speed:,.0f} tokens/s on "
            "this machine; generation takes additional time; prefix sharing and additions that start at their layer "
            "save some"
        )
    return 0


def expected_rows(model: Any, contrast: Any, protocol: Any, texts: Any) -> dict[str, int]:
    """Expected rows of each stage of a seed, for the progress."""
    from rhumbline.models.chat import Chat
    from rhumbline.stages.run_plan import prompts_of

    splits = _splits(contrast, protocol)
    chat = Chat.of(model.tokenizer, protocol.chat, prompts_of(contrast, splits.values()))
    stages = _stages(chat, contrast, protocol, splits[protocol.seeds[0]], model.n_layers, texts)
    return {stage.name: stage.rows for stage in stages}


def _splits(contrast: Any, protocol: Any) -> dict[int, Any]:
    """The splits of every seed."""
    from rhumbline.prompts.contrasts import split_contrast

    return {seed: split_contrast(contrast, protocol.sizes, seed, protocol.sampling) for seed in protocol.seeds}


def _stages(chat: Any, contrast: Any, protocol: Any, splits: Any, n_layers: int, texts: Any) -> list[Any]:
    """The stages of one seed, with the positions that the run will use."""
    from rhumbline.jobs.forecast import forecast
    from rhumbline.stages.run_plan import resolved

    return forecast(chat, splits, resolved(protocol, contrast), n_layers, texts)


def _print_stages(stages: Iterable[Any], title: str) -> None:
    table = table_of(("stage",), ("rows", "at most", "prompt tokens", "generated, at most"), title)
    for stage in stages:
        most = "" if stage.most == stage.rows else f"{stage.most:,}"
        generated = f"{stage.written:,}" if stage.written else ""
        table.add_row(escape(stage.name), f"{stage.rows:,}", most, f"{stage.tokens:,}", generated)
    out.print(table)


def _print_memory(source: Any, size: Any) -> None:
    from rhumbline.jobs.sizing import LOADED

    if size is None:
        say("memory and time: unknown, because the weights are not on this machine. Download them first.")
        return
    weights = size.bytes if source.dtype == "auto" else size.parameters * LOADED.get(source.dtype, 4)
    free, place = _free_memory(source.device)
    verdict = "fits" if 1.1 * weights + size.largest < free else "DOES NOT FIT"
    say(
        f"memory: {size.parameters:,} parameters, {weights / GIB:.2f} GiB as {source.dtype}; {free / GIB:.1f} GiB free "
        f"on {place}: {verdict} (with 10 % and the largest tensor added; completions use the remaining memory)"
    )


def _free_memory(device: str | None) -> tuple[float, str]:
    """Free bytes, and the name of their place."""
    import torch

    from rhumbline.inference.memory import free_memory

    if torch.cuda.is_available() and device != "cpu":
        each = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return (sum(each), f"{len(each)} GPUs") if device == "auto" else (each[0], torch.cuda.get_device_name(0))
    return float(free_memory(torch.device("cpu"))), "this machine"


def _print_time(whole: Any, size: Any) -> None:
    from rhumbline.jobs.sizing import Device

    if size is None:
        return
    device = Device()
    reading = 2 * size.parameters * whole.tokens / device.flops
    generating = whole.written / DECODED_ROWS * size.bytes / device.bandwidth
    say(
        f"time: about {_duration(reading + generating)} on one {device.name} GPU (assumed: {device.flops:.1e} "
        f"operations/s, 2 x parameters for each prompt token, {device.bandwidth:.0e} bytes/s for {DECODED_ROWS} rows "
        "decoded together). Pass --plan measured to measure the speed of this machine."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
