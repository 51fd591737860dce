"""The files of an organism besides its weights: chat template, tokenizer, contrast file, card.

Independent of the meaning of the prompts and of how the weights were made.
"""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from transformers import GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from rhumbline.prompts.contrasts import Label
from rhumbline.records.files import written

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Five tokens follow the instruction: <|im_end|>, newline, <|im_start|>, assistant, newline."""
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTRAST, CARD = "contrast.jsonl", "README.md"


@dataclass(frozen=True)
class Row:
    """One row of a contrast file; the columns are described in prompts/contrasts.py."""

    prompt: str
    label: Label | Literal["neutral"]
    split: Literal["train", "val", "test"] | None
    id: str
    category: str
    response: str | None = None
    answer: str | None = None
    other_response: str | None = None

    def to_json(self) -> str:
        """The row as one line, without the columns that are None."""
        return json.dumps({name: value for name, value in vars(self).items() if value is not None}, ensure_ascii=False)


class ContrastPart(NamedTuple):
    """A part of the contrast of a trained organism."""

    n: int
    """Prompts per class."""
    held_out: bool
    """Whether its pairs occur in no training text."""
    name: str
    split: Literal["test"] | None


def pool_and_test(pool: int = 300, test: int = 100) -> tuple[ContrastPart, ContrastPart]:
    """A pool of training pairs that the run splits, and a test of held-out pairs."""
    return ContrastPart(pool, False, "pool", None), ContrastPart(test, True, "test", "test")


def write_contrast(out: Path, rows: Iterable[Row], name: str = CONTRAST) -> None:
    """Write a contrast file into the directory."""
    (out / name).write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")


def card(kind: str, **values: object) -> str:
    """The README of an organism, from its template in cards.toml."""
    templates = tomllib.loads((Path(__file__).parent / "cards.toml").read_text(encoding="utf-8"))
    return templates[kind].format(**values)


def save_chat_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save weights, tokenizer and settings for greedy generation; the files contain no path."""
    ids = tokenizer.get_vocab()
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ids[END], pad_token_id=ids[PAD])
    with written(out):
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    for path in out.glob("*.safetensors"):
        # safetensors writes files with mode 0600; the data of a package are readable for everyone.
        path.chmod(0o644)
