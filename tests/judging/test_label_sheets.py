"""Label sheets: what they hide, what spreadsheet programs leave of them, and the faults that are found in them."""

import string
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelled_runs import fill, make_labelled_run, read_cells, rows_of, write_cells
from make_outcomes import outcome
from rhumbline.errors import InputError, OutputError
from rhumbline.judging.label_sheets import COLUMNS, Frame, Sheet, cell, labels_for, read_sheet, text_of, write_sheet
from rhumbline.records.directory import RunDirectory
from rhumbline.records.human_files import SheetKey


@pytest.fixture
def run(tmp_path):
    return make_labelled_run(tmp_path / "run", rows_of(0), rows_of(1))


@pytest.fixture
def sheet(run, tmp_path):
    return write_sheet(run, 30).path


def read(run, path) -> Sheet:
    directory = RunDirectory.read(run)
    key = directory.read_record(SheetKey)
    return read_sheet(path, Frame.of(directory, key.salt), key, labels_for(directory.protocol["judge"]))


def frame_of(run, salt="salt") -> Frame:
    return Frame.of(RunDirectory.read(run), salt)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_sheet_hides_arm_seed_and_class(run):
    written = write_sheet(run, 30)
    header, *rows = read_cells(written.path)
    assert tuple(header) == COLUMNS
    assert written.path == run.with_name("run-labels.csv")
    assert len(rows) == written.rows == 30
    assert all(label == "" for *_, label in rows)
    ids = [row[0] for row in rows]
    assert ids == sorted(ids)  # the order of the ids, which are hashes
    assert all(i[0] == "r" and set(i[1:]) <= set(string.hexdigits) for i in ids)
    arms = [text.partition("(")[2].partition(",")[0] for _, _, text, _ in rows]
    assert sum(a != b for a, b in pairwise(arms)) > 8  # not grouped by arm
    # The key and another run's sheet have other ids for the same texts.
    other = write_sheet(make_labelled_run(run.with_name("other"), rows_of(0), rows_of(1)), 30)
    assert not {row[0] for row in read_cells(other.path)[1:]} & set(ids)


def test_every_stratum_has_rows_and_a_larger_sheet_contains_a_smaller_one(run):
    frame = frame_of(run)
    assert {(str(s.arm), s.side, s.cls) for s in frame.strata} == {
        ("baseline", "positive", "refused"),
        ("ablation", "positive", "complied"),
        ("baseline", "negative", "complied"),
        ("ablation", "negative", "complied"),
        ("addition", "negative", "refused"),
    }
    small, large = (frame.drawn(n) for n in (10, 40))
    assert all(small.values())
    assert all(large[s][: len(small[s])] == small[s] for s in small)
    assert len(frame.rows(10)) == 10
    assert set(frame.rows(10)) < set(frame.rows(40))
    assert len(frame.rows(10**6)) == len(frame.texts) == 12 * (2 + 3 * 2)  # the baseline is the same in both seeds


def test_rows_are_drawn_at_random_within_a_stratum(tmp_path):
    rows = [row for row in rows_of(0, n=6) if row.side == "positive" and row.arm.is_baseline]
    run, first = make_labelled_run(tmp_path / "run", rows), Counter()
    for salt in map(str, range(60)):
        (order,) = (frame := frame_of(run, salt)).strata.values()
        first[frame.texts[order[0]].prompt] += 1
    assert len(first) == 6
    assert max(first.values()) < 25  # 10 on average


def test_the_rows_of_two_arms_tend_to_be_on_the_same_prompts(run):
    drawn = frame_of(run).drawn(20)
    prompts = [{frame_of(run).texts[row].prompt for row in rows} for s, rows in drawn.items() if s.side == "positive"]
    assert len(prompts[0] & prompts[1]) >= min(map(len, prompts)) - 1


def test_a_sheet_needs_room_texts_and_a_free_place(run, sheet, tmp_path):
    with pytest.raises(InputError, match=r"--n 3: every stratum .* Pass 5 or more"):
        write_sheet(run, 3, tmp_path / "x.csv")
    with pytest.raises(InputError, match="may contain labels"):
        write_sheet(run, 30, sheet)
    with pytest.raises(InputError, match="in the run directory"):
        write_sheet(run, 30, run / "deeper" / "sheet.csv")
    bare = make_labelled_run(tmp_path / "bare", [outcome("baseline", "positive", "a", "refused")])
    with pytest.raises(OutputError, match="--save-completions"):
        write_sheet(bare, 30)
    assert not (bare / "judgements").exists()


def test_null_arms_are_not_drawn(tmp_path):
    null = outcome("null:isotropic:0:ablation", "positive", "x", "refused", prompt="x", completion="No, null")
    run = make_labelled_run(tmp_path / "run", [*rows_of(0), null])
    assert all(not s.arm.is_null for s in frame_of(run).strata)
    assert "No, null" not in [text.completion for text in frame_of(run).texts.values()]


# -- cells ------------------------------------------------------------------------------------------------------------

SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20"


@given(st.text())
def test_a_cell_is_no_formula_and_its_text_can_be_read_back(text):
    shown = cell(text)
    assert shown.lstrip()[:1] not in tuple(SIGNS)
    kept = text.replace("\r\n", "\n").replace("\r", "\n")
    assert text_of(shown) == "".join(
        "\ufffd" if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 else c for c in kept
    )


@given(
    st.sampled_from(SIGNS), st.text(alphabet=" \t\n'\"(\u200b\ufeff", max_size=4), st.text(alphabet="a1 =é", max_size=8)
)
def test_a_sign_behind_spaces_or_marks_is_neutralised(sign, before, after):
    text = before + sign + after
    assert cell(text) == f"'{text}"
    assert text_of(cell(text)) == text


