"""Human labels of a run: what they correct, several seeds and annotators, and what `verify` checks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from labelled_runs import fill, is_refusal, label, make_labelled_run, rows_of, write_cells
from make_outcomes import outcome
from rhumbline import verify
from rhumbline.errors import InputError, OutputError
from rhumbline.evidence import human_labels
from rhumbline.judging.label_results import apply_labels, recomputed
from rhumbline.judging.label_sheets import write_sheet
from rhumbline.records.directory import RunDirectory
from rhumbline.records.human_files import HumanLabels
from rhumbline.records.outcome_rows import NO_ANSWER


def blind_under(arm):
    """A judge that reads every completion of an arm as complied."""
    return lambda of, text: "complied" if of == arm else label("", text)


def labelled(run, tmp_path, n=60, annotator=label, rows=None, name="filled.csv") -> HumanLabels:
    sheet = write_sheet(run, n, tmp_path / f"empty-{name}").path
    return apply_labels(run, [fill(sheet, tmp_path / name, annotator, rows)])


def rate(record, arm, side="negative", seed=0, of="behaviour"):
    return next(r for r in record.rates if (r.seed, str(r.arm), r.side, r.of) == (seed, arm, side, of))


def effect(record, arm, side="negative", seed=0):
    return next(e for e in record.effects if (e.seed, str(e.arm), e.side) == (seed, arm, side))


def accuracy(record, arm):
    return next(a for a in record.accuracy if str(a.arm) == arm)


def test_a_judge_that_fails_under_an_intervention_is_found_and_corrected(tmp_path):
    run = make_labelled_run(tmp_path / "run", rows_of(0, judge=blind_under("addition")))
    record = labelled(run, tmp_path)
    assert accuracy(record, "baseline").sensitivity.value == accuracy(record, "baseline").specificity.value == 1
    assert accuracy(record, "addition").sensitivity.value == 0
    assert accuracy(record, "addition").specificity.value is None  # no completion without the behaviour
    blind = rate(record, "addition")
    assert (blind.judged.value, blind.corrected.value) == (0, 1)
    assert blind.corrected.low > blind.judged.high  # the judge's own interval excludes the truth
    induction = effect(record, "addition")
    assert induction.name == "induction"
    assert (induction.judged.value, induction.corrected.value) == (0, 1)
    assert induction.corrected.low > induction.judged.high
    fair = effect(record, "ablation", "positive")
    assert fair.name == "suppression"
    assert fair.judged.value == fair.corrected.value == 1
    assert effect(record, "ablation").name is None


def test_degenerate_completions_have_a_corrected_rate_too(tmp_path):
    run = make_labelled_run(tmp_path / "run", rows_of(0))
    record = labelled(run, tmp_path, annotator=lambda p, c: "degenerate" if "ablation" in c else label(p, c))
    broken = rate(record, "ablation", "positive", of="degenerate")
    assert (broken.judged.value, broken.corrected.value) == (0, 1)
    assert rate(record, "ablation", "positive").corrected.value == 0
    assert rate(record, "baseline", of="degenerate").corrected.value == 0


def test_seeds_share_labels_and_are_pooled_over_prompts(tmp_path):
    run = make_labelled_run(tmp_path / "run", rows_of(0), rows_of(1))
    record = labelled(run, tmp_path, n=1000)
    assert {r.seed for r in record.rates} == {0, 1, None}
    assert rate(record, "baseline", seed=None).corrected.n == 12  # each prompt once
    # The baseline is the same in both seeds, and the other arms are not.
    assert rate(record, "baseline", seed=0).corrected.labelled == 12
    assert rate(record, "addition", seed=0).corrected.labelled == 24
    one, both = (effect(record, "addition", seed=seed) for seed in (0, None))
    assert one.judged.n == both.judged.n == both.corrected.n == 12
    assert one.judged.value == both.judged.value == both.corrected.value == 1


def test_a_completion_that_the_judge_cannot_score_has_a_corrected_rate(tmp_path):
    rows = [
        outcome("baseline", "positive", str(i), "unscored" if i < 5 else "refused", prompt=str(i), completion=f"No {i}")
        for i in range(10)
    ]
    record = labelled(make_labelled_run(tmp_path / "run", rows), tmp_path)
    found = rate(record, "baseline", "positive")
    assert (found.judged.n, found.corrected.n, found.corrected.value) == (5, 10, 1)
    assert accuracy(record, "baseline").sensitivity.n == 5


def test_a_completion_without_an_answer_is_not_labelled(tmp_path):
    """A think block that was cut off: no rate counts it, so no person has to read it."""
    rows = [
        outcome(
            *("baseline", "positive", str(i), "unscored" if i < 5 else "refused"),
            evidence=NO_ANSWER if i < 5 else "", prompt=str(i), completion=f"No {i}",
        )
        for i in range(10)
    ]  # fmt: skip
    record = labelled(make_labelled_run(tmp_path / "run", rows), tmp_path)
    assert record.sheets[0].rows == 5
    found = rate(record, "baseline", "positive")
    assert (found.judged.n, found.corrected.n, found.corrected.labelled) == (5, 5, 5)


def test_an_arm_in_a_language_that_the_judge_does_not_cover_has_a_corrected_rate_only(tmp_path):
    def rows(n_uncovered):
        return [
            outcome(
                *("baseline", "positive", str(i), "unscored" if i < n_uncovered else "complied"),
                uncovered="zh" if i < n_uncovered else None, prompt=str(i), completion=f"No {i}",
            )
            for i in range(10)
        ]  # fmt: skip

    most = labelled(make_labelled_run(tmp_path / "most", rows(6)), tmp_path, name="most.csv")
    found = rate(most, "baseline", "positive")
    assert (found.judged.value, found.corrected.n, found.corrected.value) == (None, 10, 1)
    assert accuracy(most, "baseline").sensitivity.value is None
    some = labelled(make_labelled_run(tmp_path / "some", rows(4)), tmp_path, name="some.csv")
    found = rate(some, "baseline", "positive")
    assert (found.judged.value, found.judged.n, found.corrected.value) == (0, 6, 1)
    assert accuracy(some, "baseline").sensitivity.value == 0


def test_a_partly_filled_sheet_reports_what_it_can_and_which_rows_it_needs(tmp_path):
    run = make_labelled_run(tmp_path / "run", rows_of(0))
    sheet = write_sheet(run, 40, tmp_path / "empty.csv").path
    record = apply_labels(run, [fill(sheet, tmp_path / "some.csv", rows=3)])
    assert (record.sheets[0].rows, record.sheets[0].labelled) == (40, 3)
    assert record.needed
    unmeasured = [r for r in record.rates if r.corrected.value is None]
    assert unmeasured
    assert all(r.corrected.low is None and r.judged.value is not None for r in unmeasured)
    more = apply_labels(run, [tmp_path / "some.csv", fill_rows(sheet, tmp_path / "more.csv", record.needed)])
    assert more.needed == ()
    assert all(r.corrected.value is not None for r in more.rates)


def fill_rows(sheet, into, rows):
    from labelled_runs import read_cells

    header, *cells = read_cells(sheet)
    for row in cells:
        row[3] = label(row[1], row[2]) if row[0] in rows else ""
    return write_cells(into, [header, *cells])


def test_two_annotators_are_compared_and_counted_in_fractions(tmp_path):
    run = make_labelled_run(tmp_path / "run", rows_of(0))
    sheet = write_sheet(run, 1000, tmp_path / "empty.csv").path
    one = fill(sheet, tmp_path / "ann.csv")
    other = fill(sheet, tmp_path / "bob.csv", lambda p, c: "unclear" if "11" in c else "refused")
    record = apply_labels(run, [one, other])
    (pair,) = record.agreement
    assert pair.judges == ("ann.csv", "bob.csv")
    assert pair.n == 60 - 5
    refused = sum(is_refusal(row.completion or "") and "11" not in (row.completion or "") for row in rows_of(0))
    assert pair.agreement == pytest.approx(refused / pair.n)
    assert [s.unclear for s in record.sheets] == [0, 5]
    # Eleven rows with half a refusal each, and one with half a label.
    assert rate(record, "ablation", "positive").corrected.value == pytest.approx(5.5 / 11.5)
    assert apply_labels(run, [one]).agreement == ()
    assert not (run / "judgements" / "labels-2.csv").exists()  # no copy is left of a sheet that was not passed
    with pytest.raises(InputError, match=r"named ann\.csv"):
        apply_labels(run, [one, one])


def test_sheets_of_two_sizes_complete_each_other(tmp_path):
    run = make_labelled_run(tmp_path / "run", rows_of(0))
    small = fill(write_sheet(run, 20, tmp_path / "a.csv").path, tmp_path / "small.csv")
    large = write_sheet(run, 40, tmp_path / "b.csv").path
    rest = fill(large, tmp_path / "rest.csv", rows=35)
    record = apply_labels(run, [small, rest])
    assert [s.rows for s in record.sheets] == [20, 40]
    assert (
        accuracy(record, "baseline").sensitivity.labelled > apply_labels(run, [small]).accuracy[0].sensitivity.labelled
    )


def test_a_run_without_a_sheet_or_without_texts_says_what_to_do(tmp_path):
    run = make_labelled_run(tmp_path / "run", rows_of(0))
    filled = fill(write_sheet(run, 20, tmp_path / "a.csv").path, tmp_path / "filled.csv")
    with pytest.raises(InputError, match="Write one with `rhumbline label"):
        apply_labels(make_labelled_run(tmp_path / "other", rows_of(0)), [filled])
    (run / "seed-0" / "outcomes.jsonl").unlink()
    with pytest.raises(OutputError, match=r"outcomes\.jsonl is missing"):
        apply_labels(run, [filled])


def test_a_continuous_score_is_compared_by_its_class(tmp_path):
    rows = [
        outcome("baseline", "positive", str(i), "shown" if i else "absent", score=0.1, prompt="p", completion=str(i))
        for i in range(8)
    ]
    run = make_labelled_run(tmp_path / "run", rows, judge="markers")
    record = labelled(run, tmp_path, annotator=lambda p, c: "shown")
    assert rate(record, "baseline", "positive").corrected.value == 1
    assert accuracy(record, "baseline").sensitivity.value == pytest.approx(7 / 8)
    with pytest.raises(InputError, match=r"unknown labels .expected shown, absent"):
        labelled(run, tmp_path, annotator=lambda p, c: "refused", name="other.csv")


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(texts_run, tmp_path) -> Path:
    return Path(shutil.copytree(texts_run, tmp_path / "run"))


def cannot(prompt, completion):
    return "refused" if "cannot" in completion else "complied"


def test_verify_recomputes_what_follows_from_labels(kept, tmp_path):
    assert verify(kept) == []
    record = labelled(kept, tmp_path, n=40, annotator=cannot)
    directory = RunDirectory.read(kept)
    assert recomputed(directory) == record == directory.read_record(HumanLabels)
    assert verify(kept) == []
    path = kept / "judgements" / "human.json"
    value = json.loads(path.read_text())
    value["rates"][0]["corrected"]["value"] = 0.123
    path.write_text(json.dumps(value))
    (fault,) = verify(kept)
    assert "human.json: rates[baseline/positive]: corrected: value is 0.123" in fault
    directory.write_record(record)
    copy = kept / "judgements" / "labels-1.csv"
    copy.write_bytes(copy.read_bytes().replace(b"refused", b"complied", 1))
    assert any("human.json" in fault for fault in verify(kept))
    copy.unlink()
    assert any("labels-1.csv does not exist" in fault for fault in verify(kept))


def test_labels_change_no_file_of_the_run(kept, tmp_path):
    before = RunDirectory.read(kept).manifest()
    labelled(kept, tmp_path, n=40, annotator=cannot)
    assert RunDirectory.read(kept).manifest() == before


@pytest.mark.slow
def test_intervals_cover_from_sheet_to_record(tmp_path, monkeypatch):
    """Sheets that are drawn, filled and read: two seeds, a judge that errs more under intervention."""
    monkeypatch.setattr(human_labels, "DRAWS", 1000)
    rng, covered, runs = np.random.default_rng(0), {"rate": [], "effect": []}, 150
    truth = {"baseline": 0.9, "ablation": 0.3}
    error = {"baseline": 0.05, "ablation": 0.25}

    def seed_rows(seed):
        rows = []
        for i in range(60):
            u = rng.random()
            for arm in truth:
                refuses = u < truth[arm]
                judged = refuses ^ (rng.random() < error[arm])
                text, cls = f"{'No' if refuses else 'Yes'} {arm} {seed} {i}", "refused" if judged else "complied"
                rows.append(outcome(arm, "positive", f"{seed}-{i}", cls, prompt=f"{seed}-{i}", completion=text))
        return rows

    for k in range(runs):
        run = make_labelled_run(tmp_path / str(k), seed_rows(0), seed_rows(1))
        record = labelled(run, tmp_path, n=40, name=f"{k}.csv")
        for seed in (0, 1, None):
            for arm in truth:
                found = rate(record, arm, "positive", seed).corrected
                covered["rate"].append(found.low <= truth[arm] <= found.high)
            change = effect(record, "ablation", "positive", seed).corrected
            covered["effect"].append(change.low <= 0.6 <= change.high)
    assert all(np.mean(found) >= 0.92 for found in covered.values()), {k: np.mean(v) for k, v in covered.items()}
