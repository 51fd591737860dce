"""A change of the report page or its figures is named; drawing the page again removes the fault."""

import shutil
from pathlib import Path

import pytest

from changed_runs import edit, seal
from rhumbline import verify
from rhumbline.errors import OutputError
from rhumbline.report.build import build
from rhumbline.verification import check


@pytest.fixture(scope="module")
def drawn_run(every_stage, tmp_path_factory) -> Path:
    """A copy of a finished run with its report, as a run leaves it."""
    copy = Path(shutil.copytree(every_stage, tmp_path_factory.mktemp("drawn") / "run"))
    edit(copy / "results.json", lambda results: results.update(has_page=True))
    seal(copy)
    build(copy)
    return copy


def change_the_page(path):
    page = path / "report.html"
    page.write_text(page.read_text().replace("SINGLE", "DOUBLE", 1))
    return "report.html was changed"


def remove_the_page(path):
    (path / "report.html").unlink()
    return "report.html is missing"


def show_the_report_of_another_run(path):
    edit(path / "report.json", lambda page: page.update(results="0" * 64))
    return "report.html was drawn from other results"


def change_a_figure(path):
    figure = next((path / "figures").glob("*.svg"))
    figure.write_text("<svg/>")
    return f"figures/{figure.name} was changed"


def remove_the_figures(path):
    shutil.rmtree(path / "figures")
    return "is missing"


def remove_the_hashes(path):
    (path / "report.json").unlink()
    return "report.json is missing"


def remove_the_report(path):
    for step in (remove_the_page, remove_the_figures, remove_the_hashes):
        step(path)
    return "report.html is missing: use"


def empty_the_hashes(path):
    (path / "report.json").write_text("{}")
    return "report.json"


def add_a_figure(path):
    (path / "figures" / "best.png").write_bytes(b"")
    return "figures/best.png was added"


REPORT_CHANGES = [change_the_page, remove_the_page, change_a_figure, remove_the_figures, remove_the_hashes,
                  remove_the_report, empty_the_hashes, show_the_report_of_another_run, add_a_figure]  # fmt: skip


@pytest.mark.parametrize("change", REPORT_CHANGES, ids=lambda f: f.__name__)
def test_a_change_of_the_report_is_named(change, drawn_run, tmp_path):
    copy = Path(shutil.copytree(drawn_run, tmp_path / "copy"))
    assert check(copy) == ([], [])
    place = change(copy)
    faults = verify(copy)
    assert any(place in fault for fault in faults), faults


@pytest.mark.parametrize(
    "changes", [(change_the_page, change_a_figure), (remove_the_report,)], ids=["changed", "removed"]
)
def test_drawing_the_report_again_removes_the_faults(changes, drawn_run, tmp_path):
    copy = Path(shutil.copytree(drawn_run, tmp_path / "copy"))
    for change in changes:
        change(copy)
    assert check(copy) != ([], [])
    (copy / "report.json").unlink(missing_ok=True)
    build(copy)
    assert check(copy) == ([], [])


def test_a_changed_list_of_figures_removes_no_other_file(drawn_run, tmp_path):
    copy = Path(shutil.copytree(drawn_run, tmp_path / "copy"))
    old, outside = "figures/old.svg", tmp_path / "outside.svg"
    (copy / old).write_text("")
    outside.write_text("")
    edit(copy / "report.json", lambda page: page["files"].update({old: ""}))
    build(copy)
    assert not (copy / old).exists()
    assert check(copy) == ([], [])
    for name in ("figures/../results.json", "results.json", str(outside), "../outside.svg"):
        listed = (copy / "report.json").read_text()
        edit(copy / "report.json", lambda page, name=name: page["files"].update({name: ""}))
        with pytest.raises(OutputError, match=r"neither report\.html nor a file of figures"):
            build(copy)
        (copy / "report.json").write_text(listed)
    assert outside.exists()
    assert (copy / "results.json").exists()