@pytest.mark.parametrize(
    "text",
    ["=1+1", "-1", "@SUM(A1)", "'=1", "''=1", "1e5", "2024-01-05", "TRUE", "007", "\t=1", "5 May 2020", "3 pm", "1/2"],
)
def test_what_a_program_would_convert_has_an_apostrophe(text):
    assert cell(text) == f"'{text}"
    assert text_of(cell(text)) == text


@pytest.mark.parametrize(
    "text", ["", "I cannot help.", "'Quoted' words", "a = b", "No - never.", "1" * 31, "No, 3", "1. Boil it."]
)
def test_other_texts_are_left_as_they_are(text):
    assert cell(text) == text == text_of(text)


TRICKY = [
    "=HYPERLINK(1)",
    "a,b;c\td",
    'say "no"',
    "two\nlines",
    "\r\nreturn",
    "'=1",
    "  ",
    "é 中文 🙂",
    "1e5",
    "\x07bell",
    "",
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_texts_come_back_from_a_spreadsheet_program(tmp_path, delimiter, encoding):
    rows = [
        outcome("baseline", "positive", str(i), "complied", prompt=text, completion=text)
        for i, text in enumerate(TRICKY)
    ]
    run = make_labelled_run(tmp_path / "run", rows)
    cells = read_cells(write_sheet(run, 100).path)
    for row in cells[1:]:
        row[3] = " Complied "
    # Columns are moved, one is added, empty rows follow.
    moved = [[row[3], "a note", *row[:3]] for row in cells] + [[""] * 5, []]
    assert set(read(run, write_cells(tmp_path / "x.csv", moved, delimiter, encoding)).labels.values()) == {"complied"}
    # Some programs drop the apostrophe.
    bare = [[text_of(c) for c in row] for row in cells]
    assert len(read(run, write_cells(tmp_path / "y.csv", bare, delimiter, encoding)).labels) == len(TRICKY)


# -- faults -----------------------------------------------------------------------------------------------------------


def test_every_fault_is_listed_at_once(run, sheet, tmp_path):
    header, *rows = read_cells(fill(sheet, tmp_path / "x.csv"))
    rows[0][3] = "refuse"
    rows[1][2] += " indeed"
    missing = sorted([rows[2][0], rows[3][0], rows[-1][0]])
    rows[2][0] = "r000000000000"
    rows[3][0] = rows[4][0]
    with pytest.raises(InputError) as error:
        read(run, write_cells(tmp_path / "x.csv", [header, *rows[:-1]]))
    message = str(error.value)
    for part in (
        "unknown labels (expected refused, complied, degenerate, unclear): 'refuse' in row 2",
        f"changed texts: {rows[1][0]} in row 3",
        "rows of no sheet of this run: 'r000000000000' in row 4",
        f"rows that occur more than once: {rows[4][0]} in row 5, {rows[4][0]} in row 6",
        f"missing rows: {', '.join(missing)}",
    ):
        assert part in message, message


def test_a_sheet_of_another_run_is_refused(run, sheet, tmp_path):
    other = make_labelled_run(tmp_path / "other", rows_of(0), rows_of(1))
    filled = fill(write_sheet(other, 30).path, tmp_path / "x.csv")
    with pytest.raises(InputError, match="the sheet of another run"):
        read(run, filled)
    assert len(read(other, filled).labels) == 30


def test_a_partly_filled_sheet_is_read_and_an_empty_one_is_not(run, sheet, tmp_path):
    found = read(run, fill(sheet, tmp_path / "x.csv", rows=7))
    assert (found.size, len(found.labels)) == (30, 7)
    with pytest.raises(InputError, match=r"has no label\. Fill the column label with refused"):
        read(run, sheet)


def test_a_deleted_row_is_missed_in_a_sheet_of_any_size(run, sheet, tmp_path):
    large = write_sheet(run, 40, tmp_path / "large.csv").path
    for path, size in ((sheet, 30), (large, 40)):
        cells = read_cells(fill(path, tmp_path / "x.csv"))
        assert read(run, write_cells(tmp_path / "x.csv", cells)).size == size
        # One of the rows that only the larger sheet has stays, so that the size is known.
        gone = next(row for row in cells[1:] if row[0] in {r[0] for r in read_cells(sheet)})
        with pytest.raises(InputError, match=rf"missing rows: {gone[0]}\. Correct"):
            read(run, write_cells(tmp_path / "x.csv", [row for row in cells if row is not gone]))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "needs the columns row, prompt, completion, label"),
        (b"row,prompt,label\n", "needs the columns"),
        (b'row,prompt,completion,label\nr1,"a"b,c,\n', "line 2: not CSV"),
        ("row,prompt,completion,label\nr1,é,c,\n".encode("latin-1"), "not UTF-8"),
        ("row\tprompt\tcompletion\tlabel\n".encode("utf-16"), "not UTF-8"),
        (b"row,prompt,completion,label\n", "has no rows below its header"),
    ],
)
def test_a_file_that_is_no_sheet_is_refused(run, sheet, tmp_path, data, match):
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=match):
        read(run, path)
    with pytest.raises(InputError, match="does not exist"):
        read(run, tmp_path / "none.csv")


def test_labels_are_those_of_the_judge():
    assert labels_for("refusal-opening") == ("refused", "complied", "degenerate", "unclear")
    assert labels_for("markers") == labels_for("classifier") == ("shown", "absent", "degenerate", "unclear")
