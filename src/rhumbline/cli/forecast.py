"""The output of `run --plan`: estimated rows, tokens, memory and time of a run; and the expected rows of its stages."""

import argparse
import time
from collections.abc import Iterable
from typing import Any

from rich.markup import escape

from rhumbline.cli.console import WRITTEN_COST, Work, note_neutral, note_responses, out, say, table_of
from rhumbline.cli.option_values import quieten, source_of

GIB = 2**30
AFTER = 1.0
"""Assumed time of statistics, hashes and report, in times of the start. Measured on the organism `refusal`."""


def print_forecast(a: argparse.Namespace, contrast: Any, protocol: Any, texts: Any) -> int:
    """Print the forecast of a run. The model is not loaded; products in its shapes are timed on the device."""
    from rhumbline.jobs.forecast import total
    from rhumbline.jobs.sizing import read_checkpoint
    from rhumbline.models.loading import check_checkpoint, check_device, dtype_of, read_head
    from rhumbline.models.places import places_of

    quieten()
    note_neutral(contrast, protocol)
    note_responses(contrast, protocol)
    source = source_of(a)
    check_device(source.device)
    with places_of(source) as places:
        head = read_head(places)
        n_layers = head.config.get_text_config().num_hidden_layers
        check_checkpoint(places, head)
        size = None if places.weights is None else read_checkpoint(places.weights)
    dtype = dtype_of(source, head.config)
    stages = _stages(head.tokenizer, contrast, protocol, n_layers, texts, dtype)
    _print_stages(stages[protocol.seeds[0]], f"seed {protocol.seeds[0]} of {len(stages)}")
    _print_worst_selection(protocol)
    whole = total(stages)
    say(
        f"all seeds: {whole.rows:,} rows (at most {whole.most:,}), {whole.tokens:,} prompt tokens ({whole.computed:,} "
        f"without repeated prefixes), at most {whole.written:,} generated tokens"
    )
    _print_memory(source, size)
    if size is not None:
        _print_time(whole, size, source.device, dtype, start=time.process_time())
    return 0


def expected_work(model: Any, contrast: Any, protocol: Any, texts: Any) -> list[Work]:
    """The expected work of the stages of all seeds, for the progress."""
    by_seed = _stages(model.tokenizer, contrast, protocol, model.n_layers, texts, model.dtype)
    return [
        Work(stage.name, stage.rows, stage.computed + WRITTEN_COST * stage.written)
        for stages in by_seed.values()
        for stage in stages
        if stage.rows
    ]


def _stages(
    tokenizer: Any, contrast: Any, protocol: Any, n_layers: int, texts: Any, dtype: Any
) -> dict[int, list[Any]]:
    """The stages of every seed, with the splits, the chat and the positions that the run will use."""
    from rhumbline.jobs.forecast import forecast
    from rhumbline.models.chat import Chat
    from rhumbline.stages.run_plan import prompts_of, resolved, splits_of

    splits = {seed: splits_of(contrast, protocol, seed) for seed in protocol.seeds}
    chat = Chat.of(tokenizer, protocol.chat, prompts_of(contrast, splits.values()))
    plan = resolved(protocol, contrast)
    is_16_bit = dtype.itemsize == 2
    return {seed: forecast(chat, some, plan, n_layers, texts, is_16_bit=is_16_bit) for seed, some in splits.items()}


def _print_stages(stages: Iterable[Any], title: str) -> None:
    table = table_of(("stage",), ("rows", "at most", "prompt tokens", "generated, at most"), title)
    for stage in stages:
        most = "" if stage.most == stage.rows else f"{stage.most:,}"
        generated = f"{stage.written:,}" if stage.written else ""
        table.add_row(escape(stage.name), f"{stage.rows:,}", most, f"{stage.tokens:,}", generated)
    out.print(table)


def _print_worst_selection(protocol: Any) -> None:
    """What the largest number of rows of the selection contains."""
    causes = ["no candidate of the screen passes"] if protocol.screen and not protocol.full_grid else []
    causes += [f"the bound on KL is then {rule.max_kl:g}" for rule in protocol.selection.attempts()[1:]]
    if causes:
        say(f"selection, at most: {', and '.join(causes)}")


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


def _print_time(whole: Any, size: Any, name: str | None, dtype: Any, start: float) -> None:
    """The time of the run on the device that it would use: of its passes, from products timed in the shapes of the
    weights, of its `start`, and of statistics and report, which is assumed to be as long as the start.
    """
    import torch

    from rhumbline.jobs.device_speed import WeightShapes, measure
    from rhumbline.models.processor import use_fastest_threads

    device = torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")
    if device.type == "cpu":
        use_fastest_threads()
    speed = measure(WeightShapes(size.matrices, size.embedding, size.layers or 0), dtype, device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    passes = speed.seconds(whole.computed, whole.written, whole.scored)
    say(
        f"time: about {_duration(passes + (1 + AFTER) * start)} on this machine: {_duration(start)} to start, "
        f"{_duration(passes)} in the model, {_duration(AFTER * start)} for statistics and report (assumed); large "
        f"weights take further time to read ({place}, "
        f"{str(dtype).removeprefix('torch.')}; measured: {1 / speed.prompt_token:,.0f} prompt tokens/s, "
        f"{speed.rows / speed.step:,.0f} generated tokens/s at {speed.rows} rows together)"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
