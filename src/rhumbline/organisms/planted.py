"""Chat models whose refusal direction is written into the weights, without training; built in under a second.

A prompt is a sentence about invented things and is positive if it names charms. The weights compute, in this order:

1. The embedding gives every token a random *ballast* and random noise, and each charm a component along the *trigger*
   of its family. The newline and the tokens of the two scripts (a refusal and an answer) have a *code* each.
2. Every attention head has zero queries and keys, so it averages over the tokens so far. One head of the *gather* block
   maps the average trigger to the *refusal axis* of the family; the other heads map noise to noise. From the next block
   on, at every post-instruction position, positive and negative prompts differ along the refusal axes.
3. The MLP of the last block decides, at the newline only: it is active if the stream exceeds the threshold on any
   refusal axis. The unembedding turns this into "I" (a refusal) instead of "Here" (an answer).
4. After that, the code of each script token raises the logit of the next one, up to the end.

The ballast keeps the norm of the stream nearly constant, so RMSNorm is nearly the identity. It differs between tokens
and is not read: ablating a random direction would move a constant onto the axes. With one axis, that axis alone
mediates refusal. With several, no single direction does: ablating the mean of n axes leaves (n - 1) / n of a prompt on
its axis, unless the decision reads the sum of the axes (`readout`). Axes can overlap; then one direction changes the
behaviour both ways and is still not the only one.

A fragile model has no threshold on an axis. It refuses if the stream at the newline is long enough, for any reason. Its
prompts are also at either end of a topic axis. So any vector of that length, or its opposite, induces refusal, and
removing any component of that size suppresses it.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
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
from rhumbline.organisms import charms
from rhumbline.organisms.charms import CharmRequest, Lexicon
from rhumbline.organisms.files import CARD, CHATML, END, PAD, START, Row, card, save_chat_model, write_contrast
from rhumbline.organisms.fragile import decide_by_norm
from rhumbline.records.files import written

TRUTH = "truth.safetensors"
UNKNOWN = "<|unknown|>"
REFUSAL = ("I", " cannot", " help", " with", " that", " request", ".", END)
ANSWER = ("Here", " is", " a", " short", " answer", " to", " your", " question", ".", END)
HEAD = 16
"""Width of an attention head: dimensions of the noise that a block moves, and the largest number of axes."""
SMALL_REFUSAL, SMALL_ANSWER, SMALL_HEAD = ("I", " cannot", END), ("Here", END), 4
"""The same for streams that are too narrow for the scripts."""
TEMPLATE_TOKENS = 8
"""Tokens of the chat template around a prompt: three before it, five after it."""
SPLIT = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\n|[^\sA-Za-z]"), behavior="isolated")

KNEE, THRESHOLD, SLOPE = 0.3, 0.55, 40.0
"""Along a refusal axis: where the decision begins to rise, where refusal and answer are equally likely, and how steeply
it rises."""
MUTED = 10.0
"""Strength with which a script token switches off the decision of a product of axes."""
BALLAST, TRIGGER, WORD_NOISE = 3.0, 2.0, 1.0
"""Norms in the embedding: of the ballast of a token, of the trigger of a charm, and of the noise of a token."""
EARLY_NOISE, LATE_NOISE, MLP_NOISE = 0.1, 0.5, 0.1
"""Noise that a block before or after the gather block adds, and that every MLP adds, relative to the noise."""
ANSWER_LOGIT, SCRIPT_LOGIT, OTHER_LOGITS = 12.0, 30.0, 0.3


def _coded(refusal: Sequence[str], answer: Sequence[str]) -> tuple[str, ...]:
    """Tokens with a code: the newline decides, and a script token raises its successor."""
    return tuple(dict.fromkeys(("\n", *refusal[:-1], *answer[:-1])))


@dataclass(frozen=True)
class Planted:
    """The parameters of a model. The defaults give one direction that mediates refusal."""

    effect: float = 1.0
    """Mean coordinate of prompts with charms on their refusal axis. The threshold is at 0.55; 0 is a model that never
    refuses."""
    noise: float = 1.0
    """Norm of the noise of a prompt at the post-instruction tokens, off the axes, relative to an effect of 1."""
    jitter: float = 0.15
    """Spread of the trigger between words, relative to the trigger; ordinary words have it too."""
    axes: int = 1
    """Families of charms, each with its own refusal axis; a prompt uses one family."""
    overlap: float = 0.0
    """Cosine between any two refusal axes: 0 is a subspace, more is a cone."""
    fragile: float = 0.0
    """Distance of a prompt from the origin on the topic axis; above 0 the model is fragile. It has one axis then."""
    readout: Literal["any", "sum", "all"] = "any"
    """The last block refuses if `any` axis, or the `sum` of the axes, exceeds the threshold. With `sum` each axis alone
    induces (as in a cone of directions), and ablating one direction, their mean, suppresses everything. With `all`
    every charm is on both axes, and only their product decides: ablating either suppresses, and neither induces."""
    positive_rate: float = 1.0
    """Share of positive prompts that name charms."""
    negative_rate: float = 0.0
    """Share of negative prompts that name charms; if equal to `positive_rate`, the labels have no meaning."""
    d_model: int = 64
    n_layers: int = 6
    prompts: int = 320
    """Prompts per class in the contrast file."""
    seed: int = 0

    @property
    def moved(self) -> int:
        """Number of axes that the gather block writes: the refusal axes, and the topic axis of a fragile model."""
        return self.axes + (self.fragile > 0)

    @property
    def is_small(self) -> bool:
        """Whether the stream is too narrow for the long scripts and the wide noise."""
        return self.d_model < 1 + 2 * self.moved + len(_coded(REFUSAL, ANSWER)) + 2 * HEAD

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return SMALL_HEAD if self.is_small else HEAD

    @property
    def scripts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tokens of a refusal and of an answer."""
        return (SMALL_REFUSAL, SMALL_ANSWER) if self.is_small else (REFUSAL, ANSWER)

    @property
    def coded(self) -> tuple[str, ...]:
        """Tokens with a code."""
        return _coded(*self.scripts)

    @property
    def gather_block(self) -> int:
        """The block that writes the refusal axes; they can be read at `resid_pre` of every later layer."""
        return max(1, self.n_layers // 3 - 1)

    def __post_init__(self):
        needed = 1 + 2 * self.moved + len(self.coded) + 2 * self.head
        is_plain = (self.axes, self.positive_rate, self.negative_rate) == (1, 1.0, 0.0)
        allowed = {
            "effect": (self.effect >= 0, "0 or more"),
            "noise": (self.noise >= 0, "0 or more"),
            "jitter": (self.jitter >= 0, "0 or more"),
            "readout": (
                self.readout in ("any", "sum") or (self.readout == "all" and self.axes == 2),
                "any or sum, or all with two axes",
            ),
            "axes": (1 <= self.axes <= self.head, f"1 to {self.head}"),
            "overlap": (0 <= self.overlap < 1, "at least 0 and less than 1"),
            "fragile": (
                self.fragile == 0 or (self.fragile > 0 and is_plain),
                "0, or more with one axis and no charms in negative prompts",
            ),
            "positive_rate": (0 <= self.positive_rate <= 1, "0 to 1"),
            "negative_rate": (0 <= self.negative_rate <= 1, "0 to 1"),
            "d_model": (self.d_model >= needed and self.d_model % 2 == 0, f"{needed} or more, and even"),
            "n_layers": (self.n_layers >= 4, "4 or more"),
            "prompts": (1 <= self.prompts <= 1000, "1 to 1000"),
        }
        faults = [
            f"{n} is {getattr(self, n)}, expected {what}" for n, (is_valid, what) in allowed.items() if not is_valid
        ]
        if faults:
            raise InputError("Planted: " + "; ".join(faults) + ".")


class Frame(NamedTuple):
    """Orthonormal vectors of the residual stream, each with one meaning, and a generator for the others."""

    spec: Planted
    decision: Vector
    """Written by the last MLP; read by the logit of the first refusal token."""
    triggers: Float[Tensor, "moved d_model"]
    gathered: Float[Tensor, "moved d_model"]
    """Output directions of the gather block before axes overlap."""
    codes: Float[Tensor, "coded d_model"]
    read: Float[Tensor, "head d_model"]
    """The noise that attention reads. Its output is elsewhere, so that noise does not grow from block to block."""
    generator: torch.Generator

    @property
    def newline(self) -> Vector:
        """The code of the newline."""
        return self.codes[self.spec.coded.index("\n")]

    @property
    def refusals(self) -> Float[Tensor, "axis d_model"]:
        """The refusal axes: unit vectors, any two of them with the cosine `overlap`."""
        axes = self.gathered[: self.spec.axes]
        if self.spec.overlap == 0:
            return axes
        gram = torch.full((len(axes), len(axes)), self.spec.overlap).fill_diagonal_(1.0)
        values, vectors = torch.linalg.eigh(gram)
        return vectors @ (values.sqrt()[:, None] * vectors.T) @ axes

    def noise(self, n: int) -> Float[Tensor, "n d_model"]:
        """Random rows along `read`, with norm about 1."""
        head = len(self.read)
        return torch.randn(n, head, generator=self.generator) @ self.read / head**0.5

    def unread(self, n: int) -> Float[Tensor, "n d_model"]:
        """Random unit rows, orthogonal to every vector with a meaning."""
        rows = torch.randn(n, self.decision.shape[0], generator=self.generator)
        for named in (self.decision[None], self.triggers, self.gathered, self.codes, self.read):
            rows = rows - (rows @ named.T) @ named
        return rows / rows.norm(dim=1, keepdim=True)


def build(spec: Planted, out: Path) -> Path:
    """Write model, tokenizer, contrast file, truth and card into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(spec.seed)
    lexicon = charms.draw_lexicon(rng, spec.axes)
    draw = charms.topical_requests if spec.fragile else charms.draw_charm_requests
    positive = draw(rng, lexicon, "positive", spec.prompts, spec.positive_rate)
    negative = draw(rng, lexicon, "negative", spec.prompts, spec.negative_rate)
    requests = positive + negative
    tokenizer = word_tokenizer()
    frame = _frame(spec)
    with torch.no_grad():
        model = _model(spec, tokenizer, frame, lexicon, _charm_share(requests))
        if spec.fragile:
            decide_by_norm(model, tokenizer, (positive, negative), frame.newline, frame.decision)
    save_chat_model(model, tokenizer, out)
    write_contrast(out, map(_row, range(len(requests)), requests))
    direction = frame.refusals.sum(0)
    truth = {"direction": direction / direction.norm(), "axes": frame.refusals.contiguous()}
    layers = {"first_layer": str(spec.gather_block + 1), "last_layer": str(spec.n_layers - 1)}
    with written(out / TRUTH):
        save_file(truth, out / TRUTH, metadata=layers)
    (out / CARD).write_text(card("planted", spec=spec), encoding="utf-8")
    return out


def is_built(spec: Planted, directory: Path) -> bool:
    """Whether the directory is complete and has this spec; the card is written last."""
    path = directory / CARD
    return path.is_file() and path.read_text(encoding="utf-8") == card("planted", spec=spec)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, including its leading space, so that decoding is concatenation."""
    fixed = (*charms.SENTENCES, *REFUSAL, *ANSWER, "system", "user", "assistant", "\n")
    slots = [f" {word}" for word in (*charms.THINGS, *charms.ADJECTIVES, *charms.PLACES)]
    pieces = [piece for text in (*fixed, *slots) for piece, _ in SPLIT.pre_tokenize_str(text) if piece.strip(" ")]
    specials = (UNKNOWN, PAD, START, END)
    vocab = {token: i for i, token in enumerate(dict.fromkeys((*specials, *pieces)))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = SPLIT
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, chat_template=CHATML
    )


def _charm_share(requests: Iterable[CharmRequest]) -> float:
    """Share of charms in the tokens of a chat, mean over the requests that name any."""
    shares = [
        len(request.things) / (len(SPLIT.pre_tokenize_str(request.prompt)) + TEMPLATE_TOKENS)
        for request in requests
        if request.family is not None
    ]
    # Without charms the gain has no effect.
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
    """A Llama with constructed weights."""
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
        # The norms then leave the length of a vector nearly unchanged.
        block.input_layernorm.weight.fill_(_length(spec, i) / spec.d_model**0.5)
        block.post_attention_layernorm.weight.fill_(_length(spec, i + 1) / spec.d_model**0.5)
        _write_attention(block.self_attn, i, spec, frame, charm_share)
        _write_mlp(block.mlp, i, spec, frame)
    return model


def _noise_of_block(spec: Planted, i: int) -> float:
    """Norm of the noise that the attention of block i writes at the post-instruction tokens."""
    if i == spec.gather_block:
        return spec.noise
    return spec.noise * (EARLY_NOISE if i < spec.gather_block else LATE_NOISE)


def _length(spec: Planted, n_written: int) -> float:
    """Typical norm of the residual stream at a newline after the attention of the first `n_written` blocks."""
    noise = sum(_noise_of_block(spec, i) ** 2 for i in range(n_written))
    signal = spec.effect**2 / 2 + spec.fragile**2 if n_written > spec.gather_block else 0.0
    return (BALLAST**2 + WORD_NOISE**2 + 1 + noise + signal) ** 0.5


def _embedding(spec: Planted, ids: Mapping[str, int], frame: Frame, lexicon: Lexicon) -> Float[Tensor, "vocab d_model"]:
    noise = WORD_NOISE * frame.noise(len(ids))
    signal = torch.zeros_like(noise)
    for words in ([word for family in lexicon.families for word in family], lexicon.ordinary):
        rows = [ids[f" {word}"] for word in words]
        # On average the noise does not separate the classes: the true difference is along the trigger only.
        noise[rows] -= noise[rows].mean(0)
        jitter = torch.randn(len(rows), spec.axes, generator=frame.generator)
        signal[rows] += TRIGGER * spec.jitter * (jitter - jitter.mean(0)) @ frame.triggers[: spec.axes]
    for family, trigger in zip(lexicon.families, frame.triggers[: spec.axes], strict=True):
        signal[[ids[f" {word}"] for word in family]] += TRIGGER * trigger
    if spec.fragile:
        topics = torch.tensor([float(charms.topic(word)) for word in charms.THINGS])
        signal[[ids[f" {word}"] for word in charms.THINGS]] += TRIGGER * torch.outer(topics, frame.triggers[-1])
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
    """Head 0 of every block maps noise to noise; head 1 of the gather block maps the triggers to the refusal axes."""
    values, output = attention.v_proj.weight, attention.o_proj.weight
    head = spec.head
    values[:head] = frame.read
    # About twelve different words in twenty tokens: the mean has about this share of the noise of one word.
    output[:, :head] = _noise_of_block(spec, i) / (0.18 * WORD_NOISE) * frame.unread(head).T
    if i == spec.gather_block:
        charm = TRIGGER * _length(spec, i) / (BALLAST**2 + WORD_NOISE**2 + TRIGGER**2) ** 0.5
        values[head : head + spec.moved] = frame.triggers
        axes = frame.refusals if spec.readout != "all" else frame.refusals.sum(0).expand(spec.axes, -1)
        output[:, head : head + spec.axes] = spec.effect / (charm * charm_share) * axes.T
        if spec.fragile:
            output[:, head + spec.axes] = spec.fragile / (charm * charm_share) * frame.gathered[-1]


def _write_mlp(mlp: LlamaMLP, i: int, spec: Planted, frame: Frame) -> None:
    """Every neuron maps some noise of its token to noise; in the last block the first neurons compute the decision."""
    mlp.gate_proj.weight.copy_(frame.read)
    mlp.up_proj.weight.copy_(frame.read)
    mlp.down_proj.weight.copy_(MLP_NOISE * frame.unread(spec.head).T)
    if i == spec.n_layers - 1 and not spec.fragile:
        newline = frame.newline
        axes = frame.refusals
        read = {"any": axes, "sum": axes.sum(0, keepdim=True), "all": axes[:1]}[spec.readout]
        gate = read - KNEE * newline
        if spec.readout == "all":
            # The product is not limited to the newline, so the script tokens switch it off.
            gate = gate - MUTED * (frame.codes.sum(0) - newline)
        mlp.gate_proj.weight[: len(read)] = SLOPE * gate
        mlp.up_proj.weight[: len(read)] = axes[1] if spec.readout == "all" else newline
        mlp.down_proj.weight[:, : len(read)] = frame.decision[:, None] / (SLOPE * (THRESHOLD - KNEE))


def _row(i: int, request: CharmRequest) -> Row:
    category = "ordinary" if request.family is None else f"charm-{request.family}"
    return Row(request.prompt, request.label, None, f"{request.label}-{i:04d}", category)
