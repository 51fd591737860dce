"""What a run will need, said before anything is loaded: bytes from the checkpoint's headers, work from the protocol.

Reads the headers of weight files and no weights. The estimates name their assumptions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import ModelError
from rhumbline.models.weight_files import gguf_config, stored_tensors
from rhumbline.records.user_files import read_json

LOADED = {"float32": 4, "bfloat16": 2, "float16": 2}
PROMPT_TOKENS = 60
"""Tokens of a prompt with its template, where nothing is known of the prompts."""


class Checkpoint(NamedTuple):
    """What the headers say."""

    parameters: int
    bytes: int
    """Of the weights in the files."""
    largest: int
    """Bytes of the largest tensor, which loading holds twice for a moment."""
    layers: int | None
    d_model: int | None
    kv_bytes_per_token: int | None
    """Keys and values of one token, at the files' dtype; None where the config does not say."""
    matrices: tuple[tuple[int, int], ...] = ()
    """Shapes of the matrices that every token is multiplied with: those of the blocks."""
    embedding: tuple[int, int] | None = None
    """Shape of the largest other matrix, taken for the unembedding."""


def read_checkpoint(place: Path) -> Checkpoint:
    """Sizes from the headers of the weight files of a directory, or of a GGUF file. ModelError where they are faulty.

    A GGUF file is counted as the float32 that it is dequantised to.
    """
    stored = stored_tensors(place)
    parameters = sum(tensor.elements for tensor in stored.values())
    if place.is_file():
        config, sizes = gguf_config(place), [4 * tensor.elements for tensor in stored.values()]
    else:
        config, sizes = _config(place), [tensor.bytes for tensor in stored.values()]
    layers, width, heads = (config.get(f) for f in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    kv = None
    if layers and width and heads:
        channels = config.get("head_dim") or width // heads
        each = max(1, round(sum(sizes) / max(1, parameters)))
        kv = 2 * layers * (config.get("num_key_value_heads") or heads) * channels * each
    matrices, others = [], []
    for name, tensor in stored.items():
        if len(tensor.shape) == 2:
            # A block has its number in the name of its tensors.
            in_block = any(part.isdigit() for part in name.split("."))
            (matrices if in_block else others).append(tensor.shape)
    embedding = max(others, default=None)
    return Checkpoint(parameters, sum(sizes), max(sizes, default=0), layers, width, kv, tuple(matrices), embedding)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = read_json(path, ModelError, "the config of a model") if path.is_file() else {}
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object. Give the config of a model.")
    return config.get("text_config") or config


@dataclass(frozen=True)
class Device:
    """What a GPU (or a processor) is taken to do; change it to what yours does."""

    name: str = "H100-like"
    flops: float = 3.5e14
    """Per second in the matrix products of a prefill: what is reached, not the data sheet's peak."""
    bandwidth: float = 2.0e12
    """Bytes per second of weights and cache while decoding, reached."""
    memory: float = 80e9


class Estimate(NamedTuple):
    """Of one run."""

    memory_per_gpu: float
    """Bytes: weights, one block of completions with its cache, and room for a forward pass."""
    seconds: float | None
    """Of one replica; None where the depth is not known."""
    fits: bool


def estimate(
    found: Checkpoint,
    protocol: Mapping[str, Any],
    *,
    gpus: float = 1,
    dtype: str = "auto",
    device: Device | None = None,
) -> Estimate:
    """Memory and time of one run, from the record of its protocol.

    A prefill takes 2 x parameters operations a token; a decoding step reads all weights once for a block of rows.
    """
    device, spread = device or Device(), max(1.0, gpus)
    weights = found.bytes if dtype == "auto" else found.parameters * LOADED.get(dtype, 4)
    rows = 512
    length = PROMPT_TOKENS + protocol["max_new_tokens"]
    cache = rows * length * (found.kv_bytes_per_token or 0)
    memory = (1.1 * (weights + cache) + 2 * found.largest) / spread + 1e9
    if not found.layers:
        return Estimate(memory, None, memory <= device.memory)
    passes, steps = work(protocol, found.layers)
    prefill = 2 * found.parameters * sum(passes.values()) * PROMPT_TOKENS / (device.flops * spread)
    decode = steps * (weights + cache) / (device.bandwidth * spread)
    return Estimate(memory, prefill + decode, memory <= device.memory)


POSITIONS = 5
"""Tokens of a chat template after the instruction, where the template is not read."""


def work(protocol: Mapping[str, Any], layers: int) -> tuple[dict[str, float], float]:
    """Prompts that go through the model, by kind of block, and decoding steps of 512 rows; of all seeds of a run.

    The positions of the protocol are resolved (not `auto`): one of them, or those after the instruction (`POSITIONS`).
    An upper guess: packed prompts share their prefix, additions begin at their layer (taken as one half of a pass), and
    the lazy grid leaves scores out. `serial` is what is not cut into blocks.
    """
    sizes, nulls, stability, dose = (protocol[name] for name in ("sizes", "nulls", "stability", "dose"))
    families, seeds = len(nulls["families"]), len(protocol["seeds"])
    positions = POSITIONS if protocol["extraction"]["positions"] in ("post-instruction", "auto") else 1
    cells = positions * int((protocol["selection"]["max_layer_share"] or 1.0) * layers)
    procedure = min(nulls["wide"], nulls["procedure"]) if "shuffled" in nulls["families"] else 0
    draws = nulls["wide"] * (families - (procedure > 0)) + procedure
    strengths = len(dose["strengths"]) + len(dose["coefficients"]) / 2
    by_null = min(nulls["completed"] or sizes["test"], sizes["test"])
    completions = 6 * sizes["test"] + 2 * families * nulls["draws"] * by_null
    screen = 0 if protocol["full_grid"] else protocol["screen"]
    exact, of_draw = (min(cells, n or cells) for n in (screen, nulls["screen"]))
    # A screen is one backward pass over the validation prompts.
    screens = 6 * sizes["val"] * ((exact < cells) + (of_draw < cells and procedure > 0))
    passes = {
        "serial": 2 * (sizes["train"] + sizes["val"] + sizes["test"]) + screens,
        "candidates": 1.5 * exact * sizes["val"],
        # One pass over train for the pseudo-differences (and for the refits); then bypass everywhere, and 2 cells more.
        "shuffled": 2 * sizes["train"] + procedure * (of_draw + 5) * nulls["procedure_prompts"],
        "outcomes": completions,
        "wide": 1.5 * draws * nulls["prompts"],
        "dose": strengths * (1 + dose["draws"] * families) * dose["prompts"],
        "refits": 2 * sizes["train"] + stability["refits"] * (stability["sites"] + 4) * stability["prompts"],
    }
    return {kind: seeds * n for kind, n in passes.items()}, seeds * completions / 512 * protocol["max_new_tokens"]
