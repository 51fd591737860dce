"""Export a direction as a file of another tool.

    direction    direction.safetensors, the format of this project
    lora         a PEFT adapter directory with the effect of the ablation
    gguf         a llama.cpp control vector
    lm-eval      a steering file of lm-evaluation-harness

Each export reports what its format cannot express. Files contain tensors and plain values only. Independent of the
source of the direction.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rhumbline.edits.adapters import lora
from rhumbline.edits.new_directory import check_target, new_directory
from rhumbline.edits.probe import BlockProbe, ReadPoint
from rhumbline.edits.proved_edit import probe_rows, proof_tokens
from rhumbline.edits.read_direction import ImportedDirections, check_coefficient, check_fits, check_origin
from rhumbline.edits.save import fingerprints
from rhumbline.errors import DirectionError, EditError, InputError, OutputError
from rhumbline.inference.direction_files import write_directions
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import load_source
from rhumbline.models.places import places_of
from rhumbline.models.sources import Source
from rhumbline.models.weight_files import extra
from rhumbline.records.directory import check_writable
from rhumbline.records.files import write_bytes


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export, besides its format."""

    model: str | None = None
    """Hub name, directory or organism:NAME; None: the model of the run of the direction."""
    coefficient: float | None = None
    """Of an addition; None: 1."""
    ablate: bool = False
    """Ablate instead of adding (lm-eval)."""
    device: str = "cpu"
    force: bool = False
    """Use a direction that was made for another model."""
    trust_remote_code: bool = False

    def __post_init__(self):
        check_coefficient(self.coefficient, "--coefficient")


def export(imported: ImportedDirections, to: str, out: Path, options: ExportOptions = ExportOptions()) -> list[str]:
    """Write directions in the format `to`; returns lines for the user."""
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}. Use {', '.join(FORMATS)}.")
    form = FORMATS[to]
    _check_options(to, form, options)
    if form.suffix and out.suffix != form.suffix:
        raise InputError(
            f"--out {out}: a file of the format {to} is read by the end of its name, {form.suffix}. Use it."
        )
    if form.suffix is None:
        check_target(out)
    elif out.exists():
        raise OutputError(f"{out} exists. Nothing was changed; pass another --out.")
    else:
        check_writable(out.parent)
    return [*form.write(imported, out, options), *_caveats(imported, to, options), f"{to}: {out}"]


def _caveats(imported: ImportedDirections, to: str, options: ExportOptions) -> list[str]:
    """How the exported intervention differs from that of the run; none if the format has a direction alone."""
    if to == "direction":
        return []
    if to == "lora" or options.ablate:
        return imported.origin.caveats
    return imported.origin.addition_caveats(_coefficient(options))


def _coefficient(options: ExportOptions) -> float:
    return 1.0 if options.coefficient is None else options.coefficient


