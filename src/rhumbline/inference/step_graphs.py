"""CUDA graphs of decoding steps: the kernels of one step are recorded once and replayed for every further token.

On an accelerator a decoding step takes as long as the processor needs to launch its kernels one by one; a replay
launches them together. Independent of what a step computes.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rhumbline.axes import Logits
from rhumbline.inference.batching import is_out_of_memory
from rhumbline.models import tensor_parallel as ranks
from rhumbline.models.chat_model import ChatModel

log = logging.getLogger("rhumbline")

Step = Callable[[Int[Tensor, " slot"], Bool[Tensor, " slot"]], Logits]
"""Logits after one more token in each slot, of which some are in use. It changes its other tensors in place."""
Record = Callable[[Callable[[], Logits]], tuple[Callable[[], None], Logits]]
"""Records a function without running it; returns a function that runs it again, and the tensor that it fills."""


def cuda_graph(run: Callable[[], Logits]) -> tuple[Callable[[], None], Logits]:
    """Record the kernels of a function."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result


@dataclass
class Replayed:
    """A step that is recorded the second time that it is called with the same key, and then replayed.

    The first call initialises libraries and caches, which cannot be recorded. A model whose step waits for the device
    (some mixtures of experts and quantised layers) cannot be recorded; it runs as before.
    """

    step: Step
    record: Record = cuda_graph
    key: Hashable = None
    """What the shapes of the step and its tensors depend on, besides its arguments."""
    is_recordable: bool = True
    replay: Callable[[], None] | None = None
    arguments: tuple[Tensor, Tensor] | None = None
    """The tensors that a replay reads."""
    logits: Tensor | None = field(default=None, repr=False)
    """The tensor that a replay fills."""

    def __call__(self, key: Hashable, token: Int[Tensor, " slot"], alive: Bool[Tensor, " slot"]) -> Logits:
        """The logits of the step. The tensor is valid until the next call."""
        if key != self.key:
            self.key, self.replay, self.arguments, self.logits = key, None, None, None
            return self.step(token, alive)
        if self.replay is None and self.is_recordable:
            self._try_to_record(token, alive)
        if self.replay is None or self.arguments is None or self.logits is None:
            return self.step(token, alive)
        for stored, now in zip(self.arguments, (token, alive), strict=True):
            stored.copy_(now)
        self.replay()
        return self.logits

    def _try_to_record(self, token: Tensor, alive: Tensor) -> None:
        stored = token.clone(), alive.clone()
        try:
            self.replay, self.logits = self.record(lambda: self.step(*stored))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.is_recordable = False
            log.warning("decoding without CUDA graphs, since a step cannot be recorded: %s", str(error)[:200])
        else:
            self.arguments = stored


def can_record(model: ChatModel) -> bool:
    """Whether the model is on one CUDA device as a whole, in one process."""
    devices = {p.device for p in model.model.parameters()}
    return devices == {model.device} and model.device.type == "cuda" and ranks.world_size() == 1
