"""The commands `edit` and `export`."""

import argparse
from pathlib import Path
from typing import Any

from rhumbline.cli.console import note, print_json, say
from rhumbline.cli.option_values import prepare, quieten
from rhumbline.cli.options import (
    MODEL_HELP,
    AddCommand,
    device_option,
    direction_options,
    json_option,
    rank_option,
    real,
    remote_code_option,
)

DIRECTION_HELP = "run directory, a file with a direction, or hf:owner/name on the hub"


def add(command: AddCommand) -> None:
    """Add the commands to the parser."""
    about = "write a checkpoint with the direction ablated (or added) in its weights, proved against the hooks"
    edit = command("edit", _edit, about)
    edit.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    edit.add_argument("--direction", required=True, metavar="RUN|FILE", help=DIRECTION_HELP)
    edit.add_argument("--out", required=True, metavar="DIR", help="new directory; written only if the proof succeeds")
    add_help = "add C times the difference in means instead of ablating the direction"
    edit.add_argument("--add", type=real(), metavar="C", help=add_help)
    device_option(edit)
    dtype = "dtype of the saved weights: auto (that of the checkpoint), float32 or bfloat16 (default: auto)"
    edit.add_argument("--dtype", default="auto", help=dtype)
    edit.add_argument("--dequantize", action="store_true", help="edit a quantised model as unquantised matrices")
    sharded = "edit safetensors files one by one, without building the model"
    edit.add_argument("--sharded", action="store_true", help=sharded)
    remote_code_option(edit)
    json_option(edit, "the record of the edit")
    rank_option(direction_options(edit))

    export = command("export", _export, "write the direction of a run as a file for other tools")
    export.add_argument("run", metavar="RUN|FILE", help=DIRECTION_HELP)
    formats = ("direction", "lora", "gguf", "lm-eval")
    export.add_argument("--to", required=True, choices=formats, help="format")
    export.add_argument("--out", required=True, metavar="FILE", help="new file (lora: new directory)")
    model = f"model for lora and lm-eval: {MODEL_HELP}; default: the model of the run"
    export.add_argument("--model", metavar="MODEL", help=model)
    coefficient = "gguf and lm-eval: coefficient of an addition, in units of the difference in means (default: 1)"
    export.add_argument("--coefficient", type=real(), metavar="C", help=coefficient)
    export.add_argument("--ablate", action="store_true", help="lm-eval: ablate the direction instead of adding it")
    device_option(export, default="cpu")
    remote_code_option(export)
    rank_option(direction_options(export))


def _directions(a: argparse.Namespace, source: str) -> Any:
    from rhumbline.edits.read_direction import read_directions

    return read_directions(source, seed=a.seed, layer=a.layer, position=a.position, rank=a.rank)


def _edit(a: argparse.Namespace) -> int:
    from rhumbline.edits.edit_card import summary
    from rhumbline.edits.new_directory import check_target
    from rhumbline.edits.save import EditOptions, edit_checkpoint
    from rhumbline.models.sources import Source

    # Inexpensive checks first: a faulty direction or target is reported before a large model is loaded.
    check_target(Path(a.out))
    Source(a.model, a.dtype, a.device)  # refuses an unknown dtype or device
    directions = _directions(a, a.direction)
    prepare(a.model)
    options = EditOptions(
        coefficient=a.add,
        dtype=a.dtype,
        device=a.device,
        dequantize=a.dequantize,
        force=a.force,
        trust_remote_code=a.trust_remote_code,
    )
    if a.sharded:
        from rhumbline.edits.sharded import edit_sharded

        record = edit_sharded(a.model, directions, a.out, options, progress=note)
    else:
        record = edit_checkpoint(a.model, directions, a.out, options)
    if a.json:
        print_json(record)
        return 0
    for line in summary(record, Path(a.out)):
        say(line)
    return 0


def _export(a: argparse.Namespace) -> int:
    from rhumbline.edits.export import ExportOptions, export

    quieten()
    options = ExportOptions(a.model, a.coefficient, a.ablate, a.device, a.force, a.trust_remote_code)
    for line in export(_directions(a, a.run), a.to, Path(a.out), options):
        say(line)
    return 0
