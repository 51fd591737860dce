"""Directions as files: what is saved is read back, and faulty files are refused."""

import pytest
import torch
from safetensors.torch import save_file

from finished_runs import EVERY_STAGE
from rhumbline.edits.export import export
from rhumbline.edits.read_direction import read_directions
from rhumbline.errors import DirectionError, OutputError
from rhumbline.inference.direction_files import FORMAT, NUMBERS, TEXTS, read_safetensors, write_directions
from rhumbline.inference.interventions import Direction
from rhumbline.records.edit_file import DirectionOrigin
from rhumbline.records.positions import FURTHEST, Position
from rhumbline.stages.finished_run import open_run

DIRECTION = Direction.from_vector(torch.arange(1.0, 9.0), -2, 3)


def same(a, b):
    assert (a.position, a.layer) == (b.position, b.layer)
    torch.testing.assert_close(a.difference, b.difference)


def test_a_saved_direction_is_loaded(tmp_path):
    DIRECTION.save(tmp_path / "r.safetensors")
    same(Direction.load(tmp_path / "r.safetensors"), DIRECTION)
    same(read_directions(tmp_path / "r.safetensors").direction(), DIRECTION)
    DIRECTION.save(tmp_path / "r.safetensors")  # a cell of a notebook runs again


@pytest.mark.parametrize("name", ["r.pt", "r"])
def test_only_safetensors_are_written(name, tmp_path):
    with pytest.raises(OutputError, match=r"saved as \.safetensors"):
        DIRECTION.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_files_without_a_layer_or_with_several_vectors_are_refused(tmp_path):
    path = tmp_path / "r.safetensors"
    with pytest.raises(DirectionError, match="no such file"):
        Direction.load(path)
    save_file({"direction": torch.ones(4)}, path)
    with pytest.raises(DirectionError, match="read_directions"):
        Direction.load(path)
    save_file({"direction": torch.ones(2, 4)}, path, {"format": "rhumbline-direction-1", "layer": "1"})
    with pytest.raises(DirectionError, match="read_directions"):
        Direction.load(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DirectionError, match="complete"):
        Direction.load(path)


def test_the_direction_of_a_run_is_its_selected_one(every_stage, tmp_path):
    for seed in EVERY_STAGE.seeds:
        same(Direction.from_run(every_stage, seed), open_run(every_stage).direction(seed))
    same(Direction.from_run(every_stage), open_run(every_stage).direction(EVERY_STAGE.seeds[0]))
    with pytest.raises(DirectionError, match="has no seed 77"):
        Direction.from_run(every_stage, 77)
    with pytest.raises(OutputError, match="not a run directory"):
        Direction.from_run(tmp_path)
    export(read_directions(every_stage), "direction", tmp_path / "r.safetensors")
    same(Direction.load(tmp_path / "r.safetensors"), Direction.from_run(every_stage))


def test_a_direction_is_shown_in_one_line():
    assert repr(DIRECTION) == "Direction(width 8, norm 14.28, position -2, layer 3)"


def test_the_same_direction_gives_the_same_bytes(tmp_path):
    for name in "ab":
        DIRECTION.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("position", [-1, -40, 0, 9, FURTHEST])
def test_every_position_is_read_again(position, tmp_path):
    Direction.from_vector(torch.ones(8), position, 3).save(tmp_path / "r.safetensors")
    assert Direction.load(tmp_path / "r.safetensors").position == Position(position)


@pytest.mark.parametrize("text", ["-0", "007", "+1", "1e3", " 1", "\u0661", str(FURTHEST + 1), str(-FURTHEST - 1)])
def test_what_is_no_position_is_refused(text, tmp_path):
    path = tmp_path / "r.safetensors"
    save_file({"direction": torch.ones(8)}, path, {"format": FORMAT, "layer": "1", "position": text})
    with pytest.raises(DirectionError, match=r"position is .* expected a whole number"):
        Direction.load(path)


def test_another_version_of_the_format_is_refused_and_another_tool_is_not(tmp_path):
    path = tmp_path / "r.safetensors"
    save_file({"direction": torch.ones(8)}, path, {"format": "rhumbline-direction-2", "layer": "1"})
    with pytest.raises(DirectionError, match=r"format 'rhumbline-direction-2'.* reads 'rhumbline-direction-1'"):
        read_directions(path, layer=1)
    save_file({"direction": torch.ones(8)}, path, {"format": "pt", "layer": "x"})
    assert read_directions(path, layer=1).direction().layer == 1


def test_every_field_of_the_origin_is_read_again(tmp_path):
    path = tmp_path / "r.safetensors"
    fields = {name: f"a {name}" for name in TEXTS} | {name: 2 for name in NUMBERS}
    fields |= {"added_at": "prompt", "coefficient": 1.3}
    assert {*fields, "sha256"} == {*DirectionOrigin.__struct_fields__}
    write_directions(path, torch.ones(1, 8), 1, None, DirectionOrigin(**fields))
    found = read_safetensors(path).origin
    assert {name: getattr(found, name) for name in fields} == fields
    assert "spare the first 2 tokens" in found.caveats[0]


@pytest.mark.parametrize(("name", "text"), [("added_at", "end"), ("coefficient", "nan"), ("coefficient", "much")])
def test_an_addition_that_no_run_makes_is_refused(name, text, tmp_path):
    path = tmp_path / "r.safetensors"
    save_file({"direction": torch.ones(8)}, path, {"format": FORMAT, "layer": "1", name: text})
    with pytest.raises(DirectionError, match=f"{name} is '{text}' in the metadata"):
        Direction.load(path)
