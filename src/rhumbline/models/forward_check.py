"""Check the first forward pass of a model: traces and logits of a probe text in, a ModelError or nothing out.

A model whose activations are not finite, or whose prediction is the same for every text, is refused. Independent of
residual writers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rhumbline.errors import ModelError, RhumblineError
from rhumbline.models.hooks import Trace, trace_layers
from rhumbline.models.weight_files import one_line

Logits = Float[Tensor, "row position vocab"]
SMALLEST_RANGE = 1e-3
"""Logits that differ by less, between tokens of the vocabulary or between texts, are constant. Nats."""


def first_pass(
    name: str, model: Any, blocks: Sequence[nn.Module], inputs: Mapping[str, Any]
) -> tuple[list[Trace], Logits]:
    """Traces of all blocks and logits of the probe text; ModelError if the forward pass fails."""
    with as_model_error(name, model, f"the forward pass of a text of {inputs['input_ids'].shape[1]} tokens"):
        return trace_layers(model, blocks, inputs)


@contextmanager
def as_model_error(name: str, model: Any, what: str) -> Iterator[None]:
    """A ModelError for any error that a forward pass raises, but for a lack of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RhumblineError):
        raise
    except Exception as error:  # The code of a model can raise any error.
        raise ModelError(
            f"{name} ({type(model).__name__}): {what} fails: {one_line(error)}. Is config.json the one that the "
            "weights were saved with?"
        ) from error


def check_forward(name: str, traces: Sequence[Trace], logits: Logits) -> None:
    """ModelError if activations or logits are not finite, or if the logits are constant."""
    advice = "Correct config.json or the weights, or pass --dtype float32 if they overflow in a smaller format."
    where = next((place for layer, trace in enumerate(traces) if (place := _not_finite(layer, trace))), None)
    values = logits.float()
    if where is None and (values.isnan().any() or (values == torch.inf).any() or values.isinf().all()):
        where = "the logits"
    if where is not None:
        raise ModelError(f"{name}: the forward pass of a short text gives NaN or infinity, first in {where}. {advice}")
    # Some models exclude tokens by the smallest number of their dtype.
    values = values.flatten(0, 1)
    values = values[:, (values > torch.finfo(logits.dtype).min).all(dim=0)]
    ranges = {"all tokens of the vocabulary": _range(values, 1), "all texts": _range(values, 0)}
    for kind, size in ranges.items():
        if size < SMALLEST_RANGE:
            raise ModelError(
                f"{name}: its forward pass is constant: the logits of {kind} differ by at most {size:.1e}. {advice}"
            )


def _range(values: Float[Tensor, "text token"], axis: int) -> float:
    """Largest difference between two values along an axis; 0 without values."""
    return float((values.amax(axis) - values.amin(axis)).max()) if values.numel() else 0.0


def _not_finite(layer: int, trace: Trace) -> str | None:
    """The first module of a block with NaN or infinity in its output; None if the block's output is finite."""
    if not trace.before.isfinite().all():
        return f"the input of layer {layer}"
    if trace.after.isfinite().all():
        return None
    inner = (module for module, output in trace.outputs.items() if not output.isfinite().all())
    return f"layer {layer}, {next(inner, 'the output of the block')}"
