"""Text of prompts that is tokenized into control tokens: detected, refused, or encoded as plain text."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from make_tokenizer import CHATML, CHATML_MARKS, COLLECTION, make_tokenizer, read_template
from rhumbline.errors import InputError
from rhumbline.models.chat import Chat
from rhumbline.models.control_tokens import ControlTokens, shared_leading, unused_character
from rhumbline.organisms.planted import word_tokenizer
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Prompt

PLAIN = ChatOptions(control_tokens="plain")


def ask(text, **fields):
    return Prompt(text, **{"label": "negative", "id": "n1", **fields})


def chatml(**options):
    return make_tokenizer(CHATML, CHATML_MARKS, **options)


def with_added(tokenizer, *texts, special=False):
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
    return tokenizer


def controls_of(tokenizer):
    return ControlTokens(tokenizer, tokenizer.chat_template or "")


# -- which tokens are control tokens


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>", "x<|im_end|>y", "</s>", "<s>", "<pad>", "<think>", "a</think>", "<|fim_prefix|>", "[TOOL_CALLS]"],
)
def test_control_tokens_of_a_text(text):
    tokenizer = with_added(chatml(), "<think>", "</think>", "<|fim_prefix|>", "[TOOL_CALLS]")
    assert controls_of(tokenizer).spelled(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "a < b | c > d",
        "<|im_middle|>",
        "<b>bold</b>",
        "<table>",
        "  \n\n\n  x",
        "I think> so",
        "<unused1>",
    ],
)
def test_ordinary_text_has_none(text):
    tokenizer = with_added(chatml(), "<b>", "</b>", "<table>", "\n\n\n", "   ", "<unused1>", " think")
    assert controls_of(tokenizer).spelled(text) == ()


def test_an_added_token_is_a_control_token_if_the_template_writes_it():
    for template, expected in ((CHATML, ()), (CHATML.replace("assistant\n", "assistant\n<tool>"), ("<tool>",))):
        tokenizer = with_added(make_tokenizer(template, CHATML_MARKS), "<tool>")
        assert controls_of(tokenizer).spelled("a <tool> b") == expected


def test_the_unknown_token_is_ordinary_unless_it_marks_an_end():
    tokenizer = word_tokenizer()
    controls = controls_of(tokenizer)
    assert tokenizer.unk_token_id in controls.ids_of("zyx ☃")
    assert controls.spelled("zyx ☃") == ()
    byte_level = chatml()
    byte_level.unk_token = byte_level.eos_token  # as in GPT-2
    assert controls_of(byte_level).spelled("a </s>") == ("</s>",)


# -- errors


def test_prompts_with_control_tokens_are_listed():
    prompts = [ask("fine", id="a"), ask("x<|im_end|>", id="b"), ask("y<s></s>", id="c"), ask("z", id="d", system="<s>")]
    tokenizer = chatml()
    with pytest.raises(
        InputError, match=r"some prompts is .* \(3\): b \(<\|im_end\|>\), c \(<s> </s>\), d \(<s>\)\. "
    ) as e:
        Chat.of(tokenizer, prompts=prompts)
    assert "--control-tokens plain" in str(e.value)
    chat = Chat.of(tokenizer, prompts=prompts[:1])
    with pytest.raises(InputError, match=r"some prompts is .* \(1\): b "):
        chat.check(prompts[:2])
    with pytest.raises(InputError, match="b "):
        chat.encode(prompts[1])
    with pytest.raises(InputError, match="a "):
        chat.encode_with_response(prompts[0], "done<|im_end|>")
    assert chat.record().encoded_as_text == ()


def test_the_system_prompt_of_every_chat_is_read_too():
    with pytest.raises(InputError, match=r"system prompt \(<\|im_start\|>\)"):
        Chat.of(chatml(), ChatOptions(system="Be <|im_start|> brief."))
    assert Chat.of(chatml(), ChatOptions(system="Be brief.")).suffix


def test_control_tokens_of_the_template_itself_pass():
    for name, (marks, _) in COLLECTION.items():
        tokenizer = make_tokenizer(read_template(name), marks, adds_bos=True)
        Chat.of(tokenizer, prompts=[ask("Describe <b>the</b> sea: a < b | c > [d]")])


# -- as plain text


def control_ids(chat, ids):
    return [i for i in ids if i in chat.controls.ids]


@pytest.mark.parametrize("name", COLLECTION)
def test_markers_of_every_template_are_encoded_as_plain_text(name):
    marks = COLLECTION[name][0]
    tokenizer = make_tokenizer(read_template(name), marks)
    chat = Chat.of(tokenizer, PLAIN)
    plain = control_ids(chat, chat.encode(ask("Describe the sea.")))
    for mark in [*marks, "<s>", "</s>"]:
        ids = chat.encode(ask(f"Describe {mark} the sea."))
        assert control_ids(chat, ids) == plain
        assert f"Describe {mark} the sea." in tokenizer.decode(ids)


def test_plain_text_is_recorded_and_changes_no_other_prompt():
    tokenizer = chatml()
    prompts = [ask("fine", id="a"), ask("x<|im_end|>", id="b")]
    chat, own = Chat.of(tokenizer, PLAIN, prompts), Chat.of(tokenizer)
    assert chat.encode(prompts[0]) == own.encode(prompts[0])
    assert (chat.record().control_tokens, chat.record().encoded_as_text) == ("plain", ("b",))
    system = Chat.of(tokenizer, replace(PLAIN, system="Be <s> brief."))
    assert system.record().encoded_as_text == ("system prompt",)
    assert control_ids(system, system.encode(prompts[0])) == 2 * control_ids(own, own.encode(prompts[0]))[:2] + [
        own.encode(prompts[0])[-3]
    ]


pieces = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "<s>",
        "</s>",
        "<pad>",
        "<think>",
        "</think>",
        "<",
        "|",
        ">",
        "im_end",
        "\n",
        " ",
        "é",
    ]
)
texts = st.lists(pieces | st.text(max_size=4), min_size=1, max_size=8).map("".join).filter(str.strip)


@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_any_text_is_plain_and_is_kept(text):
    tokenizer = with_added(chatml(), "<think>", "</think>")
    chat = Chat.of(tokenizer, PLAIN)
    ids = chat.encode(ask(text))
    assert control_ids(chat, ids) == control_ids(chat, chat.encode(ask("Describe the sea.")))
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(ids) == rendered
    if not chat.controls.spelled(text):
        assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert Chat.of(tokenizer).encode(ask(text)) == ids


def metaspace_tokenizer():
    """As Llama 2's: a space before the start of a text, which every piece would get."""
    words = ["▁", "<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz<>/|_.\n"]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    template = "{{ bos_token }}user {{ messages[0].content }} bot"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def test_a_cut_adds_no_space_to_a_tokenizer_that_begins_texts_with_one():
    tokenizer = metaspace_tokenizer()
    controls = controls_of(tokenizer)
    text = "ab</s>cd<s> e"
    mark = unused_character(text)
    cut = controls.cut(text, mark)
    assert cut.replace(mark, "") == text
    ids = controls.encode_cut(cut, mark)
    assert not set(ids) & controls.ids
    assert tokenizer.decode(ids) == text
    spaced = [i for piece in cut.split(mark) for i in controls.ids_of(piece)]
    assert tokenizer.decode(spaced) != text


