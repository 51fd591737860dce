"""Scores of candidates: the formulas written out, the lazy grid against the full one, and near ties."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from rhumbline.evidence.selection_rules import ARDITI2024, BLOG2026, choose
from rhumbline.inference.batch_edits import ablate
from rhumbline.inference.interventions import BASELINE
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import TokenMetric, kl_divergence, refusal_metric
from rhumbline.judging.scorer import Scorer
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard
from rhumbline.records.seed_files import Candidate
from rhumbline.records.shared import Site
from rhumbline.stages.candidate_scores import ScoreGrid, score_candidates
from rhumbline.stages.selection import swing_low
from tolerances import near

POSITIVE = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44], [9, 9, 3]]

NEGATIVE = [[7, 100, 3, 9], [77, 78, 79, 80, 81, 82, 83]]


def grid(runner, candidates, tokens, rule):
    positions = tuple(Position(p) for p in range(-len(candidates), 0))
    scorer = Scorer(runner, lambda logits: refusal_metric(logits, tokens))
    return ScoreGrid(scorer, candidates, positions, POSITIVE, NEGATIVE, rule)


def plain_logits(chat_model, ids, edit_inputs=None, edit_writes=None):
    """One prompt, hooks written out by hand: what the paper's loops do."""
    handles = []
    for layer, block in enumerate(chat_model.blocks):
        if edit_inputs is not None:
            handles.append(
                block.register_forward_pre_hook(lambda m, a, layer=layer: (edit_inputs(layer, a[0]), *a[1:]))
            )
        if edit_writes is not None:
            for w in chat_model.writers:
                if w.layer == layer:
                    handles.append(block.get_submodule(w.module).register_forward_hook(lambda m, a, o: edit_writes(o)))
    with torch.no_grad():
        logits = chat_model.model(torch.tensor([ids])).logits[:, -1]
    for h in handles:
        h.remove()
    return logits


def test_induce_scores_have_the_coefficient_of_the_additions(family_model):
    runner, candidates = Runner(family_model("llama")), torch.randn(2, 4, 32)
    rule = replace(ARDITI2024, max_layer_share=None, min_induce=None)
    one, two, longer = (
        replace(grid(runner, factor * candidates, [17, 20], rule), coefficient=c)
        for factor, c in ((1, 1.0), (1, 2.0), (2, 1.0))
    )
    tables = [score_candidates(some, full_grid=True)[0] for some in (one, two, longer)]
    for a, b, c in zip(*tables, strict=True):
        assert (b.bypass, b.kl) == (near(a.bypass), near(a.kl))
        assert b.induce == near(c.induce)
    assert [row.induce for row in tables[0]] != [near(row.induce) for row in tables[1]]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_scores_equal_the_formulas_written_out(family, family_model):
    chat_model = family_model(family)
    candidates = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    candidates[0, 1] = 0
    tokens = [17, 20]

    def metric(logits):
        return refusal_metric(logits, tokens)

    table, _ = score_candidates(grid(Runner(chat_model), candidates, tokens, ARDITI2024))
    assert len(table) == 8
    by_cell = {(int(r.position), r.layer): r for r in table}
    assert by_cell[-2, 1].discarded is Discard.NO_DIFFERENCE
    assert by_cell[-1, 3].bypass is None  # int(0.8 * 4) = 3: never evaluated
    for (position, layer), row in by_cell.items():
        if layer == 3 or (position, layer) == (-2, 1):
            continue
        r = candidates[position + 2, layer]
        unit = r / r.norm()

        def project(h, unit=unit):
            return ablate(h, unit)

        def project_input(at, h, unit=unit):
            return ablate(h, unit)

        def add(at, h, r=r, layer=layer):
            return h + r if at == layer else h

        bypass = torch.cat([metric(plain_logits(chat_model, p, project_input, project)) for p in POSITIVE]).mean()
        induce = torch.cat([metric(plain_logits(chat_model, p, add)) for p in NEGATIVE]).mean()
        kl = torch.cat(
            [
                kl_divergence(plain_logits(chat_model, p), plain_logits(chat_model, p, project_input, project))
                for p in NEGATIVE
            ]
        ).mean()
        assert row.bypass == near(float(bypass))
        assert row.induce == near(float(induce))
        assert row.kl == near(float(kl))


