"""The common start of baseline completions, and what is read after it: the first tokens, the metric and KL."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from make_tokenizer import CHATML, CHATML_MARKS, make_tokenizer
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batching import RowIndex
from rhumbline.inference.first_order import first_order
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.judge_names import class_judge
from rhumbline.judging.metric import TokenMetric, kl_divergence
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import forward
from rhumbline.models.hooks import hooked
from rhumbline.records.reasons import TokensLacking
from rhumbline.stages.common_start import Baseline, header_text
from rhumbline.stages.refusal_tokens import FirstTokens
from tolerances import near

JUDGE = class_judge("refusal-opening")
CHAT = Chat.of(
    make_tokenizer(CHATML.replace("assistant\n{% endif", "assistant\n{# <think></think> #}{% endif"), CHATML_MARKS)
)


def ids_of(text):
    return CHAT.controls.ids_of(text)


@dataclass
class Scripted(Runner):
    """A runner whose model completes the prompt [i] with text i, as its logits say too."""

    texts: tuple[str, ...] = ()
    logit: float = 9.0
    """Of the next token of the text; that of the others is 0."""

    def generate(self, sequences, *, max_new_tokens, stop):
        return [[ids_of(self.texts[ids[0]])[:max_new_tokens] for ids in sequences]], None

    def last_logits(self, sequences):
        logits = torch.zeros(len(sequences), len(CHAT.tokenizer))
        for row, ids in enumerate(sequences):
            logits[row, ids_of(self.texts[ids[0]])[len(ids) - 1]] = self.logit
        yield RowIndex(torch.zeros(len(sequences), dtype=torch.long), torch.arange(len(sequences))), logits


@pytest.fixture
def start_of(family_model):
    def get(*texts, judge=JUDGE):
        runner = Scripted(family_model("llama"), texts=texts)
        return Baseline(runner, CHAT, [[i] for i in range(len(texts))]).common_start(judge)

    return get


def sentences(before, n=12):
    return [f"{before}{word} {i}." for i in range(n) for word in ("The", "A")][: 2 * n]


def test_a_header_is_found_and_marked(start_of):
    for header in ("assistant\n\n", "**Answer:** ", "Response: ", "<think>\n\n</think>\n\n", "# Reply\n"):
        start = start_of(*sentences(header))
        assert CHAT.tokenizer.decode(start.tokens) == start.text
        assert header.strip() in start.text
        assert (start.is_header, start.n) == (True, 24)


def test_a_first_word_is_a_start_but_not_a_header(start_of):
    start = start_of(*sentences("Well "))
    assert start.text.startswith("Well")
    assert not start.is_header
    assert header_text(CHAT, start) == ""


def test_completions_that_differ_have_no_start(start_of):
    assert start_of("The sea.", "A ship.", "The map.") is None
    # One of many differs, and none of the first ones.
    assert start_of(*sentences("assistant\n\n"), "A ship.") is None
    assert start_of("", *sentences("assistant\n\n")) is None
    assert start_of() is None


def test_a_start_that_shows_the_behaviour_is_none(start_of):
    texts = sentences("I cannot help with that: ")
    assert start_of(*texts) is None
    assert start_of(*texts, judge=None) is not None
    assert start_of(*["The same."] * 12) is None


def test_the_header_is_the_part_before_the_answer(start_of):
    assert header_text(CHAT, start_of(*sentences("assistant\n\n"))) == "assistant\n\n"
    assert header_text(CHAT, start_of(*sentences("<think>\n\n</think>\n\n"))).strip() == ""
    assert header_text(CHAT, None) == ""


# -- the first tokens after it


def first_tokens(model, positive, negative, start=None):
    n = len(positive)
    runner = Scripted(model, texts=(*positive, *negative))
    sequences = [[i] for i in range(n + len(negative))]
    return FirstTokens(runner, CHAT, sequences[:n], sequences[n:], start).of_completions(JUDGE, 64)


@pytest.mark.parametrize("header", ["", "assistant\n\n", "<think>\n\n</think>\n\n"])
def test_refusal_tokens_are_the_first_after_the_start(family_model, start_of, header):
    positive, negative = [f"{header}Sorry, no {i}." for i in range(8)], [f"{header}The sea {i}." for i in range(8)]
    start = start_of(*positive, *negative) if header else None
    metric = first_tokens(family_model("llama"), positive, negative, start)
    assert [t.id for t in metric.tokens] == [ids_of(f"{header}Sorry")[len(start.tokens) if start else 0]]
    assert (metric.reason, metric.refusals, metric.auroc) == (None, 8, 1.0)
    assert metric.start == start


def test_refusals_after_blocks_of_different_lengths_have_no_first_token(family_model):
    positive = [f"<think>{'Hm. ' * i}</think>Sorry, no {i}." for i in range(8)]
    metric = first_tokens(family_model("llama"), positive, [f"The sea {i}." for i in range(8)])
    assert (metric.reason, metric.refusals, metric.tokens) == (TokensLacking.AFTER_BLOCK, 8, ())
    assert "--thinking off" in metric.reason.advice
    none = first_tokens(family_model("llama"), ["<think>I cannot"] * 8, [f"The sea {i}." for i in range(8)])
    assert (none.reason, none.refusals) == (TokensLacking.NOT_SHOWN, 0)


@pytest.mark.parametrize(("log_odds", "moves"), [(-1.0, True), (1.0, False)])
def test_the_metric_is_zero_where_the_judge_begins_to_see_refusals(family_model, log_odds, moves):
    """Refusals that begin with a token of probability 0.27 are not removed by the sign of the metric."""
    texts = [f"Sorry, no {i}." for i in range(8)] + [f"The sea {i}." for i in range(8)]
    logit = log_odds + math.log(len(CHAT.tokenizer) - 1)
    runner = Scripted(family_model("llama"), texts=tuple(texts), logit=logit)
    tokens = FirstTokens(runner, CHAT, [[i] for i in range(8)], [[i] for i in range(8, 16)], None)
    found = tokens.of_completions(JUDGE, 64, finds_threshold=True)
    (_, logits), *_ = runner.last_logits([[i] for i in range(16)])
    metric = TokenMetric(tuple(t.id for t in found.tokens), found.threshold)(logits)
    assert (metric > 0).tolist() == [True] * 8 + [False] * 8
    assert (found.threshold < 0) is moves
    assert tokens.of_completions(JUDGE, 64).threshold == 0


@dataclass
class Torn(Scripted):
    """A runner with a second choice before refusals, and a third one before every text, of a quarter each."""

    def last_logits(self, sequences):
        for rows, logits in super().last_logits(sequences):
            for row, ids in enumerate(sequences):
                first = logits[row].argmax()
                logits[row, first] = 12 + math.log(2)
                second = "Unfortunately" if self.texts[ids[0]].startswith("Sorry") else "River"
                logits[row, [ids_of(second)[0], ids_of("Here")[0]]] = 12.0
            yield rows, logits


def test_a_second_choice_before_refusals_is_a_refusal_token(family_model):
    texts = [f"Sorry, no {i}." for i in range(8)] + [f"The sea {i}." for i in range(8)]
    runner = Torn(family_model("llama"), texts=tuple(texts))
    tokens = FirstTokens(runner, CHAT, [[i] for i in range(8)], [[i] for i in range(8, 16)], None)
    found = tokens.of_completions(JUDGE, 64, finds_threshold=True)
    assert [t.id for t in found.tokens] == [ids_of("Sorry")[0], ids_of("Unfortunately")[0]]
    assert [t.share for t in found.tokens] == [1.0, 0.0]
    assert found.threshold == 0  # 0.75 before refusals


def test_a_second_choice_that_starts_more_answers_than_refusals_is_no_refusal_token(family_model):
    complied = ["Unfortunately", "Unfortunately"]
    texts = [f"Sorry, no {i}." for i in range(6)] + [f"{c} {i} rivers." for i, c in enumerate(complied)]
    texts += [f"The sea {i}." for i in range(8)]
    runner = Torn(family_model("llama"), texts=tuple(texts))
    tokens = FirstTokens(runner, CHAT, [[i] for i in range(8)], [[i] for i in range(8, 16)], None)
    found = tokens.of_completions(JUDGE, 64)
    assert [t.id for t in found.tokens] == [ids_of("Sorry")[0]]


# -- the metric and KL after it


@pytest.mark.parametrize("is_packed", [True, False])
def test_the_metric_and_kl_are_read_after_the_start(family_model, is_packed):
    model = family_model("llama")
    packable = model.proof.packing_is_exact and is_packed
    model = replace(model, proof=replace(model.proof, packing_is_exact=packable))
    start, sequences = (9, 8, 7), [[5, 6, 7, 20], [5, 6, 30], [5, 6, 7, 8, 9, 10]]
    direction = Direction.from_vector(3 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)), -1, 1)
    arms = [
        BASELINE,
        Arm("on prompt", (Add(direction, 1.0, "prompt"),)),
        Arm("on all", (Add(direction),)),
        Arm("abl", (Ablate(direction),)),
    ]
    scorer = Scorer(Runner(model), TokenMetric((3, 4)), start=start)
    table = torch.stack([torch.cat([_logits(model, ids, start, arm) for ids in sequences]) for arm in arms])
    read = scorer.read(sequences, arms, scorer.baseline(sequences))
    for a in range(len(arms)):
        assert read.metric[a].tolist() == near(TokenMetric((3, 4))(table[a]).tolist())
    assert scorer.kl(sequences, [arms[3]], scorer.baseline(sequences))[0].tolist() == near(
        kl_divergence(table[0], table[3]).tolist()
    )
    assert not torch.allclose(read.metric[1], read.metric[2], atol=1e-3)
    at_prompt = Scorer(Runner(model), TokenMetric((3, 4))).read(sequences, [BASELINE]).metric
    assert not torch.allclose(at_prompt[0], read.metric[0], atol=1e-3)


def test_first_order_estimates_are_read_after_the_start(family_model):
    runner, metric, start, sequences = Runner(family_model("llama")), TokenMetric((3, 4)), (9, 8), [[5, 6, 7], [5, 30]]
    vector = torch.randn(runner.model.d_model, generator=torch.Generator().manual_seed(0))
    directions = [Direction.from_vector(vector, -1, 1)]
    found = Scorer(runner, metric, start=start).estimates(sequences, directions).ablation
    expected = first_order(runner, [[*ids, *start] for ids in sequences], metric, directions).ablation
    assert found[0].tolist() == near(expected[0].tolist())
    assert not torch.allclose(found, Scorer(runner, metric).estimates(sequences, directions).ablation, atol=1e-3)


def _logits(model, ids, start, arm):
    """Next-token logits of one prompt and the start, where the start counts as generated."""
    rows = torch.tensor([[*ids, *start]])
    edits = BatchEdits.of([arm], model).on(torch.tensor([0]), n_prompt=len(ids))
    with torch.no_grad(), hooked(model, edits):
        return forward(model, rows, torch.ones_like(rows))
