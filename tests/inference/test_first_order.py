"""First-order estimates are the tangents of the metric, for every direction and prompt."""

import pytest
import torch

from rhumbline.inference.first_order import ROWS_PER_PROMPT, first_order, projection_tangents, tangents
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric
from rhumbline.judging.scorer import Scorer

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44], [9, 9, 3]]
STEP = 1e-3


def directions(n=4):
    vectors = torch.randn(n, 32, generator=torch.Generator().manual_seed(3))
    return [Direction.from_vector(v, -1, layer) for layer, v in enumerate(vectors)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe", "granite"])
def test_estimates_are_the_tangents_at_the_unedited_model(family, family_model):
    runner, metric = Runner(family_model(family)), TokenMetric((17, 20))
    estimates = first_order(runner, PROMPTS, metric, directions())
    scorer = Scorer(runner, metric)
    base = scorer.read(PROMPTS, [Arm("baseline", ())]).metric
    for kind, make, table in (("ablation", Ablate, estimates.ablation), ("addition", Add, estimates.addition)):
        once, twice = (
            scorer.read(PROMPTS, [Arm(kind, (make(d, n * STEP),)) for d in directions()]).metric for n in (1, 2)
        )
        slope = (4 * once - twice - 3 * base) / (2 * STEP)  # the error is of second order in the step
        scale = slope.abs().max()
        assert scale > 1e-3
        torch.testing.assert_close(table - base, slope, atol=0.02 * float(scale), rtol=0.02)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_form_gives_the_estimate_of_every_ablation(family, family_model):
    runner, metric = Runner(family_model(family)), TokenMetric((17, 20))
    base = Scorer(runner, metric).read(PROMPTS, [Arm("baseline", ())]).metric.mean()
    estimates, form = (
        first_order(runner, PROMPTS, metric, directions()).ablation.mean(1),
        tangents(runner, PROMPTS, metric),
    )
    changes = torch.stack([d.vector @ form @ d.vector for d in directions()]).double()
    torch.testing.assert_close(base - changes, estimates, atol=1e-4, rtol=1e-4)
    assert float(changes.abs().max()) > 1e-3
    torch.testing.assert_close(form, form.T)


def test_the_form_of_a_projection_is_the_tangent_of_what_is_read(family_model):
    """The sum over block inputs of the projection of the last token, under a small ablation of another vector."""
    runner, (read, other, *_) = Runner(family_model("llama")), directions()
    form = projection_tangents(runner, PROMPTS, read.vector)

    def projection(*interventions: Ablate) -> float:
        total = 0.0
        for _, h, _ in runner.residuals(PROMPTS, [-1], Arm("some", interventions)):
            total += float((h[:, 0].double() @ read.vector.double()).sum())
        return total / len(PROMPTS)

    slope = (projection(Ablate(other, STEP)) - projection()) / STEP
    assert abs(slope) > 1e-3
    assert float(other.vector @ form @ other.vector) == pytest.approx(-slope, rel=0.05)


def test_estimates_do_not_depend_on_the_batch_and_leave_the_model_as_it_was(family_model):
    model, metric, rows = family_model("llama"), TokenMetric((17,)), []
    trainable = [p.requires_grad for p in model.model.parameters()]
    whole = first_order(Runner(model, tick=rows.append), PROMPTS, metric, directions())
    alone = [first_order(Runner(model), [p], metric, directions()) for p in PROMPTS]
    for kind in range(2):
        torch.testing.assert_close(whole[kind], torch.cat([a[kind] for a in alone], 1), atol=1e-4, rtol=1e-4)
    assert sum(rows) == ROWS_PER_PROMPT * len(PROMPTS)
    assert [p.requires_grad for p in model.model.parameters()] == trainable
    assert all(p.grad is None for p in model.model.parameters())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_estimates_do_not_depend_on_the_number_of_directions(family, family_model):
    """More directions than dimensions are estimated by the forms of the prompts."""
    runner, metric = Runner(family_model(family)), TokenMetric((17, 20))
    n_layers, vectors = runner.model.n_layers, torch.randn(70, 32, generator=torch.Generator().manual_seed(4))
    many = [Direction.from_vector(v, -1, i % n_layers) for i, v in enumerate(vectors)]
    assert len(many) > 2 * runner.model.d_model
    together = first_order(runner, PROMPTS, metric, many, spared=1)
    parts = [first_order(runner, PROMPTS, metric, many[i : i + 10], spared=1) for i in range(0, len(many), 10)]
    for kind in range(2):
        expected = torch.cat([part[kind] for part in parts])
        scale = (expected - expected.mean(0)).abs().max()
        torch.testing.assert_close(together[kind], expected, atol=1e-5 * float(scale), rtol=1e-5)


def test_the_weight_of_the_unembedding_is_not_copied_for_each_row(family_model):
    model, contiguous = family_model("llama"), []
    head = model.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: contiguous.append(args[0].is_contiguous()))
    first_order(Runner(model), PROMPTS, TokenMetric((17,)), directions())
    handle.remove()
    assert contiguous
    assert all(contiguous)
    assert not head._forward_pre_hooks


def test_memory_that_runs_out_halves_the_batch(family_model, monkeypatch):
    import rhumbline.inference.first_order as module

    real, calls = module._with_gradients, []

    def small(runner, ids, mask, read):
        calls.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(runner, ids, mask, read)

    runner, metric = Runner(family_model("llama")), TokenMetric((17,))
    expected = first_order(runner, PROMPTS, metric, directions())
    monkeypatch.setattr(module, "_with_gradients", small)
    halved = first_order(runner, PROMPTS, metric, directions())
    assert calls[0] == len(PROMPTS)
    torch.testing.assert_close(halved, expected, atol=1e-4, rtol=1e-4)
