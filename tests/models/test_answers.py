"""The answer of a completion in every form of blocks and channels, as models and templates write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from make_tokenizer import CHATML, CHATML_MARKS, make_tokenizer
from rhumbline.judging.judge_names import class_judge
from rhumbline.judging.score import score_of
from rhumbline.models.answer_forms import FORMS
from rhumbline.models.answers import AnswerReader
from rhumbline.models.chat import Chat
from rhumbline.prompts.chat_options import ChatOptions

BLOCKS = [form for form in FORMS if not form.goes_on]
HARMONY = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>Hm."


def reader(header="", tokens=(), special=True, template=""):
    tokenizer = make_tokenizer(CHATML, CHATML_MARKS)
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    return AnswerReader.of(tokenizer, template + header, header)


def read(reading, text):
    return reading.read(reading.tokenizer(text, add_special_tokens=False)["input_ids"])


def text_of(reading, text):
    answer = read(reading, text).text
    return None if answer is None else answer.strip()


@pytest.fixture(params=BLOCKS, ids=lambda form: form.opens)
def block(request):
    return request.param


# -- blocks


@pytest.mark.parametrize("special", [True, False])
def test_a_block_that_the_model_opens(block, special):
    o, c = block.opens, block.closes
    reading = reader(tokens=[t for t in block[:2] if not t.startswith("Here")], special=special, template=o + c)
    assert text_of(reading, f"{o}I cannot.{c}\n\nSure.") == "Sure."
    assert text_of(reading, f"\n{o}\nHm.\n{c}\nI cannot.") == "I cannot."
    assert text_of(reading, f"{o}\n\n{c}\n\nSure.") == "Sure."
    assert text_of(reading, f"{o}I cannot") is None
    assert text_of(reading, f"{o}I cannot.{c}") is None
    assert text_of(reading, f"{o}a{c} One. {o}b{c} Two.").split() == ["One.", "Two."]
    assert text_of(reading, f"{o}a{o}b{c}I cannot.{c}Sure.") == "Sure."
    assert text_of(reading, f"{o}a{o}b{c}Sure.") == "Sure."
    assert text_of(reading, f"{o}a{o}b{c}One. {o}c{c}Two.").split() == ["One.", "Two."]


def test_a_block_that_the_template_opens(block):
    reading = reader(header=f"assistant\n{block.opens}\n", tokens=block[:2])
    assert text_of(reading, f"I cannot.\n{block.closes}\nSure.") == "Sure."
    assert text_of(reading, f"{block.closes}Sure.") == "Sure."
    assert text_of(reading, "I cannot") is None
    assert text_of(reading, "") is None


def test_a_nested_block_in_one_that_the_template_opens(block):
    reading, (o, c, _) = reader(header=f"assistant\n{block.opens}\n", tokens=block[:2]), block
    assert text_of(reading, f"{o}Hm.{c}I cannot.{c}Sure.") == "Sure."
    assert text_of(reading, f"{o}Hm.{c}Sure.") == "Sure."


def test_blocks_that_follow_each_other_without_being_of_the_tokenizer(block):
    reading, (o, c, _) = reader(), block
    assert text_of(reading, f"{o}a{c}\n{o}I cannot.{c}\nSure.") == "Sure."
    assert text_of(reading, f"{o}a{c}\n{o}I cannot") is None
    assert text_of(reading, f"{o}a{c}Sure, the tag {o} opens it.") == f"Sure, the tag {o} opens it."


def test_a_block_that_the_template_closes(block):
    reading = reader(header=f"assistant\n{block.opens}\n\n{block.closes}\n\n", tokens=block[:2])
    assert text_of(reading, "Sure.") == "Sure."
    assert read(reading, "").text == ""
    assert text_of(reading, f"{block.opens}Hm.{block.closes}Sure.") == "Sure."


def test_a_known_block_that_only_its_end_shows_and_one_that_opens_late(block):
    reading = reader(tokens=block[:2], template=f"{block.opens}{block.closes}")
    assert text_of(reading, f"Hm.\n{block.closes}\nSure.") == "Sure."
    assert text_of(reading, f"Sure. {block.opens}I cannot") == "Sure."
    assert text_of(reading, f"I cannot. {block.opens}Hm.{block.closes} Sure.").split() == ["I", "cannot.", "Sure."]


def test_ordinary_text_is_its_own_answer(block):
    reading = reader()
    for text in ("", "Sure.", "  Sure.", f"The tag {block.opens} opens it.", f"The tag {block.closes} ends it."):
        answer = read(reading, text)
        assert (answer.text, answer.start) == (text, 0)


def test_special_tokens_are_not_part_of_an_answer():
    assert read(reader(), "Sure.</s>").text == "Sure."
    assert read(reader(tokens=["[THINK]", "[/THINK]"]), "[THINK]Hm.[/THINK]Sure.</s>").text == "Sure."


def test_tags_of_an_answer_are_left_out():
    reading = reader(tokens=["<think>", "</think>"])
    assert text_of(reading, "<think>Hm.</think>\n<answer>I cannot.</answer>").startswith("I cannot.")
    assert text_of(reading, "<answer>I cannot.") == "<answer>I cannot."


def test_the_start_of_an_answer_is_its_first_token():
    reading = reader(tokens=["<think>", "</think>"])
    before = reading.tokenizer("<think>Hm.</think>", add_special_tokens=False)["input_ids"]
    assert read(reading, "<think>Hm.</think>Sure.").start == len(before)
    assert read(reading, "Sure.").start == 0
    # The delimiters are text: a token can hold the end of one and the beginning of the answer.
    spelled = reader(template="<think></think>")
    assert read(spelled, "<think>Hm.</think>Sure.").text == "Sure."


# -- channels


@pytest.fixture(params=[True, False], ids=["tokens", "text"])
def harmony(request):
    return lambda header="<|start|>assistant": reader(header, HARMONY if request.param else [], template="<|end|>")


def test_the_final_channel_is_the_answer(harmony):
    reading = harmony()
    assert text_of(reading, f"{ANALYSIS}<|end|><|start|>assistant{FINAL}Sure.") == "Sure."
    assert text_of(reading, f"{FINAL}Sure.") == "Sure."
    calls = "<|channel|>commentary to=x<|message|>{}<|end|><|start|>assistant"
    assert text_of(reading, f"{ANALYSIS}<|end|><|start|>assistant{calls}{FINAL}Sure.") == "Sure."


def test_without_a_final_channel_there_is_no_answer(harmony):
    reading = harmony()
    assert text_of(reading, ANALYSIS) is None
    assert text_of(reading, f"{ANALYSIS}<|end|><|start|>assistant") is None
    assert text_of(reading, f"{ANALYSIS}<|end|><|start|>assistant{FINAL}") is None


def test_a_header_before_a_channel_is_not_the_answer():
    assert text_of(reader(tokens=HARMONY), f"<|start|>assistant{ANALYSIS}<|end|>{FINAL}Sure.") == "Sure."


def test_text_after_the_final_message_is_not_read(harmony):
    assert text_of(harmony(), f"{FINAL}Sure.<|end|><|start|>assistant{ANALYSIS}") == "Sure."
    begun = harmony(f"<|start|>assistant{FINAL}")
    assert text_of(begun, "Sure.") == "Sure."
    assert text_of(begun, "Sure.<|end|><|start|>user<|message|>I cannot") == "Sure."


def test_a_channel_that_the_template_opens(harmony):
    reading = harmony("<|start|>assistant<|channel|>analysis<|message|>")
    assert text_of(reading, f"Hm.<|end|><|start|>assistant{FINAL}Sure.") == "Sure."
    assert text_of(reading, "Hm.") is None


# -- any text


words = st.text(alphabet="abc .\n", max_size=12)


@settings(deadline=None, max_examples=100)
@given(form=st.sampled_from(BLOCKS), thought=words, answer=words, special=st.booleans(), is_token=st.booleans())
def test_only_the_text_after_the_block_is_read(form, thought, answer, special, is_token):
    reading = reader(tokens=form[:2] if is_token else (), special=special)
    found = read(reading, f"{form.opens}{thought}{form.closes}{answer}").text
    assert found == (answer if answer.strip() else None)
    assert read(reading, f"{form.opens}{thought}").text is None


# -- chats and judges

THINKING = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def test_a_chat_reads_answers_as_its_options_open_them():
    tokenizer = make_tokenizer(THINKING, CHATML_MARKS)
    text = "Hm, I can.\n</think>\n\nI'm sorry, I cannot."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    thinking, direct = Chat.of(tokenizer), Chat.of(tokenizer, ChatOptions(enable_thinking=False))
    assert thinking.answer(ids).text.strip() == "I'm sorry, I cannot."
    assert thinking.answer(ids[:4]).text is None
    assert direct.answer(ids[:4]).text is not None


def test_a_completion_without_an_answer_is_unscored():
    judge = class_judge("refusal-anywhere")
    score = score_of(judge, None)
    assert (score.cls, score.value, score.evidence) == ("unscored", None, "no answer")
    assert score_of(judge, "I cannot.").cls == "refused"
    assert score_of(judge, "").cls == "degenerate"
