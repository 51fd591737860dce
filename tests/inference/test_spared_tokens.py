"""An ablation that spares the first tokens of a text edits the others, in every kind of pass."""

import pytest
import torch

from rhumbline import applied
from rhumbline.errors import ProtocolError
from rhumbline.inference.batch_edits import ablate
from rhumbline.inference.documents import Document, token_readings
from rhumbline.inference.first_order import first_order
from rhumbline.inference.interventions import BASELINE, Ablate, AblateSpan, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import ChatWithResponse
from rhumbline.models.hooks import hooked
from tolerances import WITH_SOFTMAX, tolerance

FAMILIES = ["llama", "gpt2", "jamba"]  # packed, packed, and not
PROMPTS = [[7, 8, 9, 70, 11, 33, 8], [7, 8, 41, 42, 43], [7, 8, 9, 3]]
METRIC = TokenMetric((17, 20))


def direction(seed=3):
    return Direction.from_vector(torch.randn(32, generator=torch.Generator().manual_seed(seed)), -1, 1)


def arms(spared):
    return [Arm(f"{s}", (Ablate(direction(s), spared=spared),)) for s in (3, 4)]


def expected_logits(model, ids, d, spared):
    """The logits of one text alone, with an edit that is written out here."""

    def edit(h):
        edited = ablate(h, d.vector)
        edited[:, :spared] = h[:, :spared]
        return edited

    with torch.no_grad(), hooked(model, dict.fromkeys(model.ablation_points, edit)):
        return model.model(torch.tensor([ids])).logits[0]


def expected_input(model, ids, d, spared, layer):
    """The input of a block at the last two tokens of one text alone, under the same edit."""
    seen = []

    def edit(h):
        edited = ablate(h, d.vector)
        edited[:, :spared] = h[:, :spared]
        return edited

    def watch(at, h):
        if at == layer:
            seen.append(h[0, -2:].clone())

    with torch.no_grad(), hooked(model, dict.fromkeys(model.ablation_points, edit), watch):
        model.model(torch.tensor([ids]))
    return seen[0]


@pytest.mark.parametrize("spared", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_metric_is_that_of_the_written_out_edit(family, spared, family_model):
    model = family_model(family)
    found = Scorer(Runner(model), METRIC).read(PROMPTS, arms(spared)).metric
    for i, d in enumerate((direction(3), direction(4))):
        expected = [float(METRIC(expected_logits(model, ids, d, spared)[-1:])) for ids in PROMPTS]
        torch.testing.assert_close(found[i], torch.tensor(expected).double(), **tolerance(terms=4 * WITH_SOFTMAX))
    everywhere = Scorer(Runner(model), METRIC).read(PROMPTS, arms(0)).metric
    assert not torch.allclose(found, everywhere, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "padding"), [("llama", None), ("llama", "right"), ("gpt2", "left"), ("gpt2", "right"), ("jamba", None)]
)
def test_residuals_are_those_of_the_written_out_edit(family, padding, family_model):
    model = family_model(family)
    (arm, _), d, last = arms(2), direction(3), model.n_layers - 1
    for rows, h, _ in Runner(model).residuals(PROMPTS, (-2, -1), arm, padding=padding, layers=[last]):
        for i, row in enumerate(rows.tolist()):
            torch.testing.assert_close(h[i, :, 0], expected_input(model, PROMPTS[row], d, 2, last), **tolerance())


def test_residuals_in_responses_spare_the_first_tokens_of_the_prompt(family_model):
    model = family_model("llama")
    texts = [ChatWithResponse(ids, [21, 22]) for ids in PROMPTS]
    (arm, _), d, last = arms(2), direction(3), model.n_layers - 1
    for rows, h, _ in Runner(model).residuals(texts, (1, 2), arm, layers=[last]):
        for i, row in enumerate(rows.tolist()):
            expected = expected_input(model, list(texts[row]), d, 2, last)
            torch.testing.assert_close(h[i, :, 0].float(), expected, **tolerance())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_spared_tokens_has_the_logits_of_the_baseline(family, family_model):
    scorer = Scorer(Runner(family_model(family)), METRIC)
    found, base = (scorer.read(PROMPTS, some).metric for some in (arms(7), [BASELINE]))
    torch.testing.assert_close(found, base.expand_as(found), **tolerance(terms=4 * WITH_SOFTMAX))


