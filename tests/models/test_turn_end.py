"""The end of an assistant turn in chat templates, and what ends a completion."""

import json
from dataclasses import replace

import pytest
from transformers import GenerationConfig

from make_tokenizer import COLLECTION, make_tokenizer, read_template
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.models.decoding_facts import decoding_facts, ignored_settings, stop_ids, stop_tokens
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.records.codec import convert, to_json
from rhumbline.records.protocol_file import DecodingFacts

ENDS = {
    "alpaca": "</s>",
    "amberchat": None,
    "chatml": "<|im_end|>",
    "chatqa": None,
    "falcon-instruct": None,
    "gemma-it": "<end_of_turn>",
    "granite-3.0-instruct": "<|end_of_text|>",
    "llama-2-chat": "</s>",
    "llama-3-instruct": "<|eot_id|>",
    "mistral-instruct": "</s>",
    "openchat-3.5": "<|end_of_turn|>",
    "phi-3": "<|end|>",
    "phi-3-small": "<|end|>",
    "qwen2.5-instruct": "<|im_end|>",
    "saiga": "</s>",
    "solar-instruct": None,
    "vicuna": "</s>",
    "zephyr": "</s>",
}
USER = "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}"
OPENED = "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
HARMONY = (
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HARMONY_MARKS = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
MARKS = ["<|user|>", "<|assistant|>", "<|end|>"]


def end_of(template, marks, **options):
    chat = Chat.of(make_tokenizer(template, marks), ChatOptions(**options))
    return None if chat.turn_end is None else chat.controls.name(chat.turn_end)


@pytest.mark.parametrize("name", COLLECTION)
def test_the_end_of_a_turn_of_every_collected_template(name):
    assert end_of(read_template(name), COLLECTION[name][0]) == ENDS[name]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (USER + "<|assistant|>{{ m.content }}<|end|>\n" + OPENED, "<|end|>"),
        # Whitespace and text before the marker.
        (USER + "<|assistant|>\n{{ m.content | trim }}\n\n<|end|>" + OPENED, "<|end|>"),
        # The turn is closed before another one only.
        (USER + "<|assistant|>{{ m.content }}{% if not loop.last %}<|end|>{% endif %}" + OPENED, "<|end|>"),
        # The opening of the next turn is the only marker.
        (USER + "<|assistant|>{{ m.content }}\n" + OPENED, "<|user|>"),
        # Chats end with a user turn.
        (USER + "{{ raise_exception('no assistant') }}" + OPENED, None),
        # Assistant turns are dropped.
        (USER + OPENED, None),
        # The marker is not a token of this vocabulary.
        (USER + "<|assistant|>{{ m.content }}<|finish|>" + OPENED, "<|user|>"),
    ],
)
def test_the_end_of_a_turn_in_further_forms(template, expected):
    assert end_of(template, MARKS) == expected


def test_a_marker_that_ends_a_channel_is_not_the_end_of_the_turn():
    assert end_of(HARMONY, HARMONY_MARKS) == "<|return|>"
    closed_alike = HARMONY.replace("<|return|>", "<|end|>")
    assert end_of(closed_alike, HARMONY_MARKS) is None
    assert end_of(closed_alike.replace("<|channel|>final", ""), [m for m in HARMONY_MARKS if m != "<|channel|>"]) == (
        "<|end|>"
    )


def test_a_turn_before_another_one_can_have_an_end_of_its_own():
    closed = USER + "<|assistant|>{{ m.content }}{% if loop.last %}</s>{% else %}<|end|>{% endif %}" + OPENED
    # Another turn opens where nothing closes the last one.
    opened = USER + "<|assistant|>{{ m.content }}{% if loop.last %}</s>{% endif %}" + OPENED
    same = USER + "<|assistant|>{{ m.content }}<|end|>\n" + OPENED
    for template, marks, expected in (
        (closed, MARKS, ["</s>", "<|end|>"]),
        (opened, MARKS, ["</s>", "<|user|>"]),
        (same, MARKS, ["<|end|>"]),
        (HARMONY, HARMONY_MARKS, ["<|return|>"]),
    ):
        chat = Chat.of(make_tokenizer(template, marks))
        assert [chat.controls.name(i) for i in chat.turn_ends] == expected


