"""Directions as they are read from a file."""

import torch

from rhumbline.edits.read_direction import ImportedDirections
from rhumbline.records.edit_file import DirectionOrigin
from rhumbline.records.positions import Position


def make_directions(layer: int = 2, rank: int = 1, width: int = 32, **origin) -> ImportedDirections:
    """Random vectors with norm about 3 sqrt(width)."""
    vectors = torch.randn(rank, width, generator=torch.Generator().manual_seed(4)) * 3
    origin = DirectionOrigin(**{"model_type": "llama", "n_layers": 4, **origin})
    return ImportedDirections(vectors, layer, Position(-1), "a file", origin)