@pytest.mark.parametrize("spared", [2, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_generated_tokens_are_edited(family, spared, family_model):
    """Also those of a prompt that has fewer tokens than are spared."""
    model = family_model(family)
    runner = Runner(model)
    completions, _ = runner.generate(PROMPTS, arms(spared), max_new_tokens=6)
    for a, d in enumerate((direction(3), direction(4))):
        for p, prompt in enumerate(PROMPTS):
            ids = list(prompt)
            for token in completions[a][p]:
                assert token == int(expected_logits(model, ids, d, min(spared, len(prompt)))[-1].argmax())
                ids.append(token)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_losses_of_documents_spare_the_same_tokens(family, family_model):
    model = family_model(family)

    def read(logits, tokens):
        return torch.log_softmax(logits.float(), -1).gather(-1, tokens.expand(len(logits), -1)[..., None])[..., 0]

    documents = [Document(tuple(p), 2) for p in PROMPTS]
    for reading in token_readings(Runner(model), documents, arms(1), read):
        ids = PROMPTS[reading.document]
        for arm, values in zip(reading.arms, reading.values, strict=True):
            logits = expected_logits(model, ids, direction(3 + arm), 1).log_softmax(-1)
            expected = torch.stack([logits[t - 1, ids[t]] for t in range(2, len(ids))])
            torch.testing.assert_close(values, expected.double(), **tolerance(terms=4 * WITH_SOFTMAX))


def test_applied_spares_the_first_tokens_of_every_row(family_model):
    model = family_model("llama")
    d = direction()
    left = torch.tensor([[0, 0, *PROMPTS[1]], PROMPTS[0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    with torch.no_grad(), applied(model, Ablate(d, spared=2)):
        logits = model.model(left, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(0)).logits[:, -1]
    for row, ids in zip(logits, (PROMPTS[1], PROMPTS[0]), strict=True):
        torch.testing.assert_close(row, expected_logits(model, ids, d, 2)[-1], **tolerance(terms=4 * WITH_SOFTMAX))


def test_estimates_are_tangents_of_the_same_ablation(family_model):
    runner, step = Runner(family_model("llama")), 1e-3
    scorer = Scorer(runner, METRIC)
    estimate = first_order(runner, PROMPTS, METRIC, [direction()], spared=2).ablation
    base, once, twice = (
        scorer.read(PROMPTS, [Arm("a", (Ablate(direction(), n * step, 2),))]).metric for n in (0, 1, 2)
    )
    slope = (4 * once - twice - 3 * base) / (2 * step)
    torch.testing.assert_close(estimate - base, slope, atol=0.02 * float(slope.abs().max()), rtol=0.02)


def test_a_negative_number_and_two_numbers_are_refused(family_model):
    with pytest.raises(ProtocolError, match="spared"):
        Ablate(direction(), spared=-1)
    other = Direction.from_vector(torch.linalg.qr(torch.stack([direction().vector, torch.randn(32)]).T)[0][:, 1], -1, 1)
    both = Arm("both", (Ablate(direction(), spared=1), Ablate(other, spared=2)))
    with pytest.raises(ProtocolError, match="spare different tokens"):
        Scorer(Runner(family_model("llama")), METRIC).read(PROMPTS, [both])
    span = Arm("span", (Ablate(direction(), spared=1), AblateSpan(other.vector[None])))
    with pytest.raises(ProtocolError, match="spare different tokens"):
        Scorer(Runner(family_model("llama")), METRIC).read(PROMPTS, [span])
