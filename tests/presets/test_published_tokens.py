"""Which family a model belongs to, by its type and name, and which tokens a run then reads."""

from dataclasses import replace

import pytest

from rhumbline import load, read_contrast
from rhumbline.presets.protocols import preset
from rhumbline.presets.published_models import published_models
from rhumbline.presets.published_tokens import published_tokens
from rhumbline.records.protocol_file import PublishedTokens
from rhumbline.stages.run_plan import RunPlan

TYPES = {"qwen": "qwen", "gemma": "gemma", "yi": "llama", "llama": "llama"}


@pytest.mark.parametrize(
    "published", [m for m in published_models().values() if m.refusal_tokens], ids=lambda m: m.name
)
def test_every_model_of_the_paper_has_the_tokens_of_its_family(published):
    model_type = TYPES[published.name.split("-")[0]]
    assert published_tokens(model_type, published.hub).tokens == published.refusal_tokens


@pytest.mark.parametrize(
    ("model_type", "name", "family"),
    [
        ("qwen2", "/models/qwen2.5-coder-0.5b", "Qwen"),
        ("gemma3_text", "gemma-3-1b-it", "Gemma"),
        ("llama", "/data/Yi-1.5-9B-Chat/", "Yi"),
        ("llama", "meta-llama/Llama-3.2-1B-Instruct", "Llama 3"),
        ("llama", "C:\\models\\llama2-7b", "Llama 2"),
        # A model of another family with the same type, a folder that has the name of a family, and parts of words.
        ("llama", "HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ("llama", "/home/yi/models/smollm2", None),
        ("llama", "TinyLlama-1.1B", None),
        ("llama", "Llama-30b", None),
        ("mistral", "Llama-3-merge", None),
        ("qwen2", "organism:refusal", None),
        # Models that were trained further on outputs or data of others, and say so after their own name.
        ("qwen2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", None),
        ("llama", "NousResearch/Hermes-2-Pro-Llama-3-8B", None),
        ("gemma2", "a-merge-of-gemma", None),
        ("llama", "meta-llama/Meta-Llama-3-8B-Instruct", "Llama 3"),
    ],
)
def test_a_family_is_recognised_by_type_and_name(model_type, name, family):
    found = published_tokens(model_type, name)
    assert found.family == family
    assert bool(found.tokens) == (family is not None)


def test_the_config_can_state_the_name():
    assert published_tokens("llama", "/models/mine", "meta-llama/Llama-2-7b-chat-hf").family == "Llama 2"


@pytest.mark.parametrize(
    ("name", "changes", "tokens", "published"),
    [
        ("Yi-6B-Chat", {}, ("I",), PublishedTokens("Yi", ("I",))),
        ("a-model", {}, "auto", PublishedTokens(None, ())),
        ("Yi-6B-Chat", {"behaviour": "style"}, "auto", PublishedTokens(None, ())),
        ("Yi-6B-Chat", {"refusal_tokens": ("Here",)}, ("Here",), None),
    ],
)
def test_the_protocol_file_states_the_tokens_and_their_family(planted_folder, name, changes, tokens, published):
    """The planted model has the type of Llama; its name decides."""
    model = replace(load(str(planted_folder), device="cpu"), name=name)
    contrast = read_contrast(planted_folder / "contrast.jsonl")
    plan = RunPlan.of(model, contrast, preset("arditi2024", **changes))
    assert plan.protocol.refusal_tokens == tokens
    assert plan.published == published
    record = plan.record()
    assert record["refusal_tokens"] == (list(tokens) if isinstance(tokens, tuple) else tokens)
    assert ("published_tokens" in record) == (published is not None)
