"""Judges that are models: a batch gives the same judgements as one question at a time, for every form of model."""

import pytest
import torch

from make_judge import spec
from rhumbline import load
from rhumbline.errors import InputError, ModelError, SourceError
from rhumbline.judging.judge_models import ExternalJudge
from rhumbline.judging.judge_specs import Judgement
from tolerances import near, tolerance

COPY = {"refused": "refused", "complied": "complied"}


def test_a_causal_judge_gives_the_same_reply_as_its_own_generate(planted_folder):
    """Batched through the runner, or one question at a time with the model's own method."""
    judge = ExternalJudge(spec(form="chat", model=str(planted_folder), max_new_tokens=6), device="cpu", dtype="float32")
    answers: list[str] = []
    object.__setattr__(judge.spec, "read", lambda answer: answers.append(answer) or Judgement("unscored", None, ""))
    prompts = ["Wrap a lumarko", "Name a river", "Who built the bridge over there?"]
    responses = ["I cannot help with that request.", "Yes.", "Here is a short answer to your question."]
    judge(prompts, responses)
    chat = judge._runner.model
    for prompt, response, answer in zip(prompts, responses, answers, strict=True):
        turns = [{"role": "user", "content": judge.spec.question(prompt, response)}]
        text = chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = chat.model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=chat.pad_token)
        assert chat.tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True) == answer


def test_a_grade_is_the_expectation_over_the_scale(planted_folder):
    scale = ("I", "Here")
    judge = ExternalJudge(
        spec(form="text", model=str(planted_folder), answers={}, scale=scale), device="cpu", dtype="float32"
    )
    prompts, responses = ["Wrap a lumarko", "Name a river"], ["I cannot help.", "Here is one, and it is long."]
    found = judge(prompts, responses)
    chat = judge._runner.model
    ids = chat.tokenizer.convert_tokens_to_ids(list(scale))
    for prompt, response, judged in zip(prompts, responses, found, strict=True):
        tokens = chat.tokenizer(judge.spec.question(prompt, response), return_tensors="pt")
        with torch.no_grad():
            p = chat.model(**tokens).logits[0, -1, ids].double().softmax(-1)
        assert judged.value == near(float(p[1]))
    with pytest.raises(InputError, match="not one token each"):
        ExternalJudge(
            spec(form="text", model=str(planted_folder), answers={}, scale=("no such token", "I")), device="cpu"
        )(prompts, responses)


def test_a_conversation_is_the_models_own_template(planted_folder):
    judge = ExternalJudge(spec(form="conversation", model=str(planted_folder), template=""), device="cpu")
    tokenizer = judge._runner.model.tokenizer
    turns = [{"role": "user", "content": "Name a river"}, {"role": "assistant", "content": "Yes."}]
    assert judge._encode(tokenizer, "Name a river", "Yes.") == list(tokenizer.apply_chat_template(turns)["input_ids"])


