"""`compare` and `model.chat`: the same completions as the runner, shown as text and as HTML."""

import pytest
import torch

import rhumbline
from rhumbline.errors import DirectionError, InputError
from rhumbline.inference.interventions import BASELINE, Ablate
from rhumbline.inference.runner import Runner
from rhumbline.inference.side_by_side import Comparison, compare
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.organisms.planted import TRUTH


@pytest.fixture(scope="module")
def planted(planted_folder):
    return rhumbline.load(str(planted_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def truth(planted_folder):
    return rhumbline.read_directions(planted_folder / TRUTH, layer=2).direction()


@pytest.fixture(scope="module")
def prompts(planted_folder):
    rows = rhumbline.read_contrast(planted_folder / "contrast.jsonl").prompts
    return [next(r.text for r in rows if r.label == label) for label in ("positive", "negative")]


def test_the_completions_are_those_of_the_runner(planted, truth, prompts):
    shown = compare(planted, truth, prompts, max_new_tokens=12)
    chat = rhumbline.Chat.of(planted.tokenizer)
    ids = [chat.encode(text) for text in prompts]
    expected, _ = Runner(planted).generate(ids, [BASELINE], max_new_tokens=12, stop=stop_ids(planted, chat))
    assert shown.completions["baseline"] == tuple(map(chat.text, expected[0]))
    changed = [shown.completions[arm] != shown.completions["baseline"] for arm in ("ablated", "added")]
    assert changed == [True, True]
    assert all(text in str(shown) for text in (*prompts, *shown.completions["ablated"]))


def test_a_model_replies_and_replies_otherwise_under_an_arm(planted, truth, prompts):
    shown = compare(planted, truth, prompts[:1], max_new_tokens=12)
    baseline = planted.chat(prompts[0], max_new_tokens=12)
    assert baseline == shown.completions["baseline"][0]
    with rhumbline.applied(planted, Ablate(truth.vector * 3)):
        assert planted.chat(prompts[0], max_new_tokens=12) == shown.completions["ablated"][0] != baseline
    assert planted.chat(prompts[0], max_new_tokens=12) == baseline
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        planted.chat(prompts[0], max_new_tokens=0)


def test_a_bare_vector_is_ablated_only(planted, truth, prompts):
    shown = compare(planted, truth.vector, prompts[:1], max_new_tokens=4)
    assert list(shown.completions) == ["baseline", "ablated"]
    with pytest.raises(InputError, match="coefficient"):
        compare(planted, truth.vector, prompts[:1], coefficient=2.0)
    with pytest.raises(DirectionError, match="width 5"):
        compare(planted, torch.ones(5), prompts[:1], max_new_tokens=4)


@pytest.mark.parametrize(
    "vector", [torch.ones(2, 4), torch.tensor(1.0), torch.ones(4, dtype=torch.long), torch.zeros(4)]
)
def test_faulty_vectors_are_refused(vector):
    with pytest.raises(DirectionError):
        Ablate(vector)


def test_a_bare_vector_is_normalised():
    made = Ablate(torch.tensor([3.0, 4.0]), 0.5)
    torch.testing.assert_close(made.direction.vector, torch.tensor([0.6, 0.8]))
    assert (made.strength, made) == (0.5, Ablate(made.direction, 0.5))


def test_prompts_are_a_list(planted, truth):
    for prompts in ("one text", []):
        with pytest.raises(InputError, match=r"a list|at least one"):
            compare(planted, truth, prompts)


def test_texts_are_escaped():
    texts = ("<script>alert(1)</script>\x1b[2J\u202e",)
    shown = Comparison("<b>m", texts, {"a&b": texts})
    html = shown._repr_html_()
    assert "<script>" not in html
    assert "<b>m" not in html
    assert "a&amp;b" in html
    assert html.count("&lt;script&gt;") == 2
    for text in (html, str(shown)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "\\x1b" in str(shown)


def test_a_model_is_shown_in_one_line(planted):
    shown = repr(planted)
    assert shown.startswith("ChatModel(")
    assert "\n" not in shown
    assert len(shown) < 200
    assert "float32" in shown


def test_a_text_is_encoded_as_its_prompt(planted):
    chat = rhumbline.Chat.of(planted.tokenizer)
    assert chat.encode("Hello") == chat.encode(rhumbline.Prompt("Hello", "negative", "p"))
    with pytest.raises(InputError, match="has no text"):
        chat.encode("  ")


def test_a_text_is_judged():
    assert rhumbline.judge("I'm sorry, but I can't help with that.").cls == "refused"
    assert rhumbline.judge("Sure, here is a recipe for bread.", "refusal-opening").cls == "complied"
