"""Numbers that were not measured, the progress, and what a plan can show."""

import math
from dataclasses import replace

import pytest
from transformers.utils import logging as transformers_logging

from rhumbline.cli.console import NOT_MEASURED, Progress, Work, _null_rows, ends, interval, number, print_plan
from rhumbline.cli.runs import _print_sites
from rhumbline.evidence.statistics import auroc_interval
from rhumbline.organisms import organism_dir
from rhumbline.presets.protocols import preset
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS
from rhumbline.records.arms import ArmId, ArmKind
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.positions import Position
from rhumbline.records.run_files import Discovery
from rhumbline.records.seed_files import SiteSeparation
from rhumbline.records.shared import ByLabel, ModelFacts
from rhumbline.report import page

MODEL = ModelFacts(
    name="m", cls="M", model_type="m", n_layers=2, d_model=4, dtype="float32", mode="exact", fingerprint="0"
)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_not_a_finite_number_was_not_measured(value):
    assert number(value) == interval(value, 0.1, 0.9) == interval(0.5, value, 0.9) == NOT_MEASURED
    assert ends(value, 0.5) == ends(0.5, value) == NOT_MEASURED
    assert page.number(value) == page.interval(value, 0.1, 0.9) == "—"


@pytest.mark.parametrize("value", [0, 0.0, -0.0, 1, -0.5])
def test_finite_numbers_are_printed(value):
    assert number(value) == page.number(value) == f"{value:z.2f}"
    assert interval(value, value, 2) == f"{value:z.2f} [{value:z.2f}, 2.00]"
    assert page.interval(value, value, 2).startswith(f"<b>{value:z.2f}</b>")


def test_discover_prints_sites_whose_separation_was_not_measured(capsys):
    grid = tuple(
        SiteSeparation(Position(-1), layer, *numbers)
        for layer, numbers in enumerate([(0.75, 0.5, 2.0), (None, None, None)])
    )
    n = ByLabel(8, 8)
    _print_sites(Discovery("val", n, grid, (), seed=0, model=MODEL, train=n))
    measured, unknown = capsys.readouterr().out.splitlines()[2:4]
    low, high = auroc_interval(0.75, 8, 8)
    assert measured.split() == ["-1", "0", "0.750", f"[{low:.3f},", f"{high:.3f}]", "0.500", "2"]
    assert unknown.split() == ["-1", "1", *NOT_MEASURED.split() * 3]


def test_one_bar_shows_the_share_of_the_whole_run(capsys):
    work = [Work("extraction", 10, 100), Work("nulls", 100, 300), Work("extraction", 10, 100), Work("nulls", 100, 500)]
    progress = Progress(work)
    try:
        progress("extraction", None)
        progress("extraction", 5)
        assert progress.finished == 50
        progress("extraction", 20)  # more rows than expected do not count
        assert progress.finished == 100
        progress("nulls", None)
        progress("nulls", 10)
        progress("nulls", None)  # the next part of the same stage
        progress("nulls", 10)
        assert progress.finished == 160
        progress("report", None)  # a stage that is not expected; nulls count as whole
        assert progress.finished == 400
        progress("nulls", None)  # the second seed, whose extraction was resumed
        assert progress.finished == 500
        progress("nulls", 100)
        assert progress.finished == 1000
    finally:
        progress.close()
    printed = capsys.readouterr().err
    assert "nulls: ended early, 20 of 100 expected rows were needed" in " ".join(printed.split())
    assert printed.count("ended early") == 1


def test_the_addition_of_a_null_on_positives_is_shown_as_the_null_of_the_subtraction():
    rows = [
        ArmRate(arm=ArmId.null("isotropic", draw, ArmKind.ADDITION), side=side, n=5, rate=0.2, low=0.0, high=0.6,
                degenerate=0.0, unscored=0, correct=None, metric=None, metric_n=0)
        for side in LABELS for draw in range(2)
    ]  # fmt: skip
    assert [cells[:3] for cells in _null_rows(rows)] == [
        ("isotropic nulls, subtraction", "positive", "2 draws of 5"),
        ("isotropic nulls, addition", "negative", "2 draws of 5"),
    ]


@pytest.mark.parametrize(("protocol", "is_noted"), [
    (preset("rhumbline", nulls=replace(preset("rhumbline").nulls, draws=1)), True),
    (preset("rhumbline"), False),
    (preset("blog2026"), False),  # one draw too, but its rule reads estimates
])  # fmt: skip
def test_the_plan_says_that_one_null_draw_shows_no_gap(protocol, is_noted, capsys):
    print_plan(read_contrast(organism_dir("refusal") / "contrast.jsonl"), protocol)
    assert (
        "no gap to a null family can be shown; use --nulls 2" in " ".join(capsys.readouterr().err.split())
    ) == is_noted


@pytest.mark.parametrize("command", ["train", "plan", "lora"])
def test_nothing_of_transformers_is_printed(command, call, every_stage, tmp_path):
    if command == "lora":
        pytest.importorskip("peft")
    transformers_logging.enable_progress_bar()  # an earlier command may have turned it off
    arguments = {
        "train": ("organism", "train", "planted", "--out", tmp_path / "a" / "b"),
        "plan": ("run", "organism:planted", "--plan", "--quick"),
        "lora": ("export", every_stage, "--to", "lora", "--out", tmp_path / "a" / "b"),
    }
    code, _, messages = call(*arguments[command])
    assert code == 0, messages
    assert "it/s" not in messages
    assert "UserWarning" not in messages
