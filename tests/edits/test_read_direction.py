"""Directions of runs and of other tools; files that could execute code are not opened."""

import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from finished_runs import COMPLETIONS
from rhumbline import selected_direction
from rhumbline.edits.read_direction import read_directions
from rhumbline.errors import DirectionError, ModelError
from rhumbline.inference.direction_files import FORMAT
from rhumbline.models.weight_files import stored_tensors
from rhumbline.records.positions import Position


@pytest.fixture
def organism_run(finished):
    """A run of the embedded organism."""
    return finished("refusal", COMPLETIONS)


def test_directions_of_the_paper_and_of_a_run_can_be_read(organism_run, tmp_path):
    selected = selected_direction(organism_run)
    torch.save(selected.difference, tmp_path / "direction.pt")
    torch.save(torch.arange(2 * 3 * 4.0).reshape(2, 3, 4), tmp_path / "mean_diffs.pt")
    assert torch.equal(read_directions(tmp_path / "direction.pt").vectors[0], selected.difference)
    table = read_directions(tmp_path / "mean_diffs.pt", layer=1, position=-1)
    assert table.vectors.tolist() == [[16, 17, 18, 19]]
    assert (table.layer, table.position) == (1, Position(-1))
    candidates = organism_run / "seed-0" / "directions.safetensors"
    again = read_directions(candidates, layer=selected.layer, position=selected.position)
    torch.testing.assert_close(again.vectors[0], selected.difference)
    whole = read_directions(organism_run)
    torch.testing.assert_close(whole.direction().vector, selected.vector)
    assert whole.origin.verdict


class Payload:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_pickle_that_executes_code_is_not_opened(tmp_path, call, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"direction": Payload()}, tmp_path / "direction.pt")
    code, _, messages = call("edit", checkpoint(), "--direction", tmp_path / "direction.pt", "--out", tmp_path / "e")
    assert code == 2
    assert "not opened" in messages
    assert not os.path.exists("executed")


@pytest.mark.parametrize(("layer", "position"), [(None, -1), (1, None), (3, -1), (1, 0), (1, -3)])
def test_a_table_of_directions_needs_a_position_and_a_layer_in_it(layer, position, tmp_path):
    torch.save(torch.ones(2, 3, 4), tmp_path / "mean_diffs.pt")
    with pytest.raises(DirectionError, match=r"Pass --position \(-2 .. -1\) and --layer \(0 .. 2\)"):
        read_directions(tmp_path / "mean_diffs.pt", layer=layer, position=position)


def test_the_rows_of_a_run_are_found_by_their_positions(tmp_path):
    path, rows = tmp_path / "directions.safetensors", torch.arange(1.0, 25.0).reshape(3, 2, 4)
    save_file({"candidates": rows}, path, {"positions": "[-7, 1, 2]"})
    for row, position in enumerate((-7, 1, 2)):
        assert torch.equal(read_directions(path, layer=1, position=position).vectors[0], rows[row, 1])
    for unknown in (-1, -3, 0, None):
        with pytest.raises(DirectionError, match=r"Pass --position \(-7, 1, 2\)"):
            read_directions(path, layer=1, position=unknown)
    for malformed in ("[-7, 1]", "[1, 1, 2]", "last", "[99999999999, 1, 2]"):
        save_file({"candidates": rows}, path, {"positions": malformed})
        with pytest.raises(DirectionError, match=r"positions is .* in the metadata"):
            read_directions(path, layer=1, position=1)


def test_malformed_metadata_is_refused(tmp_path):
    save_file({"direction": torch.ones(4)}, tmp_path / "d.safetensors", {"format": FORMAT, "layer": "two"})
    with pytest.raises(DirectionError, match="layer is 'two' in the metadata"):
        read_directions(tmp_path / "d.safetensors")


def test_a_compressed_archive_is_not_inflated(tmp_path):
    path = tmp_path / "direction.pt"
    torch.save(torch.ones(2**20), path)
    assert read_directions(path).vectors.shape == (1, 2**20)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, data)
    with pytest.raises(DirectionError, match="not compressed"):
        read_directions(path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not compressed"):
        stored_tensors(tmp_path)


@pytest.mark.filterwarnings("error")
def test_wide_numbers_are_read_without_a_warning(tmp_path):
    path = tmp_path / "r.npy"
    np.save(path, np.full(4, 2, dtype=np.longdouble))
    assert read_directions(path).vectors.tolist() == [[2, 2, 2, 2]]
    np.save(path, np.full(4, np.longdouble("1e4000")))
    with pytest.raises(DirectionError, match="NaN or infinite"):
        read_directions(path)
