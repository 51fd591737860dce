import datetime
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from make_tokenizer import CHATML_MARKS, COLLECTION, TEMPLATES, make_tokenizer, read_template
from rhumbline.errors import TemplateError
from rhumbline.models.chat import Chat, Spans, token_batch
from rhumbline.models.templates import PROBES
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.codec import convert, to_json
from rhumbline.records.positions import Position
from rhumbline.records.protocol_file import ChatFacts

# Where every marker is a special token the count is the model's own; the first three are published.
COUNTS = {
    "gemma-it": 5,
    "llama-3-instruct": 5,
    "chatml": 5,
    "qwen2.5-instruct": 5,
    "granite-3.0-instruct": 5,
    "phi-3": 4,
    "phi-3-small": 4,
    "saiga": 4,
    "mistral-instruct": 2,
}

THINKING = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)
DATED = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%-d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}'
    "{%- endif %}{%- endif %}{%- if messages[0].role == 'assistant' %}{{ raise_exception('no') }}{%- endif %}"
    "{{- '<|im_start|>system\\nToday is ' + date_string + '.<|im_end|>' }}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' }}"
    "{%- endfor %}{{- '<|im_start|>assistant\\n' }}"
)
ALPACA = (
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '### Instruction:\\n' + message.content + '\\n\\n### Response:\\n' }}"
    "{%- else %}{{- message.content + '\\n\\n' }}{%- endif %}{%- endfor %}"
)
REFUSES_SYSTEM = (
    "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}" + (ALPACA)
)
DROPS_SYSTEM = "{{- '### Instruction:\\n' + messages[-1].content + '\\n\\n### Response:\\n' }}"


def ask(text, **fields):
    return Prompt(text, **{"label": "negative", "id": "n1", **fields})


def refusal(tokenizer, options=None, prompts=()):
    with pytest.raises(TemplateError) as caught:
        Chat.of(tokenizer, options or ChatOptions(), prompts)
    return str(caught.value)


def tokens(chat):
    return chat.tokenizer.convert_ids_to_tokens(list(chat.suffix))


# -- the templates of real models


def test_every_collected_template_is_divided_as_transformers_renders_it():
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(COLLECTION)
    for name, (marks, after) in COLLECTION.items():
        for adds_bos in (False, True):
            tokenizer = make_tokenizer(read_template(name), marks, adds_bos=adds_bos)
            chat, suffix = Chat.of(tokenizer), after
            begin_behind = [has_ids_of_transformers(chat, text, name) for text in PROBES]
            assert len(chat.suffix) == COUNTS.get(name, min(begin_behind)) == min(begin_behind), name
            if name not in COUNTS:  # markers that are no special tokens can merge with the instruction
                suffix = tokenizer.decode(list(chat.suffix))
            assert tokenizer.decode(list(chat.suffix)) == suffix, name
            assert after.endswith(suffix), name
            assert chat.positions == tuple(Position(i) for i in range(-len(chat.suffix), 0)), name
            assert int(chat.instruction_position) == int(chat.positions[0]) - 1, name


def has_ids_of_transformers(chat, text, name) -> int:
    """Check the ids of one chat and their division; the number of tokens that begin after the instruction."""
    messages = [{"role": "user", "content": text}]
    ids = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.encode(ask(text)) == ids, (name, text)
    spans = chat.spans(ids)
    assert tuple(ids) == chat.prefix + tuple(ids[slice(*spans)]) + chat.suffix, (name, text)
    instruction = chat.tokenizer.decode(ids[spans.prefix_end : spans.instruction_end])
    assert text.strip()[1:-1] in instruction, (name, text)
    # Offsets are another way to the suffix: as many tokens as begin behind the instruction, whatever it is.
    rendered = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    end = rendered.index(text) + len(text)
    offsets = chat.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return sum(start >= end for start, _ in offsets)


def test_a_reloaded_tokenizer_has_the_same_positions(tmp_path):
    chat = Chat.of(make_tokenizer(read_template("chatml"), CHATML_MARKS))
    chat.tokenizer.save_pretrained(tmp_path)
    assert Chat.of(AutoTokenizer.from_pretrained(tmp_path)).record() == chat.record()


