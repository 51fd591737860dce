import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline import decoding, running
from rhumbline.batching import CPU_TOKENS, LEAST_TOKENS, MOST_TOKENS
from rhumbline.errors import ModelError
from rhumbline.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.running import Runner

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9], [8, 8, 2, 9, 5]]


def completions(chat_model, budget, **options):
    direction = Direction.from_vector(torch.arange(1.0, 33.0), -1, 1)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),))]
    return Runner(chat_model, budget, **options).generate(PROMPTS, arms, max_new_tokens=8)[0]


def test_the_budget_changes_no_completion(family_model):
    chat_model = family_model("qwen2")
    assert completions(chat_model, 1) == completions(chat_model, 60) == completions(chat_model, 100_000)


def test_generation_equals_transformers_own(family_model):
    chat_model = family_model("llama")
    ours = Runner(chat_model).generate(PROMPTS, max_new_tokens=8)[0][0]
    for ids, text in zip(PROMPTS, ours, strict=True):
        theirs = chat_model.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        stops = chat_model.stop_tokens()
        cut = next((i for i, t in enumerate(theirs) if t in stops), len(theirs))
        assert text == theirs[:cut]


def test_a_stopped_row_leaves_and_the_others_go_on(family_model, monkeypatch):
    chat_model = family_model("qwen2")
    free = Runner(chat_model).generate(PROMPTS, max_new_tokens=8)[0][0]
    stop = free[0][2]
    monkeypatch.setattr(type(chat_model), "stop_tokens", lambda self: frozenset({stop}))
    stopped = Runner(chat_model).generate(PROMPTS, max_new_tokens=8)[0][0]
    for whole, text in zip(free, stopped, strict=True):
        assert text == (whole[: whole.index(stop)] if stop in whole else whole)
    assert stopped != free


@pytest.mark.parametrize("family", ["qwen2", "falcon_h1"])
def test_a_decided_row_ends_early_and_no_other_changes(family, family_model):
    chat_model = family_model(family)
    direction = Direction.from_vector(torch.arange(1.0, chat_model.d_model + 1), -1, 1)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),))]
    whole = Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=20)[0]
    asked = []

    def decided(arm, tokens):
        asked.append(arm)
        return arm == 1 and len(tokens) >= 8

    cut = Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=20, decided=decided)[0]
    assert cut[0] == whole[0]
    assert cut[1] == [text[:8] for text in whole[1]] != whole[1]
    assert set(asked) == {0, 1}


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(family_model, monkeypatch, caplog):
    chat_model = family_model("qwen2")
    expected = completions(chat_model, 100_000)
    real = decoding.packed_forward

    def small_memory(model, pack, n_arms, attention):
        if len(pack.lengths) * n_arms > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(model, pack, n_arms, attention)

    monkeypatch.setattr(decoding, "packed_forward", small_memory)
    ticks = []
    assert completions(chat_model, 100_000, tick=ticks.append) == expected
    assert sum(ticks) == 2 * len(PROMPTS)
    assert "blocks now hold" in caplog.text


def test_memory_too_small_for_one_prompt_is_an_error_that_helps(family_model, monkeypatch):
    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    monkeypatch.setattr(running, "packed_forward", no_memory)
    with pytest.raises(ModelError, match=r"single prompt.*dtype"):
        list(Runner(family_model("qwen2")).last_logits(PROMPTS))


def test_another_error_is_not_mistaken_for_memory(family_model, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(running, "packed_forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        list(Runner(family_model("qwen2")).last_logits(PROMPTS))


def test_models_that_padding_changes_are_batched_by_length(family_model):
    chat_model = family_model("qwen2")
    strict = replace(chat_model, proof=replace(chat_model.proof, unpadded=True))
    strict = replace(strict, proof=replace(strict.proof, packed=False))
    for block in Runner(strict).blocks([*PROMPTS, [1, 2, 3, 4]], 2):
        assert len({len([*PROMPTS, [1, 2, 3, 4]][p]) for p in block.prompts}) == 1
    assert completions(strict, 1000) == completions(chat_model, 1000)


def test_an_accelerators_budget_is_measured(family_model, monkeypatch):
    """A pretended device: 2 MiB for each pass, 1 GiB free."""
    chat_model = family_model("qwen2")
    assert running.measured_tokens(chat_model, PROMPTS[0]) == CPU_TOKENS
    monkeypatch.setattr(type(chat_model), "device", torch.device("cuda"))
    monkeypatch.setattr(Runner, "last_logits", lambda self, sequences: iter(sequences))
    memory = {"free": 2**30, "peak": 2 * 2**20}
    for name in ("reset_peak_memory", "allocated_memory"):
        monkeypatch.setattr(running, name, lambda device: 0)
    monkeypatch.setattr(running, "peak_memory", lambda device: memory["peak"])
    monkeypatch.setattr(running, "free_memory", lambda device: memory["free"])
    tokens = 1024 // len(PROMPTS[0]) * len(PROMPTS[0])
    assert running.measured_tokens(chat_model, PROMPTS[0]) == min(65536, int(2**29 / (2 * 2**20 / tokens)))
    memory["free"] = 2**22
    assert running.measured_tokens(chat_model, PROMPTS[0]) == LEAST_TOKENS
    memory |= {"free": 2**40}
    assert running.measured_tokens(chat_model, PROMPTS[0]) == MOST_TOKENS


@pytest.mark.parametrize("packed", [True, False])
def test_an_accelerator_decodes_as_many_rows_as_half_of_its_memory_caches(family_model, monkeypatch, packed):
    """A pretended device: 1 KiB more after each reading, and so much free that 100 tokens of that size are one half."""
    chat_model = family_model("qwen2")
    chat_model = replace(chat_model, proof=replace(chat_model.proof, packed=packed))
    longest, seen = max(map(len, PROMPTS)), []
    clock = itertools.count()
    room = 7 if packed else 0  # transformers' cache has no room beforehand
    monkeypatch.setattr(running, "allocated_memory", lambda device: 1024 * (longest + room) * next(clock))
    monkeypatch.setattr(running, "free_memory", lambda device: 2 * 1024 * 100)
    blocks = Runner.blocks
    monkeypatch.setattr(Runner, "blocks", lambda self, *given: seen.append(given[-1]) or blocks(self, *given))
    plain = Runner(chat_model).generate(PROMPTS, max_new_tokens=7)[0]
    monkeypatch.setattr(running, "is_processor", lambda device: False)
    assert Runner(chat_model).generate(PROMPTS, max_new_tokens=7)[0] == plain
    assert seen == [2 * CPU_TOKENS, 100]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    arms=st.integers(1, 9),
    extra=st.integers(1, 60),
    cached=st.integers(1, 600),
)
def test_blocks_hold_every_row_once_and_cache_no_more_than_they_may(family_model, lengths, arms, extra, cached):
    runner = Runner(family_model("qwen2"), tokens_per_forward=300)
    sequences = [[1] * n for n in lengths]
    found = list(runner.blocks(sequences, arms, extra, cached))
    rows = [(a, p) for block in found for a in block.arms for p in block.prompts]
    assert sorted(rows) == [(a, p) for a in range(arms) for p in range(len(lengths))]
    for block in found:
        n, longest = len(block.arms) * len(block.prompts), max(lengths[p] for p in block.prompts)
        assert n == 1 or (n * (longest + extra) <= cached and n * longest <= 300)
    assert len(list(runner.blocks(sequences, arms))) <= len(found)
