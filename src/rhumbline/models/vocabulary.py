"""Check that the tokenizer and the embedding of a model belong together: every token id of a chat has an embedding.

Tokens that no chat contains may lie beyond the embedding, such as those of images. Independent of weights' values.
"""

import logging
from contextlib import suppress
from typing import Any

from rhumbline.errors import ModelError, TemplateError
from rhumbline.models.templates import PROBES, own_template, render
from rhumbline.models.weight_files import listed, one_line
from rhumbline.prompts.chat_options import ChatOptions

log = logging.getLogger("rhumbline")

TEXT = "The ship left the harbour at dawn and held one bearing all day long, whatever the wind did."
"""The text of the probe forward passes."""


def check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """ModelError if a plain text or a chat has token ids without an embedding, or a text has no tokens at all."""
    rows = model.get_input_embeddings().weight.shape[0]
    texts = [TEXT]
    if own_template(tokenizer) is not None:
        # `Chat.of` reports faults of templates, and another template can be passed.
        with suppress(TemplateError):
            texts.append(render(tokenizer, ChatOptions(), PROBES[0], None))
    try:
        ids = [
            i
            for text in texts
            for special in (True, False)
            for i in tokenizer(text, add_special_tokens=special)["input_ids"]
        ]
    except Exception as error:  # A tokenizer can be code of a model.
        raise ModelError(f"{name}: its tokenizer cannot encode a text: {one_line(error)}.") from error
    if not tokenizer(TEXT, add_special_tokens=False)["input_ids"]:
        raise ModelError(f"{name}: its tokenizer encodes {TEXT!r} as no token. Restore the files of the tokenizer.")
    beyond = sorted({int(i) for i in ids if not 0 <= i < rows})
    if beyond:
        names = [f"{tokenizer.convert_ids_to_tokens(i)!r} = {i}" for i in beyond]
        raise ModelError(
            f"{name}: the embedding has {rows} rows, and its tokenizer gives token ids beyond them ({listed(names)}). "
            "Use the tokenizer that the model was trained with, or resize the embedding."
        )


def log_unused(name: str, model: Any, tokenizer: Any) -> None:
    """Log the tokens without an embedding, such as those of images; no chat contains them unless a prompt does."""
    rows = model.get_input_embeddings().weight.shape[0]
    unused = sorted(i for i in tokenizer.get_vocab().values() if i >= rows)
    if unused:
        names = listed([repr(tokenizer.convert_ids_to_tokens(i)) for i in unused])
        log.warning("%s: %d tokens have no embedding (%s). Texts that contain one cannot be read.",
                    name, len(unused), names)  # fmt: skip
