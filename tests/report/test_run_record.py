"""Files that the report cannot read are refused by name."""

import json
import re

import pytest

from make_run import make_run
from rhumbline.cli import main
from rhumbline.errors import OutputError, ProtocolError
from rhumbline.report import build as report
from rhumbline.report.run_record import read_run


@pytest.mark.parametrize("name", ["results.json", "seed-1/selection.json", "seed-0/separation.json"])
def test_a_missing_file_is_named(tmp_path, name):
    (make_run(tmp_path, draws=2) / name).unlink()
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / name))):
        report.build(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_directory_without_a_protocol_is_refused(tmp_path):
    with pytest.raises(OutputError, match=rf"{re.escape(str(tmp_path))} is not a run directory: it has no protocol"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"verdict": 3}', "\udcff"])
def test_a_malformed_file_is_named(tmp_path, content):
    make_run(tmp_path, draws=2)
    (tmp_path / "results.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "results.json"))):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"),
    [
        ("results.json", ("seeds", 0, "arms", 1, "rate"), "high", r"got `str` - at `\$.seeds\[0\].arms\[1\].rate`"),
        ("results.json", ("seeds", 0, "arms", 1, "arm"), "null:x", r"arm 'null:x' is unknown"),
        ("results.json", ("verdict",), None, r"at `\$.verdict`"),
        ("seed-0/selection.json", ("candidates", 3, "position"), "last", r"at `\$.candidates\[3\].position`"),
        ("seed-0/separation.json", ("grid",), 3, r"Expected `array`, got `int` - at `\$.grid`"),
    ],
)
def test_a_faulty_field_is_named_and_the_command_exits_with_2(tmp_path, capsys, name, keys, value, message):
    path = make_run(tmp_path, draws=2) / name
    content = json.loads(path.read_text())
    *parents, last = keys
    record = content
    for key in parents:
        record = record[key]
    record[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(OutputError, match=message) as caught:
        read_run(tmp_path)
    assert str(path) in str(caught.value)
    assert main(["report", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_faulty_protocol_is_named(tmp_path):
    path = make_run(tmp_path, draws=2) / "protocol.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_new_tokens": "many"}))
    with pytest.raises(OutputError, match=r"protocol\.json.*got `str` - at `\$.max_new_tokens`"):
        read_run(tmp_path)


def test_files_of_two_runs_are_refused(tmp_path):
    make_run(tmp_path, draws=2)
    path = tmp_path / "seed-0" / "selection.json"
    path.write_text(path.read_text().replace('"protocol_sha256": "', '"protocol_sha256": "00'))
    with pytest.raises(ProtocolError, match="another protocol"):
        read_run(tmp_path)
