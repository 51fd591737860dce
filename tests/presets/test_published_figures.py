"""The further published figures: complete for the models of the paper, consistent, and compared with intervals."""

import re
from dataclasses import replace

import pytest

from rhumbline.presets.figure_comparison import METRICS, RunFigures, further_rows
from rhumbline.presets.published_figures import FigureKind, published_figures
from rhumbline.presets.published_models import published_model, published_models
from rhumbline.records.arms import ABLATION, BASELINE
from rhumbline.records.directory import RunDirectory
from rhumbline.records.evaluation_files import ComparedScore, Comparison, EvaluationSettings
from rhumbline.records.results import Loss, Results, SideEffects
from rhumbline.records.run_files import FigureStatus
from rhumbline.records.seed_files import Selection

PAPER = [m.name for m in published_models().values() if m.preset == "arditi2024"]
HARMBENCH = {"llama-2-7b", "llama-2-13b", "llama-2-70b", "qwen-7b", "qwen-14b", "qwen-72b"}
RECORDED = {"qwen-1.8b", "yi-6b", "gemma-2b", "llama-2-7b", "llama-3-8b"}


def figures(name, kind):
    return [figure for figure in published_figures(name) if figure.kind is kind]


def test_every_model_of_the_paper_has_every_table_that_lists_it():
    assert len(PAPER) == 13
    for name in PAPER:
        assert len(figures(name, FigureKind.SCORE)) == 3
        assert len(figures(name, FigureKind.LOSS)) == 9  # three texts, three arms
        assert len(figures(name, FigureKind.BENCHMARK)) == 12  # six tasks, with and without the edit
        assert bool(figures(name, FigureKind.HARMBENCH)) == (name in HARMBENCH)
        assert bool(figures(name, FigureKind.RUN_LOSS)) == bool(published_model(name).rates) == (name in RECORDED)
    assert published_figures("qwen2.5-1.5b") == ()


def test_every_figure_has_a_source_and_a_name_of_its_own():
    for name in PAPER:
        of_model = published_figures(name)
        assert len({(f.what, f.source) for f in of_model}) == len(of_model)
        assert all(re.match(r"paper, .*table \d|9d852fa, pipeline", f.source) for f in of_model)


def test_the_figures_are_possible_and_agree_where_two_tables_repeat_them():
    for name in PAPER:
        bypass, induce, kl = (f.value for f in figures(name, FigureKind.SCORE))
        assert bypass < 0 < induce
        assert 0 < kl <= published_model(name).protocol().selection.max_kl  # the paper's conditions
        assert all(0 < f.value < 100 for f in figures(name, FigureKind.BENCHMARK))
        changes = [f.value - f.baseline for f in figures(name, FigureKind.BENCHMARK) if f.baseline is not None]
        assert all(abs(change) < 7 for change in changes)
        paper, run = (
            {f.what.partition(": ")[2]: f for f in figures(name, k)} for k in (FigureKind.LOSS, FigureKind.RUN_LOSS)
        )
        for key, figure in run.items():
            if figure.arm == BASELINE and figure.text != "completions":  # the same texts
                assert figure.value == pytest.approx(paper[key].value, abs=5e-4)
    scores = {(f.arm, f.score): f.value for f in figures("llama-3-8b", FigureKind.REFUSAL)}
    assert scores[BASELINE, "refusal"] == published_model("llama-3-8b").rates["harmful_baseline_refusal"]
    # Table 6, last column: the differences that the paper prints in brackets.
    truthful = {n: figures(n, FigureKind.BENCHMARK)[-1] for n in PAPER}
    printed = [-4.6, -3.7, -2.5, -1.4, -5.9, -3.5, -5.4, -2.4, -3.7, -1.4, -1.0, -3.4, -2.3]
    order = sorted(PAPER, key=lambda n: [*published_models()].index(n))
    assert {n: round(truthful[n].value - (truthful[n].baseline or 0), 1) for n in order} == dict(
        zip(order, printed, strict=True)
    )


@pytest.fixture
def results(texts_run):
    return RunDirectory.read(texts_run).read_record(Results)


def rows_of(results, seed, name="llama-2-7b", **measured):
    figures = RunFigures(replace(results, seeds=(seed,)), **measured)
    return {row.what: row for row in further_rows(published_model(name), figures, seed)}


