"""The control tokens that close an assistant turn: a chat template in, token ids out.

The tokens are read from rendered turns. Independent of the model and its generation config.
"""

from rhumbline.errors import TemplateError
from rhumbline.models.answer_forms import FORMS
from rhumbline.models.control_tokens import ControlTokens
from rhumbline.models.templates import messages_of, render_messages
from rhumbline.prompts.chat_options import ChatOptions

_USER, _ASSISTANT, _NEXT_USER = "Describe the sea.", "Photosynthesis", "Tell me a joke!"


def turn_ends(controls: ControlTokens, options: ChatOptions) -> tuple[int, ...]:
    """Id of the first control token after the text of the last turn of a chat, then after that of an earlier turn.

    Most templates close both with one token. Empty if the template has no control token there.
    """
    ends: list[int] = []
    for further in ((), (_NEXT_USER,)):
        try:
            messages = messages_of(options.system, _USER, _ASSISTANT, *further)
            text = render_messages(controls.tokenizer, options, messages, add_generation_prompt=False)
        except TemplateError:  # Some templates render chats that end with a user turn only.
            continue
        _, found, after = text.rpartition(_ASSISTANT)
        closing = controls.found(after.partition(_NEXT_USER)[0])
        if found and closing and not _goes_on(controls, closing[0]):
            ends.append(closing[0])
    return tuple(dict.fromkeys(ends))


def _goes_on(controls: ControlTokens, token: int) -> bool:
    """Whether the turn goes on after this token: it ends a block, and the model has such blocks."""
    names = {controls.name(i) for i in controls.ids}
    return any(form.goes_on == controls.name(token) and form.opens in names for form in FORMS)
