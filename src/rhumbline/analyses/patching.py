"""Path patching: the writes of some heads and MLPs in one prompt are replaced by those that they have in another.

Both prompts end with the same tokens, the post-instruction tokens, and writes are replaced at these. A head is
replaced in the input of its output projection, so only writers that the attribution splits have heads (attribution.py).
The whole write is replaced, or only its part along the direction. Everything after a replaced write is computed again.
Wang et al. 2023 (arXiv 2211.00593); Goldowsky-Dill et al. 2023 (arXiv 2304.05969). Independent of labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rhumbline.analyses.attribution import Part, WriterKey, affine_row
from rhumbline.axes import Residual, Vector
from rhumbline.judging.metric import refusal_metric
from rhumbline.models.chat_model import ChatModel, Edit, HookPoint, forward
from rhumbline.models.hooks import hooked

Writes = Mapping[WriterKey, Residual]
"""At the last tokens of a prompt: the input of every writer with heads, the output of every other."""


class Patched(NamedTuple):
    """What is read in a prompt, for every set of senders whose writes are replaced."""

    projection: Float[Tensor, " set"]
    metric: Float[Tensor, " set"]
    """Log-odds."""


@dataclass(frozen=True)
class Patching:
    """Replaces writes of `senders` at the last `n` tokens, and reads the projection and the metric."""

    model: ChatModel
    senders: Sequence[Part]
    """Heads, and writers that are replaced as a whole."""
    r: Vector
    layer: int
    """The projection is read at the input of this block."""
    offset: int
    """Token of the site, from the end: -1 is the last one."""
    n: int
    tokens: Sequence[int]
    """Tokens of the metric."""

    @cached_property
    def writers(self) -> dict[WriterKey, list[int]]:
        """The senders of every writer, by index."""
        of_writer: dict[WriterKey, list[int]] = {}
        for i, part in enumerate(self.senders):
            assert part.layer is not None
            of_writer.setdefault((part.layer, part.module), []).append(i)
        return of_writer

    @torch.no_grad()
    def read(
        self,
        target: Sequence[int],
        written: Writes,
        sets: Bool[Tensor, "set sender"],
        *,
        along_direction: bool = False,
    ) -> Patched:
        """The readings of `target` with the writes of each set of senders replaced by those of another prompt."""
        edits: dict[HookPoint, Edit] = {}
        for key, members in self.writers.items():
            chosen, heads = sets[:, members], [self.senders[i].head for i in members]
            if along_direction:
                edits |= self._along(key, heads, chosen, written)
            elif heads[0] is None:
                edits[HookPoint("write", *key)] = self._output(written[key], chosen)
            else:
                edits[HookPoint("write_input", *key)] = self._heads(written[key], heads, chosen)
        return self._forward(target, edits, len(sets))

    @torch.no_grad()
    def plain(self, ids: Sequence[int]) -> Patched:
        """The readings of a prompt, for one set without senders."""
        return self._forward(ids, {}, 1)

    @torch.no_grad()
    def with_writes(self, ids: Sequence[int]) -> tuple[Patched, Writes]:
        """The readings of a prompt, and its writes."""
        found: dict[WriterKey, Tensor] = {}

        def reader(key: WriterKey) -> Edit:
            def read(h: Residual) -> Residual:
                found[key] = h[:, -self.n :].clone()
                return h

            return read

        return self._forward(ids, {self._point(key): reader(key) for key in self.writers}, 1), found

    def _point(self, key: WriterKey) -> HookPoint:
        is_whole = self.senders[self.writers[key][0]].head is None
        return HookPoint("write" if is_whole else "write_input", *key)

    def _forward(self, ids: Sequence[int], edits: Mapping[HookPoint, Edit], rows: int) -> Patched:
        tokens = torch.tensor([list(ids)] * rows, device=self.model.device)
        streams: list[Tensor] = []

        def watch(layer: int, h: Residual) -> None:
            if layer == self.layer:
                streams.append(h[:, self.offset].float().cpu() @ self.r)

        with hooked(self.model, edits, watch):
            logits = forward(self.model, tokens, torch.ones_like(tokens))
        return Patched(streams[0].double(), refusal_metric(logits, self.tokens).cpu())

    # -- edits --

    def _output(self, written: Residual, chosen: Bool[Tensor, "set one"]) -> Edit:
        def edit(h: Residual) -> Residual:
            replaced = torch.where(chosen[:, :, None].to(h.device), written.to(h), h[:, -self.n :])
            return torch.cat([h[:, : -self.n], replaced], 1)

        return edit

    def _heads(self, written: Residual, heads: Sequence[int | None], chosen: Bool[Tensor, "set head"]) -> Edit:
        def edit(z: Residual) -> Residual:
            mask = self._channels(heads, chosen, z.shape[-1]).to(z.device)
            replaced = torch.where(mask[:, None], written.to(z), z[:, -self.n :])
            return torch.cat([z[:, : -self.n], replaced], 1)

        return edit

    def _channels(
        self, heads: Sequence[int | None], chosen: Bool[Tensor, "set head"], width: int
    ) -> Bool[Tensor, "set channel"]:
        """The channels of the chosen heads in the input of the output projection; all heads of a layer are senders."""
        order = torch.zeros(len(chosen), len(heads), dtype=torch.bool)
        order[:, [head for head in heads if head is not None]] = chosen
        return order.repeat_interleave(width // len(heads), 1)

    def _along(
        self, key: WriterKey, heads: Sequence[int | None], chosen: Tensor, written: Writes
    ) -> dict[HookPoint, Edit]:
        """Edits that replace the component along the direction only."""
        if heads[0] is None:

            def whole(h: Residual) -> Residual:
                change = (written[key].to(h).float() - h[:, -self.n :].float()) @ self.r.to(h.device)
                return self._moved(h, change * chosen.to(h.device))

            return {HookPoint("write", *key): whole}
        inputs: list[Tensor] = []
        weights = self._row(key, written[key][0, -1])

        def read(z: Residual) -> Residual:
            inputs[:] = [z]
            return z

        def moved(h: Residual) -> Residual:
            (z,) = inputs
            mask = self._channels(heads, chosen, z.shape[-1]).to(z.device)
            change = (written[key].to(z).float() - z[:, -self.n :].float()) * mask[:, None]
            return self._moved(h, change @ weights.to(z.device))

        return {HookPoint("write_input", *key): read, HookPoint("write", *key): moved}

    def _row(self, key: WriterKey, z: Tensor) -> Float[Tensor, " channel"]:
        """r^T W of an output projection."""
        if key not in self._rows:
            module = self.model.blocks[key[0]].get_submodule(key[1])
            affine = affine_row(module, z.double().cpu(), self.r.double())
            assert affine is not None  # The attribution split this writer.
            self._rows[key] = affine[0].float()
        return self._rows[key]

    @cached_property
    def _rows(self) -> dict[WriterKey, Tensor]:
        return {}

    def _moved(self, h: Residual, change: Float[Tensor, "row last"]) -> Residual:
        last = h[:, -self.n :].float() + change[..., None] * self.r.to(h.device)
        return torch.cat([h[:, : -self.n], last.to(h.dtype)], 1)
