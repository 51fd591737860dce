"""Forms in which models write an answer after other text: think blocks and channels, as data.

Sources are the chat templates of the named models. Independent of tokenizers and templates.
"""

from typing import NamedTuple


class AnswerForm(NamedTuple):
    """A block that precedes the answer: `opens` begins it, `closes` ends it, and the answer follows."""

    opens: str
    closes: str
    goes_on: str = ""
    """The token that ends a block if the turn goes on after it: it is no stop token. It also ends the answer."""

    @property
    def known_close(self) -> str:
        """The text by which a tokenizer or template is searched for the end of a block."""
        return self.goes_on or self.closes


FORMS = (
    AnswerForm("<think>", "</think>"),  # DeepSeek R1, Qwen 3, SmolLM 3, Phi 4 reasoning, GLM, Hunyuan
    AnswerForm("<thinking>", "</thinking>"),
    AnswerForm("<thought>", "</thought>"),  # EXAONE Deep
    AnswerForm("<reasoning>", "</reasoning>"),
    AnswerForm("<seed:think>", "</seed:think>"),  # Seed-OSS
    AnswerForm("◁think▷", "◁/think▷"),  # Kimi
    AnswerForm("[THINK]", "[/THINK]"),  # Magistral
    AnswerForm("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    AnswerForm("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    AnswerForm("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker
    AnswerForm("<|channel>", "<channel|>"),  # Gemma 4
    AnswerForm("<|channel|>", "<|channel|>final<|message|>", "<|end|>"),  # gpt-oss: every channel before the final one
    AnswerForm("Here is my thought process:", "Here is my response:"),  # Granite 3
)
"""Every known form."""

ANSWER_TAGS = ("<answer>", "<response>", "<|START_RESPONSE|>", "<|begin_of_solution|>")
"""Tags that can stand between a block and the answer."""

DELIMITERS = frozenset(text for form in FORMS for text in form[:2] if not text[0].isalpha()) | set(ANSWER_TAGS)
"""Texts that mark a block or an answer."""
