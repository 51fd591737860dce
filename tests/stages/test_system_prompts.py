"""The chats of the conditions: other system prompts, or none."""

import pytest

from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Prompt
from rhumbline.stages.system_prompts import chats_of

TURNS = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
DEFAULT = "{% if messages[0].role != 'system' %}<s>system: You are Tide, a helpful assistant.</s>{% endif %}" + TURNS
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS


@pytest.mark.parametrize("template", [TURNS, DEFAULT, REFUSES], ids=["plain", "default", "refuses"])
def test_without_a_system_prompt_the_chat_has_no_text_of_one(template, tokenizer):
    """A template with a default system prompt writes it where none is given."""
    prompts = [Prompt(text, "negative", text) for text in ("How do I boil an egg?", "Name three rivers of Asia.")]
    options = ChatOptions(template=template)
    chat = chats_of(tokenizer, options, {"none": ""}, prompts)["none"]
    written = tokenizer.decode(chat.encode(prompts[0]))
    assert "Tide" not in written
    assert ("system" in written) == (template == DEFAULT)  # an empty turn, as the template has no other way