def test_the_interval_of_a_swing(family_model):
    runner, site = Runner(family_model("llama")), Site(Position(-1), 2)
    candidates = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    scores = grid(runner, candidates, [17, 20], BLOG2026)
    before = [scores.scorer.read(s, [BASELINE]).metric[0] for s in (POSITIVE, NEGATIVE)]
    swing = (
        before[0].mean() - scores.values("bypass", [site])[0] + scores.values("induce", [site])[0] - before[1].mean()
    )
    low = swing_low(scores, site)
    assert low < float(swing)
    # More copies of the same prompts: the same swing with less noise.
    more = replace(scores, positive=POSITIVE * 20, negative=NEGATIVE * 20)
    assert low < swing_low(more, site) < float(swing)
    # One prompt has no spread, so that its swing is not above its noise.
    assert swing_low(replace(scores, negative=NEGATIVE[:1]), site) == 0
    (discarded,) = choose([Candidate(Position(-1), 2, -1.0, 1.0, 0.0, swing_low=0.0)], 4, BLOG2026).candidates
    assert discarded.discarded is Discard.WITHIN_NOISE


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("rule", [ARDITI2024, BLOG2026, replace(ARDITI2024, max_kl=0.02, min_induce=-1.2)])
def test_a_lazy_grid_makes_the_choice_of_the_full_one(family, rule, family_model):
    runner = Runner(family_model(family))
    for seed in range(3):
        candidates = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(seed))
        scores = grid(runner, candidates, [17, 20, 33], rule)
        full, lazy = (score_candidates(scores, full_grid=is_full).table for is_full in (True, False))
        chosen, again = choose(full, 4, rule), choose(lazy, 4, rule)
        assert (chosen.selected is None) == (again.selected is None)
        if chosen.selected is not None:
            assert again.selected.position == chosen.selected.position
            assert again.selected.layer == chosen.selected.layer
            assert [(int(t.position), t.layer) for t in again.tied] == [(int(t.position), t.layer) for t in chosen.tied]
        by_cell = {(r.position, r.layer): r for r in full}
        for row in lazy:
            for name in ("bypass", "induce", "kl"):
                score, other = getattr(row, name), getattr(by_cell[row.position, row.layer], name)
                assert score is None or score == near(other)
        # What was left out has its reason, and something was left out.
        assert all(r.discarded for r in again.candidates if r.kl is None and "kl" in rule.needed())
        assert sum(r.kl is None for r in lazy) > sum(r.kl is None for r in full)


def test_near_ties_are_scored_again_in_one_shape(family_model):
    runner = Runner(family_model("llama"))
    candidates = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    candidates[1] = candidates[0]  # the same direction twice: an exact tie up to rounding
    rule = replace(ARDITI2024, max_kl=10.0, min_induce=-100.0)
    table, _ = score_candidates(grid(runner, candidates, [17], rule))
    choice = choose(table, 4, rule)
    assert choice.selected.position == Position(-2)  # the earliest position
    assert choice.selected.rescored
    assert (int(choice.tied[0].position), choice.tied[0].layer) == (-1, choice.selected.layer)
    others = [r for r in table if r.layer not in (3, choice.selected.layer)]
    assert not any(r.rescored for r in others)


@dataclass(frozen=True)
class NoisyScorer(Scorer):
    """Scores in 16 bits: values depend on the shape of the batch by up to `noise`."""

    noise: float = 0.0

    def read(self, sequences, arms, baseline=None):
        values = super().read(sequences, arms, baseline)
        return values._replace(metric=values.metric + self._noise(values.metric))

    def kl(self, sequences, arms, baseline):
        values = super().kl(sequences, arms, baseline)
        return values + self._noise(values)

    def _noise(self, values):
        shape = (self.runner.model.proof.packing_is_exact, self.resumes)
        return self.noise * torch.sin(1e4 * values + hash(shape) % 7)


@pytest.mark.parametrize("full_grid", [True, False])
@pytest.mark.parametrize("noise", [0.0, 4e-5, 2e-3])
def test_rescoring_the_contenders_gives_the_selection_of_rescoring_all(full_grid, noise, family_model, monkeypatch):
    if noise > 1e-4:  # as in 16 bits, where no bound is assumed
        monkeypatch.setattr(ScoreGrid, "assumed_rounding", None)
    runner = Runner(family_model("llama"))
    plain = grid(runner, torch.zeros(4, 4, 32), [17, 20], ARDITI2024)
    plain = replace(
        plain,
        positive=[[*p, i] for p in POSITIVE for i in (5, 6)],
        negative=[[*p, i] for p in NEGATIVE for i in (5, 6, 7)],
    )
    for seed in range(2):
        candidates = torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(seed))
        candidates[2:] = candidates[:2]  # ties up to rounding
        scorer = NoisyScorer(runner, plain.scorer.metric, noise=noise)
        scores = replace(plain, scorer=scorer, candidates=candidates)
        scored = [row for row in score_candidates(scores).table if row.kl is not None]
        max_kl, min_induce = sorted(r.kl for r in scored)[8], sorted(r.induce for r in scored)[2]  # bounds at a score
        scores = replace(scores, rule=replace(ARDITI2024, max_kl=max_kl, min_induce=min_induce))
        table = score_candidates(scores, full_grid=full_grid).table
        again = {row.site: row for row in score_candidates(scores).table}
        sites = [row.site for row in scored]
        for name in ("bypass", "induce", "kl"):
            for site, value in zip(sites, scores.in_one_shape(name, sites), strict=True):
                again[site] = replace(again[site], **{name: value})
        again = list(again.values())
        expected, selected = (choose(rows, 4, scores.rule).selected for rows in (again, table))
        assert selected.site == expected.site
        assert selected.rescored
        assert sum(row.rescored for row in table) < sum(row.bypass is not None for row in again)