@settings(deadline=None, max_examples=60)
@given(text=st.text(min_size=1).filter(str.strip), ending=st.sampled_from(["", ".", "?\n", "\n\n", " "]))
def test_any_instruction_lies_between_prefix_and_suffix(text, ending):
    prompt = ask(text + ending)
    for template, marks in ((read_template("chatml"), CHATML_MARKS), (ALPACA, [])):
        chat = Chat.of(make_tokenizer(template, marks), prompts=[prompt])
        ids = chat.encode(prompt)
        spans = chat.spans(ids)
        assert spans == Spans(len(chat.prefix), len(ids) - len(chat.suffix))
        assert spans.instruction_end > spans.prefix_end
        assert tuple(ids) == chat.prefix + tuple(ids[slice(*spans)]) + chat.suffix


# -- boundaries that merge


def test_a_merged_boundary_token_is_no_position():
    tokenizer = make_tokenizer(ALPACA)
    merged = tokenizer.convert_tokens_to_ids(".ĊĊ")
    chat = Chat.of(tokenizer)
    assert tokenizer.decode(list(chat.suffix)) == "### Response:\n"
    stop, letter = chat.encode(ask("Describe the sea.")), chat.encode(ask("Describe the sea"))
    assert stop[int(chat.instruction_position)] == merged
    assert letter[int(chat.instruction_position)] != merged
    chat.check([ask("Describe the sea."), ask("Describe the sea")])


def test_prompts_that_merge_further_are_named_or_taken_in():
    # In this vocabulary "*;" is one token, and no probe ends with "*".
    texts = ("the sea*; answer: the sea*; answer: yes; answer: no",) * 9
    tokenizer = make_tokenizer("{{- 'Q: ' + messages[0].content + '; answer:' }}", texts=texts)
    plain, starred = ask("the sea", id="plain"), ask("the sea*", id="starred")
    chat = Chat.of(tokenizer)
    assert tokens(chat) == [";", "Ġanswer", ":"]
    with pytest.raises(TemplateError, match=r"post-instruction tokens at the end \(1\): starred\."):
        chat.check([plain, starred])
    wide = Chat.of(tokenizer, prompts=[plain, starred])
    assert tokens(wide) == ["Ġanswer", ":"]
    wide.check([plain, starred])


def test_check_names_the_prompts_that_do_not_fit():
    # Without trimming, a leading line break merges with the one of the header.
    chat = Chat.of(make_tokenizer(read_template("qwen2.5-instruct"), CHATML_MARKS))
    odd = [ask("\nHello", id="odd-1"), ask("fine", id="even"), ask("\nBye", id="odd-2")]
    with pytest.raises(TemplateError, match=r"without the shared prefix \(2\): odd-1, odd-2\."):
        chat.check(odd)
    wide = Chat.of(chat.tokenizer, prompts=odd)
    wide.check(odd)
    assert wide.suffix == chat.suffix
    assert len(wide.prefix) < len(chat.prefix)