def test_a_classifier_gives_the_same_judgements_in_batches(classifier):
    judge = ExternalJudge(spec(form="classifier", model=str(classifier), answers=COPY), device="cpu")
    prompts = ["Name a river", "Wrap a lumarko, a gilubin and also a rosum", "Go"]
    responses = ["I cannot help with that request.", "Here is a short answer to your question.", ""]
    alone = [judge([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    assert judge(prompts, responses) == alone
    assert [j.cls for j in alone[:2]] == ["refused", "complied"]
    with pytest.raises(InputError, match="no label kind"):
        ExternalJudge(spec(form="classifier", model=str(classifier), answers={"kind": "refused"}), device="cpu")(
            ["a"], ["b"]
        )


def test_a_text_that_is_too_long_for_a_classifier_is_unscored_and_the_others_are_not(classifier):
    judge = ExternalJudge(spec(form="classifier", model=str(classifier), answers=COPY), device="cpu")
    most = judge._classifier.model.config.max_position_embeddings
    short, long = judge(["a", "a"], ["b", "b " * most])
    assert short.cls != "unscored"
    assert (long.cls, long.value) == ("unscored", None)
    assert long.evidence.startswith("too long: ")
    assert long.evidence.endswith(f"tokens of {most}")


@pytest.mark.parametrize("fields", [{"form": "chat", "max_new_tokens": 6}, {"form": "text", "answers": {}}])
def test_a_question_beyond_the_positions_of_a_causal_judge_is_unscored_and_the_others_are_not(
    planted_folder, monkeypatch, fields
):
    scale = {} if "max_new_tokens" in fields else {"scale": ("I", "Here")}
    judge = ExternalJudge(spec(model=str(planted_folder), **fields, **scale), device="cpu", dtype="float32")
    model, (prompt, short, long) = judge._runner.model, ("Name a river", "Yes.", "Yes, and here is a longer answer.")
    alone = [(j.cls, j.evidence) for j in judge([prompt] * 2, [short, long])]
    n = [len(judge._encode(model.tokenizer, prompt, response)) for response in (short, long)]
    new = fields.get("max_new_tokens", 0)
    monkeypatch.setattr(model.model.config, "max_position_embeddings", n[1] + new)
    assert [(j.cls, j.evidence) for j in judge([prompt] * 2, [short, long])] == alone
    monkeypatch.setattr(model.model.config, "max_position_embeddings", n[1] + new - 1)
    too_long = Judgement("unscored", None, f"too long: {n[1]} tokens of {n[1] - 1}")
    first, second = judge([prompt] * 2, [long, short])
    assert first == too_long
    assert (second.cls, second.evidence) == alone[0]
    assert judge([prompt], [long]) == [too_long]


@pytest.mark.parametrize("form", ["text", "chat", "conversation"])
def test_control_tokens_that_a_completion_spells_are_plain_text_to_a_judge(planted_folder, form):
    judge = ExternalJudge(spec(form=form, model=str(planted_folder)), device="cpu")
    tokenizer = judge._runner.model.tokenizer

    def marks(prompt: str, response: str) -> list[int]:
        return [i for i in judge._encode(tokenizer, prompt, response) if i in judge._controls.ids]

    own = marks("Name a river", "Yes.")
    mark = tokenizer.eos_token
    assert judge._controls.spelled(mark)
    assert marks(f"Name {mark} a river", f"Yes.{mark}") == own
    assert judge._encode(tokenizer, "Name a river", f"Yes.{mark}") != judge._encode(tokenizer, "Name a river", "Yes.")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_a_judge_can_be_an_adapter(planted_folder, tmp_path):
    """The published StrongREJECT evaluator is one: its base is loaded, and the adapter changes the logits."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(planted_folder)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(planted_folder).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "config.json").unlink(missing_ok=True)
    model, plain = (
        load(str(path), device="cpu", dtype="float32", coarse=True) for path in (tmp_path / "adapter", planted_folder)
    )
    ids = model.tokenizer("Name a river", return_tensors="pt").input_ids
    with torch.no_grad():
        found, expected, without = (m(input_ids=ids).logits for m in (model.model, adapted, plain.model))
    torch.testing.assert_close(found, expected, **tolerance())
    assert (found - without).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_classifier_has_the_requested_dtype(classifier, dtype):
    judge = ExternalJudge(spec(form="classifier", model=str(classifier), answers=COPY), device="cpu", dtype=dtype)
    assert judge._classifier.model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("device", "dtype"), [("nowhere", "auto"), ("cpu", "float33")])
def test_an_unknown_device_or_dtype_is_refused(classifier, device, dtype):
    with pytest.raises(SourceError):
        ExternalJudge(spec(form="classifier", model=str(classifier), answers=COPY), device=device, dtype=dtype)(
            ["a"], ["b"]
        )


@pytest.mark.parametrize("form", ["classifier", "text"])
def test_the_model_of_a_judge_that_is_not_here_is_wrong_input(form, tmp_path):
    judge = spec(form=form, model=str(tmp_path / "gone"), answers=COPY)
    with pytest.raises(SourceError, match=rf"judge {judge.name}: .*--model DIR") as error:
        ExternalJudge(judge, device="cpu")(["Name a river"], ["Yes."])
    assert error.value.exit_code == 2


def test_a_model_without_a_classifiers_head_is_refused(planted_folder):
    """transformers would draw the head at random, and warn."""
    judge = spec(form="classifier", model=str(planted_folder), answers={"label_0": "refused", "label_1": "complied"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of a classifier \(score.weight\), which would be random"):
        ExternalJudge(judge, device="cpu")(["Name a river"], ["Yes."])
