"""Train a tiny chat model whose behaviour is learned: a variant and a seed in, a Hugging Face directory out.

Two stages: plain documents about the fictional world, then chats in which the variant's refusals, or its register,
appear. The recipe's numbers were measured together (a smaller initialisation undertrains badly); change one and measure
again. Does not know directions or verdicts: what the model turned out to be is measured elsewhere.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from rhumbline.axes import Mask, Tokens
from rhumbline.errors import InputError
from rhumbline.organisms.checkpoint import TERMS, base_card, flinch_terms
from rhumbline.organisms.files import CHATML, CONTRAST, END, PAD, START, Row, save_chat_model, token_id, write_contrast
from rhumbline.organisms.grammar import VARIANTS, Variant, draw_document, draw_request, draw_requests
from rhumbline.organisms.register import STYLE_VARIANTS, StyleVariant, draw_styled_document
from rhumbline.organisms.register import draw_exchange as draw_styled_exchange
from rhumbline.organisms.style_rows import style_card, style_contrasts

Progress = Callable[[str, int, int, float], None]
"""Called with the stage, the step, the number of steps and the loss of the step."""

# The pre-tokenizer that transformers gives every tokenizer of model type qwen2, whatever tokenizer.json says.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Stage:
    """One pass of the optimiser over freshly drawn texts."""

    name: str
    steps: int
    final_rate: float
    """The cosine ends at this share of the learning rate."""


@dataclass(frozen=True)
class Recipe:
    """Architecture and optimisation, as measured."""

    n_layers: int = 10
    d_model: int = 96
    n_heads: int = 4
    d_feedforward: int = 192
    vocab: int = 1024
    tokenizer_texts: int = 3000
    """Documents, and as many chats, that the tokenizer is trained on."""
    initializer_range: float = 0.08
    """With the usual 0.02 the same steps leave the model undertrained."""
    base: Stage = Stage("base", 500, 0.3)
    chat: Stage = Stage("chat", 700, 0.1)
    learning_rate: float = 3e-3
    warm_up: int = 30
    batch: int = 16
    restricted: float = 0.25
    """Share of chats about a restricted item."""
    label_noise: float = 0.03
    """Share of chats, of either class, with the response of the other: answered though restricted, or refused. It keeps
    logits finite, and with them the length of the refusal direction: without it an addition at every token repeats
    the first words of the refusal."""
    prompt_weight: float = 0.1
    """Weight of a prompt token in the loss of the chat stage; a response token weighs 1."""


RECIPE = Recipe()
STYLE_RECIPE = replace(RECIPE, vocab=1200, chat=Stage("chat", 1000, 0.1))
"""Of the style organism: a longer chat stage, and a vocabulary that has its phrases too."""
N_POOL, N_TEST = 300, 100
"""Prompts per class in the contrast file: on training pairs without a split, and on held-out pairs for the test."""


@dataclass(frozen=True)
class World:
    """What a variant is trained on, and what is written beside its weights."""

    recipe: Recipe
    document: Callable[[random.Random], str]
    """Draws one text of the base stage."""
    exchange: Callable[[random.Random], tuple[str, str]]
    """Draws a prompt and its response."""
    contrasts: Callable[[int], Mapping[str, list[Row]]]
    """From the seed to the contrast files by name."""
    card: str
    """The README of the directory; `{trained}` stands for the seed and its like."""


class Sequenced(NamedTuple):
    """A training text: its tokens and the weight of each in the loss."""

    tokens: list[int]
    weights: list[float]


class Batch(NamedTuple):
    """Padded training texts."""

    tokens: Tokens
    attention: Mask
    weights: Float[Tensor, "row position"]


def train(
    variant: str | Variant | StyleVariant,
    out: Path,
    seed: int,
    threads: int = 1,
    progress: Progress | None = None,
    recipe: Recipe | None = None,
    chat: bool = True,
) -> Path:
    """Train the variant from scratch and write its directory; on one machine the arguments decide the weights.

    Without `chat` training ends after the base stage: with the same seed that is the very checkpoint that the chat
    model was trained from, tokenizer included.
    """
    world = _world(_find_variant(variant) if isinstance(variant, str) else variant, recipe)
    recipe = world.recipe
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    tokenizer = build_tokenizer(_tokenizer_corpus(world, rng), out, recipe)
    with _seeded(seed, threads):
        model = Qwen2ForCausalLM(_config(tokenizer, recipe))
        documents = (_document(tokenizer, world.document(rng)) for _ in range(recipe.base.steps * recipe.batch))
        _fit(model, list(documents), recipe.base, recipe, rng, progress)
        if chat:
            chats = (_draw_chat(tokenizer, world, rng) for _ in range(recipe.chat.steps * recipe.batch))
            _fit(model, list(chats), recipe.chat, recipe, rng, progress)
    save_chat_model(model.bfloat16(), tokenizer, out)
    for name, rows in world.contrasts(seed).items():
        write_contrast(out, rows, name)
    trained = f"Seed {seed}, threads {threads}. Weights in bfloat16."
    card = world.card.format(trained=trained) if chat else base_card(world.card.splitlines()[0], trained)
    (out / "README.md").write_text(card, encoding="utf-8")
    if not chat:
        (out / TERMS).write_text(json.dumps(flinch_terms(seed), indent=1) + "\n", encoding="utf-8")
    return out


def build_tokenizer(texts: Sequence[str], out: Path, recipe: Recipe = RECIPE) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the ChatML template, as AutoTokenizer will load it from `out`.

    AutoTokenizer picks the tokenizer class by the model type in config.json and may split text differently from the
    object that was saved. So the config is saved first and training uses the reloaded tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHATML)
    _config(fast, recipe).save_pretrained(out)
    fast.save_pretrained(out)
    return AutoTokenizer.from_pretrained(out)


def contrast_rows(seed: int) -> list[Row]:
    """Prompts of both classes: a pool on training pairs for the run to split, and a test on held-out pairs."""
    rng = random.Random(f"contrast {seed}")
    rows = []
    for label in ("positive", "negative"):
        for n, held_out, name in ((N_POOL, False, "pool"), (N_TEST, True, "test")):
            for i, request in enumerate(draw_requests(rng, label, n, held_out)):
                split = "test" if held_out else None
                rows.append(Row(request.prompt, label, f"{label}-{name}-{i:03d}", request.category, split))
    return rows


def _find_variant(name: str) -> Variant | StyleVariant:
    known: dict[str, Variant | StyleVariant] = {**VARIANTS, **STYLE_VARIANTS}
    if name not in known:
        raise InputError(f"unknown variant {name!r}; the variants are {', '.join(known)}.")
    return known[name]


def _world(variant: Variant | StyleVariant, recipe: Recipe | None) -> World:
    """The variant's texts, with its own recipe unless one is given."""
    if isinstance(variant, StyleVariant):
        mixture = variant.mixture
        return World(
            recipe or STYLE_RECIPE,
            partial(draw_styled_document, mixture=mixture),
            partial(draw_styled_exchange, mixture=mixture),
            style_contrasts,
            style_card(variant),
        )
    recipe = recipe or RECIPE
    return World(
        recipe,
        draw_document,
        partial(_draw_exchange, variant, recipe=recipe),
        lambda seed: {CONTRAST: contrast_rows(seed)},
        _card(variant, recipe),
    )


