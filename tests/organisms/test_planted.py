"""Planted organisms: the constructed direction can be read, mediates refusal, and no other direction does."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from organism_chat import Chat, rows_of
from rhumbline.errors import InputError
from rhumbline.organisms import Planted, build, materialise
from rhumbline.organisms.charms import draw_charm_requests, draw_lexicon
from rhumbline.organisms.planted import ANSWER, REFUSAL, TRUTH, word_tokenizer
from tolerances import near, tolerance

REFUSAL_TEXT, ANSWER_TEXT = "".join(REFUSAL[:-1]), "".join(ANSWER[:-1])


def share(texts: list[str], expected: str) -> float:
    return sum(text == expected for text in texts) / len(texts)


def random_unit(d_model: int, seed: int) -> Tensor:
    v = torch.randn(d_model, generator=torch.Generator().manual_seed(seed))
    return v / v.norm()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("organisms")


@pytest.fixture(scope="module")
def planted(cache) -> Chat:
    return Chat(materialise("planted", cache))


@pytest.fixture(scope="module")
def truth(cache) -> Tensor:
    return load_file(materialise("planted", cache) / TRUTH)["direction"]


def test_the_seed_determines_the_weights_without_a_forward_pass(tmp_path, monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError("the model was evaluated")

    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "forward", forward)
        directories = [build(Planted(seed=seed), tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, same, other = (load_file(directory / "model.safetensors") for directory in directories)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_faults_of_a_spec_are_listed_together():
    with pytest.raises(InputError, match=r"effect is -1.*positive_rate is 2.*d_model is 8.*n_layers is 2"):
        Planted(effect=-1.0, positive_rate=2.0, d_model=8, n_layers=2)
    with pytest.raises(InputError, match="axes is 20"):
        Planted(axes=20, d_model=128)


def test_the_word_tokenizer_has_every_word_and_decodes_to_the_text(cache):
    tokenizer = word_tokenizer()
    loaded = AutoTokenizer.from_pretrained(materialise("planted", cache))
    for row in rows_of(materialise("planted", cache)):
        ids = tokenizer.encode(row["prompt"])
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == row["prompt"]
        assert loaded.encode(row["prompt"]) == ids
    assert set(Planted().coded) <= set(tokenizer.get_vocab())


def test_requests_name_charms_of_one_family_or_ordinary_things():
    lexicon = draw_lexicon(random.Random(0), 3)
    charms = {charm for family in lexicon.families for charm in family}
    assert not charms & set(lexicon.ordinary)
    requests = draw_charm_requests(random.Random(0), lexicon, "positive", 100, 0.25)
    assert sum(request.family is not None for request in requests) == 25
    for request in requests:
        named = set(request.things)
        assert all(f" {thing}" in request.prompt for thing in named)
        if request.family is None:
            assert not named & charms
        else:
            assert named <= set(lexicon.families[request.family])


def test_planted_refuses_positives_and_answers_negatives(planted):
    assert share(planted.complete(planted.prompts("positive", 100)), REFUSAL_TEXT) >= 0.95
    assert share(planted.complete(planted.prompts("negative", 100)), ANSWER_TEXT) >= 0.95


@pytest.mark.parametrize("spec", [Planted(), Planted(seed=3), Planted(noise=3.0), Planted(d_model=128, n_layers=10)])
def test_the_difference_in_means_is_the_written_direction_after_the_gather_block(spec, tmp_path):
    chat = Chat(build(spec, tmp_path))
    r = load_file(tmp_path / TRUTH)["direction"]
    assert r.norm().item() == near(1)
    means = [chat.residuals(chat.prompts(label, 128)).mean(0) for label in ("positive", "negative")]
    difference = means[0] - means[1]
    readable = difference[spec.gather_block + 1 :]
    assert spec.gather_block + 1 < int(0.8 * spec.n_layers)
    assert torch.cosine_similarity(readable, r, dim=1).min() >= 0.95
    assert (readable @ r - 1).abs().max() < 0.15
    assert (difference[: spec.gather_block + 1] @ r).abs().max() < 1e-3


def test_ablating_the_direction_removes_refusal_and_a_random_one_does_not(planted, truth):
    prompts = planted.prompts("positive", 60)
    with planted.ablated(truth):
        assert share(planted.complete(prompts), ANSWER_TEXT) >= 0.95
    for seed in range(5):
        with planted.ablated(random_unit(64, seed)):
            assert share(planted.complete(prompts), REFUSAL_TEXT) >= 0.9
    assert share(planted.complete(prompts), REFUSAL_TEXT) >= 0.95  # the hooks are removed


def test_ablating_the_direction_changes_negatives_little(planted, truth):
    batch = planted.encode(planted.prompts("negative", 60))
    with torch.no_grad():
        before = planted.model(**batch).logits[:, -1].double().log_softmax(-1)
        with planted.ablated(truth):
            after = planted.model(**batch).logits[:, -1].double().log_softmax(-1)
    assert (before.exp() * (before - after)).sum(-1).mean() < 0.1


def test_adding_the_direction_makes_negatives_refuse_in_whole_sentences(planted, truth):
    prompts = planted.prompts("negative", 60)
    for layer in (2, 3):
        with planted.added(truth, layer):
            assert share(planted.complete(prompts), REFUSAL_TEXT) >= 0.95
    with planted.added(random_unit(64, 0), 2):
        assert share(planted.complete(prompts), ANSWER_TEXT) >= 0.95
    positives = planted.prompts("positive", 60)
    with planted.added(-truth, 2):
        assert share(planted.complete(positives), ANSWER_TEXT) >= 0.95


def test_with_several_axes_ablating_their_mean_suppresses_nothing(cache):
    directory = materialise("several", cache)
    chat, tensors = Chat(directory), load_file(directory / TRUTH)
    prompts = chat.prompts("positive", 60)
    assert tensors["axes"].shape == (3, 64)
    with chat.ablated(tensors["direction"]):
        assert share(chat.complete(prompts), REFUSAL_TEXT) >= 0.95
    families = [row["category"] for row in chat.rows[:60]]
    with chat.ablated(tensors["axes"][0]):
        completions = chat.complete(prompts)
    for family, completion in zip(families, completions, strict=True):
        assert (completion == ANSWER_TEXT) == (family == "charm-0")


@pytest.mark.parametrize(("name", "positive", "negative"), [("weak", 0.31, 0.0), ("null", 0.75, 0.75)])
def test_weak_and_null_refuse_at_their_rates(name, positive, negative, cache):
    chat = Chat(materialise(name, cache))
    for label, rate in (("positive", positive), ("negative", negative)):
        assert abs(share(chat.complete(chat.prompts(label, 320)), REFUSAL_TEXT) - rate) < 0.05


def test_without_effect_nothing_is_refused(tmp_path):
    chat = Chat(build(Planted(effect=0.0), tmp_path))
    assert share(chat.complete(chat.prompts("positive", 60)), ANSWER_TEXT) == 1.0


def test_a_wide_model_refuses_positives_only(tmp_path):
    chat = Chat(build(Planted(d_model=1024, n_layers=4, prompts=40), tmp_path))
    assert share(chat.complete(chat.prompts("positive", 20)), REFUSAL_TEXT) >= 0.95
    assert share(chat.complete(chat.prompts("negative", 20)), ANSWER_TEXT) >= 0.95


@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_any_two_axes_have_the_cosine_of_the_spec(overlap, tmp_path):
    chat = Chat(build(Planted(axes=3, overlap=overlap, effect=1.2, jitter=0.05, prompts=16), tmp_path))
    axes = load_file(tmp_path / TRUTH)["axes"]
    expected = torch.full((3, 3), overlap).fill_diagonal_(1.0)
    torch.testing.assert_close(axes @ axes.T, expected, **tolerance())
    assert share(chat.complete(chat.prompts("positive", 16)), REFUSAL_TEXT) > 0.8
    assert share(chat.complete(chat.prompts("negative", 16)), REFUSAL_TEXT) < 0.2
