"""Sequences beyond the positions of a model, token ids beyond its embedding, and padding inside it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch import nn

from rhumbline.errors import InputError, ModelError
from rhumbline.inference.documents import log_likelihoods
from rhumbline.inference.runner import Runner
from rhumbline.models.sequence_limits import check_sequences, most_positions, vocabulary


@pytest.fixture
def model_of(family_model):
    """A model with this config and, besides the embedding of tokens, these tables."""
    return lambda config, *tables: replace(family_model("llama"), model=_inner(config, tables), name="tiny")


def _inner(config, tables):
    config.get_text_config = lambda: config
    parts = [nn.Embedding(50, 4), *(nn.Embedding(rows, 4) for rows in tables)]
    inner = nn.ModuleList(parts)
    inner.config, inner.get_input_embeddings = config, lambda: parts[0]
    return inner


@pytest.mark.parametrize(
    ("fields", "tables", "expected"),
    [
        ({"max_position_embeddings": 64}, (), 64),
        ({"max_position_embeddings": 64, "sliding_window": 16}, (), 64),
        ({"max_position_embeddings": 64}, (66,), 64),
        # A scaled rotary embedding: the config states the context before or after the scaling.
        (
            {"max_position_embeddings": 64, "rope_scaling": {"factor": 4, "original_max_position_embeddings": 64}},
            (),
            256,
        ),
        (
            {"max_position_embeddings": 256, "rope_scaling": {"factor": 4, "original_max_position_embeddings": 64}},
            (),
            256,
        ),
        ({"max_position_embeddings": 64, "rope_scaling": None}, (), 64),
        # Without a stated limit: a table of positions, or none.
        ({"n_positions": 32}, (32,), 32),
        ({"max_seq_len": 32}, (34,), 32),
        ({"max_seq_len": 32}, (), None),
        ({}, (32,), None),
    ],
)
def test_the_longest_sequence(model_of, fields, tables, expected):
    assert most_positions(model_of(SimpleNamespace(**fields), *tables)) == expected


def test_long_sequences_are_named_with_their_lengths(model_of):
    model = model_of(SimpleNamespace(max_position_embeddings=16))
    sequences = {"short": [1] * 8, "long": [1] * 12, "longer": [1] * 13}
    check_sequences(model, sequences)
    check_sequences(model, sequences, 3)
    message = r"16 positions, and some prompts and 5 new tokens .* \(2\): long \(12 tokens\), longer \(13 tokens\)\. "
    with pytest.raises(InputError, match=message + r"Use shorter prompts, or at most 3 new tokens"):
        check_sequences(model, sequences, 5)
    with pytest.raises(InputError, match=r"some texts need more \(1\): only \(17 tokens\)\. Use shorter texts\."):
        check_sequences(model, {"only": [1] * 17}, what="texts")
    check_sequences(model_of(SimpleNamespace()), {"any": [1] * 10_000}, 10_000)


def test_ids_beyond_the_embedding_are_named(model_of):
    model = model_of(SimpleNamespace())
    check_sequences(model, {"last": [0, 49]})
    with pytest.raises(ModelError, match=r"50 rows, and some prompts .* \(2\): a \(id 50\), b \(id -1\)"):
        check_sequences(model, {"a": [1, 50], "b": [-1, 3], "c": [4]})


def test_every_pass_checks_its_sequences(family_model):
    model = family_model("llama")
    runner, rows = Runner(model), vocabulary(model)
    long, outside = [[1] * (most_positions(model) + 1)], [[1, rows]]
    for sequences, error in ((long, InputError), (outside, ModelError)):
        for call in (
            lambda s: list(runner.last_logits(s)),
            lambda s: list(runner.residuals(s, [-1])),
            lambda s: runner.generate(s, max_new_tokens=1),
            lambda s: runner.resumed_readings(s, {0: []}, lambda logits: logits[:, 0]),
            lambda s: log_likelihoods(runner, s, [[1]]),
        ):
            with pytest.raises(error, match="number 0"):
                call(sequences)
    fitting = [[1] * (most_positions(model) - 2)]
    assert len(runner.generate(fitting, max_new_tokens=2)[0][0]) == 1
    with pytest.raises(InputError, match="at most 2 new tokens"):
        runner.generate(fitting, max_new_tokens=3)


def test_padding_is_inside_the_embedding(family_model):
    model = family_model("llama")
    rows = vocabulary(model)

    def padding(**fields):
        tokenizer = SimpleNamespace(**{"pad_token_id": None, "eos_token_id": None, **fields})
        return replace(model, tokenizer=tokenizer).pad_token

    assert padding(pad_token_id=3) == 3
    assert padding(pad_token_id=rows) < rows
    assert padding(eos_token_id=rows + 5) < rows
    assert padding() < rows
