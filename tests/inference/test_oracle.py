"""The fast path against the slow one: whatever family, prompts and arms are drawn, the engine says what plain says."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plain
from families import FAMILIES
from rhumbline.evidence.selection_rules import ARDITI2024, choose
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.scorer import Scorer
from rhumbline.records.positions import Position
from rhumbline.stages.candidate_scores import ScoreGrid, score_candidates
from tolerances import near, tolerance

TOKENS = st.integers(5, 250)
KEPT = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def chats(draw) -> list[list[int]]:
    """Prompts of different lengths behind a shared beginning, with a shared end, as a template gives them."""
    head = draw(st.lists(TOKENS, min_size=0, max_size=12))
    tail = draw(st.lists(TOKENS, min_size=2, max_size=3))
    own = draw(st.lists(st.lists(TOKENS, min_size=1, max_size=20), min_size=1, max_size=5))
    return [head + middle + tail for middle in own]


def direction(seed: int, layer: int) -> Direction:
    return Direction.from_vector(3 * torch.randn(32, generator=torch.Generator().manual_seed(seed)), -1, layer)


@KEPT
@given(family=st.sampled_from(sorted(FAMILIES)), prompts=chats(), seed=st.integers(0, 9), layer=st.integers(0, 3),
       budget=st.sampled_from([1, 40, 10_000]))  # fmt: skip
def test_logits_and_completions(family, prompts, seed, layer, budget, family_model):
    model = family_model(family)
    d = direction(seed, layer)
    arms = [BASELINE, Arm("ablation", (Ablate(d),)), Arm("addition", (Add(d),))]
    edits = [plain.hooks(model), plain.ablation(model, d.vector), plain.addition(model, d.difference, layer)]
    expected, texts = [], []
    for edit in edits:
        with edit:
            expected.append(plain.last_logits(model, prompts))
            texts.append(plain.generate(model, prompts, 5))
    found = torch.zeros(3, *expected[0].shape)
    for rows, logits in Runner(model, budget).last_logits(prompts, arms):
        found[rows.arm, rows.prompt] = logits
    torch.testing.assert_close(found, torch.stack(expected), **tolerance())
    written, _ = Runner(model, budget).generate(prompts, arms, max_new_tokens=5)
    assert written == texts


@KEPT
@given(family=st.sampled_from(sorted(FAMILIES)), prompts=chats(), budget=st.sampled_from([1, 40, 10_000]))
def test_means(family, prompts, budget, family_model):
    model = family_model(family)
    expected = plain.mean_residuals(model, prompts, (-2, -1))
    found = extract(Runner(model, budget), prompts, (-2, -1)).stats.mean()
    torch.testing.assert_close(found, expected, **tolerance())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "gpt_oss", "granite"])
def test_scores_and_choice(family, family_model):
    model = family_model(family)
    positive = [[5, 6, 7, 40 + i, *range(60, 60 + i % 5), 9, 8] for i in range(9)]
    negative = [[5, 6, 7, 80 + i, *range(90, 90 + i % 7), 9, 8] for i in range(8)]
    candidates = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(2))
    tokens = [17, 20, 33]
    expected = plain.scores(model, candidates, (-2, -1), positive, negative, tokens, range(3))
    scorer = Scorer(Runner(model), lambda logits: refusal_metric(logits, tokens))
    grid = ScoreGrid(scorer, candidates, (Position(-2), Position(-1)), positive, negative, ARDITI2024)
    table, _ = score_candidates(grid)
    for row in table:
        if row.layer < 3:
            assert (row.bypass, row.induce, row.kl) == near(expected[int(row.position), row.layer])
    # The contrary: another candidate's scores are far outside the tolerance.
    values = [v for v, _, _ in expected.values()]
    assert max(values) - min(values) > 1e-3
    assert choose(table, 4, ARDITI2024).candidates
