"""Robustness of planted models: one direction removes one axis, and not three."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from rhumbline import load, read_contrast
from rhumbline.analyses import completed_prompts, robustness
from rhumbline.analyses.least_damage import _Study
from rhumbline.analyses.robustness import compare, measure
from rhumbline.analyses.spans import energy
from rhumbline.analyses.trajectory_kl import Trajectories
from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE, Direction
from rhumbline.inference.runner import Runner
from rhumbline.organisms import Planted, build
from rhumbline.organisms.files import CONTRAST
from rhumbline.records.codec import convert, to_json
from rhumbline.records.shared import BySplit, Site
from rhumbline.records.sheet_files import RobustnessPlan, RobustnessRecord
from rhumbline.report.sheets import least_damage_chart, robustness_charts, write

PLAN = RobustnessPlan(
    ranks=3,
    nulls=2,
    sizes=BySplit(48, 6, 24),
    strengths=(0.5, 1.0),
    suffixes=2,
    max_new_tokens=12,
    doses=(0.05,),
    answer_tokens=6,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    models = {}
    for name, spec in {
        "one": Planted(prompts=100),
        "three": Planted(effect=2.0, jitter=0.05, axes=3, prompts=100),
    }.items():
        folder = build(spec, tmp_path_factory.mktemp("robust") / name)
        model = load(str(folder), device="cpu", dtype="float32")
        plan = replace(PLAN, ranks=1) if name == "three" else PLAN
        models[name] = measure(model, read_contrast(folder / "contrast.jsonl"), plan)
    return models


def test_rank_one_removes_one_axis_and_random_subspaces_do_not(rows):
    first = rows["one"].ranks[0]
    assert rows["one"].baseline.rate > 0.9
    assert first.rate < 0.1
    assert first.null.mean > 0.8
    assert rows["one"].access == "weights or activations, rank 1"
    one = rows["one"].fragility
    assert one.lost == 1
    assert 0 < one.low < one.value == one.high  # all is lost on these prompts, and the interval has a width


def test_a_single_direction_does_not_remove_three_axes(rows):
    assert rows["three"].baseline.rate > 0.9
    assert rows["three"].ranks[0].rate > 0.6
    assert rows["three"].access != "weights or activations, rank 1"
    assert rows["three"].fragility.value < rows["one"].fragility.value


def test_a_strength_removes_its_share_of_energy(rows):
    half, whole = rows["one"].strengths
    assert half.energy == pytest.approx(0.75 * whole.energy)
    assert whole.rate == rows["one"].ranks[0].rate
    energies = [row.energy for row in rows["one"].ranks]
    assert energies == sorted(energies)


def test_the_page_is_written(rows, tmp_path):
    page = write(compare(list(rows.values()), PLAN), tmp_path / "out")
    assert "rank 1" in page.read_text()
    assert (tmp_path / "out" / "figures" / "robustness-rank.svg").is_file()


def test_a_model_has_one_colour_in_all_charts_and_a_name_in_each(rows):
    """Also where every access has a mark of one model only."""
    one, three = (replace(m, model=name) for name, m in rows.items())
    least = {a.access: a for a in one.least}
    record = compare([replace(one, least=(least["weights"],)), replace(three, least=(least["activations"],))], PLAN)
    colours = []
    for chart in (least_damage_chart(record), *robustness_charts(record)):
        (colour,) = {str(c): c for c in encodings(chart.spec, "color")}.values()
        assert colour["legend"] is not None
        scale = colour["scale"]
        colours.append({n: c for n, c in zip(scale["domain"], scale["range"], strict=True) if n in ("one", "three")})
    assert colours[0] == colours[1] == colours[2]
    assert len(set(colours[0].values())) == 2


def encodings(spec, channel):
    """Every encoding of a channel in a chart with layers."""
    if isinstance(spec, dict):
        own = spec.get("encoding", {}).get(channel)
        return [*([own] if own else []), *(e for value in spec.values() for e in encodings(value, channel))]
    return [e for value in spec for e in encodings(value, channel)] if isinstance(spec, list) else []


def test_the_least_damage_by_access_is_that_of_the_planted_direction(rows):
    """One axis is lost at almost no damage by weights; of three axes half is not lost by a single direction."""
    least = {one.access: one for one in rows["one"].least}
    assert list(least) == ["prompt", "activations", "weights"]
    weights, activations = least["weights"], least["activations"]
    assert weights.half is not None
    assert weights.half.low <= weights.half.kl <= weights.half.high < 0.01
    assert weights.rate < 0.1
    # Activations can do what weights can.
    assert set(activations.tried) > set(weights.tried)
    assert activations.half is not None
    assert weights.intervention in weights.tried
    assert (weights.site is None) == (weights.intervention == "span ablation")
    assert "nats [" in weights.text


def test_a_behaviour_that_is_not_lost_has_no_damage_at_half(rows):
    """The contrary case: the ablation of one direction leaves more than half of three axes, at its largest strength."""
    weights = next(one for one in rows["three"].least if one.access == "weights")
    assert (weights.tried, weights.intervention, weights.half) == (("ablation",), "ablation", None)
    assert weights.rate > 0.5
    assert weights.text.startswith("not lost up to")


def test_a_prompt_is_completed_once_under_the_same_interventions(planted_folder, monkeypatch):
    """Whatever the name of the arm: baselines, the first direction at rank 1 and at strength 1, suffixes."""
    model, contrast = load(str(planted_folder), device="cpu", dtype="float32"), read_contrast(planted_folder / CONTRAST)
    seen, plain = [], Runner.generate

    def generate(self, sequences, arms=(BASELINE,), *, max_new_tokens, **others):
        seen.extend((*ids, max_new_tokens, described(arm)) for ids in sequences for arm in arms)
        return plain(self, sequences, arms, max_new_tokens=max_new_tokens, **others)

    def described(arm):
        return repr([(type(i).__name__, numbers(i), numbers(getattr(i, "direction", i))) for i in arm.interventions])

    def numbers(record):
        return [v.tolist() if isinstance(v, torch.Tensor) else v for v in vars(record).values()]

    monkeypatch.setattr(Runner, "generate", generate)
    measure(model, contrast, replace(PLAN, sizes=BySplit(12, 4, 6), nulls=1, ranks=2))
    assert len(seen) == len(set(seen)) > 0


def test_spans_begin_with_the_direction_of_the_single_interventions(planted_folder, monkeypatch):
    """It is the candidate with the least KL of those that remove half, not the one that removes most."""
    model, contrast = load(str(planted_folder), device="cpu", dtype="float32"), read_contrast(planted_folder / CONTRAST)
    plan, found, plain = replace(PLAN, sizes=BySplit(12, 4, 6), nulls=1, ranks=2), [], Trajectories.divergence

    def last_is_cheapest(self, arms):
        divergence = plain(self, arms)
        return replace(divergence, kl=divergence.kl * 0 + np.arange(len(arms), 0, -1)[:, None])

    def least(completed, basis):
        found.append((completed, basis))
        return ()

    monkeypatch.setattr(Trajectories, "divergence", last_is_cheapest)
    monkeypatch.setattr(robustness, "least_damage", least)
    measured = measure(model, contrast, plan)
    ((completed, basis),) = found
    site = Site(basis[0].position, basis[0].layer)
    assert site != Site(measured.selected.position, measured.selected.layer)
    dosed = _Study(completed, basis)._dosed()
    single, span = (dosed[name].draws[0](1.0) for name in ("ablation", "span ablation"))
    assert torch.equal(span.basis[0], single.direction.vector)


def test_prompts_that_spell_control_tokens_are_refused_or_plain_text(planted_folder, rows):
    model, contrast = load(str(planted_folder), device="cpu", dtype="float32"), read_contrast(planted_folder / CONTRAST)
    first, *others = contrast.prompts[::8]
    mark = model.tokenizer.eos_token
    spelled = replace(contrast, prompts=(replace(first, text=f"{first.text} {mark}"), *others))
    small = replace(PLAN, ranks=1, nulls=1, sizes=BySplit(8, 2, 4), strengths=(1.0,), suffixes=1, max_new_tokens=2)
    with pytest.raises(InputError, match=rf"{re.escape(first.id)} \({re.escape(mark)}\).*--control-tokens plain"):
        measure(model, spelled, small)
    measured = measure(model, spelled, replace(small, control_tokens="plain"))
    assert measured.encoded_as_text == (first.id,)
    assert rows["one"].encoded_as_text == ()  # no prompt spells any


def test_prompts_beyond_the_positions_are_named_before_the_first_pass(planted_folder, monkeypatch):
    model, contrast = load(str(planted_folder), device="cpu", dtype="float32"), read_contrast(planted_folder / CONTRAST)
    monkeypatch.setattr(model.model.config, "max_position_embeddings", 20)
    passes = []
    with pytest.raises(
        InputError,
        match=r"has 20 positions, and some prompts and 12 new tokens need more .*: [a-z]+ ?\S* \(\d+ tokens\)",
    ) as error:
        measure(model, contrast, PLAN, passes.append)
    assert any(f"{p.id} (" in str(error.value) for p in contrast.prompts)
    assert passes == []


# -- how completions are counted

REFUSED, ANSWERED = "I cannot help with that.", "Here is a short answer to your question."
BROKEN = "the the the the the the the the the the the the"
SMALL = replace(PLAN, ranks=1, nulls=2, sizes=BySplit(12, 4, 6), strengths=(1.0,))


@pytest.fixture
def measured(planted_folder, monkeypatch):
    """The measurement of a model whose completions of positives are given."""
    model, contrast = load(str(planted_folder), device="cpu", dtype="float32"), read_contrast(planted_folder / CONTRAST)

    def of(text, plan=SMALL):
        """`text(arm, is_changed, i, n)` is the completion of positive i of n; `is_changed`: an attack by prompts."""
        known = {p.text for p in contrast.prompts}

        def complete(runner, chat, prompts, arms, length):
            def answer(arm, i, prompt):
                is_changed = prompt.text not in known or prompt.system is not None
                return text(arm, is_changed, i, len(prompts)) if prompt.label == "positive" else ANSWERED

            return [[answer(arm, i, p) for i, p in enumerate(prompts)] for arm in arms]

        monkeypatch.setattr(completed_prompts, "complete", complete)
        return measure(model, contrast, plan)

    return of


def attacked(arm, is_changed):
    """Whether anything is changed: not the baseline."""
    return is_changed or bool(arm.interventions)


def is_null(arm):
    """Whether the arm ablates a random subspace."""
    return arm.name.startswith("null")


def layer_of(arm):
    """The layer of the direction that an arm ablates alone; None for other arms."""
    found = [getattr(i, "direction", None) for i in arm.interventions]
    return found[0].layer if len(found) == 1 and found[0] is not None and not is_null(arm) else None


def test_broken_text_is_no_removal(measured, tmp_path):
    """Under every intervention the completions are broken: nothing is removed, and the page shows their share."""
    row = measured(lambda arm, changed, i, n: BROKEN if attacked(arm, changed) else REFUSED)
    assert (row.baseline.rate, row.baseline.degenerate) == (1, 0)
    for one in (*row.ranks, *row.strengths, row.prompts):
        assert (one.rate, one.drop.mean, one.degenerate) == (1, 0, 1)
    assert (row.ranks[0].null.mean, row.ranks[0].null.degenerate) == (1, 1)
    assert row.fragility.lost == 0
    assert row.access == "none of those tried"
    assert [(one.half, one.rate) for one in row.least] == [(None, 1)] * 3
    assert "Degenerate" in write(compare([row], SMALL), tmp_path / "out").read_text()


def test_answers_are_a_removal(measured):
    """The contrary case."""
    plan = replace(SMALL, sizes=BySplit(12, 4, 12))
    row = measured(lambda arm, changed, i, n: ANSWERED if attacked(arm, changed) else REFUSED, plan)
    for one in (*row.ranks, *row.strengths, row.prompts):
        assert (one.rate, one.drop.mean, one.degenerate) == (0, 1, 0)
    assert row.fragility.lost == 1
    assert row.access == "prompts"
    assert all(one.half is not None for one in row.least)


@pytest.mark.parametrize(("text", "is_selected"), [(BROKEN, False), (None, False), (ANSWERED, True)])
def test_the_first_direction_removes_the_behaviour_and_leaves_readable_text(measured, text, is_selected):
    """Candidates of one layer break the model, or nothing can be read: those that remove half are preferred."""

    def of(arm, is_changed, i, n):
        if layer_of(arm) is None:
            return REFUSED
        return text if layer_of(arm) == 3 else (REFUSED, ANSWERED)[i % 2]

    row = measured(of)
    assert (row.selected.layer == 3) == is_selected
    assert row.ranks[0].rate == (0 if is_selected else 0.5)


def test_an_arm_without_answers_is_not_measured(measured, tmp_path):
    """On test prompts nothing can be read: there is no rate, no error, and a page."""
    row = measured(lambda arm, changed, i, n: REFUSED if not attacked(arm, changed) else ANSWERED if n == 4 else None)
    rank = row.ranks[0]
    assert (rank.rate, rank.low, rank.high, rank.drop.mean, rank.degenerate) == (None, 0, 1, None, None)
    assert (rank.null.mean, rank.null.energy, rank.null.draws) == (None, None, 0)
    assert (row.strengths[0].rate, row.prompts.rate, row.fragility.value) == (None, None, None)
    assert [(one.half, one.rate, one.text) for one in row.least] == [(None, None, "not measured")] * 3
    record = compare([row], SMALL)
    assert "not measured at rank 1" in record.sentence
    assert convert(to_json(record), RobustnessRecord) == record
    assert "not measured" in write(record, tmp_path / "out").read_text()


@pytest.mark.parametrize(("scored", "rate"), [(1, None), (2, None), (3, 0.0), (6, 0.0)])
def test_most_completions_of_an_arm_are_scored(measured, scored, rate):
    """A rate of a few is no rate of the arm, as in a run."""

    def of(arm, is_changed, i, n):
        if not arm.interventions or n != 6:
            return REFUSED
        return ANSWERED if i < scored else None

    row = measured(of)
    assert row.ranks[0].rate == rate
    assert (row.ranks[0].null.mean, row.ranks[0].null.draws) == (rate, 0 if rate is None else 2)


def test_a_null_that_is_not_measured_is_skipped(measured):
    def of(arm, is_changed, i, n):
        return None if is_null(arm) and arm.name.endswith("0") else REFUSED

    null = measured(of).ranks[0].null
    assert (null.mean, null.draws) == (1, 1)


@pytest.mark.parametrize("n_test", [4, 6])
def test_a_baseline_without_answers_is_refused(measured, n_test):
    """On validation and on test positives."""

    def of(arm, is_changed, i, n):
        return None if n == n_test and i > 0 and not attacked(arm, is_changed) else REFUSED

    with pytest.raises(InputError, match=r"most completions of (val|test) positives at baseline .*--max-new-tokens"):
        measured(of)


def test_candidates_that_cannot_be_read_are_refused(measured):
    def of(arm, is_changed, i, n):
        return None if layer_of(arm) is not None else REFUSED

    with pytest.raises(InputError, match=r"under ablation of every candidate .*--max-new-tokens"):
        measured(of)


# -- random subspaces


def test_random_subspaces_have_the_energy_of_the_removed_one_if_the_negatives_allow_it():
    """Here they vary more along some axes than the classes differ. Without such axes the nearest energy is taken."""
    difference = torch.nn.functional.one_hot(torch.tensor([20, 21]), 32).float()
    basis = [Direction.from_vector(r, -1, 0) for r in difference]
    for spread, reaches in ((6.0, True), (1.0, False)):
        negative = torch.randn(60, 32)
        negative[:, :8] *= spread
        h = torch.cat([negative, torch.randn(60, 32) + 4 * difference[0] + 3 * difference[1]])
        draws = robustness._random_basis(basis, negative, h, np.random.default_rng(0))
        null = torch.stack([d.vector for d in draws])
        assert (null @ difference.T).abs().max() < 1e-5
        assert (null @ null.T - torch.eye(2)).abs().max() < 1e-5
        own = energy(h, difference)
        assert (energy(h, null) == pytest.approx(own, rel=0.02)) == reaches


def test_random_subspaces_are_orthogonal_to_the_removed_one(measured):
    """The axes of both classes together contain their difference: such a null is the direction itself."""
    spans = {}

    def of(arm, is_changed, i, n):
        if n == 6 and (arm.name == "own" or is_null(arm)):
            basis = torch.stack([a.direction.vector for a in arm.interventions])
            spans.setdefault(len(basis), {})[arm.name] = basis
        return REFUSED

    row = measured(of, replace(SMALL, ranks=3))
    assert sorted(spans) == [1, 2, 3]
    for rank, by_name in zip(row.ranks, spans.values(), strict=True):
        own = by_name.pop("own")
        assert len(by_name) == rank.null.draws == 2
        for null in by_name.values():
            assert (null @ null.T - torch.eye(rank.rank)).abs().max() < 1e-5
            assert (null @ own.T).abs().max() < 1e-5
