"""What every organism directory holds beside its weights: a chat template, a contrast file and a card.

Knows the formats. Does not know what the prompts mean or how the weights came about.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from rhumbline.organisms.grammar import Label

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Five tokens follow the instruction: <|im_end|>, newline, <|im_start|>, assistant, newline."""
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CONTRAST = "contrast.jsonl"


@dataclass(frozen=True)
class Row:
    """One prompt of a contrast file."""

    prompt: str
    label: Label | Literal["neutral"]
    id: str
    category: str
    split: Literal["train", "val", "test"] | None = None
    """None: the run samples the split."""
    response: str | None = None
    """An answer to the prompt, in a contrast of texts."""
    answer: str | None = None
    """What a right answer says, whatever its register."""
    other_response: str | None = None
    """The answer of the other class."""

    def to_json(self) -> str:
        """The row as one line; an absent split is left out."""
        fields: dict[str, str | None] = {"prompt": self.prompt, "label": self.label, "split": self.split, "id": self.id}
        fields |= {"category": self.category, "response": self.response, "answer": self.answer}
        fields["other_response"] = self.other_response
        return json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False)


def write_contrast(out: Path, rows: Iterable[Row], name: str = CONTRAST) -> Path:
    """Write a contrast file into the directory."""
    path = out / name
    path.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    return path


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token that the vocabulary has."""
    return tokenizer.get_vocab()[token]


def save_chat_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save weights, tokenizer and greedy generation settings as a Hugging Face directory that names no path."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in out.glob("*.safetensors"):
        # safetensors writes files that only their owner may read; a package's data is for everyone.
        path.chmod(0o644)
