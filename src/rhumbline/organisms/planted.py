"""Chat models whose refusal direction is written by construction: no training, built in well under a second.

A prompt is a sentence of fictional requests; it is positive if it names charms. What the weights do, in order:

1. The embedding gives every token a random *ballast* and random noise, and each charm a component along its family's
   *trigger*. Tokens of the two scripts (a refusal, an answer) carry a code of their own, and so does the newline.
2. Every attention head has zero queries and keys: it averages over the tokens so far. One head of the *gather* block
   moves the average trigger onto the *refusal axis* of the family; the other heads carry noise to noise. Hence from the
   next block on, and at every post-instruction position, positive and negative prompts differ along the refusal axes.
3. The MLP of the last block decides, at a newline only: it fires once the stream passes the threshold on any one
   refusal axis, and the unembedding turns this into "I" (a refusal begins) rather than "Here" (an answer does).
4. From then on the unembedding follows the script: the code of each script token raises the next one, up to the end.

The ballast steadies the norm, so RMSNorm is nearly the identity. It differs from token to token and is never read: a
constant would spill onto the axes when a random direction is ablated. With one axis the refusal is mediated by that
axis and by nothing else. With several, no one direction carries it: ablating the mean of n axes leaves (n - 1) / n of
a prompt on its axis, unless the decision reads the sum of the axes (`readout`). Axes may overlap: then one direction
moves the behaviour both ways and is still not the one.

A fragile model has no threshold on an axis: it refuses once the stream is long enough at the newline, whatever made it
long. Its prompts also stand at either end of a topic axis. Then any vector of that length, or its opposite, induces
refusal, and taking out anything that carries as much of the stream suppresses it.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from rhumbline.axes import Vector
from rhumbline.errors import InputError
from rhumbline.organisms.charms import (
    ADJECTIVES,
    PLACES,
    SENTENCES,
    THINGS,
    CharmRequest,
    Lexicon,
    draw_charm_requests,
    draw_lexicon,
)
from rhumbline.organisms.files import CHATML, END, PAD, START, Row, save_chat_model, write_contrast
from rhumbline.organisms.fragile import decide_by_length, topic, topical_requests

TRUTH, CARD = "truth.safetensors", "README.md"
UNKNOWN = "<|unknown|>"
REFUSAL = ("I", " cannot", " help", " with", " that", " request", ".", END)
ANSWER = ("Here", " is", " a", " short", " answer", " to", " your", " question", ".", END)
CODED: tuple[str, ...] = tuple(dict.fromkeys(("\n", *REFUSAL[:-1], *ANSWER[:-1])))
"""Tokens with a code of their own: a newline decides, a script token raises its successor."""
HEAD = 16
"""Width of an attention head: how many dimensions of noise a block moves, and the largest number of axes."""
SMALL_REFUSAL, SMALL_ANSWER, SMALL_HEAD = ("I", " cannot", END), ("Here", END), 4
"""The same where the width of the stream has no room for the scripts: "I cannot", or "Here"."""
TEMPLATE_TOKENS = 8
"""Tokens of the chat template around a prompt: three before it, five after it."""
SPLIT = r" ?[A-Za-z]+|\n|[^\sA-Za-z]"

KNEE, THRESHOLD = 0.3, 0.55
"""Along a refusal axis: where the decision begins to rise, and where refusal and answer are equally likely."""
SLOPE = 40.0
BALLAST, TRIGGER, WORD_NOISE = 3.0, 2.0, 1.0
"""Lengths in the embedding: of every token's ballast, of a charm's trigger, and of every token's noise."""
EARLY_NOISE, LATE_NOISE, MLP_NOISE = 0.1, 0.5, 0.1
"""What a block before or after the gather block adds to the noise, relative to it, and what every MLP adds."""
ANSWER_LOGIT, SCRIPT_LOGIT, OTHER_LOGITS = 12.0, 30.0, 0.3