def _check_options(to: str, form: "Format", options: ExportOptions) -> None:
    """InputError if an option is given that the format does not read."""
    given = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    if unread := [_flag(name) for name in given if name not in form.reads]:
        read = ", ".join(map(_flag, form.reads)) or "none of the options"
        raise InputError(f"{', '.join(unread)}: the format {to} reads {read}. Omit {', '.join(unread)}.")
    if options.ablate and options.coefficient is not None:
        raise InputError("--coefficient is that of an addition, and --ablate does not add. Omit one of them.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# -- direction.safetensors --------------------------------------------------------------------------------------------


def _direction(imported: ImportedDirections, out: Path, options: ExportOptions) -> list[str]:
    del options
    write_directions(out, imported.vectors, imported.layer, imported.position, imported.origin)
    return []


# -- llama.cpp --------------------------------------------------------------------------------------------------------


def _gguf(imported: ImportedDirections, out: Path, options: ExportOptions) -> list[str]:
    gguf = extra("gguf", "gguf")
    if options.ablate:
        raise InputError(
            "--ablate: a control vector can only be added. For an ablation use `rhumbline edit` and convert the result."
        )
    direction = imported.direction()
    if direction.layer < 2:
        raise DirectionError(
            f"the direction acts at the input of block {direction.layer}. A control vector of llama.cpp is added to "
            "the output of block 1 or a later block, so the input of block 2 is the first that it reaches. Use "
            "`rhumbline edit --add 1`."
        )
    vector = _coefficient(options) * direction.difference
    layer_count = direction.layer if imported.origin.n_layers is None else imported.origin.n_layers
    temporary = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with closing(gguf.GGUFWriter(str(temporary), "controlvector")) as writer:
            writer.add_string("controlvector.model_hint", imported.origin.model_type or "")
            writer.add_uint32("controlvector.layer_count", layer_count)
            # Tensor N is added to the output of block N, which is the input of block N + 1.
            writer.add_tensor(f"direction.{direction.layer - 1}", vector.float().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        temporary.replace(out)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {error.strerror or error}. Free the disk or pass --out."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    block = direction.layer - 1
    return [
        f"added to the output of block {block} at every token: llama-cli --control-vector {out.name} "
        f"--control-vector-layer-range {block} {block}"
    ]


# -- formats that need the model --------------------------------------------------------------------------------------


def _source(imported: ImportedDirections, options: ExportOptions) -> Source:
    name = options.model or imported.origin.model
    if not name:
        raise InputError("this format needs the model. Pass --model MODEL.")
    return Source(name, device=options.device, trust_remote_code=options.trust_remote_code)


def _model(imported: ImportedDirections, options: ExportOptions) -> ChatModel:
    """The model of the export, checked against the origin and the sizes of the direction."""
    source = _source(imported, options)
    check_fits(imported, source)
    chat_model = load_source(source)
    if not options.force:
        check_origin(imported, fingerprints(chat_model, imported, source), None)
    return chat_model


def _lora(imported: ImportedDirections, out: Path, options: ExportOptions) -> list[str]:
    extra("peft", "peft")
    with places_of(_source(imported, options)) as places:
        if places.base is not None:
            raise EditError(
                f"{places.source.model} is an adapter, and --to lora writes an adapter of a whole checkpoint. Merge it "
                "into its base with peft first, or use `rhumbline edit`, which merges it and writes a checkpoint."
            )
    chat_model = _model(imported, options)
    with new_directory(out) as folder:
        return lora(chat_model, imported, folder)


class Entry(NamedTuple):
    """The module before the blocks whose output, times a factor, is the input of the first block."""

    name: str
    factor: float


def entry(chat_model: ChatModel) -> Entry:
    """The entry of a model, measured on the tokens of a proof. Raises EditError."""
    probe = BlockProbe(chat_model, probe_rows(proof_tokens(chat_model), chat_model.device))
    first = probe.read(ReadPoint(None, "", "input"))
    for name, (_, after) in reversed(probe.outputs(None).items()):
        output = after.reshape(-1, probe.d_model).float()
        if output.shape == first.shape:
            factor = float((output * first).sum() / output.square().sum().clamp_min(1e-30))
            if factor and bool((first - factor * output).abs().max() <= 1e-3 * first.abs().max()):
                return Entry(name, factor)
    raise EditError(
        f"{chat_model.name}: no submodule returns the input of the first block, so a steering file cannot name it. Use "
        "rhumbline.applied."
    )


SteeringStep = dict[str, Tensor | float | str | None]
"""The intervention of lm-eval at the output of one module, with the keys of lm-eval."""


def _step(action: Literal["add", "clamp"], coefficient: float, vector: Tensor) -> SteeringStep:
    step: SteeringStep = {"steering_vector": vector.float(), "steering_coefficient": coefficient, "action": action}
    return {**step, "bias": None, "head_index": None}


def steering(imported: ImportedDirections, chat_model: ChatModel, options: ExportOptions) -> dict[str, SteeringStep]:
    """The steering configuration of lm-eval: one step for each named module of the base model.

    An ablation clamps the component to 0 at the input of the first block and at every proved writer. An addition acts
    at the output of the block below (of the embedding for block 0).
    """
    blocks = chat_model.blocks_name
    if options.ablate:
        step = _step("clamp", 0.0, imported.direction(0).vector)
        modules = [entry(chat_model).name, *(f"{blocks}.{w.layer}.{w.module}" for w in chat_model.writers)]
    else:
        direction = imported.direction()
        place = entry(chat_model) if direction.layer == 0 else Entry(f"{blocks}.{direction.layer - 1}", 1.0)
        step, modules = _step("add", _coefficient(options) / place.factor, direction.difference), [place.name]
    names = {id(m): n for n, m in chat_model.model.base_model.named_modules()}
    return {names[id(chat_model.model.get_submodule(name))]: dict(step) for name in modules}


def _lm_eval(imported: ImportedDirections, out: Path, options: ExportOptions) -> list[str]:
    buffer = io.BytesIO()
    config = steering(imported, _model(imported, options), options)
    torch.save(config, buffer)
    write_bytes(out, buffer.getvalue())
    return [
        f"{'ablation' if options.ablate else 'addition'} at {len(config)} modules: lm_eval --model steered "
        f"--model_args pretrained=MODEL,steer_path={out.name}",
        "lm-eval opens this file with a loader that can execute code: open only files that you made yourself",
    ]


# -- the formats ------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """How directions are written in one format."""

    write: Callable[[ImportedDirections, Path, ExportOptions], list[str]]
    reads: tuple[str, ...]
    """The options that it reads."""
    suffix: str | None
    """End of the file name, by which rhumbline or lm-eval reads the file; None: a directory is written."""


_OF_MODEL = ("model", "device", "force", "trust_remote_code")
FORMATS: Mapping[str, Format] = {
    "direction": Format(_direction, (), ".safetensors"),
    "gguf": Format(_gguf, ("coefficient", "ablate"), ".gguf"),  # an ablation is refused with advice
    "lm-eval": Format(_lm_eval, ("coefficient", "ablate", *_OF_MODEL), ".pt"),
    "lora": Format(_lora, _OF_MODEL, None),
}
