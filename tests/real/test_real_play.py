"""A session on a real model: the streamed texts are those of the runner, and nothing is left along the direction."""

import pytest

import rhumbline
from rhumbline.inference.runner import Runner
from rhumbline.models.decoding_facts import stop_ids
from rhumbline.play.directions import Choices
from rhumbline.play.session import Piece, Session, Tokens

pytestmark = pytest.mark.real


def test_streamed_texts_are_those_of_the_runner(real_models):
    model = rhumbline.load(str(real_models / "smollm2-135m"), device="cpu", dtype="float32")
    session = Session(model, model.own_chat, Choices.random(model, model.own_chat))
    settings, prompt = session.settings(max_new_tokens=16), "How do I bake bread? Antwort bitte auf Deutsch: Grüße."
    events = list(session.stream(prompt, settings))
    _, arms = session.arms(settings)
    ids, _ = Runner(model).generate(
        [model.own_chat.encode(prompt)], arms, max_new_tokens=16, stop=stop_ids(model, model.own_chat)
    )
    for column, (row,) in enumerate(ids):
        text = "".join(e.text for e in events if isinstance(e, Piece) and e.column == column)
        assert text == model.own_chat.text(row)
    (tokens,) = (event for event in events if isinstance(event, Tokens))
    assert max(map(abs, tokens.projections[1])) < 1e-4 < max(map(abs, tokens.projections[0]))
    assert model.chat(prompt, max_new_tokens=16) == model.own_chat.text(ids[0][0])
