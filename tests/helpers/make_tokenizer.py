"""Tokenizers of a few hundred tokens, trained on the spot, for tests of templates and for tiny random models."""

import functools
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from paths import DATA

TEMPLATES = DATA / "templates"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHATML_MARKS = ["<|im_start|>", "<|im_end|>"]
PHI_MARKS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

# Template: the special tokens of its model, and the text after the instruction.
COLLECTION = {
    "alpaca": ([], "\n\n### Response:\n"),
    "amberchat": ([], "\n###Assistant:"),
    "chatml": (CHATML_MARKS, "<|im_end|>\n<|im_start|>assistant\n"),
    "chatqa": ([], "\n\nAssistant:"),
    "falcon-instruct": ([], "\n\nAssistant:"),
    "gemma-it": (["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>\n<start_of_turn>model\n"),
    "granite-3.0-instruct": (
        ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    ),
    "llama-2-chat": ([], " [/INST]"),
    "llama-3-instruct": (
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral-instruct": (["[INST]", "[/INST]"], " [/INST]"),
    "openchat-3.5": (["<|end_of_turn|>"], "<|end_of_turn|>GPT4 Correct Assistant:"),
    "phi-3": (PHI_MARKS, "<|end|>\n<|assistant|>\n"),
    "phi-3-small": (PHI_MARKS, "<|end|>\n<|assistant|>\n"),
    "qwen2.5-instruct": (CHATML_MARKS, "<|im_end|>\n<|im_start|>assistant\n"),
    "saiga": ([], "</s><s>bot\n"),
    "solar-instruct": ([], "\n\n### Assistant:\n"),
    "vicuna": ([], "\nASSISTANT:"),
    "zephyr": ([], "</s>\n<|assistant|>\n"),
}
# As in Qwen and Llama 3: punctuation takes the line breaks after it, so that ".\n\n" can be one token.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = "user assistant model system User Assistant Instruction Response USER ASSISTANT GPT4 Correct bot INST".split()  # noqa: SIM905
_SENTENCES = (
    "Describe the harbour in the morning.",
    "What does the old map show?",
    "Name the ships that sail at noon!",
    "The pilot reads the chart (twice).",
)
TEXTS = tuple(f"{sentence}\n\n{word}\n{word}\n\n{word}: {sentence}\n" for sentence in _SENTENCES for word in _WORDS)


def make_tokenizer(
    template: str | None,
    special_tokens: Sequence[str] = (),
    texts: Sequence[str] = TEXTS,
    *,
    bos: str = "<s>",
    eos: str = "</s>",
    pad: str = "<pad>",
    adds_bos: bool = False,
    vocab_size: int = 512,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with this chat template.

    Special tokens come first: pad is 0, then bos, eos and `special_tokens`. All of them encode as one token.
    `adds_bos` makes it begin every text with BOS, as Llama's does.
    """
    specials = tuple(dict.fromkeys([pad, bos, eos, *special_tokens]))
    backend = Tokenizer.from_str(_trained(specials, tuple(texts), vocab_size))
    if adds_bos:
        single = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=single)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


@functools.cache
def _trained(specials: tuple[str, ...], texts: tuple[str, ...], vocab_size: int) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend.to_str()


def read_template(name: str) -> str:
    """The text of tests/data/templates/NAME.jinja as its model would have it.

    The collection indents its files and documents how to undo it; those that control their whitespace are as published.
    """
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return text if text.startswith("{%-") else text.replace("    ", "").replace("\n", "")