def with_losses(seed, change, low, high):
    losses = tuple(
        Loss("text", arm, documents=9, tokens=99, ce=2.3 + by, perplexity=9.0, change=by, low=low, high=high)
        for arm, by in ((BASELINE, 0.0), (ABLATION, change))
    )
    return replace(seed, side_effects=SideEffects(losses=losses, kl=(), left_out=0, negatives=()))


def test_a_loss_agrees_by_its_change_and_states_its_interval(results):
    (seed,) = results.seeds
    near = rows_of(results, with_losses(seed, 0.0, -0.02, 0.02))  # published: 2.214 - 2.220
    assert near["cross-entropy: text, ablation"].status is FigureStatus.AGREES
    assert near["cross-entropy: text, ablation"].low == pytest.approx(2.28)
    assert near["cross-entropy: text, baseline"].status is FigureStatus.NO_INTERVAL
    far = rows_of(results, with_losses(seed, 0.5, 0.4, 0.6))
    assert far["cross-entropy: text, ablation"].status is FigureStatus.DIFFERS
    lacking = far["cross-entropy: responses, ablation"]
    assert lacking.status is FigureStatus.NOT_MEASURED
    assert "Alpaca" in lacking.needs


def compared(task, score, change, n=900, **settings):
    known = {"limit": None, "fewshot": None, "chat": False, "tasks": {}, "versions": {}, "seed": 0, **settings}
    metric, name = METRICS[task]
    rows = [
        ComparedScore(task, metric, name, BASELINE, n, score - change, None, None, None, None, None),
        ComparedScore(task, metric, name, ABLATION, n, score, change, change - 0.01, change + 0.01, None, None),
    ]
    return Comparison("", EvaluationSettings(**known), tuple(rows))


def test_a_benchmark_is_compared_in_percent_and_only_with_the_settings_of_the_paper(results):
    (seed,) = results.seeds
    same = compared("mmlu", 0.468, -0.007, seed=seed.seed)  # published: 46.8, 47.5
    rows = rows_of(results, seed, evaluations=(same,))
    assert rows["benchmark: mmlu, baseline"].measured == pytest.approx(47.5)
    assert rows["benchmark: mmlu, baseline"].status is rows["benchmark: mmlu, ablation"].status is FigureStatus.AGREES
    worse = rows_of(results, seed, evaluations=(compared("mmlu", 0.368, -0.107, seed=seed.seed),))
    assert worse["benchmark: mmlu, ablation"].status is FigureStatus.DIFFERS
    for settings in ({"chat": True}, {"fewshot": 1}, {"seed": seed.seed + 1}):
        other = rows_of(
            results, seed, evaluations=(compared("mmlu", 0.468, -0.007, **{"seed": seed.seed, **settings}),)
        )
        assert other["benchmark: mmlu, ablation"].status is FigureStatus.NOT_MEASURED
    assert "estimate of the harness" in rows["benchmark: tinyHellaswag, ablation"].needs


def test_a_score_is_that_of_the_published_site(results, texts_run):
    (seed,) = results.seeds
    selection = RunDirectory.read(texts_run).read_record(Selection, seed.seed)
    at = next(c for c in selection.candidates if c.kl is not None)
    m = replace(published_model("llama-2-7b"), selected=(int(at.position), at.layer))
    figures = RunFigures(results, selections={seed.seed: selection})
    rows = {row.what: row for row in further_rows(m, figures, seed)}
    assert rows["score of the selected direction: kl"].measured == at.kl
    nowhere = replace(m, selected=(-99, 0))
    rows = {row.what: row for row in further_rows(nowhere, figures, seed)}
    assert rows["score of the selected direction: kl"].status is FigureStatus.NOT_MEASURED


def test_attack_success_needs_its_prompts_and_its_judge(results):
    (seed,) = results.seeds
    rows = rows_of(results, seed)
    for condition in (
        "default system prompt, ablation",
        "no system prompt, ablation",
        "default system prompt, baseline",
    ):
        row = rows[f"HarmBench attack success: {condition}"]
        assert row.status is FigureStatus.NOT_MEASURED
        assert "--contrast refusal-harmbench" in row.needs