def test_equal_candidates_have_equal_scores_in_one_shape(family_model):
    runner = Runner(family_model("llama"), tokens_per_forward=40)
    candidates = torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(0))
    candidates[2:] = candidates[:2]
    scores = grid(runner, candidates, [17], ARDITI2024)
    sites = [row.site for row in scores.rows() if row.discarded is None]
    for name in ("bypass", "induce", "kl"):
        values = scores.in_one_shape(name, sites)
        assert values == [near(v) for v in scores.values(name, sites)]
        assert values[:6] == values[6:]
        assert values[:2] == scores.in_one_shape(name, sites[:2])


def test_a_screen_scores_the_best_estimates_and_all_if_none_of_them_passes(family_model):
    runner = Runner(family_model("llama"))
    candidates = 0.3 * torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(2))
    plain = grid(runner, candidates, [17, 20], replace(ARDITI2024, max_kl=10.0, min_induce=-100.0))
    scores = replace(plain, scorer=Scorer(runner, TokenMetric((17, 20))))
    table = score_candidates(scores, full_grid=False, screen=4).table
    screened_out = [r for r in table if r.discarded is Discard.SCREENED]
    assert len(screened_out) == 8
    assert all(r.induce is None and r.estimates is not None for r in screened_out)
    assert choose(table, 4, scores.rule).selected.discarded is None
    full = score_candidates(scores, full_grid=True, screen=4).table  # the full grid has no screen
    assert all(r.estimates is None and r.discarded is not Discard.SCREENED for r in full)

    # Only a candidate outside of the screen passes: it is found all the same.
    inside = {r.site for r in table if r.estimates is not None} - {r.site for r in screened_out}
    best = max((r for r in full if r.induce is not None and r.site not in inside), key=lambda r: r.induce)
    bound = max(r.induce for r in full if r.site in inside)
    if best.induce > bound:
        strict = replace(scores, rule=replace(scores.rule, min_induce=(best.induce + bound) / 2))
    else:
        strict = replace(scores, rule=replace(scores.rule, min_induce=1e3))
    again = score_candidates(strict, full_grid=False, screen=4).table
    expected = choose(score_candidates(strict, full_grid=True).table, 4, strict.rule).selected
    selected = choose(again, 4, strict.rule).selected
    assert (selected and selected.site) == (expected and expected.site)
    assert not any(r.discarded is Discard.SCREENED for r in again)


@contextmanager
def counted_tokens(chat_model):
    """The number of tokens of every forward pass while the context is active."""
    counts = []
    hook = chat_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
    )
    yield counts
    hook.remove()


@pytest.mark.parametrize("is_16_bit", [False, True])
@pytest.mark.parametrize("screen", [0, 4])
def test_another_bound_on_kl_computes_only_what_depends_on_it(screen, is_16_bit, family_model, monkeypatch):
    if is_16_bit:
        monkeypatch.setattr(ScoreGrid, "assumed_rounding", None)
    model = family_model("llama")
    runner = Runner(model)
    candidates = 0.3 * torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(2))
    rule = replace(ARDITI2024, max_kl=1e-9, min_induce=-100.0)
    first = replace(grid(runner, candidates, [17, 20], rule), scorer=Scorer(runner, TokenMetric((17, 20))))
    with counted_tokens(model) as before:
        table = score_candidates(first, full_grid=False, screen=screen).table
    assert choose(table, 4, rule).selected is None
    scores = sorted(row.kl for row in table if row.kl is not None)
    wider = replace(rule, max_kl=(scores[2] + scores[3]) / 2)
    with counted_tokens(model) as again:
        reused = score_candidates(first.under(wider), full_grid=False, screen=screen)
    with counted_tokens(model) as anew:
        fresh = score_candidates(replace(first, rule=wider), full_grid=False, screen=screen)
    assert reused == fresh  # to the last digit
    assert choose(reused.table, 4, wider).selected is not None
    # The rounding of KL is measured near the bound, and what ties with the selected candidate is scored again.
    assert sum(again) < sum(anew) / 2 < sum(before)