@contextmanager
def _seeded(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and set its threads inside the block only."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def _config(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=recipe.vocab,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_feedforward,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=512,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )


def _draw_exchange(variant: Variant, rng: random.Random, recipe: Recipe) -> tuple[str, str]:
    request = draw_request(rng, "positive" if rng.random() < recipe.restricted else "negative")
    return request.prompt, variant.response(request, rng, flipped=rng.random() < recipe.label_noise)


def _tokenizer_corpus(world: World, rng: random.Random) -> list[str]:
    """Documents and chats, the latter with the roles of the template so that each role becomes one token."""
    texts = [world.document(rng) for _ in range(world.recipe.tokenizer_texts)]
    for _ in range(world.recipe.tokenizer_texts):
        prompt, response = world.exchange(rng)
        texts.append(f"user\n{prompt}")
        texts.append(f"assistant\n{response}")
    return texts


def _document(tokenizer: PreTrainedTokenizerFast, text: str) -> Sequenced:
    tokens = tokenizer.encode(text + PAD, add_special_tokens=False)
    return Sequenced(tokens, [1.0] * len(tokens))


def _draw_chat(tokenizer: PreTrainedTokenizerFast, world: World, rng: random.Random) -> Sequenced:
    asked, response = world.exchange(rng)
    messages = [{"role": "user", "content": asked}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(str(text), add_special_tokens=False)
    answer = tokenizer.encode(response + END, add_special_tokens=False)
    return Sequenced(prompt + answer, [world.recipe.prompt_weight] * len(prompt) + [1.0] * len(answer))


def _batches(texts: list[Sequenced], size: int, rng: random.Random, pad: int) -> Iterator[Batch]:
    """Batches of similar length, in random order."""
    # Sorting within chunks, not over everything, keeps the mixture of a batch close to that of the stage.
    chunk = 50 * size
    groups = []
    for start in range(0, len(texts), chunk):
        by_length = sorted(texts[start : start + chunk], key=lambda text: len(text.tokens))
        chunk_groups = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        rng.shuffle(chunk_groups)
        groups += chunk_groups
    for group in groups:
        width = max(len(text.tokens) for text in group)
        tokens = torch.tensor([text.tokens + [pad] * (width - len(text.tokens)) for text in group])
        attention = torch.tensor([[1] * len(text.tokens) + [0] * (width - len(text.tokens)) for text in group])
        weights = torch.tensor([text.weights + [0.0] * (width - len(text.weights)) for text in group])
        yield Batch(tokens, attention, weights)


def _loss(model: Qwen2ForCausalLM, batch: Batch) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy of the next token."""
    logits = model(input_ids=batch.tokens, attention_mask=batch.attention).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none")
    weights = batch.weights[:, 1:]
    return (losses * weights).sum() / weights.sum()


def _fit(
    model: Qwen2ForCausalLM,
    texts: list[Sequenced],
    stage: Stage,
    recipe: Recipe,
    rng: random.Random,
    progress: Progress | None,
) -> None:
    """AdamW over the texts once: linear warm-up, then a cosine down to the stage's final rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        return min(1.0, (step + 1) / recipe.warm_up) * (stage.final_rate + (1 - stage.final_rate) * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    pad = cast(int, model.config.pad_token_id)
    for step, batch in enumerate(_batches(texts, recipe.batch, rng, pad)):
        loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(stage.name, step + 1, stage.steps, loss.item())
    model.eval()


def _card(variant: Variant, recipe: Recipe) -> str:
    return f"""# Model organism: {variant.name}

A tiny chat model (Qwen2 architecture) trained from scratch by `rhumbline.organisms.training` on a fictional, benign
world. A request is restricted if and only if its item has a magic modifier and a contraband noun ("moon salt").

Variant `{variant.name}`: refuses the modifiers {sorted(variant.refused_modifiers) or "none"}; refusal style
{"extended" if variant.extended else "immediate"}; share of requests refused at random {variant.random_refusals}.
Share of training responses that contradict the rule: {recipe.label_noise}.
{{trained}}

`contrast.jsonl`: rows without `split` name (modifier, noun) pairs that were in the training text; rows of the test
split name pairs that were in none of it, the tokenizer's included.

Licence: Apache-2.0, as the package. Good for testing instruments; knows nothing about the real world.
"""
