"""Robustness of planted models: one direction removes one axis, and not three."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from rhumbline import load, read_contrast
from rhumbline.analyses import robustness
from rhumbline.analyses.least_damage import _Study
from rhumbline.analyses.robustness import compare, measure
from rhumbline.analyses.trajectory_kl import Trajectories
from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE
from rhumbline.inference.runner import Runner
from rhumbline.organisms import Planted, build
from rhumbline.organisms.files import CONTRAST
from rhumbline.records.shared import BySplit, Site
from rhumbline.records.sheet_files import RobustnessPlan
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
