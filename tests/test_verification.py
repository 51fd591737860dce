"""A finished run verifies; a changed, malformed or contradictory file is named, and runs of version 0.1 are noted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from changed_runs import edit, edit_row, seal
from make_run import make_run
from rhumbline import verify
from rhumbline.errors import OutputError
from rhumbline.records.directory import RunDirectory
from rhumbline.records.shared import NearDuplicates
from rhumbline.report.run_record import read_summary
from rhumbline.verification import _warnings, check

NO_REPORT = "there is no report"


@pytest.fixture
def run_copy(every_stage, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(every_stage, tmp_path / "copy"))


# -- changes ----------------------------------------------------------------------------------------------------------


def change_row(path):
    edit_row(
        path / "seed-0/outcomes.jsonl",
        3,
        lambda row: row.update({"class": "complied" if row["class"] == "refused" else "refused"}),
    )
    return "seed-0/outcomes.jsonl"


def change_score(path):
    def lower(selection):
        next(c for c in selection["candidates"] if c["bypass"] is not None)["bypass"] = -18.0

    edit(path / "seed-1/selection.json", lower)
    return "seed-1/selection.json"


def change_vector(path):
    file = path / "seed-0" / "directions.safetensors"
    tensors = load_file(file)
    tensors["candidates"][0, 0, 0] += 1e-3
    save_file(tensors, file)
    return "seed-0/directions.safetensors"


def change_rate(path):
    edit(path / "results.json", lambda results: results["seeds"][0]["arms"][0].update(rate=0.5))
    return "baseline/positive]: rate"


def change_verdict(path):
    text = (path / "results.json").read_text().replace("SINGLE-DIRECTION-REPRODUCES", "NOT-SINGLE-DIRECTION")
    (path / "results.json").write_text(text)
    return "verdict"


def change_protocol(path):
    text = (path / "protocol.json").read_text().replace('"min_drop": 0.5', '"min_drop": 0.4')
    (path / "protocol.json").write_text(text)
    return "protocol.json"


def change_wide_nulls(path):
    text = (path / "seed-1" / "wide.json").read_text()
    (path / "seed-1" / "wide.json").write_text(text.replace("1", "2", 1))
    return "seed-1/wide.json"


def remove_a_file(path):
    (path / "seed-0" / "nulls.json").unlink()
    return "seed-0/nulls.json"


def replace_an_analysis_by_another_form(path):
    (path / "analyses").mkdir()
    sha256 = json.loads((path / "results.json").read_text())["protocol_sha256"]
    (path / "analyses" / "geometry.json").write_text(json.dumps({"protocol_sha256": sha256}))
    return "analyses/geometry.json is damaged"


def add_a_file_to_the_quick_run(path):
    (path / "quick").mkdir()
    (path / "quick" / "notes.txt").write_text("")
    return "quick/ was added"


def change_the_quick_run(path):
    shutil.copytree(path, path.parent / "quick")
    shutil.move(path.parent / "quick", path / "quick")
    change_row(path / "quick")
    return "quick/: seed-0/outcomes.jsonl was changed"


def write_a_second_verdict(path):
    file = path / "results.json"
    file.write_text(file.read_text().replace('"schema": 1', '"verdict": "DAMAGED", "schema": 1', 1))
    return "'verdict' occurs twice"


def replace_a_file_by_a_link(path):
    file = path / "seed-0" / "nulls.json"
    file.rename(path.parent / "nulls.json")
    file.symlink_to(path.parent / "nulls.json")
    return "seed-0/nulls.json is a link"


def truncate_the_directions(path):
    file = path / "seed-0" / "directions.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    return "seed-0/directions.safetensors"


def nest_a_file_deeply(path):
    (path / "seed-0" / "nulls.json").write_text("[" * 200_000)
    return "seed-0/nulls.json"


def nest_the_results_deeply(path):
    (path / "results.json").write_text("[" * 200_000)
    return "results.json"


def truncate_the_protocol(path):
    (path / "protocol.json").write_text('{"schema": 1')
    return "protocol.json"


def truncate_the_timings(path):
    file = path / "timings.json"
    file.write_bytes(file.read_bytes()[:20])
    return "timings.json is damaged"


def damage_an_analysis(path):
    (path / "analyses").mkdir()
    (path / "analyses" / "geometry.json").write_text("[" * 200_000)
    return "analyses/geometry.json is damaged"


def damage_judgements(path):
    (path / "judgements").mkdir()
    (path / "judgements" / "a.jsonl").write_text('{"a": 1}\n{"b"')
    return "judgements/a.jsonl is damaged"


def forge_everything(path):
    """A row is changed, and all hashes fit: the rates differ from the recomputed ones."""
    change_row(path)
    seal(path)
    return "recomputed from the rows"


def forge_the_selection(path):
    """A score is changed, and all hashes fit: the rule selects another candidate."""
    change_score(path)
    seal(path)
    return "selection.json: the rule selects"


def forge_a_sentence(path):
    edit(path / "results.json", lambda results: results.update(sentence="All is well."))
    seal(path)
    return "results.json: sentence is 'All is well.'"


CHANGES = [change_row, change_score, change_vector, change_rate, change_verdict, change_protocol, change_wide_nulls,
           remove_a_file, replace_a_file_by_a_link, truncate_the_directions, nest_a_file_deeply,
           nest_the_results_deeply, truncate_the_protocol, truncate_the_timings, damage_an_analysis, damage_judgements,
           forge_everything, forge_the_selection, forge_a_sentence, replace_an_analysis_by_another_form,
           add_a_file_to_the_quick_run, change_the_quick_run, write_a_second_verdict]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_one_change_is_found_and_named(change, run_copy):
    place = change(run_copy)
    faults = verify(run_copy)
    assert any(place in fault for fault in faults), faults


ADDED = [
    ("seed-0/losses-other.jsonl", "", "was added"),
    ("notes.txt", "", "was added"),
    ("seed-1/.rows", "", "was added"),
    ("analyses/x.py", "", "was added"),
    ("analyses/other.json", "{}", "was added"),
    ("evaluations/a/b/c/arm.json", "{}", "was added"),
    ("judgements/labels-7.csv", "row,label", "was added"),
    ("analyses/geometry.json", '{"protocol_sha256": "0"}', "is damaged"),
    ("reproduction.json", "5", "is damaged"),
    (".lock", "x", "has content"),
]


@pytest.mark.parametrize(("name", "content", "fault"), ADDED)
def test_an_added_file_is_named(name, content, fault, run_copy):
    (run_copy / name).parent.mkdir(parents=True, exist_ok=True)
    (run_copy / name).write_text(content)
    assert any(found.startswith(f"{name} {fault}") for found in verify(run_copy)), verify(run_copy)


def nudged(value, factor):
    """JSON with every number that has a fraction multiplied by a factor."""
    if isinstance(value, dict):
        return {key: nudged(inner, factor) for key, inner in value.items()}
    if isinstance(value, list):
        return [nudged(inner, factor) for inner in value]
    return value * factor if isinstance(value, float) else value


@pytest.mark.parametrize(("factor", "is_same"), [(1 + 1e-14, True), (1 - 1e-14, True), (1 + 1e-6, False)])
def test_the_rounding_of_another_processor_is_no_fault(factor, is_same, run_copy):
    edit(run_copy / "results.json", lambda results: results.update(nudged(results, factor)))
    seal(run_copy)
    assert (verify(run_copy) == []) == is_same


def test_the_log_of_jobs_of_other_processes_is_no_fault(run_copy):
    """`--engine processes` and `ray` write it; that a run was made in jobs changes no number."""
    (run_copy / "jobs.log").write_text('{"job": "outcomes 0", "worker": "process 7"}\n')
    assert verify(run_copy) == []
    (run_copy / "other.log").write_text("")
    assert verify(run_copy) == ["other.log was added after the run ended"]


def test_without_a_change_there_is_no_fault(run_copy):
    assert check(run_copy) == ([], [NO_REPORT])
    seal(run_copy)
    assert verify(run_copy) == []


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(OutputError, match="not the directory of a finished run"):
        verify(tmp_path)


# -- malformed and contradictory files --------------------------------------------------------------------------------


def no_number(row):
    row["metric"] = "large"


def no_arm(row):
    row["arm"] = "oblation"


def no_draw(nulls):
    del nulls["nulls"][0]["draw"]


def no_positions(extraction):
    extraction["positions"] = "all"


def no_rule(results):
    results["rule"] = 3


def no_files(results):
    results["files"] = ["protocol.json"]


def no_seeds(results):
    results["seeds"] = None


def no_seconds(timings):
    timings["stages"][0]["seconds"] = "long"


def negative_seconds(timings):
    timings["stages"][0]["cpu_seconds"] = -1


def no_stages(timings):
    del timings["stages"]


def another_schema(record):
    record["schema"] = 2


def fewer_nulls(nulls):
    del nulls["nulls"][0]


def fewer_prompts(wide):
    wide["rows"][1]["metric"] = wide["rows"][1]["metric"][:-1]


MALFORMED = [
    ("seed-0/outcomes.jsonl", no_number, "outcomes.jsonl"),
    ("seed-0/outcomes.jsonl", no_arm, "oblation"),
    ("seed-0/nulls.json", no_draw, "draw"),
    ("seed-1/extraction.json", no_positions, "extraction.json"),
    ("results.json", no_rule, "results.json: rule"),
    ("results.json", no_files, "files is not an object"),
    ("results.json", no_seeds, "results.json: seeds"),
    ("timings.json", no_seconds, "timings.json is damaged"),
    ("timings.json", negative_seconds, "negative"),
    ("timings.json", no_stages, "timings.json is damaged"),
    ("results.json", another_schema, "results.json: schema is 2"),
    ("protocol.json", another_schema, "version 2 of run directories"),
    ("seed-0/nulls.json", fewer_nulls, "cannot be recomputed"),
    ("seed-0/wide.json", fewer_prompts, "cannot be recomputed"),
]


@pytest.mark.parametrize(("name", "change", "place"), MALFORMED, ids=lambda x: getattr(x, "__name__", None))
def test_a_malformed_file_is_a_fault_with_its_name(name, change, place, run_copy, call):
    path = run_copy / name
    if path.suffix == ".jsonl":
        edit_row(path, 0, change)
    else:
        edit(path, change)
    faults = verify(run_copy)
    assert any(place in fault for fault in faults), faults
    assert call("verify", run_copy)[0] == 1


# -- version 0.1 ------------------------------------------------------------------------------------------------------


def age(path: Path) -> None:
    """Make the results those of version 0.1: without reasons, and with sentences of another wording."""

    def older(results):
        results["environment"]["rhumbline"] = "0.1.0"
        results["warnings"] = ["mind the rows"]
        for part in (results, *results["seeds"]):
            del part["reasons"]
            part["sentence"] = "It was so."
            part["reason"] = "for this reason"

    edit(path / "results.json", older)
    seal(path)


def test_the_sentences_of_version_0_1_are_not_compared(run_copy, call):
    age(run_copy)
    note = "made by rhumbline 0.1.0: its sentences are not compared"
    assert check(run_copy) == ([], [note, NO_REPORT])
    code, _, messages = call("verify", run_copy)
    assert code == 0
    assert messages.startswith(f"{note} {NO_REPORT} Next:")


def test_the_numbers_of_version_0_1_are_compared(run_copy):
    age(run_copy)
    place = change_rate(run_copy)
    seal(run_copy)
    (fault,) = verify(run_copy)
    assert place in fault


@pytest.mark.parametrize("stated", ["0.1.0", "0.2.0", "9.0", None])
def test_the_stated_version_does_not_decide_whether_sentences_are_compared(stated, run_copy):
    # An environment that was not reinstalled states an older version than that of the code.
    edit(run_copy / "results.json", lambda results: results["environment"].update(rhumbline=stated))
    seal(run_copy)
    assert check(run_copy) == ([], [NO_REPORT])
    place = forge_a_sentence(run_copy)
    assert any(place in fault for fault in verify(run_copy))


@pytest.mark.parametrize("of_seed", [False, True])
def test_reasons_are_missing_everywhere_or_nowhere(of_seed, run_copy):
    def remove(results):
        del (results["seeds"][0] if of_seed else results)["reasons"]

    edit(run_copy / "results.json", remove)
    seal(run_copy)
    faults, notes = check(run_copy)
    assert any("reasons" in fault for fault in faults)
    assert notes == [NO_REPORT]


def test_responses_that_are_not_read_are_a_warning_once(tmp_path):
    run = read_summary(RunDirectory.read(make_run(tmp_path / "run", seeds=(0, 1))))
    seeds = [replace(seed, near_duplicates=NearDuplicates(5, 5, 3)) for seed in run.results.seeds]
    words = "3 responses of the contrast are not read"
    assert sum(text.startswith(words) for text in _warnings(run.context, seeds)) == 1
    assert not any("responses of the contrast" in text for text in _warnings(run.context, run.results.seeds))
