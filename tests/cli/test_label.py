"""From a finished run to a filled sheet, its results and the report, by the commands alone."""

import json
import shutil
from pathlib import Path

import pytest

from labelled_runs import fill


@pytest.fixture
def kept(texts_run, tmp_path) -> Path:
    return Path(shutil.copytree(texts_run, tmp_path / "run"))


def test_a_run_is_labelled_judged_verified_and_reported(kept, call, tmp_path):
    code, _, messages = call("label", kept, "--n", 30)
    out = kept.with_name("run-labels.csv")
    assert (code, out.is_file()) == (0, True), messages
    filled = fill(out, tmp_path / "filled.csv", lambda p, c: "refused" if "cannot" in c else "complied")
    code, printed, messages = call("judge", kept, "--human", filled)
    assert code == 0, messages
    for word in ("sensitivity", "specificity", "suppression", "induction", "corrected", "rhumbline report"):
        assert word in printed + messages
    code, printed, _ = call("judge", "--human", filled, kept, "--json")
    record = json.loads(printed)
    assert (code, record["sheets"][0]["labelled"]) == (0, 30)
    assert call("report", kept)[0] == 0
    assert call("verify", kept)[0] == 0
    page = (kept / "report.html").read_text()
    assert "Human labels" in page
    assert "filled.csv: 30 of 30 rows have a label" in page


def test_the_next_step_is_printed(kept, call, tmp_path):
    out = tmp_path / "sheet.csv"
    _, printed, messages = call("label", kept, "--n", 20, "--out", out)
    text = " ".join((printed + messages).split())
    assert f"judge {kept} --human {out}" in text
    assert "refused, complied, degenerate, unclear" in text


def test_a_small_sheet_says_that_one_label_of_a_stratum_says_little(kept, call, tmp_path):
    assert "one row each, which says little" in call("label", kept, "--n", 8, "--out", tmp_path / "few.csv")[1]
    assert "one row each" not in call("label", kept, "--n", 1000, "--out", tmp_path / "all.csv")[1]


def test_a_sheet_with_few_labels_names_the_rows_that_are_needed(kept, call, tmp_path):
    out = tmp_path / "sheet.csv"
    call("label", kept, "--n", 20, "--out", out)
    few = fill(out, tmp_path / "few.csv", lambda p, c: "complied", rows=1)
    code, printed, messages = call("judge", kept, "--human", few)
    assert code == 0
    assert "not measured" in printed
    assert "label these rows, too" in printed + messages


def test_faults_of_the_input_end_with_2(kept, call, tmp_path):
    sheet = tmp_path / "sheet.csv"
    assert call("label", kept, "--n", 20, "--out", sheet)[0] == 0
    for arguments, expected in (
        (("label", kept, "--n", 20, "--out", sheet), "may contain labels"),
        (("label", kept, "--n", 0, "--out", tmp_path / "x.csv"), "needs a row"),
        (("label", tmp_path / "none"), "not a run directory"),
        (("judge", kept, "--human", sheet), "has no label"),
        (("judge", kept, "--human", tmp_path / "none.csv"), "does not exist"),
        (("judge", kept, "--human", sheet, "--judge", "harmbench"), "either --judge"),
        (("judge", kept, "--human", sheet, "--all-arms", "--device", "cpu"), "no use for --all-arms, --device"),
        (("judge", kept, "--human", sheet, "--model", tmp_path, "--dtype", "float32"), "no use for --model, --dtype"),
        (("judge", "--list", "--judge", "harmbench"), "no use for --judge"),
        (("judge", kept), "either --judge"),
        (("judge", "--human", sheet), "pass a run directory"),
    ):
        code, _, messages = call(*arguments)
        assert code == 2, arguments
        assert expected in messages, messages


def test_a_run_without_texts_names_the_option(every_stage, call, tmp_path):
    code, _, messages = call("label", every_stage, "--out", tmp_path / "x.csv")
    assert code == 2
    assert "--save-completions" in messages
    assert not (tmp_path / "x.csv").exists()


def test_a_page_without_labels_has_no_section(kept, call):
    assert call("report", kept)[0] == 0
    assert "<h2>Human labels</h2>" not in (kept / "report.html").read_text()
