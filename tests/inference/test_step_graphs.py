"""Recorded decoding steps. No GPU is needed: a pretended recording runs the function of the step again."""

import logging

import pytest
import torch

from rhumbline.inference import decoding
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.inference.step_graphs import Replayed, can_record
from rhumbline.inference.windows import Window

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9], [8, 8, 2, 9, 5]]
DIRECTION = Direction.from_vector(torch.arange(1.0, 33.0), -1, 1)
ARMS = [
    BASELINE,
    Arm("ablation", (Ablate(DIRECTION, spared=1),)),
    Arm("addition", (Add(DIRECTION, 0.5),)),
    Arm("window", (Ablate(DIRECTION),), Window(start=2, stop=4)),
]


class Recordings:
    """Pretends to record: `replay` runs the function again, on the tensors that it was recorded with."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, run):
        self.recorded += 1
        box = torch.empty(0)

        def replay():
            self.replayed += 1
            logits = run()
            box.resize_(logits.shape).copy_(logits)

        return replay, box


def generate(chat_model, monkeypatch, record, **options):
    monkeypatch.setattr(decoding, "can_record", lambda model: record is not None)
    monkeypatch.setattr(decoding, "Replayed", lambda step: Replayed(step, record))
    monkeypatch.setattr(decoding, "RECORDED_WIDTH", 4)
    return Runner(chat_model).generate(PROMPTS, ARMS, max_new_tokens=12, **options)[0]


@pytest.mark.parametrize("stops", [False, True])
def test_recorded_steps_give_the_same_completions(family_model, monkeypatch, stops):
    """Over widths that grow, and with rows that end, so that slots are dropped and the step is recorded again."""
    chat_model = family_model("qwen2")
    free = generate(chat_model, monkeypatch, None)
    stop = {free[0][0][3], free[1][2][6]} if stops else set()
    plain = generate(chat_model, monkeypatch, None, stop=stop)
    recordings = Recordings()
    assert generate(chat_model, monkeypatch, recordings, stop=stop) == plain
    assert recordings.recorded >= 2
    assert recordings.replayed > recordings.recorded
    assert (len({len(text) for arm in plain for text in arm}) > 1) == stops


def test_a_step_is_recorded_the_second_time_that_its_key_is_given():
    total, recordings = torch.zeros(2), Recordings()

    def step(token, alive):
        total.add_(token * alive)
        return total[None].clone()

    replayed = Replayed(step, recordings)
    expected = torch.zeros(2)
    for key, token in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("a", 5), ("a", 6)]:
        given, alive = torch.tensor([token, token]), torch.tensor([True, False])
        expected += given * alive
        assert torch.equal(replayed(key, given, alive), expected[None])
    assert (recordings.recorded, recordings.replayed) == (2, 3)


def test_a_step_that_cannot_be_recorded_runs_as_before(caplog):
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    replayed = Replayed(lambda token, alive: token[None] * 2.0, refuse)
    with caplog.at_level(logging.WARNING):
        for token in (1, 2, 3):
            found = replayed("key", torch.tensor([token]), torch.tensor([True]))
            assert found.item() == 2 * token
    assert caplog.text.count("without CUDA graphs") == 1
    assert not replayed.is_recordable


def test_memory_that_runs_out_while_recording_is_reported():
    """The batch is then divided, as it is when memory runs out in a pass."""

    def refuse(run):
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    replayed = Replayed(lambda token, alive: token[None] * 1.0, refuse)
    replayed(0, torch.tensor([1]), torch.tensor([True]))
    with pytest.raises(torch.OutOfMemoryError):
        replayed(0, torch.tensor([1]), torch.tensor([True]))


def test_a_processor_records_nothing(family_model):
    assert not can_record(family_model("qwen2"))