def test_a_template_option_decides_over_the_own_template():
    tokenizer = make_tokenizer(read_template("chatml"), [*COLLECTION["chatml"][0], *MARKS])
    own, other = Chat.of(tokenizer), Chat.of(tokenizer, ChatOptions(template=read_template("phi-3")))
    assert [c.controls.name(c.turn_end) for c in (own, other)] == ["<|im_end|>", "<|end|>"]


# -- what ends a completion


@pytest.fixture
def model(family_model):
    return family_model("llama")


def test_stop_tokens_have_their_sources(model, monkeypatch):
    tokenizer = model.tokenizer
    end, start = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>"))
    eos = tokenizer.eos_token_id
    monkeypatch.setattr(model.model, "generation_config", GenerationConfig(eos_token_id=[start, end]))
    chat = Chat.of(tokenizer)
    facts = decoding_facts(model, chat)
    sources = {token.id: token.sources for token in facts.stop_tokens}
    assert sources == {
        start: ("generation config",),
        end: ("generation config", "chat template"),
        eos: ("tokenizer",),
    }
    assert stop_ids(model, chat) == set(sources)
    assert convert(to_json(facts), DecodingFacts) == facts
    monkeypatch.setattr(model.model, "generation_config", GenerationConfig(eos_token_id=eos))
    by_id = {token.id: token for token in stop_tokens(model, chat)}
    assert by_id[end].sources == ("chat template",)
    assert by_id[end].text == "<|im_end|>"


def test_a_completion_ends_with_the_turn(model, monkeypatch):
    chat = Chat.of(model.tokenizer)
    monkeypatch.setattr(model.model, "generation_config", GenerationConfig(eos_token_id=None))
    sequences = [[5, 6, 7], [8, 9]]
    (free,), _ = Runner(model).generate(sequences, max_new_tokens=6)
    assert len(free[0]) == 6
    ended = replace(chat, turn_ends=(free[0][0],))
    (stopped,), _ = Runner(model).generate(sequences, max_new_tokens=6, stop=stop_ids(model, ended))
    assert stopped[0] == []


# -- settings of the generation config


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({}, []),
        ({"do_sample": False, "repetition_penalty": 1.0, "min_length": 0}, []),
        # Without sampling these settings change nothing.
        ({"temperature": 0.6, "top_p": 0.9}, []),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, ["do_sample", "temperature", "top_p"]),
        ({"repetition_penalty": 1.1}, ["repetition_penalty"]),
        ({"suppress_tokens": [3, 4]}, ["suppress_tokens"]),
        ({"suppress_tokens": []}, []),
        ({"begin_suppress_tokens": [3], "forced_bos_token_id": 5}, ["begin_suppress_tokens", "forced_bos_token_id"]),
        ({"min_new_tokens": 8, "no_repeat_ngram_size": 3}, ["min_new_tokens", "no_repeat_ngram_size"]),
        ({"num_beams": 4}, ["num_beams"]),
        ({"dola_layers": "high", "token_healing": True}, ["dola_layers", "token_healing"]),
        ({"dola_layers": None, "token_healing": False}, []),
    ],
)
def test_settings_that_greedy_decoding_does_not_apply(settings, ignored):
    found = ignored_settings(GenerationConfig(**settings))
    assert set(ignored) <= set(found)
    assert set(found) - set(ignored) <= {"top_k"}  # transformers has a default for it
    assert {name: json.loads(value) for name, value in found.items() if name in settings} == {
        name: settings[name] for name in ignored
    }


def test_a_model_without_a_generation_config_has_no_settings():
    assert ignored_settings(None) == {}


def test_warnings_name_what_is_unknown_or_not_applied():
    assert DecodingFacts((), 3, {}).warnings == []
    (unknown,) = DecodingFacts((), None, {}).warnings
    assert "end of a turn is not known" in unknown
    (ignored,) = DecodingFacts((), 3, {"do_sample": "true", "temperature": "0.6"}).warnings
    assert "do_sample = true, temperature = 0.6" in ignored