@dataclass(frozen=True)
class Planted:
    """What to build. The defaults give one direction that mediates refusal."""

    effect: float = 1.0
    """How far the average prompt with charms stands along its refusal axis; the threshold is at 0.55, and 0 is a model
    that never refuses."""
    noise: float = 1.0
    """Length of the noise of a prompt at the post-instruction tokens, off the axes, relative to an effect of 1."""
    jitter: float = 0.15
    """Spread of the trigger from word to word, relative to the trigger; ordinary words have it too."""
    axes: int = 1
    """Families of charms, each with a refusal axis of its own; a prompt uses one family."""
    overlap: float = 0.0
    """Cosine between any two refusal axes; 0 is a subspace, more a cone."""
    fragile: float = 0.0
    """How far a prompt stands from the origin on the topic axis; more than 0 is the fragile model. It has one axis."""
    readout: Literal["any", "sum"] = "any"
    """When the last block decides to refuse: once any one axis passes the threshold, or once their sum does. With
    `sum` each axis alone induces (a cone of directions does), and one direction, their mean, takes all of it away."""
    positive_rate: float = 1.0
    """Share of positive prompts that name charms."""
    negative_rate: float = 0.0
    """Share of negative prompts that name charms; equal to `positive_rate`, the labels say nothing."""
    d_model: int = 64
    n_layers: int = 6
    prompts: int = 320
    """Prompts per class in the contrast file."""
    seed: int = 0

    @property
    def moved(self) -> int:
        """Axes that the gather block writes: those of refusal, and of a fragile model its topic axis."""
        return self.axes + (self.fragile > 0)

    @property
    def is_small(self) -> bool:
        """Whether the stream is too narrow for the long scripts and the wide noise."""
        return self.d_model < 1 + 2 * self.moved + len(CODED) + 2 * HEAD

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return SMALL_HEAD if self.is_small else HEAD

    @property
    def scripts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a refusal and an answer say."""
        return (SMALL_REFUSAL, SMALL_ANSWER) if self.is_small else (REFUSAL, ANSWER)

    @property
    def coded(self) -> tuple[str, ...]:
        """Tokens with a code of their own."""
        refusal, answer = self.scripts
        return tuple(dict.fromkeys(("\n", *refusal[:-1], *answer[:-1])))

    def __post_init__(self):
        needed = 1 + 2 * self.moved + len(self.coded) + 2 * self.head
        problems = [
            f"{name} is {value}, expected {expected}"
            for name, value, expected, holds in (
                ("effect", self.effect, "0 or more", self.effect >= 0),
                ("noise", self.noise, "0 or more", self.noise >= 0),
                ("jitter", self.jitter, "0 or more", self.jitter >= 0),
                ("readout", self.readout, "any or sum", self.readout in ("any", "sum")),
                ("axes", self.axes, f"1 to {self.head}", 1 <= self.axes <= self.head),
                ("overlap", self.overlap, "at least 0 and less than 1", 0 <= self.overlap < 1),
                (
                    "fragile",
                    self.fragile,
                    "0, or more with one axis and no charms among the negatives",
                    self.fragile == 0
                    or (self.fragile > 0 and (self.axes, self.positive_rate, self.negative_rate) == (1, 1.0, 0.0)),
                ),
                ("positive_rate", self.positive_rate, "0 to 1", 0 <= self.positive_rate <= 1),
                ("negative_rate", self.negative_rate, "0 to 1", 0 <= self.negative_rate <= 1),
                (
                    "d_model",
                    self.d_model,
                    f"{needed} or more, and even",
                    self.d_model >= needed and self.d_model % 2 == 0,
                ),
                ("n_layers", self.n_layers, "4 or more", self.n_layers >= 4),
                ("prompts", self.prompts, "1 to 1000", 1 <= self.prompts <= 1000),
            )
            if not holds
        ]
        if problems:
            raise InputError("Planted: " + "; ".join(problems) + ".")

    @property
    def gather_block(self) -> int:
        """The block that writes the refusal axes: they are readable at `resid_pre` of every later layer."""
        return max(1, self.n_layers // 3 - 1)


class Frame(NamedTuple):
    """Orthonormal vectors of the residual stream, each with one meaning, and a generator for the rest."""

    spec: Planted

    decision: Vector
    """Written by the last MLP; read by the logit of the first refusal token."""
    triggers: Float[Tensor, "moved d_model"]
    gathered: Float[Tensor, "moved d_model"]
    """What the gather block writes along, before axes overlap."""
    codes: Float[Tensor, "coded d_model"]
    read: Float[Tensor, "head d_model"]
    """The noise that attention moves; it writes elsewhere, or noise would feed on itself from block to block."""
    generator: torch.Generator

    @property
    def refusals(self) -> Float[Tensor, "axis d_model"]:
        """The refusal axes: of length 1, any two of them with the cosine `overlap`."""
        axes = self.gathered[: self.spec.axes]
        if self.spec.overlap == 0:
            return axes
        gram = torch.full((len(axes), len(axes)), self.spec.overlap).fill_diagonal_(1.0)
        values, vectors = torch.linalg.eigh(gram)
        return vectors @ (values.sqrt()[:, None] * vectors.T) @ axes

    def noise(self, n: int) -> Float[Tensor, "n d_model"]:
        """Random rows along `read`, of length about 1."""
        head = len(self.read)
        return torch.randn(n, head, generator=self.generator) @ self.read / head**0.5

    def unread(self, n: int) -> Float[Tensor, "n d_model"]:
        """Random rows of length 1, orthogonal to everything that has a meaning."""
        rows = torch.randn(n, self.decision.shape[0], generator=self.generator)
        for named in (self.decision[None], self.triggers, self.gathered, self.codes, self.read):
            rows = rows - (rows @ named.T) @ named
        return rows / rows.norm(dim=1, keepdim=True)


def build(spec: Planted, out: Path) -> Path:
    """Write the model, tokenizer, contrast file, truth and card of the spec into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(spec.seed)
    lexicon = draw_lexicon(rng, spec.axes)
    draw = topical_requests if spec.fragile else draw_charm_requests
    positive = draw(rng, lexicon, "positive", spec.prompts, spec.positive_rate)
    negative = draw(rng, lexicon, "negative", spec.prompts, spec.negative_rate)
    requests = positive + negative
    tokenizer = word_tokenizer()
    frame = _frame(spec)
    with torch.no_grad():
        model = _model(spec, tokenizer, frame, lexicon, _charm_share(requests))
        if spec.fragile:
            newline = frame.codes[spec.coded.index("\n")]
            decide_by_length(model, tokenizer, (positive, negative), newline, frame.decision)
    save_chat_model(model, tokenizer, out)
    write_contrast(out, _rows(requests))
    _write_truth(out / TRUTH, spec, frame)
    (out / CARD).write_text(_card(spec), encoding="utf-8")
    return out


