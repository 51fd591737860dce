"""An option that is not given leaves the field to the preset and to the experiment file."""

import argparse

import pytest

from rhumbline.cli import parser
from rhumbline.cli.option_values import protocol_of
from rhumbline.presets.protocols import PRESETS, preset

SWITCHES = {"full_grid": "--full-grid", "early_stop": "--early-stop", "save_completions": "--save-completions"}


def parsed(*options: str) -> argparse.Namespace:
    return parser().parse_args(["run", "organism:refusal", "--out", "RUN", *options])


@pytest.mark.parametrize("name", PRESETS)
def test_without_options_the_protocol_is_the_preset(name):
    assert protocol_of(parsed("--preset", name)) == preset(name)


@pytest.mark.parametrize("field", SWITCHES)
def test_a_switch_sets_its_field_and_its_absence_keeps_that_of_the_file(field, tmp_path):
    judge = "refusal-anywhere-literal"  # an early stop needs a class that is certain before the end
    config = tmp_path / "experiment.toml"
    config.write_text(f'judge = "{judge}"\n{field} = true\n')
    assert not getattr(protocol_of(parsed()), field)
    assert getattr(protocol_of(parsed("--judge", judge, SWITCHES[field])), field) is True
    assert getattr(protocol_of(parsed("--config", str(config))), field) is True


ENDPOINT = 'asks = "refusal"\nform = "endpoint"\nmodel = "m"\nurl = "http://127.0.0.1:9/v1"\ntemplate = "{response}"\n'


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("run organism:refusal --plan --json --expect NO-BASELINE-REFUSAL", "--json, --expect"),
        ("reproduce --list --dry-run --out RUN", "--dry-run, --out"),
        ("reproduce qwen-1.8b --dry-run --sizes 1,2,3 --device cpu --save-completions", "--sizes, --save-completions"),
        ("judge RUN --judge endpoint.toml --device cpu --dtype float32", "--device, --dtype"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(line, refused, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "endpoint.toml").write_text(f'{ENDPOINT}answers = {{yes = "refused", no = "complied"}}\n')
    code, out, messages = call(*line.split())
    assert (code, out) == (2, "")
    assert f"has no use for {refused}" in messages
