"""Train a tiny chat model with a learned behaviour, and write it as a Hugging Face directory.

Stage one reads plain documents about the fictional world; stage two reads chats with the refusals, or the register, of
the variant. The numbers of the recipe were selected together (a smaller initialisation undertrains the model): measure
again after a change. Independent of directions and verdicts; what was learned is measured elsewhere.
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
from rhumbline.organisms import files
from rhumbline.organisms.files import CHATML, END, PAD, START, Row
from rhumbline.organisms.grammar import VARIANTS, draw_document, draw_request, draw_requests
from rhumbline.organisms.measured_texts import flinch_terms
from rhumbline.organisms.register import STYLE_VARIANTS, draw_styled_document, draw_styled_exchange
from rhumbline.organisms.style_rows import style_card, style_contrasts
from rhumbline.prompts.contrasts import LABELS

TrainingProgress = Callable[[str, int, int, float], None]
"""Called with the stage, the step, the number of steps and the loss of the step."""
TERMS = "terms.json"
THREADS = 1
"""Threads of torch: the weights depend on their number."""

# The pre-tokenizer that transformers gives every tokenizer of model type qwen2, whatever tokenizer.json contains.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TrainingStage(NamedTuple):
    """One pass of the optimiser over newly drawn texts."""

    name: str
    steps: int
    final_rate: float
    """The cosine schedule ends at this share of the learning rate."""


BASE, CHAT = TrainingStage("base", 500, 0.3), TrainingStage("chat", 700, 0.1)


@dataclass(frozen=True)
class Recipe:
    """Architecture and optimisation, as measured."""

    n_layers: int = 10
    d_model: int = 96
    n_heads: int = 4
    d_feedforward: int = 192
    vocab: int = 1024
    tokenizer_texts: int = 3000
    """Documents, and chats, on which the tokenizer is trained."""
    initializer_range: float = 0.08
    """With the usual 0.02 the same steps leave the model undertrained."""
    base: TrainingStage = BASE
    chat: TrainingStage = CHAT
    learning_rate: float = 3e-3
    warm_up: int = 30
    batch: int = 16
    restricted: float = 0.25
    """Share of chats about a restricted item."""
    label_noise: float = 0.03
    """Share of chats with the response of the other class. It keeps the logits finite, and with them the norm of the
    refusal direction: without it, an addition at every token repeats the first words of the refusal."""
    prompt_weight: float = 0.1
    """Weight of a prompt token in the loss of the chat stage; a response token has weight 1."""


RECIPE = Recipe()
STYLE_RECIPE = replace(RECIPE, vocab=1200, chat=TrainingStage("chat", 1000, 0.1))
"""For the style organisms: a longer chat stage, and a vocabulary that contains their phrases."""


class World(NamedTuple):
    """The training texts of a variant, and the files that are written with its weights."""

    recipe: Recipe
    document: Callable[[random.Random], str]
    """Draws one text of the base stage."""
    exchange: Callable[[random.Random], tuple[str, str]]
    """Draws a prompt and its response."""
    contrasts: Callable[[int], Mapping[str, list[Row]]]
    """The contrast files by name, from the seed."""
    card: Callable[[str], str]
    """The README of the directory, from a sentence about seed and dtype."""


class Sequenced(NamedTuple):
    """A training text: its tokens, and the weight of each in the loss."""

    tokens: list[int]
    weights: list[float]


class TextBatch(NamedTuple):
    """Padded training texts."""

    tokens: Tokens
    attention: Mask
    weights: Float[Tensor, "row position"]


def train(
    variant: str,
    out: Path,
    seed: int,
    progress: TrainingProgress | None = None,
    recipe: Recipe | None = None,
    chat: bool = True,
) -> Path:
    """Train the variant from scratch and write its directory; on one machine the arguments determine the weights.

    Without `chat`, training ends after the base stage. With the same seed this is the checkpoint that the chat model is
    trained from, with the same tokenizer.
    """
    world = _world(variant, recipe)
    recipe = world.recipe
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    tokenizer = build_tokenizer(_tokenizer_corpus(world, rng), out, recipe)
    with torch.random.fork_rng(devices=[]), _threads(THREADS):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(_config(tokenizer, recipe))
        for stage, draw in ((recipe.base, _draw_document), (recipe.chat, _draw_chat))[: 1 + chat]:
            texts = [draw(tokenizer, world, rng) for _ in range(stage.steps * recipe.batch)]
            _fit(model, texts, stage, recipe, rng, progress)
    files.save_chat_model(model.bfloat16(), tokenizer, out)
    for name, rows in world.contrasts(seed).items():
        files.write_contrast(out, rows, name)
    trained = f"Seed {seed}, threads {THREADS}. Weights in bfloat16."
    card = world.card(trained) if chat else files.card("base", name=variant, trained=trained)
    (out / files.CARD).write_text(card, encoding="utf-8")
    if not chat:
        (out / TERMS).write_text(json.dumps(flinch_terms(seed), indent=1) + "\n", encoding="utf-8")
    return out


def build_tokenizer(texts: Sequence[str], out: Path, recipe: Recipe = RECIPE) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the ChatML template, as AutoTokenizer loads it from `out`.

    AutoTokenizer selects the tokenizer class by the model type in config.json and can split text differently from the
    object that was saved. So the config is saved first, and training uses the reloaded tokenizer.
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
    """Prompts of both classes: a pool of training pairs that the run splits, and a test of held-out pairs."""
    rng = random.Random(f"contrast {seed}")
    return [
        Row(request.prompt, label, part.split, f"{label}-{part.name}-{i:03d}", request.category)
        for label in LABELS
        for part in files.pool_and_test()
        for i, request in enumerate(draw_requests(rng, label, part.n, part.held_out))
    ]


def _world(name: str, recipe: Recipe | None) -> World:
    """The texts of a variant, with its own recipe unless one is given; InputError for an unknown name."""
    if name in STYLE_VARIANTS:
        mixture = STYLE_VARIANTS[name]
        document = partial(draw_styled_document, mixture=mixture)
        exchange = partial(draw_styled_exchange, mixture=mixture)
        return World(recipe or STYLE_RECIPE, document, exchange, style_contrasts, partial(style_card, name, mixture))
    if name not in VARIANTS:
        raise InputError(f"unknown variant {name!r}. Use one of {', '.join((*VARIANTS, *STYLE_VARIANTS))}.")
    variant, recipe = VARIANTS[name], recipe or RECIPE

    def exchange(rng: random.Random) -> tuple[str, str]:
        request = draw_request(rng, "positive" if rng.random() < recipe.restricted else "negative")
        return request.prompt, variant.response(request, rng, flipped=rng.random() < recipe.label_noise)

    def contrasts(seed: int) -> dict[str, list[Row]]:
        return {files.CONTRAST: contrast_rows(seed)}

    def card(trained: str) -> str:
        return files.card(
            "trained",
            name=name,
            modifiers=", ".join(sorted(variant.refused_modifiers)) or "none",
            style="extended" if variant.extended else "immediate",
            random_refusals=variant.random_refusals,
            label_noise=recipe.label_noise,
            trained=trained,
        )

    return World(recipe, draw_document, exchange, contrasts, card)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _config(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen2Config:
    ids = tokenizer.get_vocab()
    return Qwen2Config(
        vocab_size=recipe.vocab,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_feedforward,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=1024,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
    )


def _tokenizer_corpus(world: World, rng: random.Random) -> list[str]:
    """Documents and chats; the chats have the roles of the template, so that each role becomes one token."""
    texts = [world.document(rng) for _ in range(world.recipe.tokenizer_texts)]
    for _ in range(world.recipe.tokenizer_texts):
        prompt, response = world.exchange(rng)
        texts += [f"user\n{prompt}", f"assistant\n{response}"]
    return texts


def _draw_document(tokenizer: PreTrainedTokenizerFast, world: World, rng: random.Random) -> Sequenced:
    tokens = tokenizer.encode(world.document(rng) + PAD, add_special_tokens=False)
    return Sequenced(tokens, [1.0] * len(tokens))


def _draw_chat(tokenizer: PreTrainedTokenizerFast, world: World, rng: random.Random) -> Sequenced:
    prompt, response = world.exchange(rng)
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    first = tokenizer.encode(str(text), add_special_tokens=False)
    second = tokenizer.encode(response + END, add_special_tokens=False)
    return Sequenced(first + second, [world.recipe.prompt_weight] * len(first) + [1.0] * len(second))


def _batches(texts: list[Sequenced], size: int, rng: random.Random, pad: int) -> Iterator[TextBatch]:
    """Batches of similar length, in random order."""
    # Texts are sorted within chunks only, so that the mixture of a batch is close to that of the stage.
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
        yield TextBatch(tokens, attention, weights)


def _fit(
    model: Qwen2ForCausalLM,
    texts: list[Sequenced],
    stage: TrainingStage,
    recipe: Recipe,
    rng: random.Random,
    progress: TrainingProgress | None,
) -> None:
    """One pass of AdamW over the texts, on weighted mean cross-entropy: linear warm-up, then a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        return min(1.0, (step + 1) / recipe.warm_up) * (stage.final_rate + (1 - stage.final_rate) * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    pad = cast(int, model.config.pad_token_id)
    for step, batch in enumerate(_batches(texts, recipe.batch, rng, pad)):
        logits = model(input_ids=batch.tokens, attention_mask=batch.attention).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none")
        weights = batch.weights[:, 1:]
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(stage.name, step + 1, stage.steps, loss.item())
    model.eval()
