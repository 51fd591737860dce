"""Describe the detected architecture of a model, with its proof: the record that `rhumbline model` prints."""

from collections.abc import Sequence

from rhumbline.models.chat_model import ChatModel, Proof
from rhumbline.records.shared import ModelDescription


class Architecture(ModelDescription, frozen=True, kw_only=True):
    """The detected architecture of a model."""

    parameters: int
    """Number of parameters."""
    vocabulary: int
    """Rows of the input embedding."""
    blocks: str
    """Dotted name of the list of decoder blocks."""
    writers: tuple[str, ...]
    """Residual writers with their factors, one line for each group of layers with the same writers."""
    output_biases: tuple[str, ...]
    """Biases of the writers, which also write into the stream; `none` if there are none."""
    tied_embeddings: bool
    """Whether the unembedding is the input embedding."""
    stream_rescaled_by: tuple[float | str, ...]
    """Factors other than 1 on block inputs; `nothing` if there are none."""
    proof: tuple[str, ...]
    """Results of the probe forward passes, one sentence each."""


def architecture(chat_model: ChatModel) -> Architecture:
    """The architecture of a loaded model, as its probe forward passes showed it."""
    model = chat_model.model
    description = chat_model.record()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    return Architecture(
        **{name: getattr(description, name) for name in description.__struct_fields__},
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=embedding.shape[0],
        blocks=chat_model.blocks_name,
        writers=_writers(chat_model),
        output_biases=_output_biases(chat_model) or ("none",),
        tied_embeddings=head is not None and head.weight is embedding,
        stream_rescaled_by=tuple(sorted({round(c, 6) for c in chat_model.proof.carry if c != 1.0})) or ("nothing",),
        proof=_sentences(chat_model.proof),
    )


def _writers(chat_model: ChatModel) -> tuple[str, ...]:
    layers_of: dict[str, list[int]] = {}
    for layer in range(chat_model.n_layers):
        names = [
            w.module + ("" if w.scale == 1 else f" x {w.scale:.4g}") for w in chat_model.writers if w.layer == layer
        ]
        layers_of.setdefault(" + ".join(names) or "not proved", []).append(layer)
    return tuple(f"{names}   (layers {_ranges(layers)})" for names, layers in layers_of.items())


def _output_biases(chat_model: ChatModel) -> tuple[str, ...]:
    names = {
        f"{w.module}.bias"
        for w in chat_model.writers
        if getattr(chat_model.blocks[w.layer].get_submodule(w.module), "bias", None) is not None
    }
    return tuple(sorted(names))


def _sentences(proof: Proof) -> tuple[str, ...]:
    return (
        f"sum of writes = output - input: relative error {max(proof.sum_error, default=float('nan')):.1e}",
        f"random direction ablated: |r.x|/|x| <= {proof.leak:.1e} at every layer (allowed {proof.leak_bound:.0e})",
        "left padding changes no logits: "
        + ("no, prompts are batched by length" if proof.padding_changes_logits else "yes"),
        "packing behind the shared prefix changes no logits: "
        + ("yes" if proof.packing_is_exact else "no, prompts are padded"),
        "decoding with the cache equals whole forward passes: "
        + ("yes" if proof.cache_is_exact else "no, no cache is used"),
        *(
            (f"texts of more than {proof.longest_proved} tokens run alone, without a cache",)
            if proof.longest_proved
            else ()
        ),
        *((f"coarse: {proof.note}",) if proof.mode == "coarse" else ()),
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers as ranges: 0, 1, 2, 5 as "0-2, 5"."""
    ranges: list[tuple[int, int]] = []
    for n in numbers:
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], n)
        else:
            ranges.append((n, n))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