def test_a_control_token_of_one_character_cannot_be_cut():
    tokenizer = with_added(chatml(), "☃", special=True)
    with pytest.raises(InputError, match="'☃' is one character"):
        controls_of(tokenizer).cut("a ☃ b", "\ue000")


def test_a_tokenizer_of_words_keeps_its_markers_out(planted_folder):
    tokenizer = word_tokenizer()
    chat = Chat.of(tokenizer, PLAIN)
    ids = chat.encode(ask("Describe <|im_end|> the sea."))
    assert control_ids(chat, ids) == control_ids(chat, chat.encode(ask("Describe the sea.")))


# -- text without a chat


def test_text_without_a_chat_gets_the_leading_special_tokens():
    plain, with_bos = (controls_of(chatml(adds_bos=adds)) for adds in (False, True))
    bos = with_bos.tokenizer.bos_token_id
    own = plain.ids_of("Describe the sea.")
    assert (plain.leading, with_bos.leading) == ((), (bos,))
    assert plain.encode_text("Describe the sea.", plain=False) == own
    assert bos in plain.encode_text("a <s> b", plain=False)
    assert bos not in plain.encode_text("a <s> b", plain=True)
    assert shared_leading(plain, with_bos) == shared_leading(with_bos, plain) == (bos,)
    chats = [Chat.of(controls.tokenizer) for controls in (plain, with_bos)]
    assert [chat.encode_text_alone("Describe the sea.") for chat in chats] == [own, [bos, *own]]
    with pytest.raises(InputError, match="some texts is"):
        chats[0].encode_text_alone("a <s> b")


def test_only_tokens_before_a_text_are_leading():
    from tokenizers import processors

    tokenizer = chatml()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "</s>")}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=list(ids.items())
    )
    assert controls_of(tokenizer).leading == (ids["<s>"],)
