"""The commands that write files for others: `edit` and `export`. Options and printing; computes nothing itself."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhumbline.cli.console import err, out
from rhumbline.cli.options import MODEL_HELP, prepare


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser; `command(name, run, text)` makes one."""
    edit = command("edit", _edit, "the ablation (or the addition) as a weight edit, proved or not saved")
    edit.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    edit.add_argument("--direction", required=True, metavar="RUN|FILE", help="run directory, or a direction file")
    edit.add_argument("--out", required=True, metavar="DIR", help="new directory; appears only when all is proved")
    edit.add_argument(
        "--add", type=float, default=None, metavar="C", help="add C x the direction instead of ablating it"
    )
    edit.add_argument("--device", default=None, help="cpu, cuda, cuda:1; default: the first GPU")
    edit.add_argument(
        "--dtype", default="auto", help="of the saved weights; auto (the checkpoint's), float32, bfloat16"
    )
    edit.add_argument("--dequantize", action="store_true", help="edit a quantised model as plain matrices")
    edit.add_argument("--sharded", action="store_true", help="file by file, without building the model; safetensors")
    edit.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    edit.add_argument("--json", action="store_true", help="print the record on standard output")
    _direction_options(edit)

    export = command("export", _export, "the direction of a run as a file that other tools read")
    export.add_argument("run", metavar="RUN|FILE", help="run directory, or a direction file")
    export.add_argument("--to", required=True, choices=("direction", "lora", "gguf", "lm-eval"), help="the format")
    export.add_argument("--out", required=True, metavar="FILE", help="new file (lora: new directory)")
    export.add_argument("--model", default=None, metavar="MODEL", help="for lora and lm-eval; default: the run's")
    export.add_argument("--coefficient", type=float, default=None, metavar="C", help="of an addition, default 1")
    export.add_argument("--ablate", action="store_true", help="lm-eval: ablate instead of adding")
    export.add_argument("--device", default="cpu", help="where the model of a lora is loaded")
    _direction_options(export)


def _direction_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("direction")
    group.add_argument("--seed", type=int, default=None, help="of the run; default: its first")
    group.add_argument("--layer", type=int, default=None, help="for files that hold several, or none")
    group.add_argument("--position", type=int, default=None, help="for files that hold several")
    group.add_argument("--rank", type=int, default=None, metavar="K", help="keep the first K vectors of a subspace")
    group.add_argument("--force", action="store_true", help="use a direction made for another model or template")


def _imported(a: argparse.Namespace, source: str) -> Any:
    from rhumbline.edits.read_direction import read_directions

    return read_directions(source, seed=a.seed, layer=a.layer, position=a.position, rank=a.rank)


def _edit(a: argparse.Namespace) -> int:
    from rhumbline.edits.edit_card import summary
    from rhumbline.edits.new_directory import check_target
    from rhumbline.edits.save import EditOptions, edit_checkpoint
    from rhumbline.records.codec import to_json

    # A wrong target or direction is an error before a large model is loaded.
    check_target(Path(a.out))
    imported = _imported(a, a.direction)
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

        record = edit_sharded(a.model, imported, a.out, options, progress=lambda text: err.print(f"[dim]{text}[/]"))
    else:
        record = edit_checkpoint(a.model, imported, a.out, options)
    if a.json:
        print(json.dumps(to_json(record), ensure_ascii=False))
        return 0
    for line in summary(record, Path(a.out)):
        out.print(line, markup=False, highlight=False)
    return 0


def _export(a: argparse.Namespace) -> int:
    from rhumbline.edits.export import ExportOptions, export

    options = ExportOptions(a.model, a.coefficient, a.ablate, a.device, a.force)
    for line in export(_imported(a, a.run), a.to, Path(a.out), options):
        out.print(line, markup=False, highlight=False)
    return 0
