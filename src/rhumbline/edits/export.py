"""A direction as a file that other tools read: direction.safetensors, PEFT adapters, control vectors, steering files.

Each export says what it cannot hold. Tensors and plain values only; nothing written here runs code when it is loaded by
rhumbline. What the other tool makes of a file is checked in tests/test_export.py with that tool.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhumbline.edits.adapters import lora
from rhumbline.edits.edit_plan import Point, Probe
from rhumbline.edits.proved_edit import probe_rows, proof_tokens
from rhumbline.edits.read_direction import FORMAT, Imported, check_coefficient, check_origin, extra
from rhumbline.edits.save import appearing, check_target, fingerprints
from rhumbline.errors import DirectionError, EditError, InputError, OutputError
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import load_source
from rhumbline.models.sources import Source
from rhumbline.records.files import write_bytes


@dataclass(frozen=True)
class ExportOptions:
    """What may be asked of an export besides its format."""

    model: str | None = None
    """Hub name or directory; None: the model that the direction's run names."""
    coefficient: float | None = None
    """Of an addition; None: 1."""
    ablate: bool = False
    device: str = "cpu"
    force: bool = False

    def __post_init__(self):
        check_coefficient(self.coefficient, "--coefficient")


def export(found: Imported, to: str, out: Path, options: ExportOptions = ExportOptions()) -> list[str]:
    """Write a direction in the format `to`; returns what to tell the user."""
    writers: Mapping[str, Callable[[Imported, Path, ExportOptions], list[str]]] = {
        "direction": _direction,
        "gguf": _gguf,
        "lm-eval": _lm_eval,
        "lora": _lora,
    }
    if to not in writers:
        raise InputError(f"unknown format {to!r}; the formats are {', '.join(writers)}.")
    if to == "lora":
        check_target(out)
    elif out.exists():
        raise OutputError(f"{out} exists; give another --out. Nothing was changed.")
    return [*writers[to](found, out, options), f"{to}: {out}"]


# -- the project's own form -------------------------------------------------------------------------------------------


def _direction(found: Imported, out: Path, options: ExportOptions) -> list[str]:
    from safetensors.torch import save

    del options
    known = (
        "model",
        "fingerprint",
        "dtype",
        "template_sha256",
        "verdict",
        "sentence",
        "protocol_sha256",
        "seed",
        "model_type",
        "n_layers",
    )
    metadata = {k: str(found.origin[k]) for k in known if found.origin.get(k) is not None}
    for name, value in (("layer", found.layer), ("position", found.position)):
        if value is not None:
            metadata[name] = str(int(value))
    vectors = found.vectors[0] if len(found.vectors) == 1 else found.vectors
    write_bytes(out, save({"direction": vectors.float().contiguous()}, {"format": FORMAT, **metadata}))
    return []


# -- llama.cpp --------------------------------------------------------------------------------------------------------


def _gguf(found: Imported, out: Path, options: ExportOptions) -> list[str]:
    gguf = extra("gguf", "gguf")
    if options.ablate:
        raise InputError(
            "a control vector can only be added; for an ablation use rhumbline edit and convert the result."
        )
    direction = found.direction()
    if direction.layer < 2:
        raise DirectionError(
            f"the direction acts at the input of block {direction.layer}; a control vector of llama.cpp is added to "
            "the "
            "output of a block with index 1 or more, so the input of block 2 is the first that it reaches."
        )
    vector = (1.0 if options.coefficient is None else options.coefficient) * direction.difference
    temporary = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with closing(gguf.GGUFWriter(str(temporary), "controlvector")) as writer:
            writer.add_string("controlvector.model_hint", str(found.origin.get("model_type", "")))
            writer.add_uint32("controlvector.layer_count", int(found.origin.get("n_layers", direction.layer)))
            # Tensor N is added to the output of block N, which is the input of block N + 1.
            writer.add_tensor(f"direction.{direction.layer - 1}", vector.float().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        temporary.replace(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    at = direction.layer - 1
    return [
        f"added to the output of block {at} at every token: llama-cli --control-vector {out.name} "
        f"--control-vector-layer-range {at} {at}"
    ]


# -- with the model at hand -------------------------------------------------------------------------------------------


def _model(found: Imported, options: ExportOptions) -> ChatModel:
    source = options.model or found.origin.get("model")
    if not source:
        raise InputError("this export needs the model; give it with --model.")
    load_options = Source(source, device=options.device)
    chat_model = load_source(load_options)
    if not options.force:
        check_origin(found, fingerprints(chat_model, found, load_options), None)
    if found.vectors.shape[1] != chat_model.d_model:
        raise DirectionError(
            f"{found.source} has width {found.vectors.shape[1]}, but {source} has {chat_model.d_model}: another model."
        )
    return chat_model


def _lora(found: Imported, out: Path, options: ExportOptions) -> list[str]:
    extra("peft", "peft")
    chat_model = _model(found, options)
    with appearing(out) as folder:
        return lora(chat_model, found, folder)


def entry_module(chat_model: ChatModel) -> str:
    """The module before the blocks whose output is the first block's input, up to a constant factor."""
    probe = Probe(chat_model, probe_rows(proof_tokens(chat_model), chat_model.device))
    wanted = probe.read(Point(None, "", "input"))
    for name, (_, after) in reversed(probe.outputs(None).items()):
        got = after.reshape(-1, probe.d_model).float()
        if got.shape == wanted.shape and _proportional(got, wanted):
            return name
    raise EditError(f"{chat_model.name}: no submodule returns what enters the first block, so it cannot be named.")


def _proportional(a: Tensor, b: Tensor) -> bool:
    scale = float((a * b).sum() / (a * a).sum().clamp_min(1e-30))
    return bool((b - scale * a).abs().max() <= 1e-3 * b.abs().max()) and scale != 0


def steering(found: Imported, chat_model: ChatModel, options: ExportOptions) -> dict[str, dict[str, Any]]:
    """lm-eval's steering configuration: what is done at the output of each named module of the base model.

    An ablation is a clamp to 0 at what enters the first block and at every proved writer; an addition acts at the
    output
    of the block below (of the embedding, for block 0).
    """
    names = {id(m): n for n, m in chat_model.model.base_model.named_modules()}

    def relative(name: str) -> str:
        return names[id(chat_model.model.get_submodule(name))]

    def step(action: str, coefficient: float, vector: Tensor) -> dict[str, Any]:
        return {
            "steering_vector": vector.float(),
            "steering_coefficient": coefficient,
            "action": action,
            "bias": None,
            "head_index": None,
        }

    blocks = chat_model.blocks_name
    if options.ablate:
        unit = found.direction(0).vector
        places = [entry_module(chat_model), *(f"{blocks}.{w.layer}.{w.module}" for w in chat_model.writers)]
        return {relative(name): step("clamp", 0.0, unit) for name in places}
    direction = found.direction()
    coefficient = 1.0 if options.coefficient is None else options.coefficient
    place = entry_module(chat_model) if direction.layer == 0 else f"{blocks}.{direction.layer - 1}"
    return {relative(place): step("add", coefficient, direction.difference)}


def _lm_eval(found: Imported, out: Path, options: ExportOptions) -> list[str]:
    import io

    buffer = io.BytesIO()
    config = steering(found, _model(found, options), options)
    torch.save(config, buffer)
    write_bytes(out, buffer.getvalue())
    return [
        f"{'ablation' if options.ablate else 'addition'} at {len(config)} modules: lm_eval --model steered "
        "--model_args "
        f"pretrained=MODEL,steer_path={out.name}",
        "lm-eval opens this file with a loader that can run code: open only files that you made yourself",
    ]
