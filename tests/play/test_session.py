"""A session shows the completions of the runner, the projections of the hooks and the probability of the metric."""

import threading

import pytest
import torch

from rhumbline.errors import InputError
from rhumbline.inference.runner import Runner
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.organisms.planted import TRUTH
from rhumbline.play.directions import OWN
from rhumbline.play.session import End, Piece, Probabilities, TextsOfTokens, Tokens
from rhumbline.stages.finished_run import open_run


def texts_of(events, columns=2):
    pieces = [event for event in events if isinstance(event, Piece)]
    return ["".join(p.text for p in pieces if p.column == column) for column in range(columns)]


@pytest.mark.parametrize("changes", [{}, {"strength": 0.4}, {"strength": 0.0, "coefficient": -2.0}])
def test_the_streamed_text_is_that_of_the_runner(changes, session, prompt):
    settings = session.settings(max_new_tokens=12, **changes)
    _, arms = session.arms(settings)
    ids, _ = Runner(session.model).generate(
        [session.chat.encode(prompt)], arms, max_new_tokens=12, stop=stop_ids(session.model, session.chat)
    )
    events = list(session.stream(prompt, settings))
    assert texts_of(events) == [session.chat.text(row[0]) for row in ids]
    assert sorted(e.column for e in events if isinstance(e, End)) == [0, 1]


def test_projections_are_measured_and_vanish_under_ablation(session, prompt):
    settings = session.settings(max_new_tokens=3)
    direction, _ = session.arms(settings)
    ids = session.chat.encode(prompt)
    (_, h, _), *_ = Runner(session.model).residuals([ids], [-1], layers=[direction.layer])
    (tokens,) = [event for event in session.stream(prompt, settings) if isinstance(event, Tokens)]
    assert len(tokens.texts) == len(ids)
    expected = float(h[0, 0, 0].float() @ direction.vector) / direction.norm
    assert tokens.projections[0][-1] == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 1e-2
    assert session.spared == 1
    assert max(map(abs, tokens.projections[1][1:])) < 1e-4
    assert abs(tokens.projections[1][0]) > 1e-2


def test_the_probability_falls_under_ablation(session, prompt):
    settings = session.settings()
    (first, *_) = session.stream(prompt, settings)
    assert first == session.probabilities(prompt, settings)
    assert isinstance(first, Probabilities)
    baseline, edited = first.values
    assert baseline > 0.5 > edited


def test_every_layer_and_null_of_a_run_can_be_chosen(session, every_stage):
    run = open_run(every_stage)
    selected = run.direction()
    settings = session.settings()
    torch.testing.assert_close(session.arms(settings)[0].difference, selected.difference)
    names = session.choices.names
    assert names[0] == OWN
    assert "isotropic 0" in names
    for layer in session.choices.norms:
        own, null = (session.choices.direction(name, layer) for name in (OWN, "isotropic 0"))
        assert null.norm == pytest.approx(own.norm, rel=1e-4)
        assert own.layer == null.layer == layer


def test_a_file_and_no_direction_have_random_directions(opened, planted_folder, session, prompt):
    from_file = opened(direction=str(planted_folder / TRUTH), layer=2)
    assert from_file.settings().layer == 2
    assert next(from_file.stream(prompt, from_file.settings(max_new_tokens=1))) == Probabilities(None)
    random = opened(direction=None)
    assert OWN not in random.choices.names
    assert random.arms(random.settings())[0].norm == pytest.approx(random.choices.norms[random.choices.layer], rel=1e-4)


FAULTS = {
    "strength": [-0.1, 2.1, float("nan")],
    "coefficient": [float("inf"), float("nan"), 21.0],
    "layer": [-1, 99],
    "direction": ["", "isotropic 99"],
    "max_new_tokens": [0, 10**9],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FAULTS.items() for value in values])
def test_faulty_settings_are_refused_before_a_pass(name, value, session, prompt):
    with pytest.raises(InputError, match=name):
        session.stream(prompt, session.settings(**{name: value}))


@pytest.mark.parametrize("text", ["", "  ", "x" * 50_001, "<|im_end|>"])
def test_faulty_prompts_are_refused(text, session):
    for call in (session.stream, session.probabilities):
        with pytest.raises(InputError):
            call(text, session.settings())


def test_a_newer_stream_ends_an_older_one(session, prompt):
    settings = session.settings(max_new_tokens=40)
    older = session.stream(prompt, settings)
    next(older)
    number, newer = session._newest, []
    thread = threading.Thread(target=lambda: newer.extend(session.stream(prompt, settings)))
    thread.start()
    while session._newest == number:
        thread.join(0.01)
    rest = list(older)
    thread.join(30)
    assert [e.reason for e in rest if isinstance(e, End)] == ["replaced", "replaced"]
    assert len(texts_of(newer)[0]) > 0


def test_a_replaced_stream_runs_no_pass(session, prompt, monkeypatch):
    older = session.stream(prompt, session.settings())
    session.stream(prompt, session.settings())
    monkeypatch.setattr(type(session.model.model), "forward", None)
    assert list(older) == [End(0, "replaced"), End(1, "replaced")]


def test_a_column_ends_once(session, prompt):
    older = session.stream(prompt, session.settings(max_new_tokens=2))
    ends = []
    for event in older:
        if isinstance(event, End):
            ends.append(event.column)
            session.stream(prompt, session.settings())
    assert sorted(ends) == [0, 1]


def test_a_closed_stream_frees_the_model(session, prompt):
    stream = session.stream(prompt, session.settings())
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert not session._lock.locked()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in session.model.model.modules())


def test_a_character_of_several_tokens_is_shown_once():
    # Each id is one byte of UTF-8.
    texts = TextsOfTokens(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    shown = [texts.after(byte) for byte in "aé€".encode()]
    assert shown == ["a", "", "é", "", "", "€"]
    assert texts.after(0xE2) == ""
    assert texts.rest() == "\ufffd"
