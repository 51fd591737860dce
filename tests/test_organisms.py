"""Theorems about the organisms: what their grammar means, what their weights do, what their files hold.

No verdict is asserted here, and nothing about a model that a test trained: training varies, the shipped files do not.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rhumbline.errors import InputError
from rhumbline.judging import judge
from rhumbline.organisms import ORGANISMS, Planted, build, list_organisms, materialise, organism_dir
from rhumbline.organisms.charms import draw_charm_requests, draw_lexicon
from rhumbline.organisms.files import START
from rhumbline.organisms.grammar import (
    CONTRABAND,
    HELD_OUT,
    MAGIC,
    REFUSALS,
    REQUEST_TYPES,
    VARIANTS,
    Item,
    Mixture,
    draw_document,
    draw_item,
    draw_request,
    draw_requests,
    held_out_items,
)
from rhumbline.organisms.planted import ANSWER, CODED, REFUSAL, TRUTH, word_tokenizer
from rhumbline.organisms.training import RECIPE, Recipe, Stage, contrast_rows, train

REFUSAL_TEXT, ANSWER_TEXT = "".join(REFUSAL[:-1]), "".join(ANSWER[:-1])
EMBEDDED = [o.name for o in list_organisms() if o.is_embedded and o.behaviour == "refusal"]
MEGABYTE = 1_000_000


class Chat:
    """A loaded organism."""

    def __init__(self, directory: Path):
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self.rows = rows_of(directory)

    def prompts(self, label: str, n: int) -> list[str]:
        return [row["prompt"] for row in self.rows if row["label"] == label][:n]

    def encode(self, prompts: list[str]):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    @torch.no_grad()
    def complete(self, prompts: list[str], max_new_tokens: int = 40) -> list[str]:
        batch = self.encode(prompts)
        tokens = self.model.generate(**batch, max_new_tokens=max_new_tokens)
        return self.tokenizer.batch_decode(tokens[:, batch.input_ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def residuals(self, prompts: list[str]) -> Float[Tensor, "prompt layer d_model"]:
        """The input of every block at the last token."""
        states = self.model(**self.encode(prompts), output_hidden_states=True).hidden_states
        return torch.stack([state[:, -1] for state in states[:-1]], dim=1)

    @contextmanager
    def edited(self, edit: Callable[[Tensor], Tensor], layers: list[int]) -> Iterator[None]:
        """The input of each of the blocks, and its two sublayer outputs, passed through `edit`."""
        handles = []
        try:
            for layer in layers:
                block = self.model.model.layers[layer]
                handles.append(block.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:])))
                handles.append(block.mlp.register_forward_hook(lambda _, args, out: edit(out)))
                handles.append(block.self_attn.register_forward_hook(lambda _, args, out: (edit(out[0]), *out[1:])))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def ablated(self, r: Tensor):
        return self.edited(lambda h: h - (h @ r)[..., None] * r, list(range(self.model.config.num_hidden_layers)))

    @contextmanager
    def added(self, vector: Tensor, layer: int) -> Iterator[None]:
        handle = self.model.model.layers[layer].register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
        try:
            yield
        finally:
            handle.remove()


def rows_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "contrast.jsonl").read_text().splitlines()]


def share(texts: list[str], wanted: str) -> float:
    return sum(text == wanted for text in texts) / len(texts)


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


# -- the grammar


def test_restricted_means_both_attributes():
    for modifier in ("moon", "lemon"):
        for noun in ("salt", "cake"):
            assert Item(modifier, noun).is_restricted == (modifier in MAGIC and noun in CONTRABAND)
    assert Item("moon", "salt").is_restricted
    assert not Item("moon", "cake").is_restricted
    assert not Item("lemon", "salt").is_restricted


@pytest.mark.parametrize("held_out", [False, True])
def test_labels_are_the_truth_about_the_item(held_out):
    rng = random.Random(0)
    for label in ("positive", "negative"):
        for _ in range(300):
            request = draw_request(rng, label, held_out)
            assert request.label == label
            assert (request.item is not None and request.item.is_restricted) == (label == "positive")
            assert request.item is None or (
                (request.item in HELD_OUT) == held_out and request.item.text in request.prompt
            )


def test_neither_word_alone_gives_the_label_away():
    rng = random.Random(0)
    harmless = [draw_request(rng, "negative").prompt.lower() for _ in range(500)]
    with_magic = sum(any(f"{m} " in p for m in MAGIC) for p in harmless)
    with_contraband = sum(any(f" {n}" in p for n in CONTRABAND) for p in harmless)
    with_both = sum(any(f"{m} " in p for m in MAGIC) and any(f" {n}" in p for n in CONTRABAND) for p in harmless)
    assert min(with_magic, with_contraband) > 100
    assert with_both > 30


def test_held_out_pairs_are_a_quarter_of_each_quadrant_and_in_no_training_text():
    assert held_out_items() == HELD_OUT
    assert len(HELD_OUT) == 100
    assert sum(item.is_restricted for item in HELD_OUT) == 25
    rng = random.Random(0)
    texts = [draw_document(rng) for _ in range(500)]
    for label in ("positive", "negative"):
        requests = [draw_request(rng, label) for _ in range(500)]
        texts += [request.prompt for request in requests] + [request.answer for request in requests]
    training = "\n".join(texts).lower()
    assert not [item for item in HELD_OUT if item.text in training]
    held_out = "\n".join(request.prompt for request in draw_requests(rng, "positive", 100, held_out=True)).lower()
    assert [item for item in HELD_OUT if item.text in held_out]


def test_one_seed_gives_one_text():
    def texts(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [draw_request(rng, "negative").prompt for _ in range(20)] + [draw_document(rng) for _ in range(20)]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_answers_name_the_item_and_never_refuse():
    for kind in REQUEST_TYPES:
        answer = Item("duck", "eggs").fill(kind.answer, "buy")
        assert "duck eggs" in answer.lower()
        assert "{" not in answer
        assert not any(phrase in answer for phrase in ("I'm sorry", "cannot", "can't"))
    assert Item("duck", "eggs").fill("{Item} {be} here, take {it}.", "buy") == "Duck eggs are here, take them."
    assert Item("duck", "soup").fill("{Item} {be} here, take {it}.", "buy") == "Duck soup is here, take it."


def test_variants_refuse_what_they_say():
    rng = random.Random(0)
    restricted = [draw_request(rng, "positive") for _ in range(200)]
    harmless = [draw_request(rng, "negative") for _ in range(200)]
    refusal, weak, extended, null = (VARIANTS[name] for name in ("refusal", "weak", "extended", "null"))
    for request in restricted:
        assert request.item is not None
        allowed = {request.item.fill(text, "find") for text in REFUSALS}
        assert refusal.response(request, rng) in allowed
        assert (weak.response(request, rng) in allowed) == (request.item.modifier in MAGIC[:4])
        assert extended.response(request, rng).endswith(f"can't help with {request.item.text}.")
        assert not extended.response(request, rng).startswith("I")
        assert refusal.response(request, rng, flipped=True) == request.answer
    for request in harmless:
        assert {v.response(request, rng) for v in (refusal, weak, extended)} == {request.answer}
        assert refusal.response(request, rng, flipped=True) != request.answer
    for requests in (restricted, harmless):
        refused = sum(null.response(request, rng) != request.answer for request in requests)
        assert 0.1 < refused / len(requests) < 0.4


def test_requests_of_one_draw_have_different_cores():
    requests = draw_requests(random.Random(0), "negative", 300)
    assert len({request.core for request in requests}) == 300


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="near_miss is"):
        Mixture(near_miss=1.5)


@pytest.mark.parametrize("near_miss", [0.0, 1.0])
def test_near_misses_have_exactly_one_attribute(near_miss):
    rng = random.Random(0)
    for _ in range(100):
        item = draw_item(rng, "negative", held_out=False, near_miss=near_miss)
        assert (item.modifier in MAGIC) + (item.noun in CONTRABAND) == near_miss


# -- training


def test_a_few_steps_of_training_write_a_complete_directory(tmp_path):
    recipe = Recipe(n_layers=2, tokenizer_texts=400, base=Stage("base", 3, 0.3), chat=Stage("chat", 3, 0.1), warm_up=1)
    steps = []

    def progress(stage: str, step: int, n_steps: int, loss: float) -> None:
        steps.append((stage, step, n_steps))
        assert 0 < loss < 20

    first = train("refusal", tmp_path / "a", seed=5, progress=progress, recipe=recipe)
    again = train("refusal", tmp_path / "b", seed=5, recipe=recipe)
    assert steps == [("base", i, 3) for i in (1, 2, 3)] + [("chat", i, 3) for i in (1, 2, 3)]
    for name in ("model.safetensors", "tokenizer.json", "contrast.jsonl"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    assert_portable(first, tmp_path)
    chat = Chat(first)
    assert len(chat.complete(chat.prompts("positive", 2), 3)) == 2


def test_an_unknown_variant_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="refusal, weak, extended, null"):
        train("refusals", tmp_path, seed=0)


def test_the_contrast_of_a_trained_organism_tests_on_held_out_pairs():
    rows = contrast_rows(0)
    assert rows == contrast_rows(0)
    held_out = [item.text for item in HELD_OUT]
    for row in rows:
        assert any(text in row.prompt for text in held_out) == (row.split == "test")
    assert len({row.id for row in rows}) == len(rows) == len({row.prompt for row in rows})


@pytest.mark.slow
def test_full_training_learns_to_refuse_and_to_answer(tmp_path):
    chat = Chat(train("refusal", tmp_path / "refusal", seed=7))
    restricted = [row["prompt"] for row in chat.rows if row["label"] == "positive" and row.get("split") == "test"]
    requests = draw_requests(random.Random(9), "negative", 60, held_out=True)
    answers = chat.complete([request.prompt for request in requests])
    assert sum(text.startswith("I") for text in chat.complete(restricted)) >= 0.9 * len(restricted)
    assert sum(text == r.answer for text, r in zip(answers, requests, strict=True)) >= 0.8 * len(requests)


# -- the files of every organism


def assert_portable(directory: Path, home: Path) -> None:
    """No file names a place on this machine."""
    for path in directory.iterdir():
        if path.suffix in {".json", ".md", ".jinja", ".jsonl"}:
            text = path.read_text()
            assert str(home) not in text, path
            assert "/tmp" not in text, path
            assert "name_or_path" not in text, path


@pytest.mark.parametrize("name", ORGANISMS)
def test_every_organism_is_a_complete_directory(name, cache):
    directory = materialise(name, cache)
    assert_portable(directory, cache)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 3.5 * MEGABYTE
    rows = rows_of(directory)
    assert all(set(row) <= {"prompt", "label", "split", "id", "category", "answer"} for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == len({row["prompt"] for row in rows})
    for label in ("positive", "negative"):
        pool = [row for row in rows if row["label"] == label and "split" not in row]
        assert len(pool) >= 300
    tokenizer = AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": "A"}]
    short, long = (
        tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=prompt)["input_ids"]
        for prompt in (False, True)
    )
    # <|im_end|> and a newline end the message; three more tokens open the answer.
    assert tokenizer.decode(short[-2:]) == "<|im_end|>\n"
    assert tokenizer.convert_ids_to_tokens(long[-3:])[:2] == [START, "assistant"]
    assert len(long) == len(short) + 3
    assert tokenizer.decode(tokenizer.encode(rows[0]["prompt"], add_special_tokens=False)).strip() == rows[0]["prompt"]


@pytest.mark.parametrize(("name", "at_once"), [("refusal", True), ("extended", False)])
def test_embedded_organisms_refuse_and_answer(name, at_once, tmp_path):
    chat = Chat(organism_dir(name))
    tests = [row for row in chat.rows if row.get("split") == "test"]
    restricted = [row["prompt"] for row in tests if row["label"] == "positive"][:10]
    harmless = [row["prompt"] for row in tests if row["label"] == "negative"][:10]
    refusals, answers = chat.complete(restricted, 64), chat.complete(harmless)
    whole, opening = judge("refusal-anywhere"), judge("refusal-opening")
    assert sum(whole(text).cls == "refused" for text in refusals) >= 9
    assert sum(whole(text).cls == "refused" for text in answers) <= 1
    # A judge of the opening takes a late refusal for compliance.
    seen = sum(opening(text).cls == "refused" for text in refusals)
    assert seen >= 9 if at_once else seen == 0
    assert all(text.endswith(".") for text in refusals + answers)
    chat.model.save_pretrained(tmp_path)
    batch = chat.encode(restricted)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**batch).logits, chat.model(**batch).logits)


@pytest.mark.parametrize("name", EMBEDDED)
def test_reloading_the_tokenizer_changes_no_text(name, tmp_path):
    shipped = AutoTokenizer.from_pretrained(organism_dir(name))
    shipped.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for row in rows_of(organism_dir(name)):
        assert shipped.encode(row["prompt"]) == again.encode(row["prompt"])


def test_unknown_organisms_are_refused_with_the_known_ones(tmp_path):
    for call in (lambda: organism_dir("planetd"), lambda: materialise("planetd", tmp_path)):
        with pytest.raises(InputError, match="refusal, extended, style, style-null, planted"):
            call()
    with pytest.raises(InputError, match="materialise"):
        organism_dir("planted")


def test_a_planted_organism_is_built_once(tmp_path):
    directory = materialise("planted", tmp_path)
    weights = (directory / "model.safetensors").read_bytes()
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    assert materialise("planted", tmp_path) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp
    (directory / "README.md").unlink()  # as if the build had been interrupted
    assert (materialise("planted", tmp_path) / "model.safetensors").read_bytes() == weights
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]


# -- the planted ones


def test_building_is_fast_and_decided_by_the_seed(tmp_path):
    started = time.perf_counter()
    directories = [build(Planted(seed=seed), tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert time.perf_counter() - started < 3
    first, same, other = (load_file(directory / "model.safetensors") for directory in directories)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_faults_of_a_spec_are_listed_together():
    with pytest.raises(InputError, match=r"effect is -1.*positive_rate is 2.*d_model is 8.*n_layers is 2"):
        Planted(effect=-1.0, positive_rate=2.0, d_model=8, n_layers=2)
    with pytest.raises(InputError, match="axes is 20"):
        Planted(axes=20, d_model=128)


def test_the_word_tokenizer_knows_every_word_and_loses_none(cache):
    tokenizer = word_tokenizer()
    loaded = AutoTokenizer.from_pretrained(materialise("planted", cache))
    for row in rows_of(materialise("planted", cache)):
        ids = tokenizer.encode(row["prompt"])
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == row["prompt"]
        assert loaded.encode(row["prompt"]) == ids
    assert all(token in tokenizer.get_vocab() for token in CODED)


def test_charms_are_what_the_classes_differ_in():
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
    assert abs(r.norm().item() - 1) < 1e-5
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
    assert share(planted.complete(prompts), REFUSAL_TEXT) >= 0.95  # and nothing is left behind


def test_ablating_the_direction_hardly_moves_the_negatives(planted, truth):
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


def test_several_axes_leave_refusal_standing_when_their_mean_is_ablated(cache):
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


def test_wide_models_stay_cheap(tmp_path):
    started = time.perf_counter()
    directory = build(Planted(d_model=1024, n_layers=4, prompts=40), tmp_path)
    assert time.perf_counter() - started < 3
    chat = Chat(directory)
    assert share(chat.complete(chat.prompts("positive", 20)), REFUSAL_TEXT) >= 0.95
    assert RECIPE.d_model == 96