def test_an_unknown_token_is_never_shared():
    # Every probe ends with a word that this vocabulary lacks: the unknown token is theirs, not the template's.
    vocabulary = {"[UNK]": 0, "ask": 1, ":": 2, "answer": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.chat_template = "{{ 'ask: ' + messages[0].content + ' answer:' }}"
    chat = Chat.of(tokenizer)
    assert (chat.prefix, chat.suffix) == ((1, 2), (3, 2))


def test_spans_refuse_foreign_ids():
    chat = Chat.of(make_tokenizer(read_template("chatml"), CHATML_MARKS))
    with pytest.raises(TemplateError, match=r"Chat\.encode"):
        chat.spans([1, 2, 3])


def test_a_template_without_post_instruction_tokens_is_refused():
    message = refusal(make_tokenizer("{{- 'Say: ' + messages[0].content }}"))
    assert "no post-instruction token" in message
    assert "Say: Explain photosynthesis" in message
    assert "--chat-template" in message


# -- templates that cannot be trusted


def test_no_template():
    tokenizer = make_tokenizer(None)
    assert "no chat template" in refusal(tokenizer)
    chat = Chat.of(tokenizer, ChatOptions(template=ALPACA))
    assert tokenizer.decode(list(chat.suffix)) == "### Response:\n"


def test_several_templates():
    assert "several chat templates" in refusal(make_tokenizer({"rag": ALPACA, "tool_use": ALPACA}))
    assert Chat.of(make_tokenizer({"default": ALPACA, "tool_use": THINKING})) is not None


@pytest.mark.parametrize(
    "broken", ["{% if %}", "{{ messages[0].content + missing.part }}", "{{ raise_exception('no') }}"]
)
def test_a_template_that_fails(broken):
    assert "cannot render" in refusal(make_tokenizer(broken))


@pytest.mark.parametrize("change", ["| upper", "| replace(' ', '_')", "| length | string", "| e"])
def test_a_template_that_changes_the_instruction(change):
    assert "drops or changes" in refusal(make_tokenizer("{{- (messages[0].content " + change + ") + ' ->' }}"))


def test_trimming_is_no_change():
    chat = Chat.of(make_tokenizer(read_template("chatml"), CHATML_MARKS))
    assert chat.encode(ask("  Describe the sea. \n")) == chat.encode(ask("Describe the sea."))


@pytest.mark.parametrize("noise", ["range(99999) | random", "['a', 'b'] | random", "lipsum(n=1)"])
def test_a_random_template(noise):
    assert "is random" in refusal(make_tokenizer("{{- (" + noise + ") ~ ' Q: ' + messages[0].content + '\\n\\nA:' }}"))


def test_a_template_with_todays_date_needs_a_fixed_one():
    tokenizer = make_tokenizer(DATED, CHATML_MARKS)
    assert "--date YYYY-MM-DD" in refusal(tokenizer)
    chat = Chat.of(tokenizer, ChatOptions(date="2026-01-05"))
    assert "Today is 5 Jan 2026." in tokenizer.decode(chat.encode(ask("Why?")))
    assert "Today is 5 Jan 2026." in tokenizer.decode(list(chat.prefix))
    assert chat.record().date == "2026-01-05"
    # A date that is the template's own variable fixes it as well.
    given = Chat.of(tokenizer, ChatOptions(template_kwargs={"date_string": "5 Jan 2026"}))
    assert given.prefix == chat.prefix


def test_the_fixed_clock_renders_as_the_real_one_does():
    clock = "\n  {% if true %}\n{{ strftime_now('%A %d %B %Y, %j %-m, 100%%d %y') }}\n  {% endif %}\n"
    template = clock + "{{ messages[0].content }}\n\nA:"
    today = datetime.date.today().isoformat()
    tokenizer = make_tokenizer(template)
    ids = Chat.of(tokenizer, ChatOptions(date=today)).encode(ask("Why?"))
    messages = [{"role": "user", "content": "Why?"}]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)


# -- options that must not be ignored


def test_system_prompt():
    tokenizer = make_tokenizer(read_template("chatml"), CHATML_MARKS)
    plain, formal = Chat.of(tokenizer), Chat.of(tokenizer, ChatOptions(system="Be formal."))
    assert formal.suffix == plain.suffix
    assert "Be formal." in tokenizer.decode(list(formal.prefix))
    assert "Be formal." not in tokenizer.decode(plain.encode(ask("Why?")))
    own = ask("Why?", system="Be brief.")
    text = tokenizer.decode(formal.encode(own))
    assert "Be brief." in text
    assert "Be formal." not in text
    formal.check([own])
    assert formal.spans(formal.encode(own)).prefix_end < len(formal.prefix)


@pytest.mark.parametrize(
    ("template", "reason"), [(REFUSES_SYSTEM, "refuses"), (DROPS_SYSTEM, "drops the system prompt")]
)
def test_a_system_prompt_that_has_no_effect_is_an_error(template, reason):
    tokenizer = make_tokenizer(template)
    chat = Chat.of(tokenizer)
    assert reason in refusal(tokenizer, ChatOptions(system="Be formal."))
    own = [ask("Why?", system="Be brief.")]
    assert reason in refusal(tokenizer, prompts=own)
    with pytest.raises(TemplateError, match=reason):
        chat.check(own)


def test_the_default_system_prompt_may_be_given_too():
    tokenizer = make_tokenizer(read_template("qwen2.5-instruct"), CHATML_MARKS)
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert Chat.of(tokenizer, ChatOptions(system=default)).prefix == Chat.of(tokenizer).prefix


def test_thinking_adds_its_tokens_to_the_suffix():
    tokenizer = make_tokenizer(THINKING, [*CHATML_MARKS, "<think>", "</think>"])
    header = ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ"]
    assert tokens(Chat.of(tokenizer)) == header
    assert tokens(Chat.of(tokenizer, ChatOptions(enable_thinking=True))) == header
    closed = Chat.of(tokenizer, ChatOptions(enable_thinking=False))
    assert tokens(closed) == [*header, "<think>", "ĊĊ", "</think>", "ĊĊ"]
    assert closed.record().suffix_tokens == tuple(text.replace("Ċ", "\n") for text in tokens(closed))


