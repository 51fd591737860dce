"""The speed of a device, from products in the shapes of a model."""

from dataclasses import replace

import pytest
import torch

from rhumbline.jobs.device_speed import ROWS_OF_STEP, TOKENS_OF_PASS, DeviceSpeed, WeightShapes, measure


def test_a_device_is_timed_in_the_shapes_of_the_model():
    shapes = WeightShapes([(64, 32), (32, 64), (64, 32)], (256, 32), layers=0)
    speed = measure(shapes, torch.float32, torch.device("cpu"))
    assert 0 < speed.prompt_token < speed.step < 1
    more = measure(replace(shapes, blocks=[*shapes.blocks] * 50), torch.float32, torch.device("cpu"))
    assert more.prompt_token > 5 * speed.prompt_token
    assert speed.seconds(100, 0) == pytest.approx(100 * speed.prompt_token)
    assert speed.seconds(0, 2 * speed.rows) == pytest.approx(2 * speed.step)
    assert speed.seconds(0, 0, scored=3) == pytest.approx(3 * speed.scored_token)
    without_head = measure(replace(shapes, head=None), torch.float32, torch.device("cpu"))
    assert without_head.scored_token == 0 < speed.scored_token


def test_every_pass_and_every_step_takes_time_for_each_layer():
    speed = DeviceSpeed(0.0, 0.0, 192, 0.0, overhead=2.0)
    assert speed.seconds(10 * TOKENS_OF_PASS, 0) == pytest.approx(20)
    assert speed.seconds(0, 5 * ROWS_OF_STEP) == pytest.approx(10)
    shapes = WeightShapes([(8, 8)], None, layers=4)
    few, many = (measure(replace(shapes, layers=n), torch.float32, torch.device("cpu")) for n in (0, 40))
    assert few.overhead == 0 < many.overhead
