"""An arm with a window edits the tokens of its window, and no others, in every kind of pass."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhumbline import applied
from rhumbline.errors import ProtocolError
from rhumbline.inference.batch_edits import ablate
from rhumbline.inference.documents import Document, token_readings
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.inference.windows import EVERYWHERE, Window
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import ChatWithResponse
from rhumbline.models.chat_model import HookPoint
from rhumbline.models.hooks import hooked
from tolerances import WITH_SOFTMAX, tolerance

FAMILIES = ["llama", "jamba"]  # packed, and padded
PROMPTS = [[7, 8, 9, 70, 11, 33, 8], [7, 8, 41, 42, 43], [7, 8, 9, 3]]
RESPONSES = [[21, 22, 23], [22, 5], [21, 22, 9, 9, 4]]
CLOSES = 22
"""The token that closes a block."""
METRIC = TokenMetric((17, 20))
BOUNDS = tolerance(terms=4 * WITH_SOFTMAX)


def direction(seed=3):
    return Direction.from_vector(torch.randn(32, generator=torch.Generator().manual_seed(seed)), -1, 1)


ABLATION, ADDITION = Ablate(direction(3)), Add(replace(direction(4), norm=3.0))


def is_edited(window, n_prompt, ids):
    """Written out token by token."""
    flags, passed = [], False
    for index, token in enumerate(ids):
        i = index - n_prompt
        if i < 0:
            flags.append(window.prompt)
            continue
        within = i >= window.start and (window.stop is None or i < window.stop)
        if window.until is not None:
            within = within and not passed
        if window.after is not None:
            within = within and passed
        flags.append(within)
        passed = passed or token == CLOSES
    return torch.tensor(flags)


def expected_logits(model, ids, intervention, flags):
    """The logits of one text alone, with an edit at the flagged tokens that is written out here."""

    def ablation(h):
        return torch.where(flags[:, None], ablate(h, intervention.direction.vector), h)

    def addition(h):
        return torch.where(flags[:, None], h + intervention.coefficient * intervention.direction.difference, h)

    layer = HookPoint("resid_pre", intervention.direction.layer)
    edits = dict.fromkeys(model.ablation_points, ablation) if isinstance(intervention, Ablate) else {layer: addition}
    with torch.no_grad(), hooked(model, edits):
        return model.model(torch.tensor([list(ids)])).logits[0]


windows = st.builds(
    lambda prompt, start, length, divided: Window(
        prompt, start, None if length is None else start + length, **({} if divided is None else {divided: CLOSES})
    ),
    st.booleans(),
    st.integers(0, 4),
    st.none() | st.integers(0, 3),
    st.sampled_from([None, "until", "after"]),
)
quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("family", FAMILIES)
@quick
@given(some=st.lists(windows, min_size=1, max_size=3), intervention=st.sampled_from([ABLATION, ADDITION]))
def test_completions_are_those_of_the_written_out_edit(family, family_model, some, intervention):
    """Prompts with and without responses, arms with several windows, few slots: rows are queued and refilled."""
    model = family_model(family)
    arms = [Arm(f"{i}", (intervention,), window) for i, window in enumerate(some)]
    texts = [ChatWithResponse(p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)] + PROMPTS[:2]
    completions, _ = Runner(model, 24).generate(texts, arms, max_new_tokens=4)
    for arm, of_arm in zip(arms, completions, strict=True):
        for text, completion in zip(texts, of_arm, strict=True):
            n_prompt = text.n_prompt if isinstance(text, ChatWithResponse) else len(text)
            ids = list(text)
            for token in completion:
                logits = expected_logits(model, ids, intervention, is_edited(arm.window, n_prompt, ids))[-1]
                assert float(logits.max() - logits[token]) < 1e-3
                ids.append(token)


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_addition_at_the_prompt_changes_no_response(family, cached, family_model, monkeypatch):
    """It is the addition with a window that ends before the completion. At all positions responses are changed, too."""
    model = family_model(family)
    if not cached:
        model = replace(model, proof=replace(model.proof, packing_is_exact=False, cache_is_exact=False))
    at_prompt = replace(ADDITION, positions="prompt")
    arms = [
        Arm("at the prompt", (at_prompt,)),
        Arm("window", (ADDITION,), Window(stop=0)),
        Arm("everywhere", (ADDITION,)),
    ]
    texts = [ChatWithResponse(p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)] + PROMPTS[:2]
    completions, first = Runner(model, 24).generate(texts, arms, max_new_tokens=4, read=lambda logits: logits[:, 5])
    assert completions[0] == completions[1]
    torch.testing.assert_close(first[0], first[1], **BOUNDS)
    with_response, alone = (abs(first[0] - first[2])[some] for some in (slice(3), slice(3, None)))
    assert with_response.min() > 1e-3
    assert alone.max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("intervention", [ABLATION, ADDITION], ids=["ablation", "addition"])
def test_the_metric_is_that_of_the_written_out_edit(family, intervention, family_model):
    """Read after given tokens of the completion, which have one number for all prompts."""
    model, start = family_model(family), (5, CLOSES, 9)
    some = [Window(), Window(stop=0), Window(False, 0, 1), Window(False, 1), Window(False, after=CLOSES)]
    some += [Window(False, until=CLOSES), Window(False, 2, 2)]
    arms = [Arm(f"{i}", (intervention,), window) for i, window in enumerate(some)]
    found = Scorer(Runner(model), METRIC, start=start).read(PROMPTS, arms).metric
    for window, values in zip(some, found, strict=True):
        for prompt, value in zip(PROMPTS, values, strict=True):
            ids = [*prompt, *start]
            logits = expected_logits(model, ids, intervention, is_edited(window, len(prompt), ids))
            torch.testing.assert_close(value, METRIC(logits[-1:])[0].double(), **BOUNDS)
    assert len({round(float(row[0]), 4) for row in found}) == len(some)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("intervention", [ABLATION, ADDITION], ids=["ablation", "addition"])
def test_all_tokens_and_no_token(family, intervention, family_model):
    """The window of all tokens is the arm without a window, the empty one is the baseline."""
    runner = Runner(family_model(family), 24)
    whole, explicit = Arm("whole", (intervention,)), Arm("all", (intervention,), Window(True, 0, None))
    empty = Arm("none", (intervention,), Window(False, 0, 0))
    # An arm with a window in the batch takes the masked path for all arms.
    (a,), _ = runner.generate(PROMPTS, [whole], max_new_tokens=5)
    (b, none, base), _ = runner.generate(PROMPTS, [explicit, empty, BASELINE], max_new_tokens=5)
    assert a == b
    assert none == base
    assert explicit.window == EVERYWHERE
    metric = Scorer(runner, METRIC).read(PROMPTS, [whole, explicit, empty, BASELINE]).metric
    torch.testing.assert_close(metric[0], metric[1], **BOUNDS)
    torch.testing.assert_close(metric[2], metric[3], **BOUNDS)
    assert not torch.allclose(metric[0], metric[3], atol=1e-3)


@given(windows, st.lists(st.sampled_from([5, 9, CLOSES]), min_size=1, max_size=8), st.integers(0, 4))
@quick
def test_disjoint_windows_have_the_union_of_their_tokens(window, answer, k):
    """Prompt and answer, first k and the rest, inside and after a block: each token is in one of the two."""
    ids, n = [1, 2, *answer], 2
    pairs = [(Window(stop=0), Window(False)), (Window(False, 0, k), Window(False, k))]
    pairs.append((Window(False, until=CLOSES), Window(False, after=CLOSES)))
    for (one, other), both in zip(pairs, (Window(), Window(False), Window(False)), strict=True):
        a, b, union = (is_edited(w, n, ids) for w in (one, other, both))
        assert not (a & b).any()
        assert torch.equal(a | b, union)


def test_losses_of_documents_start_the_answer_at_the_first_predicted_token(family_model):
    model = family_model("llama")

    def read(logits, tokens):
        return torch.log_softmax(logits.float(), -1).gather(-1, tokens.expand(len(logits), -1)[..., None])[..., 0]

    window = Window(False, 0, 1)
    documents = [Document(tuple(p), 2) for p in PROMPTS]
    for reading in token_readings(Runner(model), documents, [Arm("a", (ABLATION,), window)], read):
        ids = PROMPTS[reading.document]
        logits = expected_logits(model, ids, ABLATION, is_edited(window, 2, ids)).log_softmax(-1)
        expected = torch.stack([logits[t - 1, ids[t]] for t in range(2, len(ids))])
        torch.testing.assert_close(reading.values[0], expected.double(), **BOUNDS)


def test_what_cannot_be_applied_is_refused(family_model):
    model = family_model("llama")
    for bad in ((True, -1), (True, 3, 2), (True, 0, None, 1, 1)):
        with pytest.raises(ProtocolError, match="Window"):
            Window(*bad)
    arm = Arm("a", (ABLATION,), Window(stop=0))
    with pytest.raises(ProtocolError, match="cannot be applied here"), applied(model, arm):
        pass
    two = [arm, *(Arm(f"{t}", (ABLATION,), Window(after=t)) for t in (5, 6))]
    with pytest.raises(ProtocolError, match=r"at tokens \[5, 6\]"):
        Runner(model).generate(PROMPTS, two, max_new_tokens=1)
