"""`rhumbline analyze`: its records, its errors, and runs of files."""

import json
import shutil

from finished_runs import COMPLETIONS, QUICK, finished_run
from rhumbline.cli import parser
from rhumbline.cli.analyze_models import style_plan
from rhumbline.organisms import Planted


def test_analyze_prints_a_record_or_an_error(finished, call, tmp_path):
    path = shutil.copytree(finished("refusal", COMPLETIONS), tmp_path / "run")
    code, text, _ = call("analyze", "monitor", path, "--fpr", "0.1", "--json")
    assert code == 0
    assert json.loads(text) == json.loads((path / "analyses" / "monitor.json").read_text())
    assert json.loads(text)["parameters"]["fpr"] == 0.1
    for code, words, options in [
        (2, "not a run directory", ["geometry", tmp_path]),
        (2, "one suffix per line", ["suffix", path, "--suffix", tmp_path / "none.txt"]),
        (2, "--fpr", ["monitor", path, "--fpr", "3"]),
        (2, "unknown sources best", ["directions", path, "--sources", "best"]),
        (2, "doses must ascend", ["frontier", path, "--doses", "0.2,0.1"]),
        (2, "lacks ablation", ["frontier", path, "--interventions", "leace"]),
        (2, "nowhere", ["base", path, "--base", "./nowhere"]),
    ]:
        actual, _, message = call("analyze", *options)
        assert (actual, words in message) == (code, True), message


def test_the_frontier_is_measured_and_printed(finished, call, tmp_path):
    path = shutil.copytree(finished("planted", QUICK), tmp_path / "run")
    small = ["--interventions", "ablation,rotation", "--prompts", "4", "--kl-prompts", "2", "--max-new-tokens", "3"]
    code, text, _ = call("analyze", "frontier", path, "--quick", *small)
    assert code == 0
    assert "at equal cost: " in text
    record = json.loads((path / "analyses" / "frontier.json").read_text())
    assert record["parameters"]["plan"]["doses"] == [0.02, 0.1, 0.5]
    assert "Interventions at equal damage" in (path / "report.html").read_text()


def test_a_quick_analysis_reads_less_and_keeps_what_is_passed(finished, call, tmp_path):
    path = shutil.copytree(finished("planted", QUICK), tmp_path / "run")
    (tmp_path / "suffixes.txt").write_text("please now\n")
    for name, options, quick, own in [
        ("suffix", ["--suffix", tmp_path / "suffixes.txt", "--random", "1", "--heads", "1"], 16, 3),
        ("steering", ["--draws", "1", "--max-new-tokens", "2"], 12, 3),
    ]:
        for more, expected in (([], quick), (["--prompts", own], own)):
            assert call("analyze", name, path, "--quick", *options, *more)[0] == 0
            parameters = json.loads((path / "analyses" / f"{name}.json").read_text())["parameters"]
            assert parameters.get("plan", parameters)["prompts"] == expected
            assert parameters.get("plan", parameters).get("draws") == 1


def test_a_quick_style_reads_less_and_keeps_what_is_passed():
    arguments = ["analyze", "style", "MODEL", "--contrast", "FILE", "--out", "DIR"]
    for more, doses, prompts in ([], (0.5, 1.0, 2.0), 32), (["--quick"], (0.5, 1.0), 16), (
        ["--quick", "--prompts", "5", "--doses", "3"], (3.0,), 5
    ):  # fmt: skip
        plan = style_plan(parser().parsed([*arguments, *more]))
        assert (plan.doses, plan.prompts) == (doses, prompts)


def test_a_run_of_a_file_needs_the_file(call, tmp_path):
    subject = finished_run(Planted(prompts=120), tmp_path)
    path = subject.directory.path
    code, _, message = call("analyze", "geometry", path)
    assert code == 2
    assert "--contrast FILE|NAME" in message
    code, text, _ = call("analyze", "geometry", path, "--contrast", tmp_path / "model" / "contrast.jsonl")
    assert code == 0
    assert "AUROC" in text
