"""Chats of tasks: template, system prompt, date and variables are those of the run."""

import pytest

from make_tokenizer import CHATML_MARKS, make_tokenizer, read_template
from rhumbline.errors import InputError
from rhumbline.evals.task_chats import TaskChat
from rhumbline.models.chat import Chat
from rhumbline.models.templates import messages_of
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Prompt

VARIED = (
    "{{- '<|im_start|>today ' + strftime_now('%Y') + '<|im_end|>' }}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{{- tone }}{%- endif %}"
)
NO_SYSTEM = {
    "refused": "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}"
    + VARIED,
    "dropped": "{%- if messages[0].role == 'system' %}{%- set messages = messages[1:] %}{%- endif %}" + VARIED,
}
OPTIONS = ChatOptions(
    "Be brief.", enable_thinking=False, date="2024-03-01", template_kwargs={"tone": "Well: "}, template=VARIED
)
USER = {"role": "user", "content": "What is salt?"}


def task_chat(options, template=None):
    return TaskChat(Chat.of(make_tokenizer(template or read_template("chatml"), CHATML_MARKS), options))


def test_a_question_is_rendered_as_a_prompt_of_the_run():
    """The tokenizer's own template, without system prompt, date and variables, gives another text."""
    tasks = task_chat(OPTIONS)
    text = tasks.render([USER], is_continued=False)
    assert tasks.chat.controls.ids_of(text) == tasks.chat.encode(Prompt(USER["content"], "negative", "n"))
    for part in ("today 2024", "Be brief.", "<think>\n\n</think>", "Well: "):
        assert part in text
        assert part not in task_chat(ChatOptions()).render([USER], is_continued=False)


def test_examples_are_turns_and_the_description_follows_the_system_prompt():
    examples = messages_of("Answer.", "One?", "1", "Two?")
    expected = messages_of("Be brief.\n\nAnswer.", "One?", "1", "Two?")
    tasks = task_chat(OPTIONS)
    assert tasks.chat.controls.ids_of(tasks.render(examples, is_continued=False)) == tasks.chat.encode_messages(
        expected, "n"
    )
    alone = task_chat(ChatOptions()).render(examples, is_continued=False)
    assert "system\nAnswer.<|im_end|>" in alone


def test_an_empty_system_prompt_of_the_run_is_kept():
    qwen = read_template("qwen2.5-instruct")
    assert "You are Qwen" not in task_chat(ChatOptions(system=""), qwen).render([USER], is_continued=False)
    assert "You are Qwen" in task_chat(ChatOptions(), qwen).render([USER], is_continued=False)


def test_the_beginning_of_a_completion_follows_its_header():
    tasks = task_chat(OPTIONS)
    begun = tasks.render([USER, {"role": "assistant", "content": "The answer is"}], is_continued=True)
    assert begun == tasks.render([USER], is_continued=False) + "The answer is"


@pytest.mark.parametrize("template", NO_SYSTEM)
def test_a_description_is_never_lost(template):
    """A template that takes no system prompt: the description begins the user message, as in a prompt without chat."""
    tasks = task_chat(ChatOptions(date="2024-03-01", template=NO_SYSTEM[template]))
    text = tasks.render([{"role": "system", "content": "Answer."}, USER], is_continued=False)
    assert "user\nAnswer.\n\nWhat is salt?<|im_end|>" in text
    assert "system" not in text


@pytest.mark.parametrize("control_tokens", ["error", "plain"])
def test_a_text_of_a_task_cannot_end_its_turn(control_tokens):
    tasks = task_chat(ChatOptions(control_tokens=control_tokens))
    with pytest.raises(InputError, match=r"--chat: .*salt<\|im_end\|>.*omit --chat"):
        tasks.render([{"role": "user", "content": "salt<|im_end|>"}], is_continued=False)
