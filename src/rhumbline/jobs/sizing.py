"""Estimated memory and time of a run, from the headers of a checkpoint and the protocol; no weight is read.

The estimates state their assumptions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import ModelError
from rhumbline.models.weight_files import gguf_config, stored_tensors
from rhumbline.protocol import Protocol
from rhumbline.records.user_files import read_json
from rhumbline.settings import ROWS_PER_JOB, SUBTRACTED_DRAWS

LOADED = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a parameter, by dtype."""
PROMPT_TOKENS = 60
"""Assumed tokens of a prompt with its template."""
POSITIONS = 5
"""Assumed tokens of a chat template after the instruction."""


class Checkpoint(NamedTuple):
    """Sizes of a checkpoint."""

    parameters: int
    bytes: int
    """Bytes of the weights in the files."""
    largest: int
    """Bytes of the largest tensor, of which loading briefly has two copies."""
    layers: int | None
    kv_bytes_per_token: int | None
    """Keys and values of one token in the dtype of the files; None if the config does not state the sizes."""
    matrices: tuple[tuple[int, int], ...] = ()
    """Shapes of the matrices of the blocks, which every token is multiplied with."""
    embedding: tuple[int, int] | None = None
    """Shape of the largest other matrix, which is taken as the unembedding."""


def read_checkpoint(place: Path) -> Checkpoint:
    """Sizes from the headers of the weight files of a directory, or of a GGUF file; ModelError if they are faulty.

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
            # The names of the tensors of a block contain its number.
            in_block = any(part.isdigit() for part in name.split("."))
            (matrices if in_block else others).append(tensor.shape)
    embedding = max(others, default=None)
    return Checkpoint(parameters, sum(sizes), max(sizes, default=0), layers, kv, tuple(matrices), embedding)


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    config = read_json(path, ModelError, "the config of a model") if path.is_file() else {}
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object. Pass a model with a config.")
    return config.get("text_config") or config


@dataclass(frozen=True)
class Device:
    """Assumed speed and memory of a GPU, or of a processor."""

    name: str = "H100-like"
    flops: float = 3.5e14
    """Operations per second reached in the matrix products of a prefill."""
    bandwidth: float = 2.0e12
    """Bytes per second of weights and cache reached during decoding."""
    memory: float = 80e9


class Estimate(NamedTuple):
    """Memory and time of one run."""

    memory_per_gpu: float
    """Bytes of weights, of one batch of completions with its cache, and of a forward pass."""
    seconds: float | None
    """Time of one replica; None if the number of layers is not known."""
    fits: bool


def estimate(
    size: Checkpoint,
    protocol: Protocol,
    *,
    gpus: float = 1,
    dtype: str = "auto",
    device: Device = Device(),
) -> Estimate:
    """Memory and time of one run.

    A prefill takes 2 x parameters operations per token; a decoding step reads all weights once for a batch of rows.
    """
    spread = max(1.0, gpus)
    weights = size.bytes if dtype == "auto" else size.parameters * LOADED.get(dtype, 4)
    length = PROMPT_TOKENS + protocol.max_new_tokens
    cache = ROWS_PER_JOB * length * (size.kv_bytes_per_token or 0)
    memory = (1.1 * (weights + cache) + 2 * size.largest) / spread + 1e9
    if not size.layers:
        return Estimate(memory, None, memory <= device.memory)
    passes, steps = work(protocol, size.layers)
    prefill = 2 * size.parameters * sum(passes.values()) * PROMPT_TOKENS / (device.flops * spread)
    decode = steps * (weights + cache) / (device.bandwidth * spread)
    return Estimate(memory, prefill + decode, memory <= device.memory)


def work(protocol: Protocol, layers: int) -> tuple[dict[str, float], float]:
    """Prompts that pass through the model, by kind of job, and decoding steps, for all seeds of a run.

    An upper estimate: packed prompts share their prefix, additions start at their layer (counted as half a pass), and
    lazy selection omits scores. `serial` is the part that is not cut into jobs. Unless the protocol has one position,
    the positions are those after the instruction (`POSITIONS`).
    """
    sizes, nulls, stability, dose = protocol.planned, protocol.nulls, protocol.stability, protocol.dose
    families, seeds = len(nulls.families), len(protocol.seeds)
    positions = POSITIONS if protocol.extraction.positions in ("post-instruction", "auto") else 1
    cells = positions * int((protocol.selection.max_layer_share or 1.0) * layers)
    procedure = min(nulls.wide, nulls.procedure) if "shuffled" in nulls.families else 0
    draws = nulls.wide * (families - (procedure > 0)) + procedure
    strengths = (len(dose.strengths) + len(dose.coefficients)) / 2
    by_null = min(nulls.completed or sizes.test, sizes.test)
    completions = 7 * sizes.test + families * (2 * nulls.draws + min(SUBTRACTED_DRAWS, nulls.draws)) * by_null
    completions += len(protocol.conditions) * (5 * sizes.test + families * 2 * nulls.draws * by_null)
    screen = 0 if protocol.full_grid else protocol.screen
    exact, of_draw = (min(cells, n or cells) for n in (screen, nulls.screen))
    # A screen is one backward pass over the validation prompts.
    screens = 6 * sizes.val * ((exact < cells) + (of_draw < cells and procedure > 0))
    passes = {
        "serial": 2 * (sizes.train + sizes.val + sizes.test) + screens,
        "candidates": 1.5 * exact * sizes.val,
        # One pass over train for the pseudo-differences; then the bypass scores of all sites, and five more scores.
        "shuffled": 2 * sizes.train + procedure * (of_draw + 5) * nulls.procedure_prompts,
        "outcomes": completions,
        "wide": 1.5 * draws * nulls.prompts,
        "dose": strengths * (1 + dose.draws * families) * dose.prompts,
        "refits": 2 * sizes.train + stability.refits * (stability.sites + 4) * stability.prompts,
    }
    steps = seeds * completions / ROWS_PER_JOB * protocol.max_new_tokens
    return {kind: seeds * n for kind, n in passes.items()}, steps