def test_the_first_token_of_an_answer_is_found_in_its_place():
    tokenizer = make_tokenizer(read_template("chatml"), CHATML_MARKS)
    chat = Chat.of(tokenizer)
    prompt = Prompt("Describe the sea.", "negative", id="n")
    for answer in ("I cannot", "Describe the harbour", "é"):
        first = chat.first_token(answer)
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.text}], tokenize=False, add_generation_prompt=True
        )
        assert tokenizer(whole + answer, add_special_tokens=False)["input_ids"][len(chat.encode(prompt))] == first
    with pytest.raises(TemplateError, match="no first token of its own"):
        chat.first_token("")


@pytest.mark.parametrize("value", [True, False])
def test_thinking_that_the_template_ignores_is_an_error(value):
    tokenizer = make_tokenizer(read_template("chatml"), CHATML_MARKS)
    assert "ignores enable_thinking" in refusal(tokenizer, ChatOptions(enable_thinking=value))


def test_template_kwargs_must_change_something():
    template = "{{- (tone | default('calm')) + ' Q: ' + messages[0].content + '\\n\\nA:' }}"
    tokenizer = make_tokenizer(template)
    chat = Chat.of(tokenizer, ChatOptions(template_kwargs={"tone": "gruff"}))
    assert tokenizer.decode(list(chat.prefix)).startswith("gruff")
    Chat.of(tokenizer, ChatOptions(template_kwargs={"tone": "calm"}))  # the default, spelled out, is read all the same
    for ignored in ("gruff", True, 3, None, ["x"]):
        assert "ignores mood" in refusal(tokenizer, ChatOptions(template_kwargs={"tone": "gruff", "mood": ignored}))


@pytest.mark.parametrize(
    "options",
    [
        {"date": "5 Jan 2026"},
        {"date": "20260105"},
        {"date": "2026-02-30"},
        {"template_kwargs": {"messages": []}},
        {"template_kwargs": {"enable_thinking": True}},
        {"template_kwargs": {"tone": {1, 2}}},
    ],
)
def test_options_are_checked_at_birth(options):
    with pytest.raises(TemplateError, match=next(iter(options))):
        ChatOptions(**options)


def test_the_record_is_json_and_identifies_the_template():
    tokenizer = make_tokenizer(read_template("chatml"), CHATML_MARKS)
    record = Chat.of(tokenizer, ChatOptions(system="Be formal.")).record()
    assert convert(json.loads(json.dumps(to_json(record))), ChatFacts) == record
    assert to_json(record)["positions"] == [-5, -4, -3, -2, -1]
    other = Chat.of(tokenizer, ChatOptions(template=read_template("phi-3"))).record()
    assert other.template_sha256 != record.template_sha256
    assert Chat.of(tokenizer).record().template_sha256 == record.template_sha256


# -- batches


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_batch_gives_its_sequences_back(sequences):
    for side in ("left", "right"):
        batch = token_batch(sequences, pad_id=7, side=side)
        assert batch.input_ids.dtype == torch.int64
        kept = [row[mask.bool()].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        assert kept == sequences
        assert (batch.input_ids[batch.attention_mask == 0] == 7).all()
        last = batch.input_ids[:, -1 if side == "left" else 0].tolist()
        assert last == [ids[-1 if side == "left" else 0] for ids in sequences]


@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_a_batch_without_tokens_is_refused(sequences):
    with pytest.raises(ValueError, match="at least one token"):
        token_batch(sequences, pad_id=0)


def test_a_response_without_own_tokens_is_refused(family_model):
    chat = Chat.of(family_model("qwen2").tokenizer)
    with pytest.raises(TemplateError, match="tokens of its own"):
        chat.response_tokens(Prompt("Describe the sea.", "positive", "a"), " ")


def test_token_ids_that_a_caller_changes_are_not_kept():
    chat = Chat.of(make_tokenizer(read_template("chatml"), CHATML_MARKS))
    prompt = Prompt("Describe a garden.", "negative", id="p")
    ids = chat.encode(prompt)
    ids.append(0)
    assert chat.encode(prompt) == ids[:-1]
    assert replace(chat, options=ChatOptions(system="Be brief.")).encode(prompt) != ids[:-1]