def is_built(spec: Planted, directory: Path) -> bool:
    """Whether the directory was completed with this spec; the card is written last."""
    card = directory / CARD
    return card.is_file() and card.read_text(encoding="utf-8") == _card(spec)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, its leading space included, so that decoding joins them without a gap."""
    fixed = (*SENTENCES, *REFUSAL, *ANSWER, "system", "user", "assistant", "\n")
    slots = [f" {word}" for word in (*THINGS, *ADJECTIVES, *PLACES)]
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    pieces = [piece for text in (*fixed, *slots) for piece, _ in split.pre_tokenize_str(text) if piece.strip(" ")]
    specials = (UNKNOWN, PAD, START, END)
    vocab = {token: i for i, token in enumerate(dict.fromkeys((*specials, *pieces)))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, chat_template=CHATML
    )


def _charm_share(requests: Iterable[CharmRequest]) -> float:
    """Charms among the tokens of a chat, averaged over the requests that name any."""
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    shares = [
        len(request.things) / (len(split.pre_tokenize_str(request.prompt)) + TEMPLATE_TOKENS)
        for request in requests
        if request.family is not None
    ]
    # Without charms nothing is gathered and the gain does not matter.
    return sum(shares) / len(shares) if shares else 1.0


def _frame(spec: Planted) -> Frame:
    generator = torch.Generator().manual_seed(spec.seed)
    sizes = [1, spec.moved, spec.moved, len(spec.coded), spec.head]
    basis = torch.linalg.qr(torch.randn(spec.d_model, sum(sizes), generator=generator)).Q.T.contiguous()
    decision, triggers, gathered, codes, read = basis.split(sizes)
    return Frame(spec, decision[0], triggers, gathered, codes, read, generator)


def _model(
    spec: Planted, tokenizer: PreTrainedTokenizerFast, frame: Frame, lexicon: Lexicon, charm_share: float
) -> LlamaForCausalLM:
    """An ordinary Llama with every weight written."""
    ids = tokenizer.get_vocab()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ids),
            hidden_size=spec.d_model,
            intermediate_size=spec.head,
            num_hidden_layers=spec.n_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=spec.head,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=ids[END],
            pad_token_id=ids[PAD],
        )
    ).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    model.model.embed_tokens.weight.copy_(_embedding(spec, ids, frame, lexicon))
    model.lm_head.weight.copy_(_unembedding(spec, ids, frame))
    model.model.norm.weight.fill_(_length(spec, spec.n_layers) / spec.d_model**0.5)
    for i, block in enumerate(cast(list[LlamaDecoderLayer], list(model.model.layers))):
        # Every normed vector then has about the length that it had.
        block.input_layernorm.weight.fill_(_length(spec, i) / spec.d_model**0.5)
        block.post_attention_layernorm.weight.fill_(_length(spec, i + 1) / spec.d_model**0.5)
        _write_attention(block.self_attn, i, spec, frame, charm_share)
        _write_mlp(block.mlp, i, spec, frame)
    return model


def _noise_of_block(spec: Planted, i: int) -> float:
    """Length of the noise that the attention of block i writes at the post-instruction tokens."""
    if i == spec.gather_block:
        return spec.noise
    return spec.noise * (EARLY_NOISE if i < spec.gather_block else LATE_NOISE)


def _length(spec: Planted, n_written: int) -> float:
    """Typical length of the residual stream at a newline after the attention of the first `n_written` blocks."""
    noise = sum(_noise_of_block(spec, i) ** 2 for i in range(n_written))
    signal = spec.effect**2 / 2 + spec.fragile**2 if n_written > spec.gather_block else 0.0
    return (BALLAST**2 + WORD_NOISE**2 + 1 + noise + signal) ** 0.5


def _embedding(spec: Planted, ids: Mapping[str, int], frame: Frame, lexicon: Lexicon) -> Float[Tensor, "vocab d_model"]:
    noise = WORD_NOISE * frame.noise(len(ids))
    signal = torch.zeros_like(noise)
    charms = [word for family in lexicon.families for word in family]
    for words in (charms, lexicon.ordinary):
        rows = [ids[f" {word}"] for word in words]
        # Noise must not tell the classes apart on average: the true difference is along the trigger only.
        noise[rows] -= noise[rows].mean(0)
        jitter = torch.randn(len(rows), spec.axes, generator=frame.generator)
        signal[rows] += TRIGGER * spec.jitter * (jitter - jitter.mean(0)) @ frame.triggers[: spec.axes]
    for family, trigger in zip(lexicon.families, frame.triggers[: spec.axes], strict=True):
        signal[[ids[f" {word}"] for word in family]] += TRIGGER * trigger
    if spec.fragile:
        signal[[ids[f" {word}"] for word in THINGS]] += TRIGGER * torch.outer(
            torch.tensor([float(topic(word)) for word in THINGS]), frame.triggers[-1]
        )
    signal[[ids[token] for token in spec.coded]] += frame.codes
    return BALLAST * frame.unread(len(ids)) + noise + signal


def _unembedding(spec: Planted, ids: Mapping[str, int], frame: Frame) -> Float[Tensor, "vocab d_model"]:
    head = OTHER_LOGITS / BALLAST * torch.randn(len(ids), frame.decision.shape[0], generator=frame.generator)
    refusal, answer = spec.scripts
    code = dict(zip(spec.coded, frame.codes, strict=True))
    head[ids[answer[0]]] += ANSWER_LOGIT * code["\n"]
    head[ids[refusal[0]]] += ANSWER_LOGIT * frame.decision
    successors = {now: then for script in (refusal, answer) for now, then in pairwise(script)}
    for now, then in successors.items():
        head[ids[then]] += SCRIPT_LOGIT * code[now]
    return head


def _write_attention(attention: LlamaAttention, i: int, spec: Planted, frame: Frame, charm_share: float) -> None:
    """Head 0 moves noise in every block; head 1 of the gather block moves the triggers to the refusal axes."""
    values, output = attention.v_proj.weight, attention.o_proj.weight
    head = spec.head
    values[:head] = frame.read
    # A dozen different words in some twenty tokens: averaging leaves about this share of one word's noise.
    output[:, :head] = _noise_of_block(spec, i) / (0.18 * WORD_NOISE) * frame.unread(head).T
    if i == spec.gather_block:
        charm = TRIGGER * _length(spec, i) / (BALLAST**2 + WORD_NOISE**2 + TRIGGER**2) ** 0.5
        values[head : head + spec.moved] = frame.triggers
        output[:, head : head + spec.axes] = spec.effect / (charm * charm_share) * frame.refusals.T
        if spec.fragile:
            output[:, head + spec.axes] = spec.fragile / (charm * charm_share) * frame.gathered[-1]


def _write_mlp(mlp: LlamaMLP, i: int, spec: Planted, frame: Frame) -> None:
    """Every neuron moves a little of a token's own noise; in the last block the first ones take the decision."""
    mlp.gate_proj.weight.copy_(frame.read)
    mlp.up_proj.weight.copy_(frame.read)
    mlp.down_proj.weight.copy_(MLP_NOISE * frame.unread(spec.head).T)
    if i == spec.n_layers - 1 and not spec.fragile:
        newline = frame.codes[spec.coded.index("\n")]
        read = frame.refusals if spec.readout == "any" else frame.refusals.sum(0, keepdim=True)
        mlp.gate_proj.weight[: len(read)] = SLOPE * (read - KNEE * newline)
        mlp.up_proj.weight[: len(read)] = newline
        mlp.down_proj.weight[:, : len(read)] = frame.decision[:, None] / (SLOPE * (THRESHOLD - KNEE))


def _rows(requests: Iterable[CharmRequest]) -> list[Row]:
    return [
        Row(r.prompt, r.label, f"{r.label}-{i:04d}", "ordinary" if r.family is None else f"charm-{r.family}")
        for i, r in enumerate(requests)
    ]


def _write_truth(path: Path, spec: Planted, frame: Frame) -> None:
    """`direction`: the normalised sum of the refusal axes, which is the axis itself if there is one; `axes`: each."""
    direction = frame.refusals.sum(0)
    tensors = {"direction": direction / direction.norm(), "axes": frame.refusals.contiguous()}
    layers = {"first_layer": str(spec.gather_block + 1), "last_layer": str(spec.n_layers - 1)}
    save_file(tensors, path, metadata=layers)


def _card(spec: Planted) -> str:
    return f"""# Planted model organism

Written by construction, not trained: `rhumbline.organisms.planted.build`, with

    {spec}

`{TRUTH}` holds the refusal axes (`axes`), their normalised sum (`direction`) and the layers at whose input they are
readable. The prompts are about invented things and mean nothing.

Licence: Apache-2.0, as the package.
"""
