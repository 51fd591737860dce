"""A number that was not measured is printed as such, by every command that prints records."""

import math

import pytest

from rhumbline.cli.console import NOT_MEASURED, ends, interval, number
from rhumbline.cli.runs import _print_sites
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
    assert measured.split() == ["-1", "0", "0.750", "0.500", "2"]
    assert unknown.split() == ["-1", "1", *NOT_MEASURED.split() * 3]
