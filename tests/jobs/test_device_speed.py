"""The speed of a device, from products in the shapes of a model."""

from dataclasses import replace

import pytest
import torch

from rhumbline.jobs.device_speed import WeightShapes, measure


def test_a_device_is_timed_in_the_shapes_of_the_model():
    shapes = WeightShapes([(64, 32), (32, 64), (64, 32)], (256, 32))
    speed = measure(shapes, torch.float32, torch.device("cpu"))
    assert 0 < speed.prompt_token < speed.step < 1
    more = measure(replace(shapes, blocks=[*shapes.blocks] * 50), torch.float32, torch.device("cpu"))
    assert more.prompt_token > 5 * speed.prompt_token
    assert speed.seconds(100, 0) == pytest.approx(100 * speed.prompt_token)
    assert speed.seconds(0, 2 * speed.rows) == pytest.approx(2 * speed.step)
