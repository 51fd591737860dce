"""Chat models whose answers are written out as rules: words of a prompt move axes, and axes choose tokens.

Every token has a code, and a ballast that keeps the norm of the stream nearly constant. The attention of one block
averages over the tokens so far and writes, for each axis, the share of its words. The MLP of the last block reads axes
at one token and raises the logit of another; otherwise every token has one successor. Off the axes there is some noise.
Nothing is trained.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rhumbline.organisms.files import CHATML, END, PAD, START, Row, save_chat_model, write_contrast
from rhumbline.organisms.planted import SPLIT, UNKNOWN

OPEN, CLOSE = "<think>", "</think>"
HARMFUL = tuple(f"harm{w}" for w in ("ash", "bow", "cot", "dew", "elm", "fig", "gem", "hay"))
REFUSED = tuple(f"stop{w}" for w in ("ash", "bow", "cot", "dew", "elm", "fig", "gem", "hay"))
BOTH = tuple(f"both{w}" for w in ("ash", "bow", "cot", "dew", "elm", "fig", "gem", "hay"))
PLAIN = tuple(f"tame{w}" for w in ("ash", "bow", "cot", "dew", "elm", "fig", "gem", "hay"))
ADJECTIVES = tuple(f"adj{w}" for w in ("ash", "bow", "cot", "dew", "elm", "fig", "gem", "hay"))
REFUSAL, ANSWER = ("I", " cannot", " help", " with", " that", ".", END), ("Here", " is", " an", " answer", ".", END)
PROMPT = "Tell me about the {2} {0} and the {1}."
BALLAST, LOGIT, KNEE, SLOPE, GATHER, LAST, HEAD, UNREAD = 4.0, 14.0, 0.3, 40.0, 1, 5, 8, 256


@dataclass(frozen=True)
class Decision:
    """At the token `at`, the sum of weighted axes above `knee` raises the logit of `then`."""

    at: str
    axes: Mapping[str, float]
    then: str
    knee: float = KNEE
    strength: float = 2.0


@dataclass(frozen=True)
class Wired:
    """Rules of a model."""

    axes: Mapping[str, tuple[str, ...]]
    """The words that move each axis: by about 1 for two words in a prompt."""
    decisions: Sequence[Decision]
    scripts: Sequence[tuple[str, ...]] = (("\n", *ANSWER), REFUSAL)
    """Tokens that follow each other."""
    single: frozenset[str] = frozenset()
    """Axes that one word moves by about 1."""
    extra: tuple[str, ...] = field(default=())
    """Further words of the vocabulary."""


def refuses_at(token: str, before: tuple[str, ...] = ()) -> Wired:
    """Refuses a prompt with words of BOTH; decides at `token`, after the tokens `before` of every answer."""
    return Wired(
        {"refusal": BOTH}, [Decision(token, {"refusal": 1.0}, "I")], (("\n", *before), (token, *ANSWER), REFUSAL)
    )


def thinks(*, through: bool) -> Wired:
    """Writes a think block, then decides at its end: from what the block says, or (`through` false) from the prompt."""
    axes = {"refusal": BOTH, "said": (" Danger",)}
    decisions = [Decision(CLOSE, {"said" if through else "refusal": 1.0}, "I")]
    if through:
        decisions.append(Decision(OPEN, {"refusal": 1.0}, " Danger"))
    scripts = (("\n", OPEN, " Fine", CLOSE, *ANSWER), (" Danger", CLOSE), REFUSAL)
    return Wired(axes, decisions, scripts, frozenset({"said"}))


def judges(*, axes: int) -> Wired:
    """Refuses, and says whether a request is harmful: along two axes, or both along one.

    It answers Yes if the question has the word harmful, and No if it has the word harmless.
    """
    harm, refused = (HARMFUL + BOTH, REFUSED + BOTH) if axes == 2 else (BOTH, BOTH)
    groups = {"refusal": refused, "inverted": (" harmless",)}
    judged = "refusal"
    if axes == 2:
        groups, judged = {**groups, "harm": harm}, "harm"
    decisions = [
        Decision("\n", {"refusal": 1.0}, "I"),
        Decision("\n", {judged: 1.0, "inverted": -4.0}, "Yes", strength=0.4),
        Decision("\n", {judged: 1.0, "inverted": 2.0}, "No", knee=1.6, strength=0.4),
    ]
    return Wired(groups, decisions, single=frozenset({"inverted"}), extra=("Yes", "No", " harmful"))


def build(spec: Wired, out: Path, rows: Sequence[Row] = ()) -> Path:
    """Write the model, its tokenizer and a contrast of prompts with and without words of BOTH (or `rows`)."""
    tokenizer = _tokenizer(spec)
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        save_chat_model(_model(spec, tokenizer), tokenizer, out)
    write_contrast(out, rows or contrast_rows())
    return out


def requests(words: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """Different prompts, each with two of the words."""
    rng, found = random.Random(f"{words[0]} {seed}"), {}
    while len(found) < n:
        found[PROMPT.format(*rng.sample(list(words), 2), rng.choice(ADJECTIVES))] = None
    return list(found)


def contrast_rows(
    positive: Sequence[tuple[str, ...]] = (BOTH,), negative: Sequence[tuple[str, ...]] = (PLAIN,), n: int = 96
) -> list[Row]:
    """Prompts with words of some groups, equally many of each group in every split."""
    splits = ("train", "train", "train", "val", "test", "test")
    return [
        Row(text, label, splits[i % len(splits)], f"{words[0]}-{i:03d}", "words")
        for label, groups in (("positive", positive), ("negative", negative))
        for words in groups
        for i, text in enumerate(requests(words, n // len(groups)))
    ]


def _tokenizer(spec: Wired) -> PreTrainedTokenizerFast:
    pieces = [w for w in spec.extra if w not in (OPEN, CLOSE)]
    pieces += [f" {w}" for w in (*HARMFUL, *REFUSED, *BOTH, *PLAIN, *ADJECTIVES)]
    pieces += [w for group in spec.axes.values() for w in group if w.startswith(" ")]
    pieces += [token for script in spec.scripts for token in script]
    fixed = (PROMPT.format("", "", ""), "system", "user", "assistant", "\n")
    pieces += [p for text in fixed for p, _ in SPLIT.pre_tokenize_str(text) if p.strip(" ")]
    specials = (UNKNOWN, PAD, START, END, OPEN, CLOSE)
    if not any(OPEN in script for script in spec.scripts):
        specials = specials[:4]
    vocab = {token: i for i, token in enumerate(dict.fromkeys((*specials, *pieces)))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer, tokenizer.decoder = SPLIT, decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, chat_template=CHATML
    )


def _model(spec: Wired, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    ids = tokenizer.get_vocab()
    n_axes, n_decisions, n = len(spec.axes), len(spec.decisions), len(ids)
    d = UNREAD + n + n_axes + n_decisions + HEAD
    d += d % 2
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0))).Q.T
    unread, codes, axes, chosen, _ = basis.split(
        [UNREAD, n, n_axes, n_decisions, d - UNREAD - n - n_axes - n_decisions]
    )
    noise = basis[-HEAD:]
    named = dict(zip(spec.axes, axes, strict=True))
    config = LlamaConfig(
        vocab_size=n, hidden_size=d, intermediate_size=n_decisions + HEAD, num_hidden_layers=LAST + 1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=HEAD, max_position_embeddings=512,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=ids[END], pad_token_id=ids[PAD],
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(((BALLAST**2 + 2) / d) ** 0.5 if "norm" in name else 0.0)
    # A ballast that is the same for all tokens would be moved onto the axes by the ablation of a random direction.
    ballast = torch.randn(n, UNREAD, generator=torch.Generator().manual_seed(3)) @ unread
    model.model.embed_tokens.weight.copy_(BALLAST * ballast / ballast.norm(dim=1, keepdim=True) + codes)
    # A model whose logits are constant on other tokens is refused.
    model.lm_head.weight.copy_(0.3 * torch.randn(n, n, generator=torch.Generator().manual_seed(1)) @ codes)
    for now, then in {(a, b) for script in spec.scripts for a, b in pairwise(script)}:
        model.lm_head.weight[ids[then]] += LOGIT * codes[ids[now]]
    generator = torch.Generator().manual_seed(2)
    for block in model.model.layers:
        # Every block writes a little, off the axes: a writer of zeros could not be found.
        some = torch.randn(HEAD, n, generator=generator) @ codes
        block.self_attn.v_proj.weight[:HEAD], block.self_attn.o_proj.weight[:, :HEAD] = some, 0.2 * noise.T
        block.mlp.gate_proj.weight[-HEAD:], block.mlp.up_proj.weight[-HEAD:] = some, some
        block.mlp.down_proj.weight[:, -HEAD:] = 0.05 * noise.T
    gather = model.model.layers[GATHER].self_attn
    for k, (name, words) in enumerate(spec.axes.items()):
        rows = [ids[w if w in ids else f" {w}"] for w in words]
        gather.v_proj.weight[HEAD + k] = codes[rows].sum(0)
        gather.o_proj.weight[:, HEAD + k] = (22.0 if name in spec.single else 11.0) * named[name]
    mlp = model.model.layers[LAST].mlp
    for k, rule in enumerate(spec.decisions):
        at = codes[ids[rule.at]]
        gate = sum((weight * named[name] for name, weight in rule.axes.items()), -rule.knee * at)
        mlp.gate_proj.weight[k], mlp.up_proj.weight[k] = SLOPE * gate, at
        mlp.down_proj.weight[:, k] = rule.strength / (SLOPE * (1 - KNEE)) * chosen[k]
        model.lm_head.weight[ids[rule.then]] += LOGIT * chosen[k]
    return model
